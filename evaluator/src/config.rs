//! The evaluator's settings: one row each, with name, unit, default and help (`stage0_runtime::settings`).

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use stage0_policy::PackSet;
use stage0_runtime::settings;
use stage0_runtime::settings::kinds::{count, list, path, seconds, text};

const MAX_RUN_SECONDS: u32 = 31 * 86_400;
const MAX_APPROVAL_SECONDS: u32 = 400 * 86_400;

settings! {
    /// Which policy packs an evaluator loads, and how many threads decide by them.
    #[derive(Debug, Clone)]
    pub struct PolicySettings {
        /// Directory of policy packs, one folder each, beside the built-in baseline
        dir: Option<PathBuf> = "policies" "DIR" in "Policy", optional, path();
        /// The policy that decides: `name@1.0.0` or a whole version (default: the built-in baseline)
        active: Option<String> = "active-policy" "VERSION" in "Policy", optional, text();
        /// Policies that a request may name beside the active one, separated by commas
        selectable: Vec<String> = "selectable-policies" "LIST" in "Policy", or(Vec::new()), list();
        /// Threads that decide (default: one per core)
        shards: Option<NonZeroUsize> = "shards" "N" in "Policy", optional, count(1024);
    }
}

settings! {
    /// How long runs and approvals are remembered.
    #[derive(Debug, Clone, Copy)]
    pub struct RunConfig {
        /// How long the counts of a run are remembered after its last change
        kept_for: Duration = "runs-kept-seconds" "SECONDS" in "Runs", default(Duration::from_secs(86_400)),
            seconds(MAX_RUN_SECONDS);
        /// Time after which the estimate of an allowed check that was not settled counts as spent
        reserved_for: Duration = "reservations-kept-seconds" "SECONDS" in "Runs", default(Duration::from_secs(3_600)),
            seconds(MAX_RUN_SECONDS);
        /// How long an approval is kept after its end
        approval_kept_for: Duration = "approvals-kept-seconds" "SECONDS" in "Approvals",
            default(Duration::from_secs(30 * 86_400)), seconds(MAX_APPROVAL_SECONDS);
        /// How long the sealed text of an action is kept after its approval's end
        approval_text_ttl: Duration = "approval-texts-kept-seconds" "SECONDS" in "Approvals",
            default(Duration::from_secs(86_400)), seconds(MAX_RUN_SECONDS);
        /// How long an action that a person denied is DENY without asking again
        denied_for: Duration = "approval-denied-seconds" "SECONDS" in "Approvals",
            default(Duration::from_secs(3_600)), seconds(MAX_RUN_SECONDS);
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self::defaults()
    }
}

/// What an evaluator is built from.
pub struct EvaluatorConfig {
    /// The packs; the active one decides.
    pub packs: PackSet,
    /// Worker threads; one per core when none is given.
    pub shards: Option<NonZeroUsize>,
    /// How long runs and approvals are remembered.
    pub runs: RunConfig,
}
