//! `Idempotency-Key` on checks and on calls that create.

use std::sync::atomic::Ordering;

use reqwest::Method;
use serde_json::json;

use crate::harness::{Stack, TENANT, send};

#[tokio::test]
async fn a_retried_check_gets_the_recorded_decision_again() {
    let stack = Stack::start().await;
    let body = json!({"goal": "g"});
    let send_check = async |id: &str| {
        send(stack.check_request(&body).header("idempotency-key", "once").header("x-request-id", id)).await
    };
    let (first, second) = (send_check("first").await, send_check("second").await);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (200, 200));
    assert_eq!(first.json()["request_id"], second.json()["request_id"]);
    assert_eq!((&first.json()["cached"], &second.json()["cached"]), (&json!(false), &json!(true)));
    assert_eq!(second.json()["meta"]["client_request_id"], "second", "the caller's own id is its latest");
    assert_eq!(first.header("x-request-id"), second.header("x-request-id"));
    assert_eq!(stack.services.evaluations(), 1);
}

#[tokio::test]
async fn a_key_that_was_used_with_another_body_is_refused() {
    let stack = Stack::start().await;
    let check =
        async |goal: &str| send(stack.check_request(&json!({ "goal": goal })).header("idempotency-key", "once")).await;
    assert_eq!(check("g").await.status, 200);
    let refused = check("h").await;
    assert_eq!(refused.refusal(), (422, "validation_failed".to_owned()));
    assert_eq!(refused.json()["errors"][0]["path"], "Idempotency-Key");
}

#[tokio::test]
async fn a_retried_create_gets_the_first_answer_and_a_refused_one_runs_again() {
    let stack = Stack::start().await;
    let create = async |name: &str, header: &str| {
        let body = json!({"name": name, "scopes": ["check"]}).to_string();
        let request = stack.request_as(TENANT, Method::POST, "/v1/keys").header("content-type", "application/json");
        send(request.header("idempotency-key", header).body(body)).await
    };
    let (first, second) = (create("n", "a").await, create("n", "a").await);
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (201, 201));
    assert_eq!(first.text, second.text);
    assert_eq!(stack.services.creations.load(Ordering::SeqCst), 1);
    for _ in 0..2 {
        assert_eq!(create("refused", "b").await.refusal(), (409, "conflict".to_owned()));
    }
    assert_eq!(stack.services.creations.load(Ordering::SeqCst), 3);
}
