#!/usr/bin/env bash
# Tries `stage0 guard mcp` between real MCP servers and the official Python SDK as the client. Optional: it installs
# packages from PyPI and npm below .tools/mcp, and CI does not run it.
#   scripts/mcp-servers.sh [STAGE0]    the binary; default: target/debug/stage0
# Prints one line for each thing that holds, and exits 1 at the first that does not.
set -euo pipefail
cd "$(dirname "$0")/.."
stage0=$(realpath "${1:-target/debug/stage0}")
[ -x "$stage0" ] || { echo "mcp-servers: $stage0 is missing: run \`cargo build\`" >&2; exit 2; }
tools=.tools/mcp
mkdir -p "$tools"
if [ ! -x "$tools/venv/bin/mcp-server-fetch" ]; then
  python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install --quiet 'mcp>=2.3,<3' mcp-server-fetch
fi
if [ ! -x "$tools/node_modules/.bin/mcp-server-filesystem" ]; then
  npm install --silent --no-fund --no-audit --prefix "$tools" \
    @modelcontextprotocol/server-filesystem @modelcontextprotocol/server-everything
fi
exec "$tools/venv/bin/python" scripts/mcp-servers.py "$stage0" "$tools"
