//! Checks in flight while their key or the rules of its account change: decided again, or refused.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use stage0_contract::{
    ActivatePolicy, ActivationDone, EvaluateReply, EvaluateRequest, EventsSettled, KeyIdentity, Limits, ManageReply,
    PolicyVersion, SettleEvents, Verdict,
};
use stage0_gateway::Audit;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::approved_checks::allowed;
use crate::harness::{Answer, MANAGER, Stack, TENANT, send};
use crate::stops::stop;

const ACTIVATED: &str = include_str!("../../../contract/fixtures/activation_done.json");
/// Made by [`apply`]: the keystore of the suite changes nothing by itself.
const ACTIVATE: &str = "/v1/policies/acme@1.2.0+0123456789ab/activate";
const TIMEOUT: Duration = Duration::from_secs(30);

type Change = fn(&mut KeyIdentity);

fn version(number: usize) -> PolicyVersion {
    PolicyVersion::parse(&format!("acme@1.{number}.0+0123456789ab")).unwrap()
}

fn first(identity: &mut KeyIdentity) {
    identity.rules.policy.default = Some(version(1));
}

fn second(identity: &mut KeyIdentity) {
    identity.rules.policy.default = Some(version(2));
}

fn stopped(identity: &mut KeyIdentity) {
    identity.rules.stops = vec![stop("account", None)];
}

/// A stack whose evaluator allows by the policy that the check names, and denies under a stop; and what reached it.
async fn stack(audit: Audit) -> (Stack, Arc<Mutex<Vec<EvaluateRequest>>>) {
    let mut stack = Stack::with(|config| (config.request_budget, config.audit) = (TIMEOUT, audit)).await;
    let mut done: ManageReply<ActivationDone> = serde_json::from_str(ACTIVATED).unwrap();
    if let ManageReply::Done(done) = &mut done {
        // So that it has no line.
        (done.is_new, done.activation.account) = (false, Some("acc".to_owned().try_into().unwrap()));
    }
    stack.serve::<ActivatePolicy>(move |_| done.clone()).await;
    *stack.services.reply.lock().unwrap() = allowed();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let asking = Arc::clone(&asked);
    *stack.services.adjust.lock().unwrap() = Some(Box::new(move |request, reply| {
        asking.lock().unwrap().push(request.clone());
        let EvaluateReply::Decided(evaluation) = reply else { panic!("the fixture has changed") };
        let rules = &request.asker.as_ref().unwrap().rules;
        if let Some(active) = rules.policy_of(&request.request) {
            evaluation.decision.policy_version = active.clone();
        }
        if !rules.stops.is_empty() {
            evaluation.decision.verdict = Verdict::Deny;
        }
    }));
    stack.services.change(TENANT, first);
    (stack, asked)
}

/// What is used needs no approval.
fn without_approval(stack: &Stack) {
    if let EvaluateReply::Decided(evaluation) = &mut *stack.services.reply.lock().unwrap() {
        (evaluation.decision.approval, evaluation.approval_source, evaluation.events) = (None, None, Vec::new());
    }
}

async fn settling(stack: &mut Stack, reply: ManageReply<EventsSettled>) -> UnboundedReceiver<(usize, SettleEvents)> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let services = Arc::clone(&stack.services);
    stack
        .serve::<SettleEvents>(move |settle| {
            sender.send((services.evaluations(), settle.clone())).ok();
            reply.clone()
        })
        .await;
    receiver
}

/// Makes a change, and has the gateway know of it once this returns.
async fn apply(stack: &Stack, change: impl FnOnce(&mut KeyIdentity)) {
    stack.services.change(TENANT, change);
    announce(stack).await;
}

async fn announce(stack: &Stack) {
    let answer = stack.post(MANAGER, ACTIVATE, &json!({})).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
}

fn check(stack: &Stack) -> RequestBuilder {
    stack.check_request(&json!({"goal": "g"}))
}

/// Sends a check, and makes one of these changes during each of its evaluations.
async fn send_while(stack: &Stack, request: RequestBuilder, changes: &[Change]) -> Answer {
    let services = Arc::clone(&stack.services);
    let before = services.evaluations();
    let mut deciding = services.deciding.lock().await;
    let check = tokio::spawn(send(request));
    for (number, change) in changes.iter().enumerate() {
        let evaluating = async {
            while services.evaluations() <= before + number {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(TIMEOUT, evaluating).await.unwrap();
        apply(stack, change).await;
        drop(deciding);
        // The evaluator waits for it first.
        deciding = services.deciding.lock().await;
    }
    drop(deciding);
    check.await.unwrap()
}

async fn decisions(stack: &Stack) -> Vec<Value> {
    stack.lines().await.into_iter().filter(|line| line["type"] == "decision.recorded").collect()
}

#[tokio::test]
async fn a_check_in_flight_is_decided_again_by_the_policy_that_is_activated_and_counts_once() {
    for audit in [Audit::Required, Audit::BestEffort] {
        let (stack, asked) = stack(audit).await;
        without_approval(&stack);
        stack.services.change(TENANT, |identity| identity.limits = Limits { daily: Some(2), ..Limits::NONE });
        let request = || check(&stack).header("idempotency-key", "once");
        let answer = send_while(&stack, request(), &[second]).await;
        let json = answer.json();
        assert_eq!((answer.status.as_u16(), &json["policy_version"]), (200, &json!(version(2))), "{}", answer.text);
        let lines = decisions(&stack).await;
        assert_eq!((lines.len(), &lines[0]["policy_version"]), (1, &json!(version(2))));
        let id = answer.header("x-request-id").unwrap();
        assert_eq!([&json["request_id"], &lines[0]["request_id"]], [&json!(id); 2]);
        {
            let asked = asked.lock().unwrap();
            let told: Vec<_> = asked.iter().map(|asked| (asked.request_id.to_string(), asked.operation)).collect();
            assert_eq!(told, vec![(id.to_owned(), None); 2], "so that its run counts it once");
            let of = |asked: &EvaluateRequest| asked.asker.as_ref().unwrap().rules.policy.default.clone();
            assert_eq!(asked.iter().map(of).collect::<Vec<_>>(), [Some(version(1)), Some(version(2))]);
        }
        let again = send(request()).await.json();
        assert_eq!([&again["cached"], &again["request_id"]], [&json!(true), &json!(id)], "its key was kept");
        assert_eq!([send(check(&stack)).await.status, send(check(&stack)).await.status], [200, 402], "it counts once");
    }
}

#[tokio::test]
async fn a_check_in_flight_when_a_stop_begins_is_denied_by_it() {
    let (stack, _) = stack(Audit::Required).await;
    without_approval(&stack);
    let answer = send_while(&stack, check(&stack), &[stopped]).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["verdict"]), (200, &json!("DENY")), "{}", answer.text);
    let lines = decisions(&stack).await;
    assert_eq!((lines.len(), &lines[0]["verdict"]), (1, &json!("DENY")));
}

#[tokio::test]
async fn rules_that_change_once_more_are_followed_and_a_third_time_is_a_503_that_counts_nothing() {
    let (stack, _) = stack(Audit::Required).await;
    without_approval(&stack);
    stack.services.change(TENANT, |identity| identity.limits = Limits { daily: Some(1), ..Limits::NONE });
    let answer = send_while(&stack, check(&stack), &[second, first, second]).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert_eq!((stack.services.evaluations(), decisions(&stack).await.len()), (3, 0));
    let answer = send_while(&stack, check(&stack), &[first, second]).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["policy_version"]), (200, &json!(version(2))));
    assert_eq!((stack.services.evaluations(), decisions(&stack).await.len()), (6, 1));
}

#[tokio::test]
async fn a_key_that_is_revoked_or_expired_or_loses_its_scope_meanwhile_is_refused_and_decided_no_more() {
    fn expired(identity: &mut KeyIdentity) {
        second(identity);
        identity.expires_at = Some(jiff::Timestamp::UNIX_EPOCH);
    }
    fn reader(identity: &mut KeyIdentity) {
        identity.scopes = [stage0_contract::Scope::RunsManage].into();
    }
    for (change, refusal) in [(expired as Change, (401, "unauthorized")), (reader as Change, (403, "scope_missing"))] {
        let (stack, asked) = stack(Audit::BestEffort).await;
        without_approval(&stack);
        let answer = send_while(&stack, check(&stack), &[change]).await;
        assert_eq!(answer.refusal(), (refusal.0, refusal.1.to_owned()));
        assert_eq!(asked.lock().unwrap().len(), 1);
    }
    let (stack, asked) = stack(Audit::BestEffort).await;
    without_approval(&stack);
    let services = Arc::clone(&stack.services);
    let deciding = services.deciding.lock().await;
    let sent = tokio::spawn(send(check(&stack)));
    while services.evaluations() == 0 {
        tokio::task::yield_now().await;
    }
    services.revoke(TENANT);
    announce(&stack).await;
    drop(deciding);
    assert_eq!(sent.await.unwrap().refusal(), (401, "unauthorized".to_owned()));
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_check_that_asks_for_a_version_is_not_decided_by_an_earlier_one_that_replaces_it() {
    let (stack, asked) = stack(Audit::Required).await;
    without_approval(&stack);
    apply(&stack, second).await;
    let request = || check(&stack).header("x-stage0-min-policy", version(2).as_str());
    let answer = send_while(&stack, request(), &[first]).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert!(message.contains(version(1).as_str()) && message.contains(version(2).as_str()), "{message}");
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert!(decisions(&stack).await.is_empty());
    // A later version is no less than was asked for.
    let request = check(&stack).header("x-stage0-min-policy", version(1).as_str());
    let answer = send_while(&stack, request, &[second]).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["policy_version"]),
        (200, &json!(version(2))),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn an_approval_is_released_before_its_check_is_decided_again() {
    let (mut stack, asked) = stack(Audit::Required).await;
    let mut settled = settling(&mut stack, ManageReply::Done(EventsSettled {})).await;
    let answer = send_while(&stack, check(&stack), &[second]).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["policy_version"]), (200, &json!(version(2))));
    let (evaluations, released) = settled.recv().await.unwrap();
    assert_eq!((evaluations, released.recorded.len()), (1, 0));
    assert_eq!(released.released.unwrap().request_id, asked.lock().unwrap()[0].request_id);
    let (evaluations, recorded) = settled.recv().await.unwrap();
    assert_eq!((evaluations, recorded.recorded.len(), recorded.released), (2, 2, None));
    let lines = stack.lines().await;
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["decision.recorded", "approval.reserved", "approval.used"]);
}

#[tokio::test]
async fn a_check_whose_approval_is_not_known_to_be_released_is_not_decided_again() {
    let (mut stack, asked) = stack(Audit::Required).await;
    let mut settled = settling(&mut stack, ManageReply::Failed).await;
    let answer = send_while(&stack, check(&stack), &[second]).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(settled.recv().await.unwrap().1.released.is_some());
    assert_eq!(asked.lock().unwrap().len(), 1);
    assert!(stack.lines().await.is_empty());
}

#[tokio::test]
async fn a_decision_that_is_being_recorded_is_released_under_another_policy_and_not_under_a_stop() {
    for (change, status) in [(second as Change, 200), (stopped as Change, 503)] {
        let (stack, asked) = stack(Audit::Required).await;
        without_approval(&stack);
        assert_eq!(send(check(&stack)).await.status, 200, "the log is read before the first record");
        let held = stack.log.hold().await;
        let sent = tokio::spawn(send(check(&stack)));
        while stack.log.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        apply(&stack, change).await;
        drop(held);
        let answer = sent.await.unwrap();
        assert_eq!(answer.status, status, "{}", answer.text);
        assert_eq!(asked.lock().unwrap().len(), 2);
        assert_eq!(decisions(&stack).await.len(), 2);
        if status == 200 {
            assert_eq!(answer.json()["policy_version"], json!(version(1)), "as its record says");
        }
    }
}
