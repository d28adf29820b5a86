//! Why each rule of a pack applies to a request, or does not: its trigger, and each part of its condition.
//!
//! The parts are evaluated one by one by Cedar, with the facts of the request. What the engine decided stands above
//! it: a part that cannot be evaluated by itself has no result here.

use std::collections::BTreeMap;

use cedar_policy::{Entities, EntityUid, EvalResult, Expression, Policy, Request, eval_expression};
use serde::Serialize;
use serde_json::Value;
use stage0_contract::{ApprovalTerms, Effect, PolicyVersion};

use super::Explanation;
use crate::cedar_text;
use crate::evaluation;
use crate::facts::{self, Attribute, Attributes, Facts};
use crate::pack::{Pack, rekeyed};
use crate::rule::Rule;

/// One rule, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct RuleExplanation {
    /// Its `@id`.
    pub rule: String,
    /// The pack that it is inherited from; `None` for the pack's own rules.
    pub inherited: Option<PolicyVersion>,
    /// Its file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// What it does where it applies.
    pub effect: Effect,
    /// Its `@message`.
    pub message: String,
    /// What it demands of an approval, if it asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalTerms>,
    /// Whether it applies.
    pub outcome: RuleOutcome,
    /// Its trigger: it is evaluated where this holds.
    pub trigger: String,
    /// What the trigger means.
    pub trigger_means: &'static str,
    /// The parts of its condition; all of them must hold.
    pub parts: Vec<PartExplanation>,
}

/// What became of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleOutcome {
    /// Its condition holds.
    Applies,
    /// It failed while it was evaluated, which denies.
    Failed,
    /// A part of its condition does not hold.
    DoesNotApply,
    /// Its trigger does not hold.
    NotEvaluated,
}

/// A part of a rule's condition.
#[derive(Debug, Clone, Serialize)]
pub struct PartExplanation {
    /// As its author wrote it, in one line.
    pub part: String,
    /// It stands in `unless`.
    pub unless: bool,
    /// Whether the rule may apply as far as this part goes; `None` if the part was not reached.
    pub holds: Option<bool>,
    /// The facts that it names: `custom.amount` and its value, or null where it is absent.
    pub facts: BTreeMap<String, Value>,
}

impl RuleExplanation {
    /// A rule that would apply if one part of its condition were different.
    pub fn is_near_miss(&self) -> bool {
        let failed = self.parts.iter().filter(|part| part.holds == Some(false)).count();
        let held = self.parts.iter().filter(|part| part.holds == Some(true)).count();
        self.outcome == RuleOutcome::DoesNotApply && failed == 1 && held > 0
    }
}

/// Every rule of the pack, in the order of its ids.
pub(super) fn explained(pack: &Pack, facts: &Facts, explanation: &Explanation) -> Vec<RuleExplanation> {
    let evaluator = Evaluator::of(facts, &explanation.facts);
    let policies: Vec<Policy> = pack.sources.iter().filter_map(|source| rekeyed(source)).flatten().collect();
    let mut explained: Vec<RuleExplanation> = policies
        .iter()
        .filter_map(|policy| {
            let rule = pack.rules.get::<str>(policy.id().as_ref())?;
            Some(explain(policy, rule, pack, &evaluator, explanation))
        })
        .collect();
    explained.sort_by(|one, other| one.rule.cmp(&other.rule));
    explained
}

fn explain(
    policy: &Policy,
    rule: &Rule,
    pack: &Pack,
    evaluator: &Evaluator<'_>,
    explanation: &Explanation,
) -> RuleExplanation {
    let outcome = match rule.id.as_str() {
        id if explanation.rules_failed.iter().any(|failed| failed == id) => RuleOutcome::Failed,
        id if explanation.rules_matched.iter().any(|matched| matched == id) => RuleOutcome::Applies,
        id if explanation.rules_evaluated.iter().any(|evaluated| evaluated == id) => RuleOutcome::DoesNotApply,
        _ => RuleOutcome::NotEvaluated,
    };
    let trigger = policy.annotation("trigger").unwrap_or("always");
    RuleExplanation {
        rule: rule.id.clone(),
        inherited: rule.inherited.clone(),
        file: rule.file.clone(),
        line: rule.line,
        effect: rule.effect,
        message: rule.message.clone(),
        approval: rule.asks_for_approval().then(|| rule.terms.or(&pack.approvals.terms)),
        outcome,
        trigger: trigger.to_owned(),
        trigger_means: facts::table().find(|row| row.is_trigger && row.name == trigger).map_or("", |row| row.doc),
        parts: evaluator.parts(&policy.to_cedar().unwrap_or_default()),
    }
}

struct Evaluator<'e> {
    request: Option<Request>,
    entities: Entities,
    /// The values that may be shown.
    shown: &'e BTreeMap<&'static str, Value>,
}

impl<'e> Evaluator<'e> {
    fn of(facts: &Facts, shown: &'e BTreeMap<&'static str, Value>) -> Self {
        let mut all = Attributes::default();
        Attribute::all().for_each(|attribute| all.insert(attribute));
        Self { request: request(facts, all), entities: Entities::empty(), shown }
    }

    /// The parts of all conditions of a policy, evaluated from the left as Cedar does.
    fn parts(&self, policy: &str) -> Vec<PartExplanation> {
        let mut is_decided = false;
        let mut explained = Vec::new();
        for condition in cedar_text::conditions(policy) {
            let is_whole = condition.parts.len() == 1;
            // An `unless` of several parts holds only as a whole.
            let parts = match condition.is_unless && !is_whole {
                true => vec![condition.parts.join(" && ")],
                false => condition.parts,
            };
            for part in parts {
                // A part behind one that does not hold may rely on it, so that its failure means nothing.
                let holds = self.evaluate(&part).map(|holds| holds != condition.is_unless);
                is_decided |= holds.is_none();
                let holds = holds.filter(|_| !is_decided);
                explained.push(PartExplanation { facts: self.facts(&part), part, unless: condition.is_unless, holds });
            }
        }
        explained
    }

    fn evaluate(&self, part: &str) -> Option<bool> {
        let expression: Expression = part.parse().ok()?;
        match eval_expression(self.request.as_ref()?, &self.entities, &expression) {
            Ok(EvalResult::Bool(holds)) => Some(holds),
            Ok(_) | Err(_) => None,
        }
    }

    fn facts(&self, part: &str) -> BTreeMap<String, Value> {
        let value = |path: &[String]| {
            let (name, members) = path.split_first()?;
            // A hidden record is a text, and so are its members.
            let member = |value: &'e Value, name: &String| value.get(name).or(value.is_string().then_some(value));
            members.iter().try_fold(self.shown.get(name.as_str())?, member).cloned()
        };
        let shown = |path: Vec<String>| (path.join("."), value(&path).unwrap_or_default());
        cedar_text::facts(part).into_iter().map(shown).collect()
    }
}

fn request(facts: &Facts, attributes: Attributes) -> Option<Request> {
    let [principal, action, resource] =
        [evaluation::PRINCIPAL, evaluation::ACTION, evaluation::RESOURCE].map(|uid| uid.parse::<EntityUid>().ok());
    Request::new(principal?, action?, resource?, evaluation::context(facts, attributes).ok()?, None).ok()
}
