//! Replies to requests of other services, as pure functions of the packs and the request.
//!
//! Owns the choice of the engine, and the distinction between "the request is wrong" (`Invalid`) and "we could not
//! decide" (`Unable`).
//! INVARIANT: a panic while deciding becomes `Unable`, and a panic while reviewing adds no fault; neither becomes an
//! ALLOW or ends the process.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use stage0_contract::{
    ActionDigest, Actor, ApprovalTerms, CheckRequest, EvaluateReply, EvaluateRequest, EvaluatorStatusReply, FieldError,
    Grant, PolicyVersion, ReviewReply, ReviewRequest, VocabularyReply,
};
use stage0_policy::{
    Answer, Engine, EvaluateError, HeldApproval, Pack, PackError, PackSet, RunNeeds, RunSnapshot, TimeLimit,
};

use crate::metrics;
use crate::run::RunUpdate;

/// An approval that the server holds, or would hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    Approved { by: String, at: i64 },
    Denied,
}

/// What came of a check, and what else must be known of it.
pub(crate) struct Decided {
    pub(crate) reply: EvaluateReply,
    /// What a decision changes in its run.
    pub(crate) update: Option<RunUpdate>,
    /// On DEFER: what its rules demand of an approval.
    pub(crate) terms: Option<ApprovalTerms>,
    /// Whether a stop covers the check.
    pub(crate) stopped: bool,
}

impl Held {
    fn as_policy(&self) -> HeldApproval<'_> {
        match self {
            Self::Approved { by, at } => HeldApproval::Approved { by, at: *at },
            Self::Denied => HeldApproval::Denied,
        }
    }
}

impl Decided {
    pub(crate) fn without(reply: EvaluateReply) -> Self {
        Self { reply, update: None, terms: None, stopped: false }
    }
}

/// One thread's engines, one for each loaded version.
pub(crate) struct Handler {
    packs: Arc<PackSet>,
    engines: HashMap<PolicyVersion, Engine>,
}

impl Handler {
    pub(crate) fn new(packs: Arc<PackSet>) -> Result<Self, PackError> {
        let engine = |pack: &Arc<Pack>| Ok((pack.version().clone(), Engine::new(Arc::clone(pack))?));
        let engines = packs.packs().map(engine).collect::<Result<_, PackError>>()?;
        Ok(Self { packs, engines })
    }

    /// Decides a check, with the approval that the server holds or would hold.
    pub(crate) fn evaluate(
        &self,
        message: &EvaluateRequest,
        snapshot: Option<&RunSnapshot>,
        held: Option<&Held>,
        limit: TimeLimit,
    ) -> Decided {
        let request = &message.request;
        let pack = match self.packs.choose(request.policy_pack_version.as_deref()) {
            Ok(pack) => pack,
            Err(error) => {
                return Decided::without(EvaluateReply::Invalid(self.with_windows(error, &request.constraints)));
            }
        };
        let Some(engine) = self.engines.get(pack.version()) else {
            return Decided::without(EvaluateReply::Unable("no engine for the policy version".to_owned()));
        };
        let began = Instant::now();
        let held = held.map(Held::as_policy);
        let answer = guarded(message, pack, || engine.answer(message, snapshot, held, limit));
        metrics::observe_policy(began.elapsed());
        answer
    }

    /// The engine that decides a request; none if its version is not loaded.
    fn engine(&self, request: &CheckRequest) -> Option<&Engine> {
        let pack = self.packs.choose(request.policy_pack_version.as_deref()).ok()?;
        self.engines.get(pack.version())
    }

    /// What the rules that decide a request ask of its run.
    pub(crate) fn run_needs(&self, request: &CheckRequest) -> RunNeeds {
        self.engine(request).map(|engine| engine.pack().run_needs()).unwrap_or_default()
    }

    /// What exactly an approval of this check is of.
    pub(crate) fn action_digest(&self, message: &EvaluateRequest) -> Option<ActionDigest> {
        let engine = self.engine(&message.request)?;
        Some(engine.action_digest(&message.account, &message.request))
    }

    /// Why a stop covers the request; none if none does. A request that cannot be judged is covered by any stop.
    pub(crate) fn stop_over(&self, request: &CheckRequest, asker: &Actor, now: i64) -> Option<String> {
        let stops = &asker.rules.stops;
        let Some(engine) = self.engine(request) else { return stops.first().map(|stop| stop.reason.clone()) };
        engine.is_stopped(request, asker, now).map(|stop| stop.reason.clone())
    }

    /// Whether a wider grant covers the check: its tool, effects, environment and run.
    pub(crate) fn grant_covers(&self, grant: &Grant, message: &EvaluateRequest) -> bool {
        self.engine(&message.request).is_some_and(|engine| engine.grant_covers(grant, &message.request))
    }

    /// A text with every secret in it masked, by the policy that decides checks which name none.
    pub(crate) fn mask(&self, text: &str) -> String {
        match self.engines.get(self.packs.active().version()) {
            Some(engine) => engine.mask(text),
            None => String::new(),
        }
    }

    /// The faults that only the policy can find in a request that is refused anyway.
    pub(crate) fn review(&self, message: &ReviewRequest) -> ReviewReply {
        let find = || match self.packs.choose(message.policy_pack_version.as_deref()) {
            Ok(pack) => pack.review(&message.constraints),
            Err(error) => self.with_windows(error, &message.constraints),
        };
        let errors = catch_unwind(AssertUnwindSafe(find)).unwrap_or_else(|_| {
            // The request is refused anyway, for the faults that the gateway found.
            tracing::error!(account = %message.account, "review panicked");
            Vec::new()
        });
        ReviewReply { errors }
    }

    pub(crate) fn vocabulary(&self) -> VocabularyReply {
        let pack = self.packs.active();
        VocabularyReply { policy_version: pack.version().clone(), vocabulary: pack.reference().clone() }
    }

    pub(crate) fn status(&self) -> EvaluatorStatusReply {
        EvaluatorStatusReply { active: self.packs.active().version().clone(), loaded: self.packs.versions() }
    }

    /// The fault of an unavailable version, together with those that the active version finds in the constraints.
    fn with_windows(&self, version: FieldError, constraints: &[String]) -> Vec<FieldError> {
        let active = self.packs.active();
        let mut errors = active.review(constraints);
        errors.push(version);
        errors
    }
}

/// Decides, and turns a panic into `Unable`. The panic's message may quote the request, so it is not logged.
fn guarded(message: &EvaluateRequest, pack: &Pack, decide: impl FnOnce() -> Result<Answer, EvaluateError>) -> Decided {
    // The engine keeps no state between requests, so a panic leaves nothing inconsistent.
    match catch_unwind(AssertUnwindSafe(decide)) {
        Ok(Ok(Answer { evaluation, run, terms, stopped })) => {
            let update = Some(RunUpdate::new(&evaluation, pack.run_needs(), run));
            Decided { reply: EvaluateReply::Decided(Box::new(evaluation)), update, terms, stopped }
        }
        Ok(Err(EvaluateError::Invalid(errors))) => Decided::without(EvaluateReply::Invalid(errors)),
        Ok(Err(EvaluateError::OutOfTime(_))) => Decided::without(EvaluateReply::TimedOut),
        Err(_) => {
            tracing::error!(
                request_id = %message.request_id,
                account = %message.account,
                policy_version = %pack.version(),
                "evaluation panicked"
            );
            Decided::without(EvaluateReply::Unable("the evaluation panicked".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use stage0_contract::{AccountId, CallerTexts, RequestId, Verdict};

    fn handler() -> Handler {
        Handler::new(Arc::new(PackSet::embedded().unwrap())).unwrap()
    }

    fn message(body: Value) -> EvaluateRequest {
        EvaluateRequest {
            asker: None,
            request_id: RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap(),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body).unwrap(),
            evaluated_at: 1_773_662_400,
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        }
    }

    fn ask(body: Value) -> EvaluateReply {
        handler().evaluate(&message(body), None, None, TimeLimit::NONE).reply
    }

    #[test]
    fn a_panic_while_deciding_is_unable_and_does_not_quote_the_request() {
        let message = message(json!({"goal": "tell nobody"}));
        let pack = Pack::embedded().unwrap();
        let reply = guarded(&message, &pack, || panic!("{}", message.request.goal)).reply;
        let EvaluateReply::Unable(why) = reply else { panic!("{reply:?}") };
        assert_eq!(why, "the evaluation panicked");
    }

    #[test]
    fn what_is_out_of_time_is_given_up_and_teaches_its_run_nothing() {
        let message = message(json!({"goal": "two words", "success_criteria": ["x"], "context": {"run_id": "r"}}));
        let snapshot = RunSnapshot::default();
        let Decided { reply, update, .. } = handler().evaluate(&message, Some(&snapshot), None, TimeLimit::over());
        assert!(reply == EvaluateReply::TimedOut && update.is_none(), "{reply:?}");
        let Decided { reply, update, .. } = handler().evaluate(&message, Some(&snapshot), None, TimeLimit::NONE);
        assert!(matches!(reply, EvaluateReply::Decided(_)) && update.is_some(), "{reply:?}");
    }

    #[test]
    fn an_unknown_version_and_an_unknown_window_are_named_together() {
        let body = json!({"goal": "two words", "constraints": ["sandbox", "allowed_change_window: blue_moon"],
            "policy_pack_version": "other@1.0.0+000000000000"});
        let EvaluateReply::Invalid(errors) = ask(body) else { panic!("not refused") };
        let paths: Vec<_> = errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["constraints[1]", "policy_pack_version"]);
    }

    #[test]
    fn a_review_finds_what_an_evaluation_would() {
        let reply = handler().review(&ReviewRequest {
            account: AccountId::parse("acc").unwrap(),
            constraints: vec![String::new(), "max_retries: many".to_owned(), "allowed_change_window: x".to_owned()],
            policy_pack_version: Some("other@1.0.0+000000000000".to_owned()),
        });
        let paths: Vec<_> = reply.errors.iter().map(|e| e.path.as_str()).collect();
        assert_eq!(paths, ["constraints[2]", "policy_pack_version"], "bad grammar is the gateway's to name");
    }

    #[test]
    fn the_active_version_decides_and_may_be_asked_for_by_name() {
        let active = handler().status().active;
        let EvaluateReply::Decided(decided) = ask(json!({"goal": "two words", "success_criteria": ["x"],
            "policy_pack_version": active.as_str()}))
        else {
            panic!("not decided")
        };
        assert_eq!((decided.decision.verdict, &decided.decision.policy_version), (Verdict::Allow, &active));
        assert!(decided.recordable.is_some());
    }
}
