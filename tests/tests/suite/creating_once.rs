//! `Idempotency-Key` on calls that create: the same answer again, from every gateway, and nothing is made twice.

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use stage0_tests::{Answer, Api, Stack};

async fn ask(api: &Api, key: &str, path: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    api.send(Method::POST, path, &headers, Some(body.to_string().into_bytes())).await
}

/// What is listed at this path and has this member.
async fn listed(api: &Api, path: &str, member: &str, value: &str) -> usize {
    let page = api.get(path).await.expect(200);
    page["items"].as_array().unwrap().iter().filter(|item| item[member] == value).count()
}

fn refused(answer: &Answer, says: &str) {
    answer.assert_error(422, "validation_failed");
    let errors = answer.body["errors"].as_array().unwrap();
    assert!(errors.iter().any(|error| error["path"] == "Idempotency-Key"), "{}", answer.text);
    assert!(answer.body["message"].as_str().unwrap().contains(says), "{}", answer.text);
}

/// Every call that creates, asked three times, by turns of the gateways.
async fn everything_is_made_once(stack: &Stack) {
    let gateways: Vec<_> = stack.urls.iter().map(|url| stack.operator.at(url)).collect();
    let own: Vec<_> = stack.urls.iter().map(|url| stack.api.at(url)).collect();
    let (account, key, key_id) = stack.operator.account("theirs", None, &["check", "webhooks:manage"]).await;
    let (hook, _) = stack.api.webhook("https://hooks.example.com/made").await;
    let calls = [
        (&gateways, "/v1/accounts".to_owned(), json!({"name": "once"})),
        (&gateways, "/v1/keys".to_owned(), json!({"account": account, "name": "once", "scopes": ["check"]})),
        (&gateways, format!("/v1/keys/{key_id}/rotate"), json!({"overlap_seconds": 600})),
        (&own, "/v1/webhooks".to_owned(), json!({"url": "https://hooks.example.com/once"})),
        (&own, format!("/v1/webhooks/{hook}/rotate-secret"), json!({"overlap_seconds": 60})),
    ];
    for (number, (api, path, body)) in calls.iter().enumerate() {
        let header = format!("call-{number}");
        let first = ask(&api[0], &header, path, body).await;
        assert_eq!(first.status, 201, "{path}: {}", first.text);
        for again in api.iter().rev() {
            let again = ask(again, &header, path, body).await;
            assert_eq!((again.status, &again.text), (201, &first.text), "{path}");
            assert!(again.header("content-type").starts_with("application/json"));
        }
        let mut other = body.clone();
        other["name"] = "another".into();
        if path.ends_with("/rotate") || path.ends_with("-secret") {
            other = json!({"overlap_seconds": 61});
        } else if path.ends_with("webhooks") {
            other = json!({"url": "https://hooks.example.com/another"});
        }
        refused(&ask(&api[0], &header, path, &other).await, "was used with another call or another body");
        // Without the header, and under another, it is made again.
        if number < 2 {
            let second = api[0].post(path, body).await.expect(201);
            assert_ne!(second["id"], first.body["id"]);
            let third = ask(&api[0], &format!("other-{number}"), path, body).await.expect(201);
            assert_ne!(third["id"], first.body["id"]);
        }
    }
    assert_eq!(listed(&stack.operator, "/v1/accounts", "name", "once").await, 3);
    let keys = format!("/v1/keys?account={account}");
    assert_eq!(listed(&stack.operator, &keys, "name", "once").await, 3);
    assert_eq!(listed(&stack.api, "/v1/webhooks", "url", "https://hooks.example.com/once").await, 1);
    assert_eq!(listed(&stack.api, "/v1/webhooks", "url", "https://hooks.example.com/another").await, 0);
    // The secret of a repeated answer is the one that works.
    let made = ask(own.last().unwrap(), "works", "/v1/keys", &json!({"name": "w", "scopes": ["check"]})).await;
    let again = ask(&own[0], "works", "/v1/keys", &json!({"scopes": ["check"], "name": "w"})).await;
    assert_eq!(made.text, again.text, "the order of members makes no other body");
    stack.api.with_key(again.body["key"].as_str().unwrap()).check(&Api::harmless()).await.expect(200);
    // Another key of the caller's account, and another account, are others.
    let theirs = stack.api.with_key(&key);
    let url = json!({"url": "https://hooks.example.com/once"});
    assert_ne!(ask(&theirs, "call-3", "/v1/webhooks", &url).await.expect(201)["id"], Value::Null);
    let second = stack.api.post("/v1/keys", &json!({"name": "s", "scopes": ["webhooks:manage"]})).await.expect(201);
    let second = stack.api.with_key(second["key"].as_str().unwrap());
    ask(&second, "call-3", "/v1/webhooks", &url).await.expect(201);
    assert_eq!(listed(&stack.api, "/v1/webhooks", "url", "https://hooks.example.com/once").await, 2);
}

#[tokio::test]
async fn create_calls_with_an_idempotency_key_create_once_in_one_process_and_store_no_secret() {
    let mut stack = Stack::build().dev().await;
    everything_is_made_once(&stack).await;
    let body = json!({"name": "kept", "scopes": ["check"]});
    let made = ask(&stack.api, "kept", "/v1/keys", &body).await.expect(201);
    let secret = made["key"].as_str().unwrap().to_owned();
    // The key's text stands in no file but those that `dev` writes for its user.
    let file = std::fs::read(stack.data().join("decisions.redb")).unwrap();
    let is_there = |text: &str| file.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(is_there("idempotency."), "the file is the one that holds these records");
    assert!(!is_there(&secret) && !is_there(&secret[secret.len() - 20..]));
    stack.restart_dev();
    let again = ask(&stack.api, "kept", "/v1/keys", &body).await.expect(201);
    assert_eq!(again["key"], secret);
}

#[tokio::test]
async fn create_calls_with_an_idempotency_key_create_once_across_gateways() {
    let mut stack = Stack::build().gateways(2).nats().await;
    everything_is_made_once(&stack).await;
    let body = json!({"name": "survives", "scopes": ["check"]});
    let first = ask(&stack.api, "survives", "/v1/keys", &body).await;
    stack.gateways[0].kill();
    let again = ask(&stack.api_at(1), "survives", "/v1/keys", &body).await;
    assert_eq!((again.status, again.text), (201, first.text));
}

#[tokio::test]
async fn a_revoked_key_gets_no_replayed_answer() {
    let stack = Stack::build().dev().await;
    let body = json!({"name": "m", "scopes": ["keys:manage", "check"]});
    let manager = stack.api.post("/v1/keys", &body).await.expect(201);
    let api = stack.api.with_key(manager["key"].as_str().unwrap());
    let new = json!({"name": "n", "scopes": ["check"]});
    ask(&api, "k", "/v1/keys", &new).await.expect(201);
    ask(&api, "k", "/v1/keys", &new).await.expect(201);
    stack.api.delete(&format!("/v1/keys/{}", manager["id"].as_str().unwrap())).await.expect(204);
    ask(&api, "k", "/v1/keys", &new).await.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn invalid_idempotency_keys_and_oversized_bodies_are_refused_without_using_the_key() {
    let stack = Stack::build().dev().await;
    let body = json!({"name": "n", "scopes": ["check"]});
    for bad in ["", "two words", &"x".repeat(129)] {
        refused(&ask(&stack.api, bad, "/v1/keys", &body).await, "visible ASCII");
    }
    let environments: Vec<_> = (0..70).map(|n| format!("{n}{}", "e".repeat(100))).collect();
    let large = json!({"url": "https://hooks.example.com/large", "environments": environments});
    refused(&ask(&stack.api, "large", "/v1/webhooks", &large).await, "at most 6000 bytes");
    stack.api.post("/v1/webhooks", &large).await.expect(201);
    // With everything else that is wrong.
    let answer = ask(&stack.api, "two words", "/v1/keys", &json!({"name": 1, "scopes": ["check"]})).await;
    let paths: Vec<_> = answer.body["errors"].as_array().unwrap().iter().map(|e| e["path"].clone()).collect();
    assert_eq!(paths, ["Idempotency-Key", "name"]);
    // Refused by the keystore: the key is as good as new, also for another body.
    ask(&stack.api, "again", "/v1/keys/0000000000000000/rotate", &json!({})).await.assert_error(404, "not_found");
    ask(&stack.api, "again", "/v1/keys", &body).await.expect(201);
}

#[tokio::test]
async fn a_create_call_with_a_lost_answer_creates_at_most_one_and_an_undelivered_one_can_be_retried() {
    let mut stack = Stack::build().usual_budget().nats().await;
    let body = json!({"name": "perhaps", "scopes": ["check"]});
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.keystore.as_ref().unwrap().freeze();
    let lost = ask(&stack.api, "perhaps", "/v1/keys", &body).await;
    lost.assert_error(503, "unavailable");
    assert!(lost.text.contains("the keystore does not answer"), "{}", lost.text);
    stack.keystore.as_ref().unwrap().signal(Signal::CONT);
    // Whether the keystore got the call, depends on whether the caller's key had to be asked for first.
    let again = ask(&stack.api, "perhaps", "/v1/keys", &body).await;
    match again.status {
        201 => assert_eq!(ask(&stack.api, "perhaps", "/v1/keys", &body).await.text, again.text),
        _ => {
            again.assert_error(409, "conflict");
            assert!(again.text.contains("may have been done"), "{}", again.text);
        }
    }
    assert!(listed(&stack.api, "/v1/keys", "name", "perhaps").await <= 1);
    // Without a keystore nothing was done, and the repeat does it.
    let body = json!({"name": "surely", "scopes": ["check"]});
    stack.keystore.as_mut().unwrap().kill();
    let absent = ask(&stack.api, "surely", "/v1/keys", &body).await;
    absent.assert_error(503, "unavailable");
    stack.start_keystore();
    let made = ask(&stack.api, "surely", "/v1/keys", &body).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(ask(&stack.api, "surely", "/v1/keys", &body).await.text, made.text);
    assert_eq!(listed(&stack.api, "/v1/keys", "name", "surely").await, 1);
}
