#!/usr/bin/env bash
# Builds the packages of the clients into target/packages.
#   scripts/package.sh                      all of them
#   scripts/package.sh python | typescript | rust  one of them
set -euo pipefail
cd "$(dirname "$0")/.."
out=$PWD/target/packages
mkdir -p "$out"

# A wheel and an sdist: needs Python 3.10 or newer with venv. The wheel is tried in an environment of its own.
python() {
  scripts/clients-python.sh pack "$out"
}

# An npm package, with types: needs Node 20 or newer and npm.
typescript() {
  rm -f "$out"/stage0-client-*.tgz
  scripts/clients-typescript.sh pack "$out"
}

# The crates of the Rust client, without a lock file: until its dependencies are published, there is none to make.
rust() {
  local crates=(-p stage0-contract -p stage0-secret-file -p stage0-client)
  cargo package "${crates[@]}" --no-verify --allow-dirty --exclude-lockfile --target-dir "$out/cargo"
  mv "$out"/cargo/package/*.crate "$out"
}

[ $# -gt 0 ] || set -- python typescript rust
for client in "$@"; do
  case $client in
    python | typescript | rust) "$client" ;;
    *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
  esac
done
