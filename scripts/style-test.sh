#!/usr/bin/env bash
# Tests scripts/style.sh: it must refuse each line below that ends in `BAD` and no other.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=

# FILE: compares the lines that are refused with those that are marked.
expect() {
  local wanted got
  wanted=$(grep -n 'BAD$' "$1" | cut -d: -f1 | sort -n || true)
  got=$(scripts/style.sh "$1" | grep -F "$1:" | sed "s|^$1:||" | cut -d: -f1 | sort -nu || true)
  if [ "$wanted" != "$got" ]; then
    echo "style-test: $(basename "$1"): the marked lines are $(echo $wanted), the refused ones $(echo $got)" >&2
    failed=1
  fi
}
wide() { printf "%${1}s" '' | tr ' ' "$2"; }

cat > "$scratch/words.rs" <<'RS'
//! Caches what the caller asked for.
// Whoever asks is answered. BAD
// The caller is answered by `nobody`, a login of that name.
// It is told of the change. BAD
// The two are told apart by their ids.
// INVARIANT: ids grow.
// Invariant: ids grow. BAD
/// So many at a time. BAD
const MAX_CALLS: usize = 4;
const MOST_CALLS: usize = 4; // BAD
const CALLS_EVERY: u64 = 4; // BAD
const CALL_INTERVAL: u64 = 4;
pub(crate) const PAUSE: u64 = 4; // BAD
pub(crate) const LOOP_DELAY: u64 = 4;
static SOON: u64 = 4; // BAD
struct Courier; // BAD
struct DeliveryWorker;
async fn a_key_of_nobody_is_refused() {} // BAD
async fn a_key_of_no_account_is_refused() {}
let nobody = "a local name, and text that says nobody";
let text = "Make it anew."; // BAD
let anew = "made again";
let url = "https://example.com/"; // Everything but the host is dropped. BAD
let url = "https://example.com/nobody";
RS
expect "$scratch/words.rs"

cat > "$scratch/docs.rs" <<'RS'
//! Holds documentation of one word and more; the marks stand beside the words.
struct A {
    /// Which-BAD
    which: u8,
    /// The key id.
    key: u8,
    /// Which
    /// of the two.
    other: u8,
}
RS
expect "$scratch/docs.rs"

printf '#![allow(dead_code)]\n\n//! Late attributes are fine.\nuse std::fmt;\n' > "$scratch/documented.rs"
expect "$scratch/documented.rs"
printf 'use std::fmt; // BAD\n//! Too late: an item stands above.\n' > "$scratch/undocumented.rs"
expect "$scratch/undocumented.rs"

{
  echo '//! Widths are counted in characters.'
  echo "// $(wide 58 x) $(wide 58 y)"
  echo "// $(wide 58 x) $(printf '%0.sä' $(seq 58))"
  echo "// $(wide 58 x) $(wide 55 y) BAD"
  echo "    \"$(wide 130 x)\","
} > "$scratch/width.rs"
expect "$scratch/width.rs"

{
  echo "- [the address]($(wide 120 x))"
  echo "[label]: $(wide 130 x)"
  echo "$(wide 60 x) $(wide 60 y) BAD"
  echo "| $(wide 60 x) | $(wide 60 y) | BAD"
  echo '```'
  echo "signature: $(wide 130 x)"
  echo "$(printf 'word %.0s' $(seq 30)) BAD"
  echo 'nobody@example.com'
  echo '```'
  echo 'This is what nobody reads. BAD'
  echo 'The login is `nobody`, and [here](docs/nobody.md) is more.'
} > "$scratch/prose.md"
expect "$scratch/prose.md"

printf '//! A line at fault gives a failing status.\nstruct Keeper;\n' > "$scratch/status.rs"
if scripts/style.sh "$scratch/status.rs" >/dev/null; then echo "style-test: a line at fault is not refused" >&2 && failed=1; fi
[ -z "$failed" ]
