//! `Idempotency-Key`: asked again is answered again, and counted once.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, Stack};

use crate::recording::kept;

const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);

async fn ask(api: &Api, key: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    api.send(Method::POST, "/check", &headers, Some(body.to_string().into_bytes())).await
}

/// Counts one iteration of a run.
fn counted(run: &str) -> Value {
    json!({"goal": "Search for Python documentation", "success_criteria": ["found"],
        "constraints": ["max_iterations: 1"], "context": {"run_id": run}})
}

#[tokio::test]
async fn a_repeated_idempotency_key_replays_the_recorded_decision_and_its_id() {
    let stack = Stack::build().dev().await;
    for (key, body) in [("a", Api::harmless()), ("b", Api::forbidden()), ("c", Api::unclear()), ("d", counted("r"))] {
        let first = ask(&stack.api, key, &body).await;
        let mut first_body = first.body.clone();
        assert_eq!((first.status, &first.body["cached"]), (200, &json!(false)));
        let headers =
            [("content-type", "application/json; charset=utf-8"), ("idempotency-key", key), ("x-request-id", "mine")];
        // Other members first, and other white space.
        let mut turned = serde_json::Map::new();
        for (name, value) in body.as_object().unwrap().iter().rev() {
            turned.insert(name.clone(), value.clone());
        }
        let text = serde_json::to_vec_pretty(&turned).unwrap();
        let again = stack.api.send(Method::POST, "/check", &headers, Some(text)).await;
        assert_eq!(again.header("x-request-id"), first.body["request_id"].as_str().unwrap());
        first_body["cached"] = json!(true);
        first_body["meta"]["client_request_id"] = json!("mine");
        assert_eq!(again.expect(200), kept(&first_body), "every other field as it was");
    }
    assert_eq!(stack.api.decisions("").await.len(), 4, "a repeated answer is no decision");
    assert_eq!(stack.api.get("/v1/runs/r").await.expect(200)["iterations"], 1);
    assert_eq!(stack.api.verify().await["ok"], true);
}

#[tokio::test]
async fn an_idempotency_key_with_another_body_is_refused_and_so_is_every_other_fault() {
    let stack = Stack::build().dev().await;
    ask(&stack.api, "a", &Api::harmless()).await.expect(200);
    let answer = ask(&stack.api, "a", &Api::forbidden()).await;
    answer.assert_error(422, "validation_failed");
    assert!(answer.body["message"].as_str().unwrap().contains("Idempotency-Key: "));
    let answer = ask(&stack.api, "a", &json!({"goal": "", "tools": 3})).await;
    let paths: Vec<_> = answer.body["errors"].as_array().unwrap().iter().map(|error| error["path"].clone()).collect();
    assert_eq!(paths, ["Idempotency-Key", "goal", "tools"]);
    ask(&stack.api, "a", &Api::harmless()).await.expect(200);
    for bad in ["x".repeat(129).as_str(), "a b", ""] {
        let answer = ask(&stack.api, bad, &json!({"goal": ""})).await;
        answer.assert_error(422, "validation_failed");
        assert_eq!(answer.body["errors"].as_array().unwrap().len(), 2, "{bad:?}: {}", answer.text);
    }
    let twice = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "a")];
    let body = Api::harmless().to_string().into_bytes();
    stack.api.send(Method::POST, "/check", &twice, Some(body)).await.assert_error(422, "validation_failed");
}

#[tokio::test]
async fn idempotency_keys_are_separate_per_account_and_api_key_and_a_revoked_key_replays_nothing() {
    let stack = Stack::build().dev().await;
    let first = ask(&stack.api, "a", &Api::harmless()).await.expect(200);
    let made = json!({"account": stack.account, "name": "k", "scopes": ["check"]});
    let made = stack.operator.post("/v1/keys", &made).await.expect(201);
    let sibling = stack.api.with_key(made["key"].as_str().unwrap());
    let (_, key, _) = stack.operator.account("b", None, &["check"]).await;
    for api in [&sibling, &stack.api.with_key(&key)] {
        let answer = ask(api, "a", &Api::harmless()).await.expect(200);
        assert_eq!(answer["cached"], false);
        assert_ne!(answer["request_id"], first["request_id"]);
    }
    stack.operator.delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).await;
    ask(&sibling, "a", &Api::harmless()).await.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn many_at_once_on_two_gateways_are_one_decision() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let body = counted("r");
    let asks = (0..50).map(|number| {
        let (api, body) = (stack.api_at(number % 2), &body);
        async move { ask(&api, "once", body).await }
    });
    let answers = join_all(asks).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{:?}", answers.iter().find(|a| a.status != 200));
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer.body["request_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.body["cached"] == false).count(), 1);
    assert_eq!(stack.api.decisions("").await.len(), 1);
    assert_eq!(stack.api.get("/v1/runs/r").await.expect(200)["iterations"], 1);
}

#[tokio::test]
async fn a_retry_after_a_503_counts_once_and_is_decided_once() {
    let mut stack = Stack::build().nats().await;
    let body = counted("r");
    ask(&stack.api, "warm", &Api::harmless()).await.expect(200);
    stack.evaluators[0].kill();
    ask(&stack.api, "a", &body).await.assert_error(503, "unavailable");
    stack.start_evaluator();
    let answer = ask(&stack.api, "a", &body).await.expect(200);
    assert_eq!((&answer["verdict"], &answer["cached"]), (&json!("ALLOW"), &json!(false)));
    let again = ask(&stack.api, "a", &body).await.expect(200);
    assert_eq!((&again["request_id"], &again["cached"]), (&answer["request_id"], &json!(true)));
    assert_eq!(stack.api.get("/v1/runs/r").await.expect(200)["iterations"], 1);
    // The client settles the decision it was answered, whichever attempt made it.
    let settle = json!({"request_id": answer["request_id"], "actual_cost_usd": 1});
    stack.api.post("/v1/runs/r/settle", &settle).await.expect(200);
}

#[tokio::test]
async fn a_retry_of_a_counted_but_unrecorded_check_is_not_counted_twice() {
    let mut stack = Stack::build().gateways(2).nats().await;
    let body = counted("r");
    for api in [stack.api.clone(), stack.api_at(1)] {
        api.check(&Api::harmless()).await.expect(200);
    }
    // The gateway dies with the check in its hand, at whatever moment: the other one has the last word.
    let first = tokio::spawn({
        let (api, body) = (stack.api.clone(), body.clone());
        async move {
            let headers = [("content-type", "application/json"), ("idempotency-key", "a")];
            api.try_send(Method::POST, "/check", &headers, Some(body.to_string().into_bytes())).await
        }
    });
    stack.gateways[0].kill();
    let first = first.await.unwrap().ok();
    let other = stack.api_at(1);
    let mut answer = None;
    wait_for("an answer", RECOVERY_TIMEOUT, async || {
        let asked = ask(&other, "a", &body).await;
        let answered = asked.status == 200;
        answer = Some(asked);
        answered
    })
    .await;
    let answer = answer.unwrap().body;
    assert_eq!(answer["verdict"], "ALLOW", "the only iteration was this check's own");
    if let Some(first) = first.filter(|first| first.status == 200) {
        assert_eq!(first.body["request_id"], answer["request_id"]);
    }
    assert_eq!(other.get("/v1/runs/r").await.expect(200)["iterations"], 1);
    assert_eq!(other.decisions("run_id=r").await.len(), 1);
}

#[tokio::test]
async fn without_a_state_store_a_check_with_an_idempotency_key_is_not_decided() {
    let mut stack = Stack::build().nats().await;
    ask(&stack.api, "a", &Api::harmless()).await.expect(200);
    stack.nats.as_mut().unwrap().kill();
    ask(&stack.api, "a", &Api::harmless()).await.assert_error(503, "unavailable");
    stack.nats.as_mut().unwrap().restart().await;
    wait_for("the decision again", RECOVERY_TIMEOUT, async || {
        ask(&stack.api, "a", &Api::harmless()).await.body["cached"] == true
    })
    .await;
}
