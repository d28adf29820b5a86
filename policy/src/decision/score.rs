//! Scores from 0 to 100, computed from the pack's numbers. They describe a decision and never make one.

use stage0_contract::Verdict;

use crate::facts::Facts;
use crate::pack::{Pack, Scores};
use crate::rule::Rule;

/// From here on a risk is high.
pub(super) const HIGH_RISK: u8 = 61;
const MAX_RISK: u8 = 100;
/// The risk of an ALLOW is never the highest.
const MAX_ALLOWED_RISK: u8 = 99;

pub(super) fn risk(pack: &Pack, facts: &Facts, matched: &[&Rule], verdict: Verdict) -> u8 {
    let Scores { base, floor } = pack.scores;
    let effects = &facts.effects;
    let classes = [
        (effects.medium, base.medium),
        (effects.looping, base.looping),
        (effects.communication, base.communication),
        (effects.approval, base.approval),
        (effects.high, base.high),
    ];
    let start = classes.into_iter().filter(|(declared, _)| *declared).map(|(_, score)| score).max();
    let (lowest, highest) = match verdict {
        Verdict::Allow => (floor.allow.min(MAX_ALLOWED_RISK), MAX_ALLOWED_RISK),
        Verdict::Defer => (floor.defer, MAX_RISK),
        Verdict::Deny => (floor.deny, MAX_RISK),
    };
    start.unwrap_or(base.none).saturating_add(total_weight(matched.iter())).clamp(lowest, highest)
}

/// The sum of the rules' weights, at most 100.
pub(super) fn total_weight<'r>(rules: impl Iterator<Item = &'r &'r Rule>) -> u8 {
    rules.fold(0_u8, |sum, rule| sum.saturating_add(rule.weight)).min(MAX_RISK)
}
