#!/usr/bin/env bash
# Tests and builds the Python client (clients/python). Needs Python 3.10 or newer with venv, and a package index the
# first time; without them it fails. Everything is installed below .tools.
# The tests run against `stage0 dev` of the binary in STAGE0_BIN (default: target/debug/stage0).
#   scripts/clients-python.sh            lints, types and tests
#   scripts/clients-python.sh examples   the examples, with the agent libraries that they are for
#   scripts/clients-python.sh pack DIR   writes the wheel and the sdist into DIR, and tries the wheel
# PYTHON names the interpreter (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
mode=${1:-test}
python=${PYTHON:-python3}
export PYTHONDONTWRITEBYTECODE=1 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
  echo "clients-python: $*" >&2
  exit 1
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || fail "$python is not Python 3.10 or newer"
venv=$root/.tools/clients-python-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# DIRECTORY REQUIREMENTS…: a virtual environment with them and the client, unless it was made already.
environment() {
  local directory=$1 stamp="$1/stage0-installed"
  shift
  if cat "$@" clients/python/pyproject.toml | cmp -s - "$stamp"; then return; fi
  "$python" -m venv --clear "$directory" || fail "$python cannot make a virtual environment: install its venv module"
  "$directory/bin/pip" install --quiet "${@/#/--requirement=}"
  "$directory/bin/pip" install --quiet --no-build-isolation --no-deps --editable clients/python
  cat "$@" clients/python/pyproject.toml > "$stamp"
}

server() {
  export STAGE0_BIN=${STAGE0_BIN:-$root/target/debug/stage0}
  [ -x "$STAGE0_BIN" ] || fail "there is no $STAGE0_BIN: build it, or set STAGE0_BIN"
}

# ARGUMENT…: pytest, which leaves nothing in the tree.
run_tests() {
  (cd clients/python && "$venv/bin/python" -m pytest -p no:cacheprovider "$@")
}

tests() {
  server
  environment "$venv" clients/python/requirements-dev.txt
  export RUFF_CACHE_DIR=$venv/ruff MYPY_CACHE_DIR=$venv/mypy
  (cd clients/python && "$venv/bin/ruff" check . && "$venv/bin/ruff" format --check . && "$venv/bin/mypy")
  # Most of the time is spent waiting for deadlines, so these run beside the rest.
  local slow=(tests/test_hook.py tests/test_selftest.py tests/test_readme.py) status=0
  run_tests "${slow[@]}" > "$venv/slow.log" 2>&1 &
  run_tests "${slow[@]/#/--ignore=}" || status=1
  wait $! || status=1
  cat "$venv/slow.log"
  return $status
}

examples() {
  server
  venv=$venv-examples
  environment "$venv" clients/python/requirements-dev.txt clients/python/requirements-examples.txt
  run_tests -m examples
}

pack() {
  local out=$1 tried
  environment "$venv" clients/python/requirements-dev.txt
  mkdir -p "$out"
  rm -f "$out"/stage0-*.whl "$out"/stage0-*.tar.gz
  "$venv/bin/python" -m build --no-isolation --outdir "$out" clients/python > "$venv/build.log" 2>&1 || {
    cat "$venv/build.log" >&2
    fail "the packages were not built"
  }
  # The wheel works by itself: its certificates are in it, and its hook denies.
  tried=$(mktemp -d)
  "$python" -m venv "$tried/venv"
  "$tried/venv/bin/pip" install --quiet "$out"/stage0-*.whl
  (
    cd "$tried"
    export STAGE0_URL=https://127.0.0.1:1 STAGE0_API_KEY=none
    venv/bin/python -m stage0 selftest --timeout 0.3 > selftest.log || { cat selftest.log; exit 1; }
    status=0
    venv/bin/stage0-hook claude-code < /dev/null > hook.log 2>&1 || status=$?
    [ $status = 2 ] || { cat hook.log; exit 1; }
  ) || fail "the wheel does not work"
  rm -rf "$tried"
  ls "$out"/stage0-*.whl "$out"/stage0-*.tar.gz
}

case $mode in
  test) tests ;;
  examples) examples ;;
  pack) pack "${2:?the directory to write into}" ;;
  *)
    sed -n 's/^#   //p' "$0" >&2
    exit 2
    ;;
esac
