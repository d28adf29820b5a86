#!/usr/bin/env bash
# Drives a fuzz target (fuzz/) by libFuzzer, which follows the coverage of what it tries: for hours, on nightly Rust.
#   scripts/fuzz.sh TARGET [SECONDS]    600 seconds by default; 0 until it is stopped
# Needs a nightly toolchain (`rustup toolchain install nightly`) and a C++ compiler; cargo-fuzz is installed below
# .tools. New inputs are kept in target/libfuzzer/corpus/TARGET, an input that fails in target/libfuzzer/failed. Without
# nightly: STAGE0_FUZZ_SECONDS=600 cargo test -p stage0-fuzz --locked --test suite
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-}
seconds=${2:-600}
if [ -z "$target" ] || [ ! -d "fuzz/corpus/$target" ]; then
  echo "fuzz: name a target:" fuzz/corpus/*/ | sed 's|fuzz/corpus/||g; s|/||g' >&2
  exit 2
fi
command -v c++ >/dev/null || { echo "fuzz: there is no C++ compiler" >&2; exit 2; }
cargo +nightly --version >/dev/null || { echo "fuzz: type \`rustup toolchain install nightly\`" >&2; exit 2; }
export PATH="$PWD/.tools/bin:$PATH"
if ! cargo-fuzz --version 2>/dev/null | grep -q ' 0\.13\.2$'; then
  cargo install cargo-fuzz --version 0.13.2 --locked --root .tools --quiet
fi
found=$PWD/target/libfuzzer/corpus/$target
failed=$PWD/target/libfuzzer/failed
mkdir -p "$found" "$failed"
# The versions that the product is built with; cargo adds those of libFuzzer.
cp Cargo.lock fuzz/libfuzzer/Cargo.lock
# Its own limit on memory counts the stacks of a pack's threads; leaks of C code at the end are no fault of a parser.
STAGE0_FUZZ_TARGET=$target cargo +nightly fuzz run --fuzz-dir fuzz/libfuzzer --target-dir "$PWD/target/libfuzzer" \
  target "$found" "$PWD/fuzz/corpus/$target" -- -dict="$PWD/fuzz/dictionaries/$target.dict" \
  -artifact_prefix="$failed/$target-" -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=4096 -timeout=60 \
  -detect_leaks=0
