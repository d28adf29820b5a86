#!/usr/bin/env bash
# Calls every operation of the HTTP API with inputs that its own /openapi.json allows, and with inputs that it does not:
# starts `stage0 dev` in a scratch directory, runs schemathesis, and ends both. Python 3.11 or newer, with venv, and a
# package index the first time; everything is installed below .tools.
#   scripts/fuzz-api.sh [STAGE0 [SECONDS]]    the binary (default: target/debug/stage0); 60 seconds by default
# No answer may have a status, a header or a body that is not declared, or a 5xx but 503; a request that breaks its schema
# is refused. STAGE0_SEED repeats a run. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
stage0=$(realpath "${1:-target/debug/stage0}")
seconds=${2:-60}
python=${PYTHON:-python3}
seed=${STAGE0_SEED:-$((RANDOM * 32768 + RANDOM))}
# The server takes none but its own settings.
unset "${!STAGE0_@}"

fail() {
  echo "fuzz-api: $*" >&2
  exit 1
}

[ -x "$stage0" ] || fail "there is no $stage0: build it"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || fail "$python is not Python 3.11 or newer"
venv=$root/.tools/fuzz-api
if ! cmp -s scripts/fuzz-api/requirements.txt "$venv/installed"; then
  "$python" -m venv --clear "$venv" || fail "$python cannot make a virtual environment: install its venv module"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes -r scripts/fuzz-api/requirements.txt
  cp scripts/fuzz-api/requirements.txt "$venv/installed"
fi

scratch=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  wait
  rm -rf "$scratch"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Without the limits that answer 429: they are tested elsewhere.
"$stage0" dev --data-dir "$scratch/data" --listen 127.0.0.1:0 --management-calls-per-minute 1000000 \
  --reads-per-second-per-account 0 --requests-per-second-per-address 0 --failed-logins-per-minute 1000000 \
  > "$scratch/log" 2>&1 &
server=$!
for _ in $(seq 150); do
  [ ! -s "$scratch/data/dev.json" ] || break
  kill -0 "$server" 2>/dev/null || { cat "$scratch/log"; fail "stage0 dev ended"; }
  sleep 0.2
done
url=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"])' "$scratch/data/dev.json")

# KEY-FILE SECONDS ARGUMENT…
calls() {
  local key=$1 time=$2
  shift 2
  (
    cd "$scratch"
    STAGE0_FUZZ_KEY=$(cat "$key") "$venv/bin/st" --no-color --config-file "$root/scripts/fuzz-api/schemathesis.toml" \
      run "$url/openapi.json" --tls-verify "$scratch/data/tls/ca.pem" --max-time "$time" --seed "$seed" "$@"
  )
}

status=0
# A key that rotated or revoked itself would be refused from then on, so those are called last, by the operator.
calls "$scratch/data/api.key" $((seconds * 3 / 4)) --exclude-operation-id rotateKey --exclude-operation-id revokeKey || status=1
operators=()
for operation in status createAccount listAccounts updateAccount createKey listKeys rotateKey revokeKey; do
  operators+=(--include-operation-id "$operation")
done
calls "$scratch/data/operator.key" $((seconds / 4)) "${operators[@]}" || status=1

kill -0 "$server" 2>/dev/null || { cat "$scratch/log"; fail "the server ended"; }
if grep -n panicked "$scratch/log"; then fail "the server panicked"; fi
[ $status = 0 ] || echo "fuzz-api: STAGE0_SEED=$seed repeats it" >&2
exit $status
