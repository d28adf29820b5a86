//! What the evaluator counts, and under which names.
//!
//! Owns every name and label; none holds text of a request, an account or a run. Where nobody records, counting does nothing.

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};
use stage0_contract::Verdict;

const DECISIONS: &str = "stage0_decisions_total";
const TOGETHER: &str = "stage0_run_checks_together";
const CONFLICTS: &str = "stage0_run_conflicts_total";
const LEDGER_FAILURES: &str = "stage0_ledger_failures_total";

/// Tells whoever records what the names mean.
pub(crate) fn describe() {
    describe_counter!(DECISIONS, Unit::Count, "Checks decided, by verdict; one that is decided again counts again.");
    describe_histogram!(TOGETHER, Unit::Count, "Checks of one run that were decided together.");
    describe_counter!(CONFLICTS, Unit::Count, "Runs read again because another evaluator wrote them meanwhile.");
    describe_counter!(LEDGER_FAILURES, Unit::Count, "Records that could not be read or written, by what they are.");
}

pub(crate) fn decided(verdict: Verdict) {
    counter!(DECISIONS, "verdict" => verdict.as_str()).increment(1);
}

#[expect(clippy::cast_precision_loss, reason = "a few dozen at most")]
pub(crate) fn together(checks: usize) {
    histogram!(TOGETHER).record(checks as f64);
}

pub(crate) fn conflict() {
    counter!(CONFLICTS).increment(1);
}

pub(crate) fn ledger_failed() {
    counter!(LEDGER_FAILURES, "by" => "runs").increment(1);
}
