//! Policies: what is answered where nothing changes or something is missing, and the line of a deletion.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use stage0_contract::{
    ActivatePolicy, ActivationDone, EvaluateReply, ForgetPolicy, ManageReply, PolicyForgotten, PolicyVersion,
    PublishedPolicy, Refusal, ShowPolicy,
};

use crate::harness::{MANAGER, OPERATOR, Stack, TENANT, key, send};

const VERSION: &str = "/v1/policies/acme@1.2.0+0123456789ab";

fn version() -> PolicyVersion {
    PolicyVersion::parse("acme@1.2.0+0123456789ab").unwrap()
}

#[tokio::test]
async fn a_deletion_is_tried_then_recorded_then_made() {
    let mut stack = Stack::with(|config| config.request_budget = Duration::from_millis(500)).await;
    let forgotten =
        || ManageReply::Done(PolicyForgotten { account: "acc".to_owned().try_into().ok(), retention_days: 30 });
    let mut calls = stack.serve::<ForgetPolicy>(move |_| forgotten()).await;
    stack.log.fail(true);
    let answer = send(stack.request_as(MANAGER, Method::DELETE, VERSION)).await;
    let message = answer.json()["message"].as_str().unwrap().to_owned();
    assert_eq!((answer.status.as_u16(), message.contains("nothing was deleted")), (503, true), "{message}");
    assert!(calls.recv().await.unwrap().is_trial);
    assert!(calls.try_recv().is_err(), "what is not recorded is not deleted");
    stack.log.fail(false);
    let answer = send(stack.request_as(MANAGER, Method::DELETE, VERSION)).await;
    assert_eq!(answer.status.as_u16(), 204, "{}", answer.text);
    assert!(calls.recv().await.unwrap().is_trial);
    let made = calls.recv().await.unwrap();
    assert_eq!((made.is_trial, made.version), (false, version()));
    let lines = stack.lines().await;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_eq!((&lines[0]["type"], &lines[0]["policy_version"]), (&json!("policy.deleted"), &json!(version())));
    assert_eq!(lines[0]["actor"]["key_id"], json!(key(MANAGER).id()));
}

#[tokio::test]
async fn a_deletion_that_is_refused_or_that_a_process_could_not_read_has_no_line() {
    let mut stack = Stack::start().await;
    let needed = "`x` is needed: it is active in `production`";
    let mut calls = stack.serve::<ForgetPolicy>(|_| ManageReply::Refused(Refusal::Conflict(needed.to_owned()))).await;
    let answer = send(stack.request_as(MANAGER, Method::DELETE, VERSION)).await;
    assert_eq!((answer.refusal(), &answer.json()["message"]), ((409, "conflict".to_owned()), &json!(needed)));
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
    assert!(stack.lines().await.is_empty());

    let mut stack = Stack::with(|config| config.single_process = false).await;
    let forgotten = || ManageReply::Done(PolicyForgotten { account: None, retention_days: 30 });
    let mut calls = stack.serve::<ForgetPolicy>(move |_| forgotten()).await;
    let answer = send(stack.request_as(MANAGER, Method::DELETE, VERSION)).await;
    assert_eq!(answer.refusal(), (503, "unavailable".to_owned()));
    assert!(calls.recv().await.unwrap().is_trial && calls.try_recv().is_err());
}

#[tokio::test]
async fn what_was_active_already_is_answered_as_unchanged_and_what_was_activated_is_not() {
    let mut stack = Stack::start().await;
    let done = include_str!("../../../contract/fixtures/activation_done.json");
    let ManageReply::Done(mut done) = serde_json::from_str::<ManageReply<ActivationDone>>(done).unwrap() else {
        panic!("the fixture has changed")
    };
    done.activation.account = "acc".to_owned().try_into().ok();
    // It takes the place of nothing, so that nothing is compared.
    done.replaces.clear();
    let is_new = Arc::new(Mutex::new(false));
    let being_new = Arc::clone(&is_new);
    let reply = move |_: &ActivatePolicy| {
        ManageReply::Done(ActivationDone { is_new: *being_new.lock().unwrap(), ..done.clone() })
    };
    let _calls = stack.serve::<ActivatePolicy>(reply).await;
    let path = format!("{VERSION}/activate");
    let again = stack.post(MANAGER, &path, &json!({})).await;
    assert_eq!((again.status.as_u16(), &again.json()["unchanged"]), (200, &json!(true)), "{}", again.text);
    assert_eq!(again.json()["sequence"], json!(7));
    *is_new.lock().unwrap() = true;
    let first = stack.post(MANAGER, &path, &json!({})).await;
    assert_eq!((first.status.as_u16(), first.json().get("unchanged")), (200, None), "{}", first.text);
}

#[tokio::test]
async fn what_is_missing_is_a_404_that_says_what_there_is() {
    let mut stack = Stack::start().await;
    let text = "no version `acme@1.2.0+0123456789ab` is published here; there is `acme@1.2.0+ba9876543210`";
    let missing = || ManageReply::<PublishedPolicy>::Refused(Refusal::Missing(text.to_owned()));
    let _calls = stack.serve::<ShowPolicy>(move |_| missing()).await;
    let answer = stack.get(MANAGER, VERSION).await;
    assert_eq!((answer.refusal(), &answer.json()["message"]), ((404, "not_found".to_owned()), &json!(text)));
    for path in ["/v1/policies/acme", "/v1/policies/acme@1.2.0"] {
        let answer = stack.get(OPERATOR, path).await;
        assert_eq!(answer.refusal(), (404, "not_found".to_owned()));
        assert!(answer.json()["message"].as_str().unwrap().contains("<pack>@<number>+<digest>"), "{}", answer.text);
    }
}

#[tokio::test]
async fn a_check_whose_policy_is_not_there_is_a_503_that_names_it_and_is_not_recorded() {
    let stack = Stack::start().await;
    for (is_loading, part) in [(true, "is still being loaded"), (false, "cannot be loaded by the evaluator")] {
        *stack.services.reply.lock().unwrap() = EvaluateReply::PolicyMissing { version: version(), is_loading };
        let answer = stack.check(&json!({"goal": "g"})).await;
        assert_eq!((answer.refusal(), answer.header("retry-after")), ((503, "unavailable".to_owned()), Some("1")));
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.starts_with(&format!("policy `{}` {part}", version())), "{message}");
        assert_eq!(message.ends_with("try again"), is_loading, "{message}");
    }
    assert_eq!(stack.get(TENANT, "/v1/decisions").await.json()["items"], json!([]));
}
