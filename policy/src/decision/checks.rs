//! Guardrail checks: for each family and check, whether it is required and whether it is satisfied.
//!
//! A rule with `@check` belongs to a guardrail check. The check is required if one of its rules was evaluated (its
//! trigger held), and it is satisfied unless one of them was satisfied or failed.

use std::collections::BTreeMap;

use stage0_contract::GuardrailCheck;

use crate::rule::Outcome;

/// The checks of an evaluation.
pub(super) fn of(outcome: &Outcome<'_>) -> BTreeMap<String, BTreeMap<String, GuardrailCheck>> {
    let mut families: BTreeMap<String, BTreeMap<String, GuardrailCheck>> = BTreeMap::new();
    for rule in &outcome.evaluated {
        let Some(check) = &rule.check else { continue };
        let broken = outcome.matched.iter().any(|m| m.id == rule.id) || outcome.failed.contains(&rule.id);
        let checks = families.entry(rule.family.clone()).or_default();
        let state = checks.entry(check.clone()).or_insert(GuardrailCheck { required: true, satisfied: true });
        state.satisfied &= !broken;
    }
    families
}
