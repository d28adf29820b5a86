#!/usr/bin/env bash
# Builds and tests the TypeScript client (clients/typescript). Needs Node 20 or newer, npm, and the network the first
# time; without them it fails. It works on a copy below .tools, so that nothing is installed or built in the tree.
# The tests run against `stage0 dev` of the binary in STAGE0_BIN (default: target/debug/stage0).
#   scripts/clients-typescript.sh            builds and tests
#   scripts/clients-typescript.sh examples   the same, and runs the example with a real agent library
#   scripts/clients-typescript.sh opencode   runs the plugin in a real OpenCode (MIT, 180 MB) with a scripted model
#   scripts/clients-typescript.sh pack DIR   builds and writes the npm package into DIR
#   scripts/clients-typescript.sh wire       writes src/wire.ts again, from docs/openapi.json
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
mode=${1:-test}
work=$root/.tools/clients-typescript

is_new='process.exit(Number(process.versions.node.split(".")[0]) >= 20 ? 0 : 1)'
node -e "$is_new" 2>/dev/null && command -v npm >/dev/null || {
  echo "clients-typescript: node 20 or newer and npm are needed" >&2
  exit 1
}

# The copy is as deep in the tree as the original, so relative paths from it hold.
copy() {
  mkdir -p "$work"
  (cd "$work" && rm -rf src bin tests examples/*.ts examples/tsconfig.json tools dist build)
  cp -R clients/typescript/. "$work"
  cp LICENSE "$work"
}

# DIRECTORY: installs what its lock file names, unless that was done already.
install() {
  local lock="$1/package-lock.json" done="$1/node_modules/.stage0-installed"
  if cmp -s "$lock" "$done"; then return; fi
  (cd "$1" && npm ci --no-audit --no-fund --ignore-scripts --silent)
  cp "$lock" "$done"
}

build() {
  # A lock file that names a registry would send every installation to that one.
  if grep -rn --include=package-lock.json --exclude-dir=node_modules '"resolved": "http' clients/typescript; then
    echo "clients-typescript: a lock file names a registry: remove its \`resolved\` members" >&2
    exit 1
  fi
  copy
  install "$work"
  (cd "$work" && npm run --silent build)
}

tests() {
  export STAGE0_BIN=${STAGE0_BIN:-$root/target/debug/stage0}
  [ -x "$STAGE0_BIN" ] || {
    echo "clients-typescript: there is no $STAGE0_BIN: build it, or set STAGE0_BIN" >&2
    exit 1
  }
  (cd "$work" && npm run --silent build:tests && npm test --silent)
}

examples() {
  install "$work/examples/ai-sdk"
  (cd "$work/examples/ai-sdk" && "$work/node_modules/.bin/tsc" -p tsconfig.json)
  (cd "$work" && STAGE0_EXAMPLES=1 node --test build/examples.test.js)
}

opencode() {
  local tools=$root/.tools/opencode
  [ -d "$tools/node_modules/opencode-ai" ] || {
    mkdir -p "$tools"
    echo '{"private": true}' > "$tools/package.json"
    npm install --prefix "$tools" --no-audit --no-fund --ignore-scripts --silent opencode-ai@1.18.33
  }
  # The package of this platform; others are not installed, a variant of it may be.
  STAGE0_OPENCODE=$(ls "$tools"/node_modules/opencode-*/bin/opencode | head -n 1)
  export STAGE0_OPENCODE STAGE0_BIN=${STAGE0_BIN:-$root/target/debug/stage0}
  (cd "$work" && npm run --silent build:tests && node --test build/opencode-agent.test.js)
}

case $mode in
  test) build; tests ;;
  examples) build; tests; examples ;;
  opencode) build; opencode ;;
  pack)
    build
    mkdir -p "$2"
    out=$(cd "$2" && pwd)
    (cd "$work" && npm pack --silent --ignore-scripts --pack-destination "$out" >/dev/null)
    echo "$out"/stage0-client-*.tgz
    ;;
  wire) node clients/typescript/tools/wire.mjs docs/openapi.json clients/typescript/src/wire.ts ;;
  *) sed -n 's/^#   //p' "$0" >&2; exit 2 ;;
esac
