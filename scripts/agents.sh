#!/usr/bin/env bash
# Runs real coding agents with the hook of `stage0 guard install` and a scripted model on loopback: no account, no
# hosted model, HOME in a scratch directory, telemetry and updates off. Optional: it installs 900 MB from npm below
# .tools/agents, and CI does not run it. Node 20 or newer.
#   scripts/agents.sh [STAGE0 [AGENT...]]    the binary (default: target/debug/stage0); claude-code, codex, gemini
# Prints one line for each thing that holds, and exits 1 at the first that does not. OpenCode: clients-typescript.sh.
#
# Licences; nothing of these packages is in this repository or in what it builds:
# - Claude Code: all rights reserved by Anthropic PBC, under its Commercial or Consumer Terms
#   (code.claude.com/docs/en/legal-and-compliance). Among other things they forbid to redistribute it, to reverse
#   engineer it, and to build a competing product with it. Read them, and run it only if they hold for you. It is used
#   here by its documented settings alone (ANTHROPIC_BASE_URL, hooks).
# - Codex, Gemini CLI: Apache-2.0.
set -euo pipefail
cd "$(dirname "$0")/.."
stage0=$(realpath "${1:-target/debug/stage0}")
shift || true
[ -x "$stage0" ] || { echo "agents: $stage0 is missing: run \`cargo build\`" >&2; exit 2; }
tools=.tools/agents
packages=(@anthropic-ai/claude-code@2.1.332 @openai/codex@0.171.0 @google/gemini-cli@0.61.0)
if [ "$(cat "$tools/installed" 2>/dev/null)" != "${packages[*]}" ]; then
  mkdir -p "$tools"
  echo '{"private": true}' > "$tools/package.json"
  # Without the packages' own scripts: each agent is a program that is complete as it is.
  npm install --prefix "$tools" --silent --no-fund --no-audit --ignore-scripts "${packages[@]}"
  echo "${packages[*]}" > "$tools/installed"
fi
exec node scripts/agents.mjs "$stage0" "$PWD/$tools" "$@"
