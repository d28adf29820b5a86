//! Policies that are tried: who begins and ends them, in which order that is recorded, what is shown of them, and what
//! a canary does to checks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    ActivatePolicy, ActivationDone, CanaryTerms, CandidateChanged, CandidateMode, CandidatesRead, ComparePolicies,
    ComparePoliciesReply, EvaluateReply, ManageReply, MaskText, MaskTextReply, PoliciesInForce, PolicyCandidate,
    PolicyComparison, PolicyVersion, ReadActivePolicies, ReadCandidates, Refusal, ReturnAt, ShadowPolicy,
    WithdrawCandidate,
};

use crate::harness::{Answer, MANAGER, MEMBER, OPERATOR, READER, Stack, TENANT, key, send};

const CANDIDATES: &str = "/v1/policies/candidates";
const WITHDRAW: &str = "/v1/policies/withdraw";
const SHADOW: &str = "/v1/policies/acme@1.2.0+0123456789ab/shadow";
const ACTIVATE: &str = "/v1/policies/acme@1.2.0+0123456789ab/activate";
const IN_FORCE: &str = include_str!("../../../contract/fixtures/policies_in_force_candidates.json");
const READ: &str = include_str!("../../../contract/fixtures/candidates_read.json");
const COMPARISON: &str = include_str!("../../../contract/fixtures/policy_comparison.json");
const DECIDED_WITH_FACTS: &str = include_str!("../../../contract/fixtures/evaluate_reply_facts.json");

fn done<T: serde::de::DeserializeOwned>(fixture: &str) -> T {
    match serde_json::from_str::<ManageReply<T>>(fixture).unwrap() {
        ManageReply::Done(done) => done,
        _ => panic!("the fixture has changed"),
    }
}

/// What the keystore says of a shadow, as the change of this place.
fn changed(sequence: u64, is_outdated: bool) -> ManageReply<CandidateChanged> {
    let mut changed: CandidateChanged = done(include_str!("../../../contract/fixtures/candidate_changed.json"));
    changed.activation.account = "acc".to_owned().try_into().ok();
    changed.activation.sequence = sequence;
    ManageReply::Done(CandidateChanged { is_outdated, ..changed })
}

/// A canary by this version, of every run and for all environments.
fn canary(version: &PolicyVersion) -> PolicyCandidate {
    let in_force: PoliciesInForce = done(IN_FORCE);
    let against = vec![None, PolicyVersion::parse("acme@1.2.0+0123456789ab").ok()];
    let of = in_force.candidates[0].clone();
    PolicyCandidate { version: version.clone(), environment: None, percent: 100, against, ..of }
}

fn types(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["type"].as_str().unwrap()).collect()
}

/// Calls until the answer is as it is wanted: a notice and the next call travel different ways.
async fn until(stack: &Stack, body: &Value, is_wanted: impl Fn(&Answer) -> bool) -> Answer {
    for _ in 0..1_000 {
        let answer = stack.check(body).await;
        if is_wanted(&answer) {
            return answer;
        }
    }
    panic!("it never came")
}

#[tokio::test]
async fn only_those_with_the_scope_try_policies_and_a_bad_call_names_its_fields() {
    let stack = Stack::start().await;
    for number in [TENANT, READER] {
        for (method, path) in [(Method::GET, CANDIDATES), (Method::POST, SHADOW), (Method::POST, WITHDRAW)] {
            let answer = send(stack.request_as(number, method, path)).await;
            assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{path}");
        }
    }
    let secret = format!("see {}", key(TENANT).expose());
    let body = json!({"reason": secret, "environment": "a\u{2066}b", "percent": 0, "all_accounts": true});
    for (path, expected) in [
        (SHADOW, vec!["all_accounts", "environment", "percent", "reason"]),
        (WITHDRAW, vec!["all_accounts", "environment", "percent", "reason"]),
    ] {
        let mut found = stack.post(MANAGER, path, &body).await.bad_fields();
        found.sort_unstable();
        assert_eq!(found, expected, "{path}");
    }
    for percent in [json!(101), json!("5"), json!(1.5), json!(-1)] {
        assert_eq!(stack.post(MANAGER, SHADOW, &json!({"percent": percent})).await.bad_fields(), ["percent"]);
    }
    let answer = stack.post(MANAGER, "/v1/policies/acme/shadow", &json!({})).await;
    assert_eq!(answer.refusal(), (404, "not_found".to_owned()), "no version");
    assert_eq!(stack.get(MANAGER, "/v1/policies/candidates?state=old").await.bad_fields(), ["state"]);
}

#[tokio::test]
async fn an_operator_must_name_the_account_for_which_a_policy_is_tried() {
    let mut stack = Stack::start().await;
    assert_eq!(stack.get(OPERATOR, CANDIDATES).await.bad_fields(), ["account"]);
    for body in [json!({}), json!({"account": null})] {
        for path in [SHADOW, WITHDRAW] {
            assert_eq!(stack.post(OPERATOR, path, &body).await.bad_fields(), ["account"], "{path}");
        }
    }
    let with = |more: Value| {
        let mut body = json!({"canary": {"percent": 5}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(stack.post(OPERATOR, ACTIVATE, &with(json!({}))).await.bad_fields(), ["account"]);
    assert_eq!(stack.post(OPERATOR, ACTIVATE, &with(json!({"all_accounts": true}))).await.bad_fields(), ["account"]);
    assert_eq!(stack.post(OPERATOR, ACTIVATE, &with(json!({"floor": true}))).await.bad_fields(), ["canary"]);
    let mut shadows = stack.serve::<ShadowPolicy>(|_| changed(7, false)).await;
    assert_eq!(stack.post(OPERATOR, SHADOW, &json!({"account": "acc"})).await.status, 200);
    assert_eq!(shadows.recv().await.unwrap().account, "acc".to_owned().try_into().ok());
}

#[tokio::test]
async fn a_shadow_is_tried_then_recorded_then_made() {
    let mut stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
    stack.serve::<MaskText>(|mask| MaskTextReply { text: mask.text.replace("hunter2", "***") }).await;
    let mut calls = stack.serve::<ShadowPolicy>(|_| changed(7, false)).await;
    let body = json!({"percent": 20, "environment": "staging", "reason": "try hunter2"});
    stack.log.fail(true);
    let answer = stack.post(MANAGER, SHADOW, &body).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.contains("nothing was activated")), (503, true), "{message}");
    assert!(calls.recv().await.unwrap().is_trial);
    assert!(calls.try_recv().is_err(), "what is not recorded is not made");
    stack.log.fail(false);
    let answer = stack.post(MANAGER, SHADOW, &body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["kind"]), (200, &json!("shadow_started")), "{}", answer.text);
    assert_eq!(answer.json()["candidate"]["percent"], json!(20));
    let (trial, made) = (calls.recv().await.unwrap(), calls.recv().await.unwrap());
    assert_eq!((trial.is_trial, trial.sequence, made.is_trial, made.sequence), (true, None, false, Some(7)));
    assert_eq!((made.percent, made.environment.as_deref()), (20, Some("staging")));
    assert_eq!((made.reason.as_deref(), made.version.as_str()), (Some("try ***"), "acme@1.2.0+0123456789ab"));
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.shadow_started"]);
    assert_eq!(lines[0]["details"]["candidate"]["percent"], json!(20));
    for body in [json!({}), json!({"percent": null})] {
        assert_eq!(stack.post(MANAGER, SHADOW, &body).await.status, 200);
        assert_eq!(calls.recv().await.unwrap().percent, 100, "of all runs");
        calls.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_candidate_is_withdrawn_once_and_one_that_another_change_came_before_is_tried_again() {
    let mut stack = Stack::start().await;
    let made = Mutex::new(false);
    let mut calls = stack
        .serve::<WithdrawCandidate>(move |call| {
            let mut made = made.lock().unwrap();
            let sequence = if *made || !call.is_trial { 5 } else { 4 };
            *made |= !call.is_trial;
            changed(sequence, call.sequence.is_some_and(|sequence| sequence != 5))
        })
        .await;
    let answer = send(stack.request_as(MANAGER, Method::POST, WITHDRAW)).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["sequence"]), (200, &json!(5)), "{}", answer.text);
    let asked: Vec<_> = std::iter::from_fn(|| calls.try_recv().ok()).map(|one| one.sequence).collect();
    assert_eq!(asked, [None, Some(4), None, Some(5)]);
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.shadow_started", "policy.not_changed", "policy.shadow_started"]);
    assert_eq!(lines[1]["details"]["event_id"], lines[0]["event_id"]);

    let mut stack = Stack::start().await;
    let none = "no policy is tried there";
    let mut calls =
        stack.serve::<WithdrawCandidate>(|_| ManageReply::Refused(Refusal::Conflict(none.to_owned()))).await;
    let answer = stack.post(MANAGER, WITHDRAW, &json!({"environment": "staging"})).await;
    assert_eq!((answer.refusal(), &answer.json()["message"]), ((409, "conflict".to_owned()), &json!(none)));
    assert_eq!(calls.recv().await.unwrap().environment.as_deref(), Some("staging"));
    assert!(calls.try_recv().is_err() && stack.lines().await.is_empty());
}

#[tokio::test]
async fn a_trial_that_a_process_could_not_read_the_line_of_does_not_begin() {
    let mut stack = Stack::with(|config| config.single_process = false).await;
    let mut calls = stack.serve::<ShadowPolicy>(|_| changed(7, false)).await;
    assert_eq!(stack.post(MANAGER, SHADOW, &json!({})).await.refusal(), (503, "unavailable".to_owned()));
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
}

#[tokio::test]
async fn candidates_are_shown_with_what_was_found_and_an_operator_sees_only_how_often() {
    let mut stack = Stack::start().await;
    let in_force = Arc::new(Mutex::new(done::<PoliciesInForce>(IN_FORCE)));
    let reading = Arc::clone(&in_force);
    let mut asked =
        stack.serve::<ReadActivePolicies>(move |_| ManageReply::Done(reading.lock().unwrap().clone())).await;
    let answer = stack.get(MEMBER, CANDIDATES).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()), "no evaluator says what it found");
    let read: CandidatesRead = done(READ);
    let found = Arc::new(Mutex::new(read.clone()));
    let finding = Arc::clone(&found);
    let mut reads = stack.serve::<ReadCandidates>(move |_| ManageReply::Done(finding.lock().unwrap().clone())).await;
    let answer = stack.get(MEMBER, CANDIDATES).await;
    let items = answer.json()["items"].clone();
    assert_eq!((items[0]["mode"].as_str(), &items[0]["findings"]["counts"]["checks"]), (Some("canary"), &json!(240)));
    assert_eq!(items[0]["findings"]["disagreements"][0]["to"], json!("ALLOW"), "the gravest first");
    let asked_for = reads.recv().await.unwrap();
    assert_eq!((asked_for.account.as_str(), asked_for.candidates), ("acc_1", vec![read.found[0].candidate]));
    asked.recv().await.unwrap();
    asked.recv().await.unwrap();

    let answer = stack.get(OPERATOR, "/v1/policies/candidates?account=acc_1").await;
    let findings = answer.json()["items"][0]["findings"].clone();
    assert_eq!((&findings["counts"]["checks"], &findings["disagreements"]), (&json!(240), &json!([])));
    assert_eq!(asked.recv().await.unwrap().account, "acc_1".to_owned().try_into().ok());
    assert!(!answer.text.contains("refund-bot"), "{}", answer.text);

    found.lock().unwrap().found.clear();
    let findings = stack.get(MEMBER, CANDIDATES).await.json()["items"][0]["findings"].clone();
    assert_eq!((&findings["counts"]["checks"], &findings["disagreements"]), (&json!(0), &json!([])));
    // Where none is tried, no evaluator is asked.
    in_force.lock().unwrap().candidates.clear();
    while reads.try_recv().is_ok() {}
    assert_eq!(stack.get(MEMBER, CANDIDATES).await.json(), json!({"items": []}));
    assert!(reads.try_recv().is_err());
}

#[tokio::test]
async fn an_activation_begins_as_a_canary_by_the_terms_that_it_names() {
    let mut stack = Stack::start().await;
    let mut comparison: PolicyComparison = serde_json::from_str(COMPARISON).unwrap();
    comparison.flips = 0;
    stack.serve::<ComparePolicies>(move |_| ComparePoliciesReply::Compared(Box::new(comparison.clone()))).await;
    let mut calls = stack
        .serve::<ActivatePolicy>(|call| {
            let activation = include_str!("../../../contract/fixtures/activation_canary.json");
            let mut done: ActivationDone = done(include_str!("../../../contract/fixtures/activation_done.json"));
            if call.canary.is_some() {
                done.activation = serde_json::from_str(activation).unwrap();
            }
            done.activation.account = "acc".to_owned().try_into().ok();
            ManageReply::Done(done)
        })
        .await;
    let usual = ReturnAt::default();
    let own = ReturnAt { disagreement_percent: 10, error_percent: 1, min_checks: 7 };
    for (body, percent, return_at) in [
        (json!({"percent": 5}), 5, usual),
        (json!({"percent": 100, "return_at": null}), 100, usual),
        (json!({"percent": 1, "return_at": {}}), 1, usual),
        (json!({"percent": 1, "return_at": {"min_checks": 7}}), 1, ReturnAt { min_checks: 7, ..usual }),
        (json!({"percent": 5, "return_at": {"disagreement_percent": 10, "error_percent": 1, "min_checks": 7}}), 5, own),
    ] {
        let answer = stack.post(MANAGER, ACTIVATE, &json!({ "canary": body })).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["kind"]), (200, &json!("canary_started")), "{body}");
        for _ in 0..2 {
            assert_eq!(calls.recv().await.unwrap().canary, Some(CanaryTerms { percent, return_at }), "{body}");
        }
    }
    let lines = stack.lines().await;
    assert_eq!(types(&lines), ["policy.canary_started"; 5]);
    for (body, bad) in [
        (json!({}), vec!["canary.percent"]),
        (json!({"percent": null}), vec!["canary.percent"]),
        (json!({"percent": 101, "share": 5}), vec!["canary.percent", "canary.share"]),
        (json!({"percent": 5, "return_at": {"percent": 1}}), vec!["canary.return_at.percent"]),
        (json!({"percent": 5, "return_at": {"min_checks": 0}}), vec!["canary.return_at.min_checks"]),
        (json!({"percent": 5, "return_at": 2}), vec!["canary.return_at"]),
        (json!(5), vec!["canary"]),
    ] {
        let mut found = stack.post(MANAGER, ACTIVATE, &json!({ "canary": body })).await.bad_fields();
        found.sort_unstable();
        assert_eq!(found, bad, "{body}");
    }
    assert!(calls.try_recv().is_err());
    assert_eq!(stack.post(MANAGER, ACTIVATE, &json!({"canary": null})).await.status, 200);
    assert_eq!(calls.recv().await.unwrap().canary, None, "of all runs");
}

#[tokio::test]
async fn a_keystore_that_knows_of_no_canaries_activates_nothing_as_a_whole() {
    let mut stack = Stack::start().await;
    let activated = include_str!("../../../contract/fixtures/activation_done.json");
    let mut calls = stack.serve::<ActivatePolicy>(|_| ManageReply::Done(done(activated))).await;
    let answer = stack.post(MANAGER, ACTIVATE, &json!({"canary": {"percent": 5}})).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
    assert!(stack.lines().await.is_empty());
}

#[tokio::test]
async fn a_canary_decides_its_checks_and_what_else_decided_is_not_released() {
    let stack = Stack::start().await;
    let decides = PolicyVersion::parse("baseline@1.0.0+0123456789ab").unwrap();
    let other = PolicyVersion::parse("acme@1.2.0+0123456789ab").unwrap();
    stack.services.change(TENANT, |identity| {
        identity.rules.policy.default = Some(other.clone());
        identity.rules.candidates = vec![canary(&decides)];
    });
    let body = json!({"goal": "g"});
    let answer = stack.check(&body).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["policy_version"]), (200, &json!(decides)), "{}", answer.text);
    let min_policy = async |wanted: &PolicyVersion| {
        send(stack.check_request(&body).header("x-stage0-min-policy", wanted.as_str())).await.status.as_u16()
    };
    assert_eq!((min_policy(&decides).await, min_policy(&other).await), (200, 503), "what decides it counts");
    // A shadow decides nothing.
    stack.services.change(TENANT, |identity| identity.rules.candidates[0].mode = CandidateMode::Shadow);
    stack.publish_change().await;
    let answer = until(&stack, &body, |answer| answer.status != 200).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
}

#[tokio::test]
async fn a_canarys_decision_is_given_again_while_it_decides_and_not_once_it_has_ended() {
    let stack = Stack::start().await;
    // Not the evaluators' own, and the account has none active.
    let decides = PolicyVersion::parse("acme@1.2.0+0123456789ab").unwrap();
    if let EvaluateReply::Decided(evaluation) = &mut *stack.services.reply.lock().unwrap() {
        evaluation.decision.policy_version = decides.clone();
    }
    stack.services.change(TENANT, |identity| identity.rules.candidates = vec![canary(&decides)]);
    let body = json!({"goal": "g"});
    let repeated = async || send(stack.check_request(&body).header("idempotency-key", "once")).await.json();
    let first = repeated().await;
    let again = repeated().await;
    assert_eq!((&again["request_id"], &again["cached"]), (&first["request_id"], &json!(true)));
    assert_eq!(stack.services.evaluations(), 1);
    stack.services.change(TENANT, |identity| identity.rules.candidates.clear());
    stack.publish_change().await;
    // The notice and the next check travel different ways.
    for _ in 0..1_000 {
        if stack.services.evaluations() > 1 {
            break;
        }
        repeated().await;
    }
    assert_eq!(stack.services.evaluations(), 2, "it is decided again");
}

#[tokio::test]
async fn facts_are_in_the_record_and_never_in_the_answer() {
    let stack = Stack::start().await;
    *stack.services.reply.lock().unwrap() = serde_json::from_str(DECIDED_WITH_FACTS).unwrap();
    let kept: Value = serde_json::from_str(DECIDED_WITH_FACTS).unwrap();
    let kept = &kept["decided"]["recordable"]["facts"];
    let answer = stack.check(&json!({"goal": "g"})).await;
    assert_eq!(answer.status, 200);
    assert!(!answer.text.contains("read_by") && answer.json().get("facts").is_none(), "{}", answer.text);
    let path = format!("/v1/decisions/{}", answer.json()["request_id"].as_str().unwrap());
    assert_eq!(stack.get(READER, &path).await.json()["facts"], *kept);
    assert_eq!(stack.lines().await[0]["facts"], *kept);
}
