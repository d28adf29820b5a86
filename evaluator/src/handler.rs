//! Replies to requests of other services, as pure functions of the packs and the request.
//!
//! Owns the choice of the engine, and the distinction between "the request is wrong" (`Invalid`) and "we could not
//! decide" (`Unable`).
//! INVARIANT: a panic while deciding becomes `Unable`, and a panic while reviewing adds no fault; neither becomes an
//! ALLOW or ends the process.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use stage0_contract::{
    AccountId, ActionDigest, Actor, ApprovalTerms, CheckRequest, EvaluateReply, EvaluateRequest, EvaluatorStatusReply,
    FieldError, Grant, MAX_LISTED_POLICIES, PolicyVersion, ReviewReply, ReviewRequest, VocabularyReply,
};
use stage0_policy::{
    Answer, Engine, EvaluateError, HeldApproval, MAX_LOADED_RULE_BYTES, OutcomeHold, Pack, PackError, PackSet,
    RunNeeds, RunSnapshot, TimeLimit,
};

use crate::differences;
use crate::metrics;
use crate::published::Chosen;
use crate::run::RunUpdate;
use crate::shares::{Bounds, Shares};

/// Engines of published policies on one thread: their number, and the bytes of rules that they have parsed. A parsed
/// rule takes many times its text in memory, up to 110 times where it is all operators.
const ENGINES: Bounds = Bounds { items: MAX_LISTED_POLICIES, cost: 2 << 20, share: MAX_LOADED_RULE_BYTES };

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
    /// The approval that it was decided with.
    pub(crate) held: Option<Held>,
    /// Whether it may be held up while an outcome is unknown.
    pub(crate) hold: OutcomeHold,
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
        Self { reply, update: None, terms: None, stopped: false, held: None, hold: OutcomeHold::default() }
    }
}

/// One thread's engines: one for each of the process's own packs, and those of published policies that it needed last.
pub(crate) struct Handler {
    pub(crate) packs: Arc<PackSet>,
    engines: HashMap<PolicyVersion, Rc<Engine>>,
    published: RefCell<Shares<PackId, Rc<Engine>>>,
}

/// A loaded pack. Two with the same content can be loaded one after the other; an engine holds the one that it is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PackId(usize);

impl PackId {
    fn of(pack: &Arc<Pack>) -> Self {
        Self(Arc::as_ptr(pack).addr())
    }
}

/// The engines that decide one check.
pub(crate) struct Deciding {
    pub(crate) own: Rc<Engine>,
    pub(crate) floor: Option<Rc<Engine>>,
}

impl Handler {
    pub(crate) fn new(packs: Arc<PackSet>) -> Result<Self, PackError> {
        let engine = |pack: &Arc<Pack>| Ok((pack.version().clone(), Rc::new(Engine::new(Arc::clone(pack))?)));
        let engines = packs.packs().map(engine).collect::<Result<_, PackError>>()?;
        Ok(Self { packs, engines, published: RefCell::new(Shares::new(ENGINES)) })
    }

    /// Decides a check, with the approval that the server holds or would hold.
    pub(crate) fn evaluate(
        &self,
        message: &EvaluateRequest,
        chosen: &Chosen,
        snapshot: Option<&RunSnapshot>,
        held: Option<&Held>,
        limit: TimeLimit,
    ) -> Decided {
        let request = &message.request;
        let pack = match self.choose(chosen, request.policy_pack_version.as_deref()) {
            Ok(pack) => pack,
            Err(error) => {
                let errors =
                    with_windows(chosen.own.as_ref().unwrap_or(self.packs.active()), error, &request.constraints);
                return Decided::without(EvaluateReply::Invalid(errors));
            }
        };
        let Some(deciding) = self.deciding(pack, chosen) else {
            return Decided::without(EvaluateReply::Unable("no engine for the policy version".to_owned()));
        };
        let began = Instant::now();
        let decided = deciding.decide(message, snapshot, held, limit);
        metrics::observe_policy(began.elapsed());
        decided
    }

    /// Decides a check as [`Handler::evaluate`] does, for a policy that it was not answered by: none if there is no
    /// engine for it. The request's own choice of a version is of the policy that answered.
    pub(crate) fn judge(
        &self,
        message: &EvaluateRequest,
        chosen: &Chosen,
        snapshot: Option<&RunSnapshot>,
        held: Option<&Held>,
        limit: TimeLimit,
    ) -> Option<Decided> {
        let deciding = self.deciding(chosen.own.as_ref().unwrap_or(self.packs.active()), chosen)?;
        Some(deciding.decide(message, snapshot, held, limit))
    }

    /// What the rules of these packs ask of a run; none if there is no engine for them.
    pub(crate) fn run_needs_of(&self, chosen: &Chosen) -> Option<RunNeeds> {
        let deciding = self.deciding(chosen.own.as_ref().unwrap_or(self.packs.active()), chosen)?;
        Some(needs(&deciding.own, deciding.floor.as_deref()))
    }

    /// The pack that decides: the version that is active for the check, and no other; without one, one of the process's
    /// own packs.
    pub(crate) fn choose<'p>(&'p self, chosen: &'p Chosen, wanted: Option<&str>) -> Result<&'p Arc<Pack>, FieldError> {
        match &chosen.own {
            None => self.packs.choose(wanted),
            Some(pack) if wanted.is_none_or(|wanted| wanted == pack.version().as_str()) => Ok(pack),
            Some(_) => Err(PackSet::not_selectable()),
        }
    }

    /// The engines that decide a request; none if its version is not loaded.
    fn engines(&self, request: &CheckRequest, chosen: &Chosen) -> Option<Deciding> {
        let pack = self.choose(chosen, request.policy_pack_version.as_deref()).ok()?;
        self.deciding(pack, chosen)
    }

    pub(crate) fn deciding(&self, pack: &Arc<Pack>, chosen: &Chosen) -> Option<Deciding> {
        let floor = match &chosen.floor {
            Some(floor) => Some(self.engine(floor, None)?),
            None => None,
        };
        Some(Deciding { own: self.engine(pack, chosen.account.as_ref())?, floor })
    }

    fn engine(&self, pack: &Arc<Pack>, account: Option<&AccountId>) -> Option<Rc<Engine>> {
        if let Some(engine) = self.known_engine(pack, account) {
            return Some(engine);
        }
        // On the thread for large checks, and where more policies are in use than there is room for.
        match Engine::new(Arc::clone(pack)) {
            Ok(engine) => Some(self.keep(engine, account)),
            Err(error) => {
                tracing::error!(policy_version = %pack.version(), %error, "a policy that is loaded cannot be prepared");
                None
            }
        }
    }

    fn known_engine(&self, pack: &Arc<Pack>, account: Option<&AccountId>) -> Option<Rc<Engine>> {
        let is_it = |engine: &&Rc<Engine>| Arc::ptr_eq(engine.pack(), pack);
        if let Some(engine) = self.engines.get(pack.version()).filter(is_it) {
            return Some(Rc::clone(engine));
        }
        self.published.borrow_mut().find(&PackId::of(pack), account).cloned()
    }

    /// Whether this thread has the rules of a pack parsed; then they are in use for this account; none: for all.
    pub(crate) fn has_engine(&self, pack: &Arc<Pack>, account: Option<&AccountId>) -> bool {
        self.known_engine(pack, account).is_some()
    }

    /// Keeps the engine of a published policy of an account; none: of all.
    pub(crate) fn keep(&self, engine: Engine, account: Option<&AccountId>) -> Rc<Engine> {
        let engine = Rc::new(engine);
        let pack = engine.pack();
        let mut published = self.published.borrow_mut();
        // Another one of this version is of a pack that has left.
        published.drop_own(account, |other| other.pack().version() == pack.version());
        published.insert(PackId::of(pack), Rc::clone(&engine), pack.rule_bytes(), account);
        drop(published);
        engine
    }

    /// What the rules that decide a request ask of its run.
    pub(crate) fn run_needs(&self, request: &CheckRequest, chosen: &Chosen) -> RunNeeds {
        let engines = self.engines(request, chosen);
        engines.map(|engines| needs(&engines.own, engines.floor.as_deref())).unwrap_or_default()
    }

    /// What exactly an approval of this check is of: with a floor, of the action as both packs read it.
    pub(crate) fn action_digest(&self, message: &EvaluateRequest, chosen: &Chosen) -> Option<ActionDigest> {
        let Deciding { own, floor } = self.engines(&message.request, chosen)?;
        let digest = |engine: &Engine| engine.action_digest(&message.account, &message.request);
        let Some(floor) = floor else { return Some(digest(&own)) };
        let both = Sha256::new().chain_update(digest(&own).as_str()).chain_update(digest(&floor).as_str());
        ActionDigest::parse(&HEXLOWER.encode(&both.finalize())).ok()
    }

    /// Why a stop covers the request; none if none does. A request that cannot be judged is covered by any stop.
    pub(crate) fn stop_over(&self, request: &CheckRequest, chosen: &Chosen, asker: &Actor, now: i64) -> Option<String> {
        let stops = &asker.rules.stops;
        let Some(engines) = self.engines(request, chosen) else { return stops.first().map(|stop| stop.reason.clone()) };
        let stop = |engine: &Engine| engine.is_stopped(request, asker, now).map(|stop| stop.reason.clone());
        stop(&engines.own).or_else(|| stop(engines.floor.as_deref()?))
    }

    /// Whether a wider grant covers the check: its tool, effects, environment and run, as each pack reads them.
    pub(crate) fn grant_covers(&self, grant: &Grant, message: &EvaluateRequest, chosen: &Chosen) -> bool {
        let covers = |engine: &Engine| engine.grant_covers(grant, &message.request);
        let engines = self.engines(&message.request, chosen);
        engines.is_some_and(|engines| covers(&engines.own) && engines.floor.as_deref().is_none_or(covers))
    }

    /// A text with every secret in it masked: what the process's own policy or one of these takes for one.
    pub(crate) fn mask(&self, text: &str, published: &[Arc<Pack>]) -> String {
        published.iter().fold(self.packs.active().mask(text), |masked, pack| pack.mask(&masked))
    }

    /// The faults that only the policy can find in a request that is refused anyway: the published policy that would
    /// decide it, or else one of the process's own.
    pub(crate) fn review(&self, message: &ReviewRequest, published: Option<Arc<Pack>>) -> ReviewReply {
        let chosen = Chosen { own: published, ..Chosen::default() };
        let find = || match self.choose(&chosen, message.policy_pack_version.as_deref()) {
            Ok(pack) => pack.review(&message.constraints),
            Err(error) => with_windows(chosen.own.as_ref().unwrap_or(self.packs.active()), error, &message.constraints),
        };
        let errors = catch_unwind(AssertUnwindSafe(find)).unwrap_or_else(|_| {
            // The request is refused anyway, for the faults that the gateway found.
            tracing::error!(account = %message.account, "review panicked");
            Vec::new()
        });
        ReviewReply { errors }
    }

    /// The words of a published pack, or else of the process's own.
    pub(crate) fn vocabulary(&self, published: Option<&Pack>) -> VocabularyReply {
        let pack = published.unwrap_or(self.packs.active());
        VocabularyReply { policy_version: pack.version().clone(), vocabulary: pack.reference().clone() }
    }

    pub(crate) fn status(&self) -> EvaluatorStatusReply {
        EvaluatorStatusReply { active: self.packs.active().version().clone(), loaded: self.packs.versions() }
    }
}

impl Deciding {
    fn decide(
        &self,
        message: &EvaluateRequest,
        snapshot: Option<&RunSnapshot>,
        held: Option<&Held>,
        limit: TimeLimit,
    ) -> Decided {
        let Self { own, floor } = self;
        let approval = held.map(Held::as_policy);
        let needs = needs(own, floor.as_deref());
        let decide = || {
            let answer = own.answer(message, snapshot, approval, limit)?;
            match floor {
                Some(floor) => Ok(answer.with_floor(floor.answer(message, snapshot, approval, limit)?)),
                None => Ok(answer),
            }
        };
        Decided { held: held.cloned(), ..guarded(message, own.pack().version(), needs, decide) }
    }
}

/// What the rules of the packs that decide ask of a run.
fn needs(own: &Engine, floor: Option<&Engine>) -> RunNeeds {
    let needs = own.pack().run_needs();
    floor.map_or(needs, |floor| needs.and(floor.pack().run_needs()))
}

/// The fault of an unavailable version, together with those that the active version finds in the constraints.
fn with_windows(active: &Pack, version: FieldError, constraints: &[String]) -> Vec<FieldError> {
    let mut errors = active.review(constraints);
    errors.push(version);
    errors
}

/// Decides, and turns a panic into `Unable`. The panic's message may quote the request, so it is not logged.
fn guarded(
    message: &EvaluateRequest,
    version: &PolicyVersion,
    needs: RunNeeds,
    decide: impl FnOnce() -> Result<Answer, EvaluateError>,
) -> Decided {
    // The engine keeps no state between requests, so a panic leaves nothing inconsistent.
    match catch_unwind(AssertUnwindSafe(decide)) {
        Ok(Ok(Answer { evaluation, run, terms, stopped, hold, differences })) => {
            differences::found_by_check(message, &differences);
            let update = Some(RunUpdate::new(&evaluation, needs, run));
            Decided { reply: EvaluateReply::Decided(Box::new(evaluation)), update, terms, stopped, held: None, hold }
        }
        Ok(Err(EvaluateError::Invalid(errors))) => Decided::without(EvaluateReply::Invalid(errors)),
        Ok(Err(EvaluateError::OutOfTime(_))) => Decided::without(EvaluateReply::TimedOut),
        Err(_) => {
            tracing::error!(
                request_id = %message.request_id,
                account = %message.account,
                policy_version = %version,
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
    use stage0_contract::{CallerTexts, PolicyBundle, PolicyFiles, RequestId, Verdict};

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
        handler().evaluate(&message(body), &Chosen::default(), None, None, TimeLimit::NONE).reply
    }

    #[test]
    fn a_panic_while_deciding_is_unable_and_does_not_quote_the_request() {
        let message = message(json!({"goal": "tell nobody"}));
        let pack = Pack::embedded().unwrap();
        let reply = guarded(&message, pack.version(), pack.run_needs(), || panic!("{}", message.request.goal)).reply;
        let EvaluateReply::Unable(why) = reply else { panic!("{reply:?}") };
        assert_eq!(why, "the evaluation panicked");
    }

    #[test]
    fn what_is_out_of_time_is_given_up_and_teaches_its_run_nothing() {
        let message = message(json!({"goal": "two words", "success_criteria": ["x"], "context": {"run_id": "r"}}));
        let snapshot = RunSnapshot::default();
        let ask = |limit| handler().evaluate(&message, &Chosen::default(), Some(&snapshot), None, limit);
        let Decided { reply, update, .. } = ask(TimeLimit::over());
        assert!(reply == EvaluateReply::TimedOut && update.is_none(), "{reply:?}");
        let Decided { reply, update, .. } = ask(TimeLimit::NONE);
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
        let refused = ReviewRequest {
            account: AccountId::parse("acc").unwrap(),
            constraints: vec![String::new(), "max_retries: many".to_owned(), "allowed_change_window: x".to_owned()],
            policy_pack_version: Some("other@1.0.0+000000000000".to_owned()),
            policy: None,
        };
        let reply = handler().review(&refused, None);
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

    /// A pack that knows another name of production.
    fn with_alias() -> Chosen {
        let files = [
            (
                "pack.toml",
                "name = \"house\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n\n[weakens]\nreason = \"our \
                 name\"\nwords = [\"qa\"]\n",
            ),
            ("vocabulary.toml", "[environments]\nproduction = [\"qa\"]\n"),
            (
                "cases.json",
                "[{\"id\": \"may\", \"expect\": [\"ALLOW\"], \"request\": {\"goal\": \"Summarize the minutes of May\", \
                 \"success_criteria\": [\"x\"]}}]",
            ),
        ];
        let files = files.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
        let pack = Pack::from_bundle(&PolicyBundle { packs: vec![PolicyFiles { files }] });
        Chosen { floor: Some(pack.unwrap_or_else(|error| panic!("{error}"))), ..Chosen::default() }
    }

    #[test]
    fn an_account_with_many_engines_loses_its_own_and_what_decides_stays() {
        let pack = |name: &str| {
            let manifest = format!("name = \"{name}\"\nversion = \"1.0.0\"\nextends = \"baseline@2\"\n");
            let files = [("pack.toml".to_owned(), manifest)].into();
            Pack::from_bundle(&PolicyBundle { packs: vec![PolicyFiles { files }] }).unwrap()
        };
        let [quiet, first, second, third] = ["quiet", "first", "second", "third"].map(pack);
        let bytes = quiet.rule_bytes();
        assert!((32 << 10..MAX_LOADED_RULE_BYTES).contains(&bytes), "{bytes}");
        let bounds = Bounds { items: 64, cost: 100 * bytes, share: 2 * bytes };
        let handler = Handler { published: RefCell::new(Shares::new(bounds)), ..handler() };
        let [heavy, other] = ["heavy", "other"].map(|name| AccountId::parse(name).unwrap());
        handler.engine(&quiet, Some(&other)).unwrap();
        let deciding = handler.engine(&first, Some(&heavy)).unwrap();
        assert!(Rc::ptr_eq(&deciding, &handler.engine(&first, Some(&heavy)).unwrap()), "parsed once");
        for pack in [&second, &third] {
            handler.engine(pack, Some(&heavy)).unwrap();
        }
        let has = |pack: &Arc<Pack>| handler.has_engine(pack, None);
        assert_eq!([has(&first), has(&second), has(&third), has(&quiet)], [false, true, true, true]);
        let request = message(json!({"goal": "two words", "success_criteria": ["x"]})).request;
        assert!(deciding.decide(&request, 1_773_662_400).is_ok(), "what it was parsed for is decided by it");
    }

    #[test]
    fn stops_grants_and_approvals_hold_by_the_words_of_both_packs() {
        let (handler, floor, own) = (handler(), with_alias(), Chosen::default());
        let message = message(json!({"goal": "two words", "success_criteria": ["x"], "environment": "qa"}));
        let asker = |environment: &str| -> Actor {
            serde_json::from_value(json!({"key_id": "k", "holder": {"workload": "k"}, "rules": {"stops": [
                {"id": "stop_1", "account": null, "scope": "environment", "value": environment, "reason": "r",
                    "created_at": "2026-03-16T11:00:00Z", "until": null, "key_id": "k", "member_id": null}]}}))
            .unwrap()
        };
        let stopped = |chosen: &Chosen, environment: &str| {
            handler.stop_over(&message.request, chosen, &asker(environment), message.evaluated_at).is_some()
        };
        assert_eq!([stopped(&own, "production"), stopped(&floor, "production")], [false, true]);
        assert_eq!([stopped(&own, "qa"), stopped(&floor, "qa"), stopped(&floor, "staging")], [true, true, false]);

        let grant = |environment: &str| -> Grant {
            serde_json::from_value(json!({"id": "g", "workload": "k", "run_id": null, "tool": null, "effects": null,
                "environment": environment, "until": "2026-03-16T11:00:00Z", "created_at": "2026-03-16T11:00:00Z",
                "votes": [], "revoked_at": null, "uses": 0, "used_by": []}))
            .unwrap()
        };
        let covers = |chosen: &Chosen, at: &str| handler.grant_covers(&grant(at), &message, chosen);
        assert_eq!([covers(&own, "qa"), covers(&floor, "qa")], [true, true]);
        // Only the floor takes it for production, so the grant for production is not one for this.
        assert!(!covers(&floor, "production"));

        let digest = |chosen: &Chosen| handler.action_digest(&message, chosen).unwrap();
        assert_eq!(digest(&floor), digest(&floor));
        assert_ne!(digest(&floor), digest(&own), "an approval under another floor is none");
    }
}
