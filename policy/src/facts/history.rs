//! What a run did before this check, for the rules that look back: `run_calls`, `run_last_verdict`, `run_target_tools`.
//!
//! The evaluator keeps it with the run and hands it over in the snapshot. Here it becomes what rules compare.
//! INVARIANT: a tool under an ambiguous name may have been any tool, so its calls count for each of them; and a target
//! that cannot be read was never seen before.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stage0_contract::Verdict;

use super::proposal::AMBIGUOUS;
use super::table::{Attribute, Attributes};
use super::target::Target;

/// Hexadecimal digits of a target's hash.
const HASH_CHARS: usize = 16;

/// What a run did before this check. A repeat of an allowed check is not counted in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunHistory {
    /// Allowed calls under every reading of the tools' names.
    pub tools: BTreeMap<String, i64>,
    /// How many of those may only have been reported: they count for limits, and are no evidence of a call.
    pub unproven: BTreeMap<String, i64>,
    /// Calls under ambiguous names, and calls that are no longer told apart.
    pub any: i64,
    /// Checks of the run that were allowed.
    pub allowed: i64,
    /// Checks that were denied; kept only where a rule of the pack asks for it ([`RunNeeds::verdicts`]).
    pub denied: i64,
    /// Checks that were deferred; kept as `denied` is.
    pub deferred: i64,
    /// The verdict of the check before this one.
    pub last_verdict: Option<Verdict>,
    /// Money spent and reserved, in millionths of a dollar, without this check.
    pub cost_micros: i64,
    /// Seconds since the run's first check.
    pub seconds: i64,
    /// Seconds since its last allowed check.
    pub seconds_since_allowed: Option<i64>,
    /// A check of the run was allowed with an approval.
    pub approved: bool,
    /// The tools that were allowed for each target; kept only where a rule asks for it ([`RunNeeds::targets`]).
    pub target_tools: BTreeMap<TargetHash, BTreeSet<String>>,
}

/// A target as a run remembers it: the first 16 hexadecimal digits of the SHA-256 of its text, trimmed. Targets that
/// are written differently may be different things, though a scope contains both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TargetHash(String);

/// What a pack's rules ask of the state of a run beyond the counts that every run keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunNeeds {
    /// Which calls were allowed, without those that a caller only reports.
    pub calls: bool,
    /// How many checks were allowed, when the last one was, and whether one was with an approval.
    pub allowed: bool,
    /// How many checks were denied and deferred, and what the last one came to.
    pub verdicts: bool,
    /// Which tools were allowed for which target.
    pub targets: bool,
}

impl TargetHash {
    /// Of a target that can be read.
    pub(crate) fn of(target: &str) -> Self {
        let mut digits = HEXLOWER.encode(&Sha256::digest(target.trim().as_bytes()));
        digits.truncate(HASH_CHARS);
        Self(digits)
    }

    /// `None` for a target that cannot be read.
    pub(crate) fn of_target(target: &str) -> Option<Self> {
        Target::read(target).map(|_| Self::of(target))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RunNeeds {
    /// What the rules of two packs ask together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            calls: self.calls || other.calls,
            allowed: self.allowed || other.allowed,
            verdicts: self.verdicts || other.verdicts,
            targets: self.targets || other.targets,
        }
    }

    pub(crate) fn of(attributes: Attributes) -> Self {
        let reads = |name: &str| Attribute::parse(name).is_some_and(|attribute| attributes.contains(attribute));
        Self {
            calls: ["run_calls", "run_tools"].into_iter().any(reads),
            allowed: ["run_allowed", "run_seconds_since_allowed", "run_approved"].into_iter().any(reads),
            verdicts: ["run_denied", "run_deferred", "run_last_verdict"].into_iter().any(reads),
            targets: reads("run_target_tools"),
        }
    }
}

impl RunHistory {
    /// Tools that were allowed so far. Calls that may only have been reported are not told apart: a rule must neither
    /// rely on them nor on their absence.
    pub(super) fn tools(&self) -> Vec<String> {
        let unproven = |name: &String| self.unproven.get(name).copied().unwrap_or(0);
        let called = self.tools.iter().filter(|(name, calls)| **calls > unproven(name)).map(|(name, _)| name.clone());
        let is_unproven = |(name, calls): (&String, &i64)| *calls > 0 && unproven(name) > 0;
        let any = self.any > 0 || self.tools.iter().any(is_unproven);
        called.chain(any.then(|| AMBIGUOUS.to_owned())).collect()
    }

    /// Allowed calls of one tool. A call under an ambiguous name may have been one of it.
    pub(super) fn calls_of(&self, tool: &str) -> i64 {
        self.tools.get(tool).copied().unwrap_or(0).saturating_add(self.any)
    }

    /// The tools that were allowed for every one of the targets; none without a target.
    pub(super) fn tools_of_all<'t>(&self, mut targets: impl Iterator<Item = &'t TargetHash>) -> BTreeSet<String> {
        let tools = |target: &TargetHash| self.target_tools.get(target).cloned().unwrap_or_default();
        let Some(first) = targets.next() else { return BTreeSet::new() };
        targets.fold(tools(first), |common, target| &common & &tools(target))
    }
}
