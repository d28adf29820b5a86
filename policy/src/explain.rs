//! How a decision came about, for the author of a policy.
//!
//! Where a secret was found, the request's words are left out here too.

use std::collections::BTreeMap;

use serde::Serialize;
use stage0_contract::Decision;

use crate::facts::{Attribute, FactValue, Facts, Triggers};
use crate::rule::{Outcome, Rule};
use crate::secrets::REDACTED;

/// A decision, with the facts and rules that led to it.
#[derive(Debug, Clone, Serialize)]
pub struct Explanation {
    /// `context` as rules see it, by name. Optional facts that are absent are left out.
    pub facts: BTreeMap<&'static str, serde_json::Value>,
    /// The triggers that held.
    pub triggers: Vec<&'static str>,
    /// Rules whose trigger held, sorted.
    pub rules_evaluated: Vec<String>,
    /// Rules that were satisfied, sorted.
    pub rules_matched: Vec<String>,
    /// Rules that failed while they were evaluated, sorted.
    pub rules_failed: Vec<String>,
    /// The decision as a check would get it.
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
