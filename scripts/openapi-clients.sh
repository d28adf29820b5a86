#!/bin/sh
# Generates clients from docs/openapi.json with the generators that integrators use most, and compiles what they write.
# A warning of a generator fails the script. The generators are installed below .tools/openapi: npm, python3 and java are
# needed, and the network the first time.
set -eu
cd "$(dirname "$0")/.."

document=$PWD/docs/openapi.json
config=$PWD/scripts/openapi-clients/python-client.yaml
tools=$PWD/.tools/openapi
node=$tools/node_modules/.bin
python=$tools/py/bin
out=$tools/out

mkdir -p "$tools"
[ -x "$python/openapi-python-client" ] && [ -x "$python/openapi-generator-cli" ] || {
    python3 -m venv "$tools/py"
    "$python/pip" install --quiet openapi-python-client==0.29.1 openapi-generator-cli==7.26.0 \
        httpx==0.28.1 pydantic==2.14.4 python-dateutil==4.0.0 urllib3==2.8.0
}
[ -x "$node/openapi-typescript" ] || {
    [ -f "$tools/package.json" ] || echo '{"private": true}' >"$tools/package.json"
    npm install --prefix "$tools" --no-audit --no-fund --silent openapi-typescript@7.13.0 typescript@5.9.3
}
rm -rf "$out"
mkdir -p "$out"

# Four warnings that do not speak of a fault of the document: OpenAPI 3.1 itself is "beta" to the generator; it logs the second for
# any 3.1 document; `from`, a query parameter, is a keyword of Python (the client says `var_from`); and an answer that is an object
# without members (of a replay) becomes a free dictionary.
harmless='OpenAPI 3.1 support is still in beta|Failed to get the schema name: null|From .reserved word. cannot be used'
harmless="$harmless|Codegen property is null"

generate() {
    "$python/openapi-generator-cli" generate -i "$document" -g "$1" -o "$out/$1" >"$out/$1.log" 2>&1 || {
        cat "$out/$1.log"
        exit 1
    }
    if grep -E 'WARN|ERROR' "$out/$1.log" | grep -Ev "$harmless"; then
        echo "openapi-generator's $1 generator warned, see above" >&2
        exit 1
    fi
}

# Imports each module of a package in a directory: what does not compile or names what is not there fails.
import_all() {
    (cd "$2" && "$python/python" -c '
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
' "$1")
}

echo "openapi-python-client"
PATH=$python:$PATH "$python/openapi-python-client" generate --path "$document" --config "$config" \
    --output-path "$out/stage0_client" --meta none --fail-on-warning
"$python/python" -m compileall -q "$out/stage0_client"
import_all stage0_client "$out"

echo "openapi-typescript"
"$node/openapi-typescript" "$document" -o "$out/types.ts" >/dev/null
"$node/tsc" --strict --noEmit "$out/types.ts"

echo "openapi-generator: python"
generate python
"$python/python" -m compileall -q "$out/python/openapi_client"
import_all openapi_client "$out/python"

echo "openapi-generator: typescript-fetch"
generate typescript-fetch
"$node/tsc" --strict --noEmit --target es2020 --lib es2020,dom --moduleResolution node "$out/typescript-fetch/index.ts"
echo "each client was generated without a warning and compiles"
