//! API keys and scopes.

use reqwest::Method;
use serde_json::json;
use stage0_contract::KeyChanged;

use crate::harness::{OPERATOR, READER, Stack, TENANT, key, send};

#[tokio::test]
async fn all_bad_keys_get_the_same_answer() {
    let stack = Stack::start().await;
    let wrong_secret = stage0_contract::ApiKey::from_random([TENANT; 10], [99; 20]).unwrap();
    let requests = [
        stack.request(Method::GET, "/usage"),
        stack.request(Method::GET, "/usage").header("x-api-key", "nonsense"),
        stack.request(Method::GET, "/usage").header("x-api-key", key(77).expose()),
        stack.request(Method::GET, "/usage").header("x-api-key", wrong_secret.expose()),
        stack.request_as(TENANT, Method::GET, "/usage").header("x-api-key", key(READER).expose()),
    ];
    for request in requests {
        let answer = send(request).await;
        assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()));
        assert_eq!(answer.json()["message"], "the API key is missing or not valid");
        assert!(answer.header("www-authenticate").is_some());
    }
}

#[tokio::test]
async fn a_missing_scope_is_refused_before_the_body_is_read() {
    let stack = Stack::start().await;
    for (number, method, path) in [
        (READER, Method::POST, "/check"),
        // An operator does not check, even if its key was granted the scope.
        (OPERATOR, Method::POST, "/check"),
        (READER, Method::POST, "/v1/keys"),
        (READER, Method::POST, "/v1/webhooks"),
        (TENANT, Method::POST, "/v1/accounts"),
        (TENANT, Method::GET, "/v1/status"),
        (OPERATOR, Method::GET, "/v1/decisions"),
        (TENANT, Method::DELETE, "/v1/decisions?before=2026-01-01T00:00:00Z"),
    ] {
        let answer = send(stack.request_as(number, method, path).body("not JSON")).await;
        assert_eq!(answer.refusal(), (403, "scope_missing".to_owned()), "{path}");
    }
    assert_eq!(stack.services.evaluations(), 0);
}

#[tokio::test]
async fn a_revoked_key_is_refused_once_its_notice_arrives() {
    let stack = Stack::start().await;
    let body = json!({"goal": "g"});
    assert_eq!(stack.check(&body).await.status, 200);
    stack.services.revoke(TENANT);
    let notice = KeyChanged::One { account: "acc".to_owned().try_into().unwrap(), key_id: key(TENANT).id().clone() };
    stack.bus.connect().notices.publish(&notice).await.unwrap();
    // The notice and the next check travel different ways.
    let mut answer = stack.check(&body).await;
    for _ in 0..1_000 {
        if answer.status != 200 {
            break;
        }
        answer = stack.check(&body).await;
    }
    assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()));
}
