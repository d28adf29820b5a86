#!/usr/bin/env bash
# Replaces a deployment of the last release by this one under load, process by process, then back, and forward again.
#   scripts/upgrade.sh           from the commit in scripts/last-release, which each release sets to its own
#   scripts/upgrade.sh COMMIT    from another commit or tag
#   scripts/upgrade.sh BINARY    from a `stage0` that is there already
# A commit is built below target/last-release, which takes about 20 minutes on two cores, and kept for the next run. The
# tests are those of tests/tests/suite/upgrade.rs that `cargo test` leaves out: they take two minutes, and their output
# says how long checks took in each step, and which attempts were no decision, with the reason.
set -euo pipefail
cd "$(dirname "$0")/.."
from=${1:-$(cat scripts/last-release)}

# COMMIT PLACE: builds PLACE/stage0 from the commit's own files, with its own toolchain and Cargo.lock.
build() {
  local tree=$2/tree
  rm -rf "$tree"
  mkdir -p "$tree"
  git archive "$1" | tar -x -C "$tree"
  echo "upgrade: builds stage0 of $1 in $2" >&2
  (cd "$tree" && BUILT_FROM_COMMIT=$1 CARGO_INCREMENTAL=0 cargo build --locked -p stage0 --target-dir "$2/target")
  cp "$2/target/debug/stage0" "$2/stage0.new"
  rm -rf "$tree" "$2/target"
  mv "$2/stage0.new" "$2/stage0"
}

if [ -f "$from" ] && [ -x "$from" ]; then
  STAGE0_LAST_RELEASE=$(realpath "$from")
elif commit=$(git rev-parse --quiet --verify --short=12 "$from^{commit}"); then
  place=$PWD/target/last-release/$commit
  STAGE0_LAST_RELEASE=$place/stage0
  [ -x "$STAGE0_LAST_RELEASE" ] || build "$commit" "$place"
else
  echo "upgrade: \`$from\` is no binary, and no commit of this clone; a shallow one gets it by \`git fetch --unshallow\`" >&2
  exit 2
fi
export STAGE0_LAST_RELEASE
echo "upgrade: from $("$STAGE0_LAST_RELEASE" --version)" >&2
# The same selection of packages as in scripts/test.sh, whose build is used.
exec cargo test --workspace --locked --test suite -- --ignored --nocapture --test-threads 1 upgrade::
