//! The engine: decides checks by the rules of one pack on one thread.
//!
//! `evaluation` finds which rules are satisfied; here they become a decision, an explanation, or an answer for a
//! server.

use std::sync::Arc;

use jiff::Timestamp;
use stage0_contract::{
    AccountId, ActionDigest, Actor, ApprovalTerms, CheckRequest, Decision, Effect, EvaluateRequest, Evaluation,
    FieldError, Grant, Stop,
};

use crate::approval::{Answer, Approvals, HeldApproval};
use crate::decision::{self, OutcomeHold};
use crate::evaluation::{Difference, Rules};
use crate::explain::{Explanation, Proposed};
use crate::facts::{
    Asking, Attribute, Before, Circumstances, EvaluateError, FactValue, Facts, Groups, NamedCaller, RunSnapshot,
    Trigger, covering_stop, grant_covers, resolved_environment, without_claim,
};
use crate::files::PackError;
use crate::kept;
use crate::pack::Pack;
use crate::redaction::{ActionSummary, redacted_texts};
use crate::rule::{Outcome, Rule};
use crate::time_limit::TimeLimit;

/// A pack and its rules, ready to decide.
pub struct Engine {
    pack: Arc<Pack>,
    rules: Arc<Rules>,
}

impl Engine {
    /// Parses the pack's policies, unless another engine of the pack has and can share them.
    pub fn new(pack: Arc<Pack>) -> Result<Self, PackError> {
        Ok(Self { rules: pack.rules_for_engine()?, pack })
    }

    /// The pack whose rules it evaluates.
    pub fn pack(&self) -> &Arc<Pack> {
        &self.pack
    }

    /// Decides a request at a time (seconds since the epoch), or returns the fields that the pack does not define. The
    /// caller has no name, and the check is the first of its run.
    pub fn decide(&self, request: &CheckRequest, evaluated_at: i64) -> Result<Decision, Vec<FieldError>> {
        let facts = self.facts(request, evaluated_at)?;
        Ok(decision::assemble(&self.pack, request, &facts, &self.evaluate(&facts)))
    }

    /// Decides a request in the circumstances of a case. On DEFER with what the decision demands of an approval.
    pub(crate) fn decide_in(
        &self,
        request: &CheckRequest,
        circumstances: &Circumstances<'_>,
    ) -> Result<(Decision, Option<ApprovalTerms>), Vec<FieldError>> {
        let facts = self.facts_in(request, circumstances)?;
        Ok(self.decide_by(request, &facts, &self.evaluate(&facts)))
    }

    /// As [`Engine::decide_in`], by what was read and evaluated already.
    pub(crate) fn decide_by(
        &self,
        request: &CheckRequest,
        facts: &Facts,
        outcome: &Outcome<'_>,
    ) -> (Decision, Option<ApprovalTerms>) {
        let decision = decision::assemble(&self.pack, request, facts, outcome);
        let terms = decision::terms(&self.pack, outcome, decision.verdict);
        (decision, terms)
    }

    /// Decides a check with the server's counts of its run and the approval that the server holds. Returns the decision
    /// with the texts that may be recorded, and the facts that update the run. Fails once `limit` has passed. Where the
    /// account wants facts recorded, those of every group are read, and nothing else is different.
    pub fn answer(
        &self,
        check: &EvaluateRequest,
        snapshot: Option<&RunSnapshot>,
        held: Option<HeldApproval<'_>>,
        limit: TimeLimit,
    ) -> Result<Answer, EvaluateError> {
        let EvaluateRequest { request, evaluated_at, .. } = check;
        let stop = check.asker.as_ref().and_then(|asker| self.is_stopped(request, asker, *evaluated_at));
        let snapshot = snapshot.filter(|_| stop.is_none());
        let circumstances = self.circumstances(check, snapshot, held);
        let keeps = stop.is_none() && check.asker.as_ref().is_some_and(|asker| asker.rules.record_facts);
        let groups = if keeps { Groups::ALL } else { circumstances.groups };
        let facts = Facts::read(request, &self.pack, &Circumstances { groups, ..circumstances }, limit)?;
        limit.check()?;
        let mut difference = None;
        let (decision, terms, source) = match stop {
            Some(stop) => (decision::stopped(&self.pack, request, &facts, stop), None, None),
            None => {
                let (outcome, differs) = self.rules.evaluate_compared(&facts);
                difference = differs;
                let decision = decision::assemble(&self.pack, request, &facts, &outcome);
                let terms = decision::terms(&self.pack, &outcome, decision.verdict);
                let settles = || self.claim_settles(request, &outcome, &circumstances, limit);
                let source = decision::source(&facts, decision.verdict, settles)?;
                (decision, terms, source)
            }
        };
        let action = ActionSummary::of(&facts);
        let mut recordable = redacted_texts(check, action, &facts.secrets, self.pack.secrets(), limit)?;
        if keeps {
            recordable.facts = kept::facts(&self.pack, request, &facts).map(Box::new);
        }
        limit.check()?;
        let recordable = Some(recordable);
        let evaluation = Evaluation { decision, recordable, approval_source: source, events: Vec::new() };
        let hold = OutcomeHold::of(&self.pack, &facts);
        let differences = difference.into_iter().collect();
        Ok(Answer { evaluation, run: facts.run, terms, stopped: stop.is_some(), hold, differences })
    }

    /// Whether a rule would object if the caller did not say that the action is approved. A rule of an organisation may
    /// ask for an approval where nothing else does.
    fn claim_settles(
        &self,
        request: &CheckRequest,
        outcome: &Outcome<'_>,
        circumstances: &Circumstances<'_>,
        limit: TimeLimit,
    ) -> Result<bool, EvaluateError> {
        let facts = Facts::read(&without_claim(request), &self.pack, circumstances, limit)?;
        let unapproved = self.evaluate(&facts);
        let is_new = |rule: &&&Rule| !outcome.matched.iter().any(|matched| matched.id == rule.id);
        Ok(unapproved.matched.iter().filter(is_new).any(|rule| rule.effect != Effect::Advise))
    }

    /// What a check is decided by on a server.
    pub(crate) fn circumstances<'a>(
        &self,
        check: &'a EvaluateRequest,
        snapshot: Option<&'a RunSnapshot>,
        held: Option<HeldApproval<'a>>,
    ) -> Circumstances<'a> {
        Circumstances {
            evaluated_at: check.evaluated_at,
            snapshot,
            before: snapshot.map_or(Before::Unknown, |snapshot| Before::Known(&snapshot.history)),
            approvals: Approvals::of(check, held),
            asking: Asking::Gateway { account: &check.account, asker: check.asker.as_ref() },
            groups: self.pack.groups,
        }
    }

    /// What exactly an approval of this request is of.
    pub fn action_digest(&self, account: &AccountId, request: &CheckRequest) -> ActionDigest {
        let environment = resolved_environment(request, &self.pack.vocabulary);
        ActionDigest::of(request, account, &environment, self.pack.version(), &self.pack.approvals.volatile)
    }

    /// The stop that covers a request of this caller at a time (seconds since the epoch), if one does.
    pub fn is_stopped<'a>(&self, request: &CheckRequest, asker: &'a Actor, at: i64) -> Option<&'a Stop> {
        if asker.rules.stops.is_empty() {
            return None;
        }
        let now = Timestamp::from_second(at).ok();
        let is_over = |stop: &Stop| stop.until.zip(now).is_some_and(|(until, now)| until <= now);
        let stops = asker.rules.stops.iter().filter(|stop| !is_over(stop));
        covering_stop(stops, request, asker, &self.pack.vocabulary)
    }

    /// Whether a wider grant covers a request: its tool, effects, environment and run. Workload, time and votes are the
    /// caller's to judge.
    pub fn grant_covers(&self, grant: &Grant, request: &CheckRequest) -> bool {
        grant_covers(grant, request, &self.pack.vocabulary)
    }

    /// A text with every secret in it masked.
    pub fn mask(&self, text: &str) -> String {
        self.pack.mask(text)
    }

    /// Decides a request and explains how the decision came about.
    pub fn explain(&self, request: &CheckRequest, evaluated_at: i64) -> Result<Explanation, Vec<FieldError>> {
        self.explain_in(request, &Circumstances::outside_of_a_server(evaluated_at, self.pack.groups))
    }

    /// Explains the decision about a request that is proposed at this time, by this caller.
    pub fn explain_for(&self, request: &CheckRequest, proposed: &Proposed) -> Result<Explanation, Vec<FieldError>> {
        let caller = NamedCaller::of(proposed);
        let circumstances = Circumstances {
            asking: Asking::Named(&caller),
            ..Circumstances::outside_of_a_server(proposed.at, self.pack.groups)
        };
        self.explain_in(request, &circumstances)
    }

    /// Explains the decision about a request in the circumstances of a case.
    pub(crate) fn explain_in(
        &self,
        request: &CheckRequest,
        circumstances: &Circumstances<'_>,
    ) -> Result<Explanation, Vec<FieldError>> {
        let facts = self.facts_in(request, circumstances)?;
        let outcome = self.evaluate(&facts);
        let decision = decision::assemble(&self.pack, request, &facts, &outcome);
        Ok(Explanation::new(&self.pack, &facts, &outcome, decision))
    }

    pub(crate) fn facts(&self, request: &CheckRequest, evaluated_at: i64) -> Result<Facts, Vec<FieldError>> {
        self.facts_in(request, &Circumstances::outside_of_a_server(evaluated_at, self.pack.groups))
    }

    /// The facts of a request in the circumstances of a case.
    pub(crate) fn facts_in(
        &self,
        request: &CheckRequest,
        circumstances: &Circumstances<'_>,
    ) -> Result<Facts, Vec<FieldError>> {
        Facts::read(request, &self.pack, circumstances, TimeLimit::NONE).map_err(|error| match error {
            EvaluateError::Invalid(errors) => errors,
            EvaluateError::OutOfTime(_) => vec![FieldError::new("body", "takes too long to decide")],
        })
    }

    /// Evaluates the rules whose trigger holds.
    pub(crate) fn evaluate(&self, facts: &Facts) -> Outcome<'_> {
        self.rules.evaluate(facts, |_| true)
    }

    /// Evaluates the rules whose trigger holds and is one of these.
    pub(crate) fn evaluate_where(&self, facts: &Facts, is_wanted: impl Fn(Trigger) -> bool) -> Outcome<'_> {
        self.rules.evaluate(facts, is_wanted)
    }

    /// As [`Engine::evaluate`], by Cedar alone.
    pub(crate) fn evaluate_by_cedar(&self, facts: &Facts) -> Outcome<'_> {
        self.rules.evaluate_by_cedar(facts)
    }

    /// Has Cedar evaluate every rule, to prove that triggers hide none, and that it agrees with the compiled rules.
    pub(crate) fn evaluate_all(&self, facts: &Facts) -> (Outcome<'_>, Option<Difference>) {
        self.rules.evaluate_all(facts)
    }

    /// Has Cedar evaluate every rule by these values.
    pub(crate) fn evaluate_by(&self, value: impl Fn(Attribute) -> Option<FactValue>) -> Outcome<'_> {
        self.rules.evaluate_by(value)
    }
}

impl<'a> Circumstances<'a> {
    /// Those of a check that no server makes: the caller has no name, and the check is the first of its run.
    pub(crate) fn outside_of_a_server(evaluated_at: i64, groups: Groups) -> Self {
        static UNNAMED: NamedCaller = NamedCaller::UNNAMED;
        Circumstances {
            evaluated_at,
            snapshot: None,
            before: Before::Nothing,
            approvals: Approvals::default(),
            asking: Asking::Named(&UNNAMED),
            groups,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;
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
    fn an_explanation_names_facts_triggers_and_evaluated_and_matched_rules() {
        let engine = Engine::new(Pack::embedded().unwrap()).unwrap();
        let body = json!({"goal": "Deploy it now", "side_effects": ["deploy"], "environment": "staging"});
        let explanation = engine.explain(&request(body), 0).unwrap();
        assert!(explanation.rules_evaluated.contains(&"approval.high_effect".to_owned()));
        assert!(explanation.rules_matched.contains(&"effects.high_without_guardrail".to_owned()));
        assert!(
            explanation.triggers.contains(&"high_effect") && explanation.facts["environments"] == json!(["staging"])
        );
        let body = json!({"goal": "use password=hunter22", "environment": "staging"});
        let explanation = engine.explain(&request(body), 0).unwrap();
        assert!(!serde_json::to_string(&explanation).unwrap().contains("staging"));
    }
}
