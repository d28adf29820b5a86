//! What a body may be, and how it is refused.

use reqwest::Method;
use serde_json::json;

use crate::harness::{Stack, TENANT, send};

#[tokio::test]
async fn a_body_that_is_not_acceptable_json_is_refused_with_its_reason() {
    let stack = Stack::start().await;
    for (body, status, code) in [
        ("{", 400, "invalid_json"),
        ("[]", 400, "invalid_json"),
        (r#"{"goal":"g","goal":"h"}"#, 400, "invalid_json"),
        ("{}", 422, "validation_failed"),
        (r#"{"goal":"g","pro":true}"#, 402, "plan_required"),
    ] {
        let request = stack.request_as(TENANT, Method::POST, "/check").header("content-type", "application/json");
        assert_eq!(send(request.body(body)).await.refusal(), (status, code.to_owned()), "{body}");
    }
    let text = stack.request_as(TENANT, Method::POST, "/check").header("content-type", "text/plain").body("{}");
    assert_eq!(send(text).await.refusal(), (415, "unsupported_media_type".to_owned()));
    assert_eq!(stack.services.evaluations(), 0);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_by_its_length() {
    let stack = Stack::start().await;
    let body = json!({"goal": "g", "x": "y".repeat(stage0_contract::MAX_BODY_BYTES)});
    assert_eq!(stack.check(&body).await.refusal(), (413, "body_too_large".to_owned()));
}

#[tokio::test]
async fn a_refusal_names_every_bad_field_of_a_control_call() {
    let stack = Stack::start().await;
    let body = json!({"name": 1, "scopes": ["check", "root"], "expire_at": null});
    let answer = send(stack.request_as(TENANT, Method::POST, "/v1/keys").json_body(&body)).await;
    assert_eq!(answer.refusal(), (422, "validation_failed".to_owned()));
    let errors = answer.json()["errors"].clone();
    let paths: Vec<_> = errors.as_array().unwrap().iter().map(|error| error["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["name", "scopes[1]", "expire_at"]);
}

/// reqwest's own `json` is behind a feature.
trait JsonBody {
    fn json_body(self, body: &serde_json::Value) -> Self;
}

impl JsonBody for reqwest::RequestBuilder {
    fn json_body(self, body: &serde_json::Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }
}
