//! How a decision came about, for the author of a policy.
//!
//! Where a secret was found, the request's words are left out here too.

mod rules;

use std::collections::BTreeMap;

use serde::Serialize;
use stage0_contract::{Decision, FieldError};

use crate::facts::{Attribute, Facts, Triggers};
use crate::pack::Pack;
use crate::rule::{Outcome, Rule};
use crate::secrets::REDACTED;

pub use rules::{PartExplanation, RuleExplanation, RuleOutcome};

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
    /// Every rule of the pack, by `@id`: whether it applies, and why.
    pub rules: Vec<RuleExplanation>,
    /// The decision as a check would get it.
    pub decision: Decision,
}

/// When and by whom an action is proposed that is no case and that no server checks. The caller is no workload's key
/// unless it says so; its run is empty.
#[derive(Debug, Clone, Default)]
pub struct Proposed {
    /// When, in seconds since the epoch.
    pub at: i64,
    /// The name of the key; empty where it has none.
    pub key_name: String,
    /// The member whose own key it is; empty for the key of a workload.
    pub member: String,
    /// The groups of the member, or of the owner of the workload.
    pub groups: Vec<String>,
}

/// What became of an action or a case.
#[derive(Debug, Clone)]
pub enum CaseExplanation {
    /// The request was decided.
    Decided(Box<Explanation>),
    /// The request is refused.
    Refused(Vec<FieldError>),
}

impl From<Result<Explanation, Vec<FieldError>>> for CaseExplanation {
    fn from(explained: Result<Explanation, Vec<FieldError>>) -> Self {
        match explained {
            Ok(explanation) => Self::Decided(Box::new(explanation)),
            Err(errors) => Self::Refused(errors),
        }
    }
}

impl Explanation {
    pub(crate) fn new(pack: &Pack, facts: &Facts, outcome: &Outcome<'_>, decision: Decision) -> Self {
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
        let mut explanation = Self {
            facts: Attribute::all().filter_map(shown).collect(),
            triggers: Triggers::of(facts).names(),
            rules_evaluated: ids(&outcome.evaluated),
            rules_matched: ids(&outcome.matched),
            rules_failed: outcome.failed.clone(),
            rules: Vec::new(),
            decision,
        };
        explanation.rules = rules::explained(pack, facts, &explanation);
        explanation
    }
}
