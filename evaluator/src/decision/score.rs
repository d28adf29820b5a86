//! Scores: 0–100, from the pack's numbers. They describe a decision and never make one.

use stage0_contract::Verdict;

use crate::facts::Facts;
use crate::pack::{Pack, Rule};

/// Contract, section 3: from here on a risk is high.
const HIGH_RISK: u8 = 61;
const HIGHEST: u8 = 100;
/// Contract, section 3: an ALLOW is never at the top.
const HIGHEST_ALLOWED: u8 = 99;

/// The risk of one decision.
pub(super) struct Scored {
    pub(super) risk: u8,
    pub(super) high_risk: bool,
}

impl Scored {
    pub(super) fn of(pack: &Pack, facts: &Facts, matched: &[&Rule], verdict: Verdict) -> Self {
        let (base, floor) = (pack.scores().base, pack.scores().floor);
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
            Verdict::Allow => (floor.allow.min(HIGHEST_ALLOWED), HIGHEST_ALLOWED),
            Verdict::Defer => (floor.defer, HIGHEST),
            Verdict::Deny => (floor.deny, HIGHEST),
        };
        let risk = start.unwrap_or(base.none).saturating_add(weight(matched.iter())).clamp(lowest, highest);
        Self { risk, high_risk: risk >= HIGH_RISK }
    }
}

/// The weights of rules together, at most 100.
pub(super) fn weight<'r>(rules: impl Iterator<Item = &'r &'r Rule>) -> u8 {
    rules.fold(0_u8, |sum, rule| sum.saturating_add(rule.weight)).min(HIGHEST)
}
