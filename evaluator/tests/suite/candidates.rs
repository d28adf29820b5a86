//! Policies that are tried, over the backplane: what a shadow and a canary find, and that no answer waits for it.

use std::num::NonZeroUsize;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use stage0_backplane::Backplane;
use stage0_backplane::embedded::Bus;
use stage0_contract::{
    AccountId, AccountRules, ActivePolicies, Actor, CallerTexts, CandidateCounts, CandidateFindings, CandidateMode,
    CandidatesRead, CheckRequest, Decision, Disagreement, EvaluateReply, EvaluateRequest, FetchPolicy, FetchedPolicy,
    IssueCode, KeyId, ManageReply, PolicyBundle, PolicyCandidate, PolicyVersion, ReadCandidates, Refusal, RunId,
    ShowRun, Verdict,
};
use stage0_evaluator::{EvaluatorConfig, RunConfig, build};
use stage0_policy::PackSet;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::published::{WAIT_TIMEOUT, pack, payment, version_of};
use super::runs::id;
use super::service::connect;

/// Larger than an ordinary check.
const LARGE: usize = 40_000;
const ID: Uuid = Uuid::from_u128(7);

/// Evaluators beside a keystore that has these policies.
struct Trial {
    bus: Bus,
    caller: Backplane,
    evaluators: JoinSet<()>,
    stop: CancellationToken,
    /// Whether the keystore answers.
    answers: watch::Sender<bool>,
    _keystore: JoinSet<()>,
}

impl Trial {
    async fn start(evaluators: usize, published: &[(PolicyVersion, PolicyBundle)]) -> Self {
        let bus = Bus::new();
        let (answers, mut may_answer) = watch::channel(true);
        let (keystore, published) = (bus.connect(), published.to_vec());
        let mut requests = keystore.requests.serve::<FetchPolicy>().await.unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let _keystore = keystore;
            while let Some(message) = requests.next().await {
                may_answer.wait_for(|answers| *answers).await.unwrap();
                let (wanted, _, responder) = message.into_parts();
                let found = published.iter().find(|(version, _)| *version == wanted.version).cloned();
                let reply = found.map_or(ManageReply::Refused(Refusal::NotFound), |(version, bundle)| {
                    ManageReply::Done(FetchedPolicy { version, bundle })
                });
                responder.answer(&reply).await;
            }
        });
        let mut trial = Self {
            caller: bus.connect(),
            bus,
            evaluators: JoinSet::new(),
            stop: CancellationToken::new(),
            answers,
            _keystore: serving,
        };
        for _ in 0..evaluators {
            trial.add_evaluator().await;
        }
        trial
    }

    async fn add_evaluator(&mut self) {
        let (packs, runs) = (PackSet::embedded().unwrap(), RunConfig::default());
        let config = EvaluatorConfig { packs, shards: NonZeroUsize::new(2), runs };
        let evaluator = build(config, connect(&self.bus)).await.unwrap();
        let stop = self.stop.clone();
        self.evaluators.spawn(async move { evaluator.run_until(stop.cancelled_owned()).await.unwrap() });
    }

    /// Stops all evaluators, and waits until they have drained.
    async fn drain(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.evaluators.join_next().await {
            ended.unwrap();
        }
        self.stop = CancellationToken::new();
    }

    async fn ask(&self, number: u64, body: &Value, rules: &AccountRules) -> Decision {
        let asker = json!({
            "key_id": "key_2", "holder": {"workload": "key_1"}, "key_name": "bot-1", "rules": rules,
        });
        let message = EvaluateRequest {
            asker: Some(serde_json::from_value::<Actor>(asker).unwrap()),
            request_id: id(number),
            account: AccountId::parse("acc").unwrap(),
            request: CheckRequest::parse(body.clone()).unwrap(),
            evaluated_at: jiff::Timestamp::now().as_second(),
            operation: None,
            caller: CallerTexts::default(),
            max_runs: None,
        };
        match self.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap() {
            EvaluateReply::Decided(evaluation) => evaluation.decision,
            other => panic!("not decided: {other:?}"),
        }
    }

    async fn read(&self, account: &str, candidates: &[Uuid]) -> Vec<(Uuid, CandidateFindings)> {
        let message = ReadCandidates { account: AccountId::parse(account).unwrap(), candidates: candidates.to_vec() };
        let reply = self.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap();
        let ManageReply::Done(CandidatesRead { found }) = reply else { panic!("{reply:?}") };
        found.into_iter().map(|found| (found.candidate, found.findings)).collect()
    }

    /// What was found, once so many checks are counted.
    async fn found(&self, of: u64) -> CandidateFindings {
        let found = async {
            loop {
                if let Some((_, found)) = self.read("acc", &[ID]).await.pop()
                    && found.counts.checks + found.counts.not_judged >= of
                {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WAIT_TIMEOUT, found).await.expect("counted in time")
    }
}

fn candidate(mode: CandidateMode, version: &PolicyVersion) -> PolicyCandidate {
    PolicyCandidate {
        id: ID,
        mode,
        version: version.clone(),
        environment: None,
        percent: 100,
        return_at: None,
        started_at: jiff::Timestamp::UNIX_EPOCH,
        key_id: KeyId::parse("key_9").unwrap(),
        against: Vec::new(),
    }
}

fn rules(active: Option<&PolicyVersion>, candidate: PolicyCandidate) -> AccountRules {
    let policy = ActivePolicies { default: active.cloned(), ..ActivePolicies::default() };
    let candidate = PolicyCandidate { against: vec![active.cloned()], ..candidate };
    AccountRules { policy, candidates: vec![candidate], ..AccountRules::default() }
}

fn counts(checks: u64, disagreements: u64, looser: u64) -> CandidateCounts {
    CandidateCounts { checks, disagreements, looser, ..CandidateCounts::default() }
}

/// A pack that defers large amounts, one that denies them, and both with their versions.
fn defers_and_denies() -> [(PolicyVersion, PolicyBundle); 2] {
    ["defer", "deny"].map(|effect| {
        let bundle = pack("ours", effect);
        (version_of(&bundle), bundle)
    })
}

fn of_run(body: Value) -> Value {
    let mut body = body;
    body["context"]["run_id"] = "r".into();
    body
}

#[tokio::test]
async fn a_shadow_judges_what_the_active_policy_decides_and_has_no_effect() {
    let both = defers_and_denies();
    let trial = Trial::start(1, &both).await;
    let [(defers, _), (denies, _)] = &both;
    let rules = rules(Some(defers), candidate(CandidateMode::Shadow, denies));
    for (number, amount, verdict) in [(1, 501, Verdict::Defer), (2, 500, Verdict::Allow), (3, 502, Verdict::Defer)] {
        let decision = trial.ask(number, &payment(amount), &rules).await;
        assert_eq!((decision.verdict, &decision.policy_version), (verdict, defers));
    }
    let found = trial.found(3).await;
    assert_eq!(found.counts, counts(3, 2, 0));
    let [Disagreement { from, to, code, rule, agent, count, request_id, .. }] = &found.disagreements[..] else {
        panic!("{found:#?}")
    };
    assert_eq!((*from, *to, *count, *request_id), (Verdict::Defer, Verdict::Deny, 2, id(3)));
    assert_eq!((code, rule.as_str()), (&IssueCode::parse("LARGE_AMOUNT").unwrap(), "ours.large"));
    assert_eq!(agent.as_deref(), Some("bot-1"));
    assert!(trial.read("other", &[ID]).await.is_empty(), "the same id in another account");
    assert!(trial.read("acc", &[Uuid::from_u128(8)]).await.is_empty());
}

#[tokio::test]
async fn a_canary_decides_and_is_compared_with_what_is_active() {
    let both = defers_and_denies();
    let trial = Trial::start(1, &both).await;
    let [(defers, _), (denies, _)] = &both;
    let rules = rules(Some(denies), candidate(CandidateMode::Canary, defers));
    for (number, amount, verdict) in [(1, 501, Verdict::Defer), (2, 500, Verdict::Allow)] {
        let decision = trial.ask(number, &payment(amount), &rules).await;
        assert_eq!((decision.verdict, &decision.policy_version), (verdict, defers));
    }
    let found = trial.found(2).await;
    assert_eq!(found.counts, counts(2, 1, 1));
    let flip = &found.disagreements[0];
    assert_eq!((flip.from, flip.to, flip.rule.as_str()), (Verdict::Deny, Verdict::Defer, "ours.large"));
}

#[tokio::test]
async fn where_nothing_is_active_a_canary_is_compared_with_the_evaluators_own_policy() {
    let both = defers_and_denies();
    let trial = Trial::start(1, &both).await;
    let [_, (denies, _)] = &both;
    let rules = rules(None, candidate(CandidateMode::Canary, denies));
    // A request may name the version that decides it.
    let mut body = payment(501);
    body["policy_pack_version"] = denies.as_str().into();
    assert_eq!(trial.ask(1, &body, &rules).await.verdict, Verdict::Deny);
    let found = trial.found(1).await;
    assert_eq!(found.counts, counts(1, 1, 0));
    assert_eq!((found.disagreements[0].from, found.disagreements[0].to), (Verdict::Allow, Verdict::Deny));
}

#[tokio::test]
async fn the_floor_counts_in_both_verdicts() {
    let both = defers_and_denies();
    let floor = pack("floor", "deny");
    let of_floor = version_of(&floor);
    let published = [&both[..], &[(of_floor.clone(), floor)]].concat();
    let trial = Trial::start(1, &published).await;
    let [(defers, _), _] = &both;
    let without = rules(None, candidate(CandidateMode::Shadow, defers));
    assert_eq!(trial.ask(1, &payment(501), &without).await.verdict, Verdict::Allow);
    assert_eq!(trial.found(1).await.counts, counts(1, 1, 0), "the neighbour: without the floor they differ");
    let with = AccountRules { floor: Some(of_floor), ..without };
    assert_eq!(trial.ask(2, &payment(501), &with).await.verdict, Verdict::Deny);
    assert_eq!(trial.found(2).await.counts, counts(2, 1, 0));
}

#[tokio::test]
async fn a_shadow_that_cannot_be_loaded_leaves_answers_as_they_are() {
    let both = defers_and_denies();
    let trial = Trial::start(1, &both).await;
    let gone = PolicyVersion::parse("gone@1.0.0+000000000000").unwrap();
    let rules = rules(Some(&both[0].0), candidate(CandidateMode::Shadow, &gone));
    for number in 1..=5 {
        assert_eq!(trial.ask(number, &payment(501), &rules).await.verdict, Verdict::Defer);
    }
    let expected = CandidateCounts { not_judged: 5, ..CandidateCounts::default() };
    assert_eq!(trial.found(5).await.counts, expected);
}

#[tokio::test]
async fn answers_of_a_storm_arrive_while_the_shadow_is_still_loading() {
    const STORM: u64 = 600;
    let both = defers_and_denies();
    let trial = Trial::start(1, &both).await;
    let [(defers, _), (denies, _)] = &both;
    let rules = rules(Some(defers), candidate(CandidateMode::Shadow, denies));
    // What is active is there, and nothing that the shadow needs.
    trial.ask(0, &payment(1), &AccountRules { candidates: Vec::new(), ..rules.clone() }).await;
    trial.answers.send_replace(false);
    let body = payment(501);
    let decisions = join_all((1..=STORM).map(|number| trial.ask(number, &body, &rules))).await;
    assert!(decisions.iter().all(|decision| decision.verdict == Verdict::Defer), "all of them while it is blocked");
    trial.answers.send_replace(true);
    let found = trial.found(STORM).await.counts;
    assert_eq!(found.checks + found.not_judged, STORM);
    assert!(found.not_judged > 0, "what waits is bounded: {found:?}");
    trial.ask(STORM + 1, &body, &rules).await;
    assert_eq!(trial.found(STORM + 1).await.counts.not_judged, found.not_judged, "the shadow judges by now");
}

#[tokio::test]
async fn what_two_evaluators_find_adds_up_and_is_stored_before_they_end() {
    const CHECKS: u64 = 120;
    let both = defers_and_denies();
    let mut trial = Trial::start(2, &both).await;
    let [(defers, _), (denies, _)] = &both;
    let rules = rules(Some(defers), candidate(CandidateMode::Shadow, denies));
    let (small, large) = (payment(500), payment(501));
    // So that every evaluator has loaded both.
    for number in 1..=8 {
        trial.ask(number, &small, &rules).await;
    }
    assert_eq!(trial.found(8).await.counts, counts(8, 0, 0));
    let body = |number: u64| if number.is_multiple_of(3) { &large } else { &small };
    join_all((9..9 + CHECKS).map(|number| trial.ask(number, body(number), &rules))).await;
    let found = trial.found(8 + CHECKS).await;
    assert_eq!(found.counts, counts(8 + CHECKS, CHECKS / 3, 0));
    assert_eq!((found.disagreements.len(), found.disagreements[0].count), (1, CHECKS / 3));
    // What is left when they end is judged or counted as not judged, and stored.
    join_all((200..200 + CHECKS).map(|number| trial.ask(number, &small, &rules))).await;
    trial.drain().await;
    trial.add_evaluator().await;
    let last = trial.read("acc", &[ID]).await.pop().unwrap().1;
    assert_eq!(last.counts.checks + last.counts.not_judged, 8 + 2 * CHECKS);
    assert_eq!(last.counts.disagreements, found.counts.disagreements);
}

#[tokio::test]
async fn a_check_of_a_run_is_judged_once_and_its_run_counts_it_once() {
    const CHECKS: u64 = 12;
    let both = defers_and_denies();
    let trial = Trial::start(2, &both).await;
    let [(defers, _), (denies, _)] = &both;
    let rules = rules(Some(defers), candidate(CandidateMode::Shadow, denies));
    let body = of_run(payment(1));
    // Two evaluators meet in one run, so that attempts conflict and are made again.
    join_all((1..=CHECKS).map(|number| trial.ask(number, &body, &rules))).await;
    let (account, run_id) = (AccountId::parse("acc").unwrap(), RunId::parse("r").unwrap());
    let shown = async || {
        let message = ShowRun { account: account.clone(), run_id: run_id.clone() };
        let shown = trial.caller.requests.request(&message, WAIT_TIMEOUT).await.unwrap();
        let ManageReply::Done(run) = shown else { panic!("no run") };
        run.iterations
    };
    let allowed = shown().await;
    let found = trial.found(CHECKS).await.counts;
    assert_eq!((found.checks + found.not_judged, found.disagreements), (CHECKS, 0));
    assert_eq!(shown().await, allowed, "judging changes no run");
    // One that was allowed already was judged already.
    trial.ask(1, &body, &rules).await;
    trial.ask(CHECKS + 1, &body, &rules).await;
    let found = trial.found(CHECKS + 1).await.counts;
    assert_eq!(found.checks + found.not_judged, CHECKS + 1);
}

#[tokio::test]
async fn a_large_check_is_answered_and_counts_as_not_judged() {
    let both = defers_and_denies();
    let trial = Trial::start(1, &both).await;
    let [(defers, _), (denies, _)] = &both;
    let rules = rules(Some(defers), candidate(CandidateMode::Shadow, denies));
    let mut body = payment(501);
    body["context"]["note"] = "Pay it with care. ".repeat(LARGE / 10).into();
    assert_eq!(trial.ask(1, &body, &rules).await.verdict, Verdict::Defer);
    assert_eq!(trial.found(1).await.counts.not_judged, 1);
}

#[tokio::test]
async fn a_failed_rule_of_the_candidate_is_an_error_and_one_of_the_active_policy_is_not() {
    let mut fails = pack("fails", "deny");
    let rules_text = fails.packs[0].files.get_mut("ours.cedar").unwrap();
    *rules_text = rules_text.replace("context.custom.amount > 500", "context.custom.amount * 4611686018427387904 > 0");
    let cases = json!([
        {"id": "one", "expect": ["DENY"], "codes": ["LARGE_AMOUNT"], "request": payment(1)},
        {"id": "none", "expect": ["ALLOW"], "request": payment(0)},
    ]);
    fails.packs[0].files.insert("cases.json".to_owned(), cases.to_string());
    let [_, denies] = defers_and_denies();
    let of_fails = version_of(&fails);
    let published = [(of_fails.clone(), fails), denies.clone()];
    let trial = Trial::start(1, &published).await;
    let as_shadow = rules(Some(&denies.0), candidate(CandidateMode::Shadow, &of_fails));
    assert_eq!(trial.ask(1, &payment(2), &as_shadow).await.verdict, Verdict::Allow);
    let found = trial.found(1).await;
    assert_eq!(found.counts, CandidateCounts { errors: 1, ..counts(1, 1, 0) });
    assert_eq!(found.disagreements[0].code, IssueCode::policy_error());
    let as_active = rules(Some(&of_fails), candidate(CandidateMode::Shadow, &denies.0));
    assert_eq!(trial.ask(2, &payment(2), &as_active).await.verdict, Verdict::Deny);
    assert_eq!(trial.found(2).await.counts, CandidateCounts { errors: 1, ..counts(2, 2, 1) });
}
