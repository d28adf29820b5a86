#!/usr/bin/env bash
# Measures the product beside Cerbos, in one run: `stage0-bench peers`. Cerbos comes from npm into .tools/peers, which
# git ignores.
#   scripts/bench-peers.sh [ARGUMENTS]    for `stage0-bench peers`, such as `--seconds 5` or `--json`
# BENCH and STAGE0 name the binaries; default: those of the profile `dist`.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.55.0
bench=${BENCH:-target/dist/stage0-bench}
stage0=${STAGE0:-target/dist/stage0}
for binary in "$bench" "$stage0"; do
  [ -x "$binary" ] || {
    echo "bench-peers: $binary is missing: run \`cargo build --profile dist -p stage0 -p stage0-bench\`" >&2
    exit 2
  }
done
case "$(uname -sm)" in
  "Linux x86_64") platform=linux-x64 ;;
  "Linux aarch64") platform=linux-arm64 ;;
  *)
    echo "bench-peers: runs on Linux, as what a process has used is read from /proc" >&2
    exit 2
    ;;
esac
tools=.tools/peers
cerbos=$tools/node_modules/@cerbos/cerbos-$platform/cerbos-$platform
if ! "$cerbos" --version 2>/dev/null | grep -qx "$version"; then
  mkdir -p "$tools"
  npm install --silent --no-fund --no-audit --ignore-scripts --prefix "$tools" "@cerbos/cerbos-$platform@$version"
fi
exec "$bench" peers --cerbos "$cerbos" --stage0 "$stage0" "$@"
