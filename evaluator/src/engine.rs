//! The engine: facts in, satisfied rules out; one per thread, sharing nothing with the others.
//!
//! Owns the parsed policies, bucketed by trigger, and the record that they are evaluated on: only the attributes that the rules at
//! hand name.
//! INVARIANT: a rule that errors is told as failed and never skipped; the same facts give the same answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, ContextCreationError, Entities, EntityUid, PolicySet, Request,
    RestrictedExpression,
};
use stage0_contract::{CheckRequest, Decided, Decision, EvaluateRequest, FieldError};

use crate::decision;
use crate::explain::Explanation;
use crate::facts::{Attribute, Attributes, FactValue, Facts, NotRead, Past, Trigger, Triggers};
use crate::pack::{Fault, Pack, PackError, Rule, rekeyed};
use crate::recordable::{Attempted, recordable};
use crate::run::Lesson;
use crate::time_limit::TimeLimit;

/// The action of the schema that every rule is about.
pub(crate) const ACTION: &str = r#"Action::"check""#;
const PRINCIPAL: &str = r#"Agent::"caller""#;
const RESOURCE: &str = r#"Proposal::"action""#;

/// A pack, parsed for one thread.
pub struct Engine {
    pack: Arc<Pack>,
    buckets: Vec<Bucket>,
    authorizer: Authorizer,
    entities: Entities,
    /// Principal, action, resource.
    about: [EntityUid; 3],
}

/// The rules of one trigger.
struct Bucket {
    trigger: Trigger,
    policies: PolicySet,
    attributes: Attributes,
    rules: Vec<String>,
}

/// What an evaluation found.
#[derive(Debug, Default)]
pub(crate) struct Outcome<'p> {
    /// Rules whose trigger held.
    pub(crate) evaluated: Vec<&'p Rule>,
    /// Those that were satisfied.
    pub(crate) matched: Vec<&'p Rule>,
    /// Ids of those that failed.
    pub(crate) failed: Vec<String>,
}

impl Engine {
    /// Parses a pack's policies again: what two threads share, they wait for.
    pub fn new(pack: Arc<Pack>) -> Result<Self, PackError> {
        let unparsed = || PackError::of(Fault::new("*.cedar", "the rules cannot be parsed again"));
        let mut buckets: BTreeMap<Trigger, Bucket> = BTreeMap::new();
        for source in pack.sources() {
            for policy in rekeyed(source).ok_or_else(unparsed)? {
                let rule = pack.rules().get::<str>(policy.id().as_ref()).ok_or_else(unparsed)?;
                let bucket = buckets.entry(rule.trigger).or_insert_with(|| Bucket {
                    trigger: rule.trigger,
                    policies: PolicySet::new(),
                    attributes: Attributes::default(),
                    rules: Vec::new(),
                });
                bucket.attributes.extend(rule.attributes);
                bucket.rules.push(rule.id.clone());
                bucket.policies.add(policy).map_err(|_| unparsed())?;
            }
        }
        let uid = |text: &str| text.parse::<EntityUid>().map_err(|_| unparsed());
        Ok(Self {
            buckets: buckets.into_values().collect(),
            authorizer: Authorizer::new(),
            entities: Entities::empty(),
            about: [uid(PRINCIPAL)?, uid(ACTION)?, uid(RESOURCE)?],
            pack,
        })
    }

    /// The pack that it decides by.
    pub fn pack(&self) -> &Arc<Pack> {
        &self.pack
    }

    /// Decides a request at a time (seconds since the epoch), or names what in it the pack does not know.
    pub fn decide(&self, request: &CheckRequest, evaluated_at: i64) -> Result<Decision, Vec<FieldError>> {
        let facts = self.facts(request, evaluated_at)?;
        Ok(decision::assemble(&self.pack, request, &facts, &self.evaluate(&facts)))
    }

    /// Decides with what is remembered of the run, and says what may be recorded beside the decision and what the run
    /// learns. Gives up at `limit`, which it looks at between facts, rules and redaction, and within the first and the
    /// last.
    pub(crate) fn answer(
        &self,
        question: &EvaluateRequest,
        past: Option<&Past>,
        limit: TimeLimit,
    ) -> Result<(Decided, Lesson), NotRead> {
        let facts = self.facts_within(&question.request, question.evaluated_at, past, limit)?;
        limit.check()?;
        let decision = decision::assemble(&self.pack, &question.request, &facts, &self.evaluate(&facts));
        let attempted = Attempted { effect_classes: facts.effects.classes(), tools: facts.tools.names() };
        let recordable = Some(recordable(question, attempted, &facts.secrets, self.pack.secrets(), limit)?);
        limit.check()?;
        let lesson = Lesson::new(&decision, facts);
        Ok((Decided { decision, recordable }, lesson))
    }

    /// Decides and tells how.
    pub fn explain(&self, request: &CheckRequest, evaluated_at: i64) -> Result<Explanation, Vec<FieldError>> {
        let facts = self.facts(request, evaluated_at)?;
        let outcome = self.evaluate(&facts);
        let decision = decision::assemble(&self.pack, request, &facts, &outcome);
        Ok(Explanation::new(&facts, &outcome, decision))
    }

    /// What rules will see of a request, however long that takes.
    pub(crate) fn facts(&self, request: &CheckRequest, evaluated_at: i64) -> Result<Facts, Vec<FieldError>> {
        self.facts_within(request, evaluated_at, None, TimeLimit::NONE).map_err(|error| match error {
            NotRead::Invalid(errors) => errors,
            NotRead::OutOfTime => vec![FieldError::new("body", "takes too long to decide")],
        })
    }

    fn facts_within(
        &self,
        request: &CheckRequest,
        evaluated_at: i64,
        past: Option<&Past>,
        limit: TimeLimit,
    ) -> Result<Facts, NotRead> {
        Facts::read(
            request,
            self.pack.vocabulary(),
            self.pack.windows(),
            self.pack.secrets(),
            evaluated_at,
            past,
            limit,
        )
    }

    /// Evaluates the rules whose trigger holds.
    pub(crate) fn evaluate(&self, facts: &Facts) -> Outcome<'_> {
        let triggers = Triggers::of(facts);
        self.authorize(facts, |bucket| triggers.contains(bucket.trigger))
    }

    /// Evaluates every rule: for the proof that triggers hide none.
    pub(crate) fn evaluate_all(&self, facts: &Facts) -> Outcome<'_> {
        self.authorize(facts, |_| true)
    }

    fn authorize(&self, facts: &Facts, wanted: impl Fn(&Bucket) -> bool) -> Outcome<'_> {
        let buckets = || self.buckets.iter().filter(|bucket| wanted(bucket));
        let mut outcome = Outcome::default();
        let mut attributes = Attributes::default();
        for bucket in buckets() {
            attributes.extend(bucket.attributes);
            outcome.evaluated.extend(bucket.rules.iter().filter_map(|id| self.rule(id)));
        }
        let [principal, action, resource] = self.about.clone();
        let request = context(facts, attributes)
            .ok()
            .and_then(|context| Request::new(principal, action, resource, context, None).ok());
        let Some(request) = request else {
            // Without a record no rule can be asked: each of them failed.
            outcome.failed = outcome.evaluated.iter().map(|rule| rule.id.clone()).collect();
            return outcome;
        };
        for bucket in buckets() {
            // Nothing permits: what comes back as reasons is every satisfied forbid.
            let response = self.authorizer.is_authorized(&request, &bucket.policies, &self.entities);
            outcome.matched.extend(response.diagnostics().reason().filter_map(|id| self.rule(id.as_ref())));
            outcome.failed.extend(response.diagnostics().errors().map(failed_rule));
        }
        // The engine answers in random order.
        outcome.failed.sort_unstable();
        outcome
    }

    fn rule(&self, id: &str) -> Option<&Rule> {
        self.pack.rules().get(id)
    }
}

/// The record of the wanted facts.
pub(crate) fn context(facts: &Facts, wanted: Attributes) -> Result<Context, Box<ContextCreationError>> {
    let pair = |attribute: Attribute| Some((attribute.name().to_owned(), expression(attribute.value(facts)?)));
    Context::from_pairs(wanted.iter().filter_map(pair)).map_err(Box::new)
}

fn expression(value: FactValue) -> RestrictedExpression {
    match value {
        FactValue::Bool(value) => RestrictedExpression::new_bool(value),
        FactValue::Long(value) => RestrictedExpression::new_long(value),
        FactValue::Text(value) => RestrictedExpression::new_string(value),
        FactValue::Set(values) => {
            RestrictedExpression::new_set(values.into_iter().map(RestrictedExpression::new_string))
        }
    }
}

fn failed_rule(error: &AuthorizationError) -> String {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => error.policy_id().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Files;
    use serde_json::json;
    use stage0_contract::{IssueCode, Severity, Verdict};

    fn request(body: serde_json::Value) -> CheckRequest {
        CheckRequest::parse(body).unwrap()
    }

    #[test]
    fn a_rule_that_fails_denies_under_its_own_name() {
        let files = Files::embedded();
        let rules = files.get("value.cedar").unwrap().replace(
            "context.goal_vague && !context.side_effects",
            "context.goal_vague && !context.side_effects && context.iteration * 4611686018427387904 > 0",
        );
        let engine = Engine::new(Pack::load(&files.with("value.cedar", &rules)).unwrap()).unwrap();
        let decide = |iteration: i64| {
            let body =
                json!({"goal": "optimise", "success_criteria": ["x"], "context": {"current_iteration": iteration}});
            engine.decide(&request(body), 0).unwrap()
        };
        assert_eq!(decide(1).verdict, Verdict::Defer);
        let overflowed = decide(2);
        assert_eq!(overflowed.verdict, Verdict::Deny);
        let issue = &overflowed.issues[0];
        assert_eq!((issue.code.as_str(), issue.severity), (IssueCode::POLICY_ERROR, Severity::High));
        assert_eq!(issue.rule, "value.vague_goal");
        assert!(overflowed.reason.starts_with("POLICY_ERROR: ") && overflowed.high_risk);
    }

    #[test]
    fn an_explanation_names_what_was_asked_and_what_answered() {
        let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
        let body = json!({"goal": "Deploy it now", "side_effects": ["deploy"], "environment": "staging"});
        let told = engine.explain(&request(body), 0).unwrap();
        assert!(told.rules_evaluated.contains(&"approval.high_effect".to_owned()));
        assert!(told.rules_matched.contains(&"effects.high_without_guardrail".to_owned()));
        assert!(told.triggers.contains(&"high_effect") && told.facts["environments"] == json!(["staging"]));
        let body = json!({"goal": "use password=hunter22", "environment": "staging"});
        let told = engine.explain(&request(body), 0).unwrap();
        assert!(!serde_json::to_string(&told).unwrap().contains("staging"));
    }
}
