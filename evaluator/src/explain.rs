//! How a decision came about, for the author of a policy.
//!
//! Owns the form of `policy explain`: the record that rules saw, the triggers that held, what was evaluated and matched. Where a secret
//! was found the request's words are left out here too.

use std::collections::BTreeMap;

use serde::Serialize;
use stage0_contract::Decision;

use crate::engine::Outcome;
use crate::facts::{Attribute, FactValue, Facts, Triggers};
use crate::pack::Rule;
use crate::secrets::REDACTED;

/// A decision and its grounds.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// `context` as rules see it, by name; optional facts that are absent are left out.
    pub facts: BTreeMap<&'static str, serde_json::Value>,
    /// The triggers that held.
    pub triggers: Vec<&'static str>,
    /// Rules whose trigger held, sorted.
    pub rules_evaluated: Vec<String>,
    /// Those that were satisfied, sorted.
    pub rules_matched: Vec<String>,
    /// Those that failed, sorted.
    pub rules_failed: Vec<String>,
    /// What it came to.
    pub decision: Decision,
}

impl Explanation {
    pub(crate) fn new(facts: &Facts, outcome: &Outcome<'_>, decision: Decision) -> Self {
        let hidden = !facts.secrets.is_empty();
        let shown = |attribute: Attribute| {
            let value = attribute.value(facts)?;
            let value = if hidden && attribute.holds_words() { REDACTED.into() } else { value.into() };
            Some((attribute.name(), value))
        };
        let ids = |rules: &[&Rule]| {
            let mut ids: Vec<String> = rules.iter().map(|rule| rule.id.clone()).collect();
            ids.sort_unstable();
            ids
        };
        Self {
            facts: Attribute::all().filter_map(shown).collect(),
            triggers: Triggers::of(facts).names(),
            rules_evaluated: ids(&outcome.evaluated),
            rules_matched: ids(&outcome.matched),
            rules_failed: outcome.failed.clone(),
            decision,
        }
    }
}

impl From<FactValue> for serde_json::Value {
    fn from(value: FactValue) -> Self {
        match value {
            FactValue::Bool(value) => value.into(),
            FactValue::Long(value) => value.into(),
            FactValue::Text(value) => value.into(),
            FactValue::Set(values) => values.into(),
        }
    }
}
