//! Each row of the contract's table of errors, through real HTTPS.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_tests::{Api, Stack};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn a_body_that_is_not_strict_json_is_400() {
    let stack = Stack::build().dev().await;
    let deep = format!("{{\"goal\":\"g\",\"context\":{{\"a\":{}{}}}}}", "[".repeat(40), "]".repeat(40));
    let deepest = "[".repeat(100_000);
    for body in [
        "",
        "{",
        "goal",
        "[1]",
        "\"goal\"",
        "null",
        "{\"goal\":\"a\",\"goal\":\"b\"}",
        "{\"goal\":\"g\",\"context\":{\"a\":1,\"\\u0061\":2}}",
        "{\"goal\":\"g\"} x",
        "{\"goal\":\"\\ud800\"}",
        "{\"goal\":\"g\",\"context\":{\"n\":1e999}}",
        "{\"goal\":\"g\",\"context\":{\"n\":123456789012345678901234567890}}",
        &deep,
        &deepest,
    ] {
        let answer = stack.api.send(Method::POST, "/check", &[JSON], Some(body.as_bytes().to_vec())).await;
        answer.assert_error(400, "invalid_json");
    }
    let answer = stack.api.send(Method::POST, "/check", &[JSON], Some(b"{\"goal\":\"\xff\xfe\"}".to_vec())).await;
    answer.assert_error(400, "invalid_json");
}

#[tokio::test]
async fn every_kind_of_bad_key_is_one_and_the_same_401() {
    let stack = Stack::build().dev().await;
    let (account, revoked, id) = stack.operator.account("a", None, &["check"]).await;
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    let soon = json!({"account": account, "name": "short", "scopes": ["check"], "expires_at": "2099-01-01T00:00:00Z"});
    let expiring = stack.operator.post("/v1/keys", &soon).await.expect(201);
    let good = expiring["key"].as_str().unwrap();
    // The same id with another secret: the checksum is right, the key is not.
    let other = stage0_contract::ApiKey::from_random([1; 10], [2; 20]).unwrap();
    let wrong = stage0_contract::ApiKey::from_random(id_bytes(good), [3; 20]).unwrap();
    // No checksum ends so: its last character has two bits.
    let typo = format!("{}1", &good[..good.len() - 1]);
    let mut seen: Vec<(Vec<(String, String)>, String)> = Vec::new();
    for key in [
        None,
        Some(""),
        Some("x"),
        Some(typo.as_str()),
        Some(other.expose()),
        Some(wrong.expose()),
        Some(revoked.as_str()),
    ] {
        let api = key.map_or_else(|| stack.api.without_key(), |key| stack.api.with_key(key));
        let answer = api.check(&Api::harmless()).await;
        answer.assert_error(401, "unauthorized");
        assert!(!answer.header("www-authenticate").is_empty());
        let id = answer.body["request_id"].as_str().unwrap();
        let mut headers: Vec<_> = answer
            .headers
            .iter()
            .filter(|(n, _)| *n != "date" && *n != "x-request-id")
            .map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned()))
            .collect();
        headers.sort();
        seen.push((headers, answer.text.replace(id, "ID")));
    }
    assert!(seen.iter().all(|answer| *answer == seen[0]), "{seen:#?}");
}

/// The id part of a key, decoded, so that a wrong secret can be put behind it.
fn id_bytes(key: &str) -> [u8; 10] {
    let alphabet = stage0_contract::KEY_ALPHABET;
    let value = key[3..19]
        .bytes()
        .fold(0_u128, |value, byte| value << 5 | alphabet.iter().position(|a| *a == byte).unwrap() as u128);
    value.to_be_bytes()[6..].try_into().unwrap()
}

#[tokio::test]
async fn pro_without_the_plan_is_402_and_never_says_quota() {
    let stack = Stack::build().dev().await;
    let (_, free, _) = stack.operator.account("free", Some("free"), &["check"]).await;
    let answer = stack.api.with_key(&free).check(&json!({"goal": "a b", "tools": ["t"], "pro": true})).await;
    answer.assert_error(402, "plan_required");
    assert!(!answer.text.to_lowercase().contains("quota"));
    assert_eq!(stack.api.with_key(&free).check(&Api::harmless()).await.status, 200);
    assert_eq!(stack.api.check(&json!({"goal": "a b", "tools": ["t"], "pro": true})).await.status, 200);
}

#[tokio::test]
async fn a_missing_scope_is_403_and_named() {
    let stack = Stack::build().dev().await;
    let answer = stack.operator.check(&Api::harmless()).await;
    answer.assert_error(403, "scope_missing");
    assert!(answer.body["message"].as_str().unwrap().contains("`check`"));
    let answer = stack.api.post("/v1/accounts", &json!({"name": "mine"})).await;
    answer.assert_error(403, "scope_missing");
    assert!(answer.body["message"].as_str().unwrap().contains("`operator`"));
}

#[tokio::test]
async fn unknown_paths_are_404_and_methods_405_before_any_key_is_judged() {
    let stack = Stack::build().dev().await;
    let open = stack.api.without_key();
    for path in ["/", "/chec", "/check/x", "/v1", "/v1/keys/a/b/c", "/check%2f..", "/.git/config"] {
        open.get(path).await.assert_error(404, "not_found");
    }
    let answer = open.get("/check").await;
    answer.assert_error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
}

#[tokio::test]
async fn a_body_over_a_million_bytes_is_413_and_another_type_415() {
    let stack = Stack::build().dev().await;
    let body = |bytes: usize| format!("{{\"goal\":\"g\",\"x\":\"{}\"}}", "y".repeat(bytes - 19)).into_bytes();
    assert_eq!(stack.api.send(Method::POST, "/check", &[JSON], Some(body(1_000_000))).await.status, 200);
    stack.api.send(Method::POST, "/check", &[JSON], Some(body(1_000_001))).await.assert_error(413, "body_too_large");
    stack.api.send(Method::POST, "/check", &[JSON], Some(body(20_000_000))).await.assert_error(413, "body_too_large");
    for wrong in [None, Some("text/plain"), Some("application/json; charset=latin-1")] {
        let headers: Vec<_> = wrong.map(|value| ("content-type", value)).into_iter().collect();
        let answer = stack.api.send(Method::POST, "/check", &headers, Some(b"{\"goal\":\"g\"}".to_vec())).await;
        answer.assert_error(415, "unsupported_media_type");
    }
    let zipped = [JSON, ("content-encoding", "gzip")];
    stack
        .api
        .send(Method::POST, "/check", &zipped, Some(b"x".to_vec()))
        .await
        .assert_error(415, "unsupported_media_type");
}

#[tokio::test]
async fn a_422_names_every_bad_field_also_those_that_only_the_policy_knows() {
    let stack = Stack::build().dev().await;
    let body = json!({
        "goal": " ", "success_criteria": "x", "tools": [1, "ok", ""], "side_effects": {}, "context": [],
        "environment": 5, "pro": "yes",
        "constraints": ["max_retries: lots", "allowed_change_window: never", "allowed_environment:"],
        "policy_pack_version": "nobody@9.9.9+000000000000", "debug_store_input": 1
    });
    let answer = stack
        .api
        .send(Method::POST, "/check", &[JSON, ("X-Request-Id", "two words")], Some(body.to_string().into_bytes()))
        .await;
    answer.assert_error(422, "validation_failed");
    let message = answer.body["message"].as_str().unwrap();
    let paths: Vec<_> =
        answer.body["errors"].as_array().unwrap().iter().map(|e| e["path"].as_str().unwrap().to_owned()).collect();
    for field in [
        "goal",
        "success_criteria",
        "tools[0]",
        "tools[2]",
        "side_effects",
        "context",
        "environment",
        "pro",
        "constraints[0]",
        "constraints[1]",
        "constraints[2]",
        "policy_pack_version",
        "debug_store_input",
        "X-Request-Id",
    ] {
        assert!(message.contains(&format!("{field}: ")), "{field} in {message}");
        assert_eq!(paths.iter().filter(|path| *path == field).count(), 1, "{field} in {paths:?}");
    }
    assert_eq!(paths.len(), 14, "{paths:?}");
}

#[tokio::test]
async fn sizes_at_the_limit_pass_and_one_more_does_not() {
    let stack = Stack::build().dev().await;
    let status = async |body: Value| stack.api.check(&body).await.status;
    assert_eq!(status(json!({"goal": "é ".repeat(4_000)})).await, 200);
    assert_eq!(status(json!({"goal": "é".repeat(8_001)})).await, 422);
    assert_eq!(status(json!({"goal": "x".repeat(900_000)})).await, 422);
    assert_eq!(status(json!({"goal": "a b", "tools": vec!["t"; 200]})).await, 200);
    assert_eq!(status(json!({"goal": "a b", "constraints": vec!["c"; 100_000]})).await, 422);
    assert_eq!(status(json!({"goal": "a b", "tools": ["t".repeat(1_001)]})).await, 422);
    assert_eq!(
        status(json!({"goal": "a b", "environment": "staging", "context": {"environment": "production"}})).await,
        422
    );
    for (name, value) in [("x-request-id", "i".repeat(129)), ("idempotency-key", "i".repeat(129))] {
        let headers = [JSON, (name, value.as_str())];
        stack
            .api
            .send(Method::POST, "/check", &headers, Some(Api::harmless().to_string().into_bytes()))
            .await
            .assert_error(422, "validation_failed");
    }
}

#[tokio::test]
async fn unknown_and_unselectable_policy_versions_get_the_same_error() {
    let stack = Stack::build().dev().await;
    let active = stack.api.check(&Api::harmless()).await.expect(200)["policy_version"].as_str().unwrap().to_owned();
    let ask = async |version: &str| {
        stack.api.check(&json!({"goal": "a b", "tools": ["t"], "policy_pack_version": version})).await
    };
    assert_eq!(ask(&active).await.status, 200);
    assert_eq!(ask("").await.status, 200);
    let texts =
        [ask("nobody@1.0.0+000000000000").await, ask("latest").await, ask(&"x".repeat(500)).await].map(|answer| {
            answer.assert_error(422, "validation_failed");
            answer.body["message"].as_str().unwrap().to_owned()
        });
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

#[tokio::test]
async fn error_statuses_follow_their_documented_order() {
    let stack = Stack::build().dev().await;
    let (account, weak, _) = stack.operator.account("weak", Some("free"), &["keys:manage"]).await;
    let (limited, used_up, _) = stack.operator.account("used up", Some("free"), &["check"]).await;
    stack.operator.patch(&format!("/v1/accounts/{limited}"), &json!({"per_minute": 1})).await.expect(200);
    stack.api.with_key(&used_up).check(&Api::harmless()).await.expect(200);
    let poor = json!({"account": account, "name": "poor", "scopes": ["check"]});
    let poor = stack.operator.post("/v1/keys", &poor).await.expect(201)["key"].as_str().unwrap().to_owned();
    let bad = |api: &Api, body: &'static str, json: bool| {
        let (api, headers) = (api.clone(), if json { vec![JSON] } else { vec![("content-type", "text/plain")] });
        async move { api.send(Method::POST, "/check", &headers, Some(body.as_bytes().to_vec())).await.status }
    };
    let open = stack.api.without_key();
    assert_eq!(bad(&open, "{", false).await, 401, "401 before 415 and 400");
    let (weak, used_up, poor) = (stack.api.with_key(&weak), stack.api.with_key(&used_up), stack.api.with_key(&poor));
    assert_eq!(bad(&weak, "{", false).await, 403, "403 before 415 and 400");
    assert_eq!(bad(&used_up, "{", false).await, 429, "429 before 415 and 400");
    assert_eq!(bad(&stack.api, "{", false).await, 415, "415 before 400");
    assert_eq!(bad(&poor, "{\"pro\": true", true).await, 400, "400 before 402");
    assert_eq!(bad(&poor, "{\"goal\": 1, \"pro\": true}", true).await, 402, "402 before 422");
    assert_eq!(bad(&poor, "{\"goal\": 1}", true).await, 422);
    assert_eq!(bad(&stack.operator, "{\"goal\": 1, \"pro\": true}", true).await, 403);
}

#[tokio::test]
async fn too_many_failed_logins_are_429_but_a_verified_key_passes() {
    let stack = Stack::build().gateway_with(&["--failed-logins-per-minute", "5"]).dev().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    let bad = stack.api.with_key("s0_nonsense");
    for _ in 0..5 {
        bad.check(&Api::harmless()).await.assert_error(401, "unauthorized");
    }
    let answer = bad.check(&Api::harmless()).await;
    answer.assert_error(429, "too_many_failed_logins");
    let seconds = answer.body["retry_after_seconds"].as_u64().unwrap();
    assert_eq!(answer.body["detail"]["retry_after_seconds"], seconds);
    assert_eq!(answer.header("retry-after"), seconds.to_string());
    assert!((1..=61).contains(&seconds));
    stack.api.check(&Api::harmless()).await.expect(200);
}
