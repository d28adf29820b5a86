//! Accounts and keys over the control API: who may do what, and what is refused.

use reqwest::Method;
use serde_json::json;
use stage0_tests::{Api, Stack};

#[tokio::test]
async fn the_operator_makes_an_account_and_its_first_key() {
    let stack = Stack::build().dev().await;
    let account = stack.operator.post("/v1/accounts", &json!({"name": "Acme", "plan": "pro"})).await.expect(201);
    assert_eq!((&account["name"], &account["plan"]), (&json!("Acme"), &json!("pro")));
    let body = json!({"account": account["id"], "name": "first", "scopes": ["check", "keys:manage"],
        "expires_at": "2099-01-01T00:00:00Z"});
    let made = stack.operator.post("/v1/keys", &body).await.expect(201);
    let mut fields: Vec<_> = made.as_object().unwrap().keys().cloned().collect();
    fields.sort();
    assert_eq!(fields, ["account", "created_at", "expires_at", "id", "key", "name", "scopes"]);
    assert_eq!((&made["account"], &made["expires_at"]), (&account["id"], &json!("2099-01-01T00:00:00Z")));
    let key = stack.api.with_key(made["key"].as_str().unwrap());
    key.check(&Api::harmless()).await.expect(200);

    let listed = key.get("/v1/keys").await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);
    assert_eq!(listed["next_cursor"], json!(null));
    let item = &listed["items"][0];
    assert_eq!(item["prefix"], format!("s0_{}", made["id"].as_str().unwrap()));
    assert!(item.get("key").is_none() && !listed.to_string().contains(made["key"].as_str().unwrap()));
    let by_operator =
        stack.operator.get(&format!("/v1/keys?account={}", account["id"].as_str().unwrap())).await.expect(200);
    assert_eq!(by_operator, listed);
    let accounts = stack.operator.get("/v1/accounts").await.expect(200);
    assert!(accounts["items"].as_array().unwrap().contains(&account));
}

#[tokio::test]
async fn no_plan_means_unlimited() {
    let stack = Stack::build().dev().await;
    assert_eq!(stack.operator.post("/v1/accounts", &json!({"name": "x"})).await.expect(201)["plan"], "unlimited");
}

#[tokio::test]
async fn a_key_sees_and_changes_its_own_account_only() {
    let stack = Stack::build().dev().await;
    let (theirs, _, their_key_id) = stack.operator.account("theirs", None, &["check"]).await;
    let (_, mine, _) = stack.operator.account("mine", None, &["keys:manage", "check"]).await;
    let mine = stack.api.with_key(&mine);
    mine.get(&format!("/v1/keys?account={theirs}")).await.assert_error(404, "not_found");
    mine.post("/v1/keys", &json!({"account": theirs, "name": "n", "scopes": ["check"]}))
        .await
        .assert_error(404, "not_found");
    mine.delete(&format!("/v1/keys/{their_key_id}")).await.assert_error(404, "not_found");
    mine.send(Method::POST, &format!("/v1/keys/{their_key_id}/rotate"), &[], None).await.assert_error(404, "not_found");
    mine.delete("/v1/keys/0000000000000000").await.assert_error(404, "not_found");
    mine.delete("/v1/keys/%2e%2e").await.assert_error(404, "not_found");
    assert_eq!(mine.get("/v1/keys").await.expect(200)["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_can_grant_only_scopes_that_it_has() {
    let stack = Stack::build().dev().await;
    let (account, manager, _) = stack.operator.account("a", None, &["keys:manage", "check"]).await;
    let manager = stack.api.with_key(&manager);
    manager.post("/v1/keys", &json!({"name": "n", "scopes": ["check"]})).await.expect(201);
    for scope in ["operator", "runs:manage", "decisions:read"] {
        let answer = manager.post("/v1/keys", &json!({"name": "n", "scopes": ["check", scope]})).await;
        answer.assert_error(403, "scope_missing");
        assert!(answer.text.contains(scope), "{}", answer.text);
    }
    // Rotating a mightier key would hand its scopes over.
    let mighty = stack
        .operator
        .post("/v1/keys", &json!({"account": account, "name": "m", "scopes": ["runs:manage"]}))
        .await
        .expect(201);
    let path = format!("/v1/keys/{}/rotate", mighty["id"].as_str().unwrap());
    manager.post(&path, &json!({})).await.assert_error(403, "scope_missing");
    let (_, checker, _) = stack.operator.account("b", None, &["check"]).await;
    stack.api.with_key(&checker).get("/v1/keys").await.assert_error(403, "scope_missing");
}

#[tokio::test]
async fn bodies_of_key_and_account_calls_are_validated_field_by_field() {
    let stack = Stack::build().dev().await;
    let bad = stack
        .operator
        .post(
            "/v1/keys",
            &json!({"account": "a b", "scopes": ["check", "root"], "expires_at": "tomorrow", "expire": 1}),
        )
        .await;
    bad.assert_error(422, "validation_failed");
    let message = bad.body["message"].as_str().unwrap();
    for field in ["account: ", "name: ", "scopes[1]: ", "expires_at: ", "expire: "] {
        assert!(message.contains(field), "{field} in {message}");
    }
    for body in [
        json!({"name": " "}),
        json!({"name": "x".repeat(201)}),
        json!({"name": 1}),
        json!({"name": "x", "plan": "gold"}),
    ] {
        stack.operator.post("/v1/accounts", &body).await.assert_error(422, "validation_failed");
    }
    for body in [
        json!({"name": "n", "scopes": []}),
        json!({"name": "n", "scopes": ["check"], "expires_at": "2001-01-01T00:00:00Z"}),
    ] {
        stack.api.post("/v1/keys", &body).await.assert_error(422, "validation_failed");
    }
    for query in ["limit=0", "limit=x", "limit=1001", "cursor=a&cursor=b", "colour=red"] {
        stack.operator.get(&format!("/v1/accounts?{query}")).await.assert_error(422, "validation_failed");
    }
    stack
        .operator
        .post("/v1/keys", &json!({"account": "acc_nobody", "name": "n", "scopes": ["check"]}))
        .await
        .assert_error(404, "not_found");
}

#[tokio::test]
async fn lists_are_read_page_by_page() {
    let stack = Stack::build().dev().await;
    let (account, _, _) = stack.operator.account("a", None, &["check"]).await;
    for _ in 0..4 {
        stack
            .operator
            .post("/v1/keys", &json!({"account": account, "name": "n", "scopes": ["check"]}))
            .await
            .expect(201);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = stack.operator.get(&format!("/v1/keys?account={account}&limit=2{cursor}")).await.expect(200);
        assert!(page["items"].as_array().unwrap().len() <= 2);
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((count, seen.len()), (5, 5));
}

#[tokio::test]
async fn a_whole_number_may_be_written_with_a_fraction_of_zero_everywhere() {
    let stack = Stack::build().dev().await;
    let (account, _, key) = stack.operator.account("a", None, &["check"]).await;
    let send = async |api: &Api, method: Method, path: &str, json: &str| {
        api.send(method, path, &[("content-type", "application/json")], Some(json.as_bytes().to_vec())).await
    };
    let path = format!("/v1/accounts/{account}");
    let limits = r#"{"per_minute": 60.0, "daily": 1000.0, "monthly": 100000.0, "retention_days": 7.0,
        "max_keys": 5.0, "max_endpoints": 2e0, "max_runs": 3.0, "stored_bytes": 0.0}"#;
    let changed = send(&stack.operator, Method::PATCH, &path, limits).await.expect(200);
    assert_eq!(changed["limits"], json!({"per_minute": 60, "daily": 1_000, "monthly": 100_000}));
    assert_eq!(changed["caps"], json!({"max_keys": 5, "max_endpoints": 2, "max_runs": 3, "stored_bytes": 0}));
    assert_eq!(changed["retention_days"], 7);
    for bad in ["60.5", "-1.0", "1e300", "\"60\""] {
        let answer = send(&stack.operator, Method::PATCH, &path, &format!(r#"{{"daily": {bad}}}"#)).await;
        answer.assert_error(422, "validation_failed");
    }
    let rotate = format!("/v1/keys/{key}/rotate");
    send(&stack.operator, Method::POST, &rotate, r#"{"overlap_seconds": 60.0}"#).await.expect(201);
    let hook = r#"{"url": "https://hooks.example.com/in", "rate_limit": 5.0}"#;
    let made = send(&stack.api, Method::POST, "/v1/webhooks", hook).await.expect(201);
    assert_eq!(made["rate_limit"].as_u64(), Some(5), "{made}");
    let rotate = format!("/v1/webhooks/{}/rotate-secret", made["id"].as_str().unwrap());
    send(&stack.api, Method::POST, &rotate, r#"{"overlap_seconds": 0.0}"#).await.expect(201);
    stack.api.get("/v1/decisions?limit=10.0").await.expect(200);
    stack.api.get("/v1/decisions?limit=10.5").await.assert_error(422, "validation_failed");
}
