//! Where compiled rules and Cedar come to different outcomes, which must never be.

use std::collections::BTreeSet;

use stage0_contract::PolicyVersion;

use crate::pack::Pack;
use crate::rule::Outcome;

/// Of so many checks on one thread, Cedar evaluates the first as well.
pub const COMPARISON_INTERVAL: u32 = 100;

/// Rules that Cedar evaluated differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The pack that the rules are of.
    pub policy_version: PolicyVersion,
    /// Their ids, sorted.
    pub rules: Vec<String>,
}

impl Difference {
    /// Both outcomes are of the same rules.
    pub(super) fn between(pack: &Pack, one: &Outcome<'_>, other: &Outcome<'_>) -> Option<Self> {
        let satisfied = |outcome: &Outcome<'_>| outcome.matched.iter().map(|rule| rule.id.clone()).collect();
        let failed = |outcome: &Outcome<'_>| outcome.failed.iter().cloned().collect();
        let [satisfied, failed]: [[BTreeSet<String>; 2]; 2] =
            [[satisfied(one), satisfied(other)], [failed(one), failed(other)]];
        let differing = |[one, other]: &[BTreeSet<String>; 2]| one ^ other;
        let rules: Vec<String> = (&differing(&satisfied) | &differing(&failed)).into_iter().collect();
        (!rules.is_empty()).then(|| Self { policy_version: pack.version().clone(), rules })
    }

    /// The outcome in which the rules have failed, so that the check is denied.
    pub(super) fn fail<'p>(&self, mut outcome: Outcome<'p>) -> Outcome<'p> {
        outcome.matched.retain(|rule| !self.rules.contains(&rule.id));
        outcome.failed.extend(self.rules.iter().cloned());
        outcome.failed.sort_unstable();
        outcome.failed.dedup();
        outcome
    }
}
