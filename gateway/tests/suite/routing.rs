//! Paths, methods, and the headers that every answer has.

use reqwest::Method;

use crate::harness::{Stack, TENANT, send};

#[tokio::test]
async fn an_unknown_path_is_a_404_and_a_wrong_method_names_the_right_ones() {
    let stack = Stack::start().await;
    assert_eq!(stack.get(TENANT, "/v2/keys").await.refusal(), (404, "not_found".to_owned()));
    for (method, path, allowed) in [
        (Method::GET, "/check", "POST"),
        (Method::PUT, "/v1/keys", "GET, HEAD, POST"),
        (Method::POST, "/v1/decisions", "DELETE, GET, HEAD"),
        (Method::DELETE, "/readyz", "GET, HEAD"),
    ] {
        let answer = send(stack.request_as(TENANT, method, path)).await;
        assert_eq!(answer.refusal(), (405, "method_not_allowed".to_owned()), "{path}");
        assert_eq!(answer.header("allow"), Some(allowed), "{path}");
    }
}

#[tokio::test]
async fn every_answer_has_an_id_and_says_that_it_must_not_be_cached_or_sniffed() {
    let stack = Stack::start().await;
    // A document may be cached, as long as each use asks whether it is still the same.
    for (path, caching) in
        [("/healthz", "no-store"), ("/nowhere", "no-store"), ("/usage", "no-store"), ("/openapi.json", "no-cache")]
    {
        let answer = stack.get(TENANT, path).await;
        assert_eq!(answer.header("cache-control"), Some(caching), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
        let id = answer.header("x-request-id").unwrap();
        assert!(stage0_contract::RequestId::parse(id).is_ok(), "{path}: {id}");
        if !answer.status.is_success() {
            assert_eq!(answer.json()["request_id"], id, "the body of a refusal names the same id");
        }
    }
}

#[tokio::test]
async fn a_base_path_precedes_every_path_and_a_trailing_slash_is_ignored() {
    let stack = Stack::with(|config| config.base_path = "/stage0".to_owned()).await;
    assert_eq!(stack.get(TENANT, "/healthz").await.status, 200);
    assert_eq!(stack.get(TENANT, "/usage/").await.status, 200);
    let bare = Stack::start().await;
    assert_eq!(bare.get(TENANT, "/stage0/healthz").await.status, 404);
}

#[tokio::test]
async fn readiness_names_the_service_that_is_missing() {
    let stack = Stack::start().await;
    let answer = stack.get(TENANT, "/readyz").await;
    let reasons = answer.json()["reasons"].to_string();
    assert_eq!((answer.status.as_u16(), answer.json()["ready"].as_bool()), (503, Some(false)));
    // The suite's keystore does not serve its status, but its evaluator does.
    assert!(reasons.contains("keystore: ") && !reasons.contains("evaluator: "), "{reasons}");
}
