//! Recorded decisions that another policy decides again: by a call, and before an activation.

use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_contract::{
    ActivatePolicy, Activation, ActivationDone, ComparePolicies, ComparePoliciesReply, EvaluateReply, IssueCode,
    ManageReply, MaskText, MaskTextReply, PoliciesInForce, PolicyComparison, PublishedPolicy, ReadActivePolicies,
    Refusal, ReplayDecisions, ReplayDecisionsReply, ReplayGap, Replayed, ShowPolicy, Verdict,
};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::harness::{Answer, MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT};

const REPLAY: &str = "/v1/policies/acme@1.2.0+0123456789ab/replay";
const CANDIDATES: &str = "/v1/policies/candidates";
const ACTIVATE: &str = "/v1/policies/acme@1.2.0+0123456789ab/activate";
const WITH_FACTS: &str = include_str!("../../../contract/fixtures/evaluate_reply_facts.json");
const ACTIVATED: &str = include_str!("../../../contract/fixtures/activation_done_facts.json");
const CANARY: &str = include_str!("../../../contract/fixtures/activation_canary.json");
const PROPOSED: &str = include_str!("../../../contract/fixtures/activation_done_proposed.json");

fn done<T: serde::de::DeserializeOwned>(fixture: &str) -> T {
    match serde_json::from_str::<ManageReply<T>>(fixture).unwrap() {
        ManageReply::Done(done) => done,
        _ => panic!("the fixture has changed"),
    }
}

/// Decisions of the suite's evaluator are DEFER, in production, with facts.
async fn with_decisions(count: usize) -> Stack {
    let mut stack = Stack::start().await;
    *stack.services.reply.lock().unwrap() = serde_json::from_str(WITH_FACTS).unwrap();
    stack.serve::<MaskText>(|mask| MaskTextReply { text: mask.text.clone() }).await;
    let mut in_force: PoliciesInForce =
        done(include_str!("../../../contract/fixtures/policies_in_force_candidates.json"));
    in_force.own.environments.clear();
    stack.serve::<ReadActivePolicies>(move |_| ManageReply::Done(in_force.clone())).await;
    let policy: PublishedPolicy =
        serde_json::from_str(include_str!("../../../contract/fixtures/published_policy.json")).unwrap();
    stack.serve::<ShowPolicy>(move |_| ManageReply::Done(policy.clone())).await;
    for number in 0..count {
        let answer = stack.check(&json!({"goal": format!("g{number}")})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    stack
}

fn decided(verdict: Verdict) -> Replayed {
    let code = (verdict != Verdict::Allow).then(|| IssueCode::parse("LIMIT_EXCEEDED").unwrap());
    let rule = code.as_ref().map(|_| "acme.limit".to_owned());
    Replayed::Decided { verdict, code, rule }
}

/// Has the version come out so for each decision, and what is active as it is recorded.
async fn replays(stack: &mut Stack, verdict: Verdict) -> UnboundedReceiver<ReplayDecisions> {
    stack
        .serve::<ReplayDecisions>(move |asked| {
            let one = if is_new(asked) { decided(verdict) } else { as_recorded() };
            ReplayDecisionsReply::Replayed(vec![one; asked.facts.len()])
        })
        .await
}

/// Whether it asks for the version that is replayed, and not for what is active.
fn is_new(asked: &ReplayDecisions) -> bool {
    asked.version.as_ref().is_some_and(|version| version.as_str() == "acme@1.2.0+0123456789ab")
}

fn as_recorded() -> Replayed {
    let code = IssueCode::parse("APPROVAL_REQUIRED").ok();
    Replayed::Decided { verdict: Verdict::Defer, code, rule: Some("approval.high".to_owned()) }
}

#[tokio::test]
async fn the_accounts_own_decisions_are_decided_again_and_their_flips_are_shown() {
    let mut stack = with_decisions(3).await;
    let mut asked = replays(&mut stack, Verdict::Allow).await;
    let answer = stack.get(MEMBER, REPLAY).await;
    let replay = answer.json();
    assert_eq!((answer.status.as_u16(), &replay["decisions"], &replay["replayed"]), (200, &json!(3), &json!(3)));
    assert_eq!((&replay["flips"], &replay["has_older"], &replay["left_out"]), (&json!(3), &json!(false), &json!(0)));
    assert_eq!(replay["changes"], json!([{"from": "DEFER", "to": "ALLOW", "count": 3}]));
    let item = &replay["items"][0];
    assert_eq!((&item["code"], &item["rule"]), (&json!("APPROVAL_REQUIRED"), &json!("approval.high")), "as recorded");
    assert_eq!(item["policy_version"], json!("baseline@1.0.0+0123456789ab"));
    let of_active = asked.recv().await.unwrap();
    assert_eq!(of_active.version.as_ref().unwrap().as_str(), "acme@1.1.0+ba9876543210");
    let message = asked.recv().await.unwrap();
    assert_eq!((message.account.as_str(), message.facts.len()), ("acc", 3));
    assert_eq!(message.version.as_ref().unwrap().as_str(), "acme@1.2.0+0123456789ab");
    let counts = stack.get(MANAGER, REPLAY).await.json();
    assert_eq!((&counts["flips"], &counts["items"], &counts["left_out"]), (&json!(3), &json!([]), &json!(3)));
    let lines = stack.lines().await;
    assert_eq!(item["request_id"], lines[2]["request_id"], "the newest first");
    assert_eq!(lines.len(), 3, "a replay changes nothing, and has no line");

    let until = |index: usize| lines[index]["recorded_at"].as_str().unwrap().to_owned();
    for (query, decisions, has_older) in [
        ("?limit=2".to_owned(), 2, true),
        ("?limit=3".to_owned(), 3, false),
        ("?environment=prod".to_owned(), 3, false),
        ("?environment=staging".to_owned(), 0, false),
        (format!("?until={}", until(2)), 2, false),
        (format!("?from={}", until(2)), 1, false),
    ] {
        let replay = stack.get(MEMBER, &format!("{REPLAY}{query}")).await.json();
        assert_eq!((&replay["decisions"], &replay["has_older"]), (&json!(decisions), &json!(has_older)), "{query}");
    }
}

#[tokio::test]
async fn what_is_stricter_and_what_cannot_be_replayed_is_counted_as_such() {
    let mut stack = with_decisions(2).await;
    let gaps = [decided(Verdict::Deny), Replayed::Not(ReplayGap::Member)];
    let answer = move |asked: &ReplayDecisions| {
        ReplayDecisionsReply::Replayed(if is_new(asked) { gaps.to_vec() } else { vec![as_recorded(); 2] })
    };
    stack.serve::<ReplayDecisions>(answer).await;
    if let EvaluateReply::Decided(evaluation) = &mut *stack.services.reply.lock().unwrap() {
        evaluation.recordable.as_mut().unwrap().facts = None;
    }
    assert_eq!(stack.check(&json!({"goal": "without facts"})).await.status, 200);
    let replay = stack.get(MEMBER, REPLAY).await.json();
    assert_eq!((&replay["decisions"], &replay["replayed"], &replay["flips"]), (&json!(3), &json!(1), &json!(0)));
    assert_eq!(replay["not_replayed"], json!([{"why": "not_kept", "count": 1}, {"why": "member", "count": 1}]));
    assert_eq!(replay["items"][0]["rule"], json!("acme.limit"), "as it is replayed");
}

#[tokio::test]
async fn only_the_accounts_own_policy_managers_replay_and_a_bad_query_names_its_fields() {
    let mut stack = with_decisions(0).await;
    replays(&mut stack, Verdict::Allow).await;
    for number in [TENANT, READER, OPERATOR] {
        assert_eq!(stack.get(number, REPLAY).await.refusal(), (403, "scope_missing".to_owned()), "{number}");
    }
    let query = "?limit=10001&from=soon&until=2026-01-01&environment=a%1bb&account=acc";
    let mut found = stack.get(MANAGER, &format!("{REPLAY}{query}")).await.bad_fields();
    found.sort_unstable();
    assert_eq!(found, ["account", "environment", "from", "limit", "until"]);
    let query = "?limit=10000&from=2026-02-01T00:00:00Z&until=2026-01-01T00:00:00Z";
    assert_eq!(stack.get(MANAGER, &format!("{REPLAY}{query}")).await.bad_fields(), ["from"]);
    assert_eq!(stack.get(MANAGER, &format!("{REPLAY}?limit=0")).await.bad_fields(), ["limit"]);
    assert_eq!(stack.get(MANAGER, &format!("{REPLAY}?gate=perhaps")).await.bad_fields(), ["gate"]);
    assert_eq!(stack.get(MANAGER, &format!("{CANDIDATES}?ended=perhaps")).await.bad_fields(), ["ended"]);
    assert_eq!(stack.get(MANAGER, "/v1/policies/acme/replay").await.refusal(), (404, "not_found".to_owned()));
    assert_eq!(stack.get(MANAGER, &format!("{REPLAY}?limit=10000")).await.json()["decisions"], json!(0));

    let mut stack = Stack::start().await;
    stack.serve::<ShowPolicy>(|_| ManageReply::Refused(Refusal::NotFound)).await;
    assert_eq!(stack.get(MANAGER, REPLAY).await.refusal(), (404, "not_found".to_owned()), "no such version");
}

#[tokio::test]
async fn without_an_evaluator_nothing_is_replayed_and_one_replay_of_an_account_is_made_at_a_time() {
    let mut stack = with_decisions(1).await;
    let answer = stack.get(MANAGER, REPLAY).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("could not be replayed") && message.contains("no evaluator serves"), "{message}");
    let busy = Arc::new(Mutex::new(true));
    let being_busy = Arc::clone(&busy);
    let mut asked = stack
        .serve::<ReplayDecisions>(move |asked| match *being_busy.lock().unwrap() {
            true => ReplayDecisionsReply::Busy,
            false => ReplayDecisionsReply::Replayed(asked.facts.iter().map(|_| decided(Verdict::Defer)).collect()),
        })
        .await;
    let first = stack.get(MANAGER, REPLAY);
    let second = async {
        asked.recv().await.unwrap();
        let answer = stack.get(MEMBER, REPLAY).await;
        *busy.lock().unwrap() = false;
        answer
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(second.refusal(), (429, "rate_limited".to_owned()), "{}", second.text);
    assert_eq!((first.status.as_u16(), &first.json()["replayed"]), (200, &json!(1)), "{}", first.text);
    assert_eq!(stack.get(MEMBER, REPLAY).await.status, 200);
}

/// An account whose decisions are recorded with their facts, of which each goes further by the new version.
struct Gate {
    stack: Stack,
    calls: UnboundedReceiver<ActivatePolicy>,
}

impl Gate {
    async fn start(flips: u64, change: impl Fn(&mut ActivationDone) + Send + 'static) -> Self {
        let mut stack = with_decisions(2).await;
        let comparison = include_str!("../../../contract/fixtures/policy_comparison.json");
        let comparison: PolicyComparison = serde_json::from_str(comparison).unwrap();
        let comparison = PolicyComparison { flips, ..comparison };
        stack.serve::<ComparePolicies>(move |_| ComparePoliciesReply::Compared(Box::new(comparison.clone()))).await;
        let calls = stack
            .serve::<ActivatePolicy>(move |call| {
                let mut done: ActivationDone = done(if call.proposes { PROPOSED } else { ACTIVATED });
                done.activation.account = "acc".to_owned().try_into().ok();
                done.activation.environment.clone_from(&call.environment);
                if call.canary.is_some() {
                    let canary: Activation = serde_json::from_str(CANARY).unwrap();
                    done.activation.candidate = canary.candidate;
                }
                change(&mut done);
                done.activation.accepted_flips = call.accept_flips;
                done.activation.replayed = call.replayed;
                ManageReply::Done(done)
            })
            .await;
        Self { stack, calls }
    }

    async fn activate(&self, body: &Value) -> Answer {
        self.stack.post(MANAGER, ACTIVATE, body).await
    }
}

/// What a 409 says to send.
fn replayed_until(answer: &Answer) -> String {
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    let (_, rest) = message.split_once("`replayed_until`: `").unwrap_or_else(|| panic!("{message}"));
    rest.split_once('`').unwrap().0.to_owned()
}

#[tokio::test]
async fn recorded_decisions_that_go_further_must_be_accepted_with_what_the_policies_say() {
    let mut gate = Gate::start(3, |_| {}).await;
    replays(&mut gate.stack, Verdict::Allow).await;
    let answer = gate.activate(&json!({"reason": "r", "accept_flips": 3})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    for said in ["3 of what it changes", "2 of 2 refused decisions", "`accept_flips`: 5", "`accept_flips` is 3"] {
        assert!(message.contains(said), "{said}: {message}");
    }
    assert!(gate.calls.recv().await.unwrap().is_trial && gate.calls.try_recv().is_err(), "nothing is made");
    // Decisions that are recorded meanwhile do not change the number.
    let until = replayed_until(&answer);
    assert_eq!(gate.stack.check(&json!({"goal": "later"})).await.status, 200);
    let body = json!({"reason": "r", "accept_flips": 5, "replayed_until": until});
    assert_eq!(gate.activate(&json!({"reason": "r", "accept_flips": 5})).await.status, 409, "three by now");
    let answer = gate.activate(&body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["accepted_flips"]), (200, &json!(5)), "{}", answer.text);
    let replayed = json!({"until": until, "decisions": 2, "replayed": 2, "flips": 2});
    assert_eq!(answer.json()["replayed"], replayed);
    let lines = gate.stack.lines().await;
    let line = lines.last().unwrap();
    assert_eq!((&line["type"], &line["details"]["replayed"]), (&json!("policy.activated"), &replayed));
    assert_eq!(line["details"]["accepted_flips"], json!(5));
}

#[tokio::test]
async fn without_the_replay_that_is_due_nothing_is_activated() {
    let mut gate = Gate::start(0, |_| {}).await;
    let answer = gate.activate(&json!({})).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("nothing was changed") && message.contains("could not be replayed"), "{message}");
    assert!(gate.calls.recv().await.unwrap().is_trial && gate.calls.try_recv().is_err());
    assert_eq!(gate.stack.lines().await.len(), 2, "the two decisions");
    replays(&mut gate.stack, Verdict::Deny).await;
    let answer = gate.activate(&json!({})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["replayed"]["flips"]), (200, &json!(0)), "{}", answer.text);
}

#[tokio::test]
async fn a_floor_every_account_and_an_account_without_facts_need_no_replay() {
    let changes: [fn(&mut ActivationDone); 2] =
        [|done| done.record_facts = false, |done| done.activation.account = None];
    for change in changes {
        let mut gate = Gate::start(0, change).await;
        let mut asked = replays(&mut gate.stack, Verdict::Allow).await;
        assert_eq!(gate.activate(&json!({})).await.status, 200);
        assert!(asked.try_recv().is_err());
    }
    // The neighbour: the same with the account's facts.
    let mut gate = Gate::start(0, |_| {}).await;
    let mut asked = replays(&mut gate.stack, Verdict::Allow).await;
    assert_eq!(gate.activate(&json!({"environment": "staging"})).await.status, 200, "it has no decisions there");
    assert!(asked.try_recv().is_err());
    assert_eq!(gate.activate(&json!({"environment": "prod"})).await.status, 409);
    let of_both = [asked.recv().await.unwrap(), asked.recv().await.unwrap()];
    assert_eq!(of_both.each_ref().map(|one| (is_new(one), one.facts.len())), [(false, 2), (true, 2)]);
}

#[tokio::test]
async fn a_canary_and_a_proposal_are_checked_against_recorded_decisions_too() {
    let mut gate = Gate::start(0, |_| {}).await;
    replays(&mut gate.stack, Verdict::Allow).await;
    let answer = gate.activate(&json!({"canary": {"percent": 5}})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    let body = json!({"canary": {"percent": 5}, "accept_flips": 2, "reason": "r"});
    assert_eq!(gate.activate(&body).await.status, 200);

    let proposal = done::<ActivationDone>(PROPOSED).proposal;
    let mut gate = Gate::start(0, move |done| done.proposal.clone_from(&proposal)).await;
    replays(&mut gate.stack, Verdict::Allow).await;
    assert_eq!(gate.activate(&json!({})).await.refusal(), (409, "conflict".to_owned()));
    gate.calls.recv().await.unwrap();
    let answer = gate.activate(&json!({"accept_flips": 2, "reason": "r"})).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let (trial, real) = (gate.calls.recv().await.unwrap(), gate.calls.recv().await.unwrap());
    assert_eq!((trial.replayed, real.proposes), (None, true));
    assert_eq!(real.replayed.map(|replayed| (replayed.decisions, replayed.flips)), Some((2, 2)));
}

#[tokio::test]
async fn an_operators_activation_for_an_account_replays_its_decisions_and_shows_none_of_them() {
    let mut gate = Gate::start(0, |_| {}).await;
    let mut asked = replays(&mut gate.stack, Verdict::Allow).await;
    let answer = gate.stack.post(OPERATOR, ACTIVATE, &json!({"account": "acc"})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("2 of 2 refused decisions") && !message.contains("/replay"), "{message}");
    assert_eq!(asked.recv().await.unwrap().account.as_str(), "acc");
    let own = gate.activate(&json!({})).await.json()["message"].as_str().unwrap().to_owned();
    assert!(own.contains("/replay?gate=true&until="), "the account's own key is shown where to look: {own}");
}

#[tokio::test]
async fn decisions_are_replayed_up_to_a_time_of_the_last_day() {
    let mut gate = Gate::start(0, |_| {}).await;
    replays(&mut gate.stack, Verdict::Allow).await;
    let ago = |hours| Timestamp::now().checked_sub(SignedDuration::from_hours(hours)).unwrap();
    for bad in [json!(ago(-1)), json!(ago(25)), json!("yesterday"), json!(5)] {
        let answer = gate.activate(&json!({"replayed_until": bad})).await;
        assert_eq!(answer.bad_fields(), ["replayed_until"], "{bad}");
    }
    assert!(gate.calls.try_recv().is_err());
    // It fixes the number of what came before, and no flips of another kind may have come since.
    let answer = gate.activate(&json!({"replayed_until": ago(23)})).await;
    assert_eq!(answer.refusal(), (409, "conflict".to_owned()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("since `replayed_until`") && message.contains("from DEFER"), "{message}");
    let body = json!({"replayed_until": Timestamp::now(), "accept_flips": 2, "reason": "r"});
    let answer = gate.activate(&body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["replayed"]["decisions"]), (200, &json!(2)), "{}", answer.text);
}
