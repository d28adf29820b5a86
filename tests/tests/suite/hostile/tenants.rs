//! One tenant against another, and one key against its own account: floods of management calls, grants that outlive
//! their granter, runs and inputs that fill the store. Each is refused by name, and what stands beside it goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_contract::UNLIMITED;
use stage0_tests::{Answer, Api, Stack};

/// A new key of an account: the client that uses it, and its id.
async fn key(by: &Api, body: &Value) -> (Api, Value) {
    let made = by.post("/v1/keys", body).await.expect(201);
    (by.with_key(made["key"].as_str().unwrap()), made)
}

/// An account with caps of its own, and a key that may do all in it.
async fn account(stack: &Stack, caps: &Value) -> (String, Api) {
    let (account, key, _) = stack.operator.account("capped", None, &stage0_tests::account_scopes()).await;
    stack.operator.patch(&format!("/v1/accounts/{account}"), caps).await.expect(200);
    (account, stack.api.with_key(&key))
}

fn in_seconds(seconds: i64) -> String {
    let later = Timestamp::now().checked_add(SignedDuration::from_secs(seconds)).unwrap();
    Timestamp::from_second(later.as_second()).unwrap().to_string()
}

#[track_caller]
fn names(answer: &Answer, text: &str) {
    assert!(answer.body["message"].as_str().unwrap().contains(text), "{}", answer.text);
}

#[tokio::test]
async fn a_key_cannot_create_a_key_that_expires_later_than_itself() {
    let stack = Stack::build().dev().await;
    let end = in_seconds(60);
    let scopes = json!(["keys:manage", "check"]);
    let (brief, made) = key(&stack.api, &json!({"name": "brief", "scopes": scopes, "expires_at": end})).await;
    let later = json!({"name": "n", "scopes": ["check"], "expires_at": in_seconds(3_600)});
    let refused = brief.post("/v1/keys", &later).await;
    refused.assert_error(422, "validation_failed");
    assert_eq!(refused.body["errors"][0]["path"], "expires_at");
    names(&refused, &end);
    let (_, minted) = key(&brief, &json!({"name": "n", "scopes": ["check"]})).await;
    assert_eq!(minted["expires_at"], end.as_str(), "without a word about it, the granter's");
    let rotated = brief.post(&format!("/v1/keys/{}/rotate", made["id"].as_str().unwrap()), &json!({})).await;
    assert_eq!(rotated.expect(201)["expires_at"], end.as_str());
    // An endless key of the same account is not handed out by rotating it.
    let (brief, _) = key(&stack.api, &json!({"name": "brief", "scopes": scopes, "expires_at": end})).await;
    let (endless, id) = key(&stack.api, &json!({"name": "endless", "scopes": ["check"]})).await;
    let rotate = format!("/v1/keys/{}/rotate", id["id"].as_str().unwrap());
    brief.post(&rotate, &json!({"overlap_seconds": 60})).await.assert_error(409, "conflict");
    endless.check(&Api::harmless()).await.expect(200);
    assert_eq!(stack.api.post(&rotate, &json!({})).await.expect(201)["expires_at"], Value::Null);
}

#[tokio::test]
async fn a_key_cannot_revoke_a_key_with_more_scopes() {
    let stack = Stack::build().dev().await;
    let (manager, own) = key(&stack.api, &json!({"name": "m", "scopes": ["keys:manage", "check"]})).await;
    let (strong, id) = key(&stack.api, &json!({"name": "s", "scopes": ["check", "decisions:read"]})).await;
    let strong_path = format!("/v1/keys/{}", id["id"].as_str().unwrap());
    for refused in
        [manager.delete(&strong_path).await, manager.post(&format!("{strong_path}/rotate"), &json!({})).await]
    {
        refused.assert_error(403, "scope_missing");
        names(&refused, "`decisions:read`");
    }
    strong.check(&Api::harmless()).await.expect(200);
    let (_, weak) = key(&manager, &json!({"name": "w", "scopes": ["check"]})).await;
    manager.delete(&format!("/v1/keys/{}", weak["id"].as_str().unwrap())).await.expect(204);
    manager.delete(&format!("/v1/keys/{}", own["id"].as_str().unwrap())).await.expect(204);
    stack.operator.delete(&strong_path).await.expect(204);
}

#[tokio::test]
async fn a_flood_of_new_keys_delays_no_revocation_of_another_account() {
    let stack = Stack::build().gateway_with(&["--management-calls-per-minute", "0"]).nats().await;
    let (_, flooder) = account(&stack, &json!({"max_keys": UNLIMITED})).await;
    let (_, victim) = account(&stack, &json!({"max_keys": null})).await;
    let mut keys = Vec::new();
    for _ in 0..7 {
        keys.push(key(&victim, &json!({"name": "v", "scopes": ["check"]})).await);
    }
    let (stop, mut flood) = (Arc::new(AtomicBool::new(false)), tokio::task::JoinSet::new());
    for _ in 0..40 {
        let (flooder, stop) = (flooder.clone(), Arc::clone(&stop));
        flood.spawn(async move {
            let mut told = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = flooder.post("/v1/keys", &json!({"name": "f", "scopes": ["check"]})).await;
                assert!(matches!(answer.status, 201 | 503), "{}", answer.text);
                told += usize::from(answer.status == 503);
            }
            told
        });
    }
    let mut slowest = Duration::ZERO;
    for (api, made) in &keys {
        api.check(&Api::harmless()).await.expect(200);
        let began = Instant::now();
        victim.delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).await.expect(204);
        slowest = slowest.max(began.elapsed());
        wait_for("the refusal", Duration::from_secs(1), async || api.check(&Api::harmless()).await.status == 401).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut told = 0;
    while let Some(busy) = flood.join_next().await {
        told += busy.unwrap();
    }
    assert!(told > 0, "the flood was told to come again");
    assert!(slowest < Duration::from_secs(1), "a revocation took {slowest:?}");
}

#[tokio::test]
async fn calls_of_the_control_api_are_limited_by_key_and_a_key_over_it_can_still_be_revoked() {
    let stack = Stack::build().gateway_with(&["--management-calls-per-minute", "4"]).dev().await;
    let (flooder, id) = key(&stack.api, &json!({"name": "f", "scopes": ["keys:manage"]})).await;
    let mut refused = flooder.get("/v1/keys").await;
    for _ in 0..4 {
        if refused.status == 429 {
            break;
        }
        refused = flooder.get("/v1/keys").await;
    }
    refused.assert_error(429, "rate_limited");
    let seconds = refused.body["retry_after_seconds"].as_u64().unwrap();
    assert!((1..=15).contains(&seconds) && refused.header("retry-after") == seconds.to_string(), "{}", refused.text);
    flooder.post("/v1/keys", &json!({})).await.assert_error(429, "rate_limited");
    stack.api.get("/v1/keys").await.expect(200);
    stack.api.check(&Api::harmless()).await.expect(200);
    flooder.delete(&format!("/v1/keys/{}", id["id"].as_str().unwrap())).await.expect(204);
}

#[tokio::test]
async fn an_account_holds_no_more_keys_and_endpoints_than_its_caps() {
    let stack = Stack::build().dev().await;
    let (id, api) = account(&stack, &json!({"max_keys": 2, "max_endpoints": 1})).await;
    let (_, second) = key(&api, &json!({"name": "second", "scopes": ["check"]})).await;
    let body = json!({"name": "third", "scopes": ["check"]});
    let refused = api.post("/v1/keys", &body).await;
    refused.assert_error(409, "conflict");
    names(&refused, "`max_keys` is 2");
    api.delete(&format!("/v1/keys/{}", second["id"].as_str().unwrap())).await.expect(204);
    api.post("/v1/keys", &body).await.expect(201);
    let hook = json!({"url": "https://hooks.example/in"});
    let (webhook, _) = api.webhook_with(&hook).await;
    let refused = api.post("/v1/webhooks", &hook).await;
    refused.assert_error(409, "conflict");
    names(&refused, "`max_endpoints` is 1");
    api.delete(&format!("/v1/webhooks/{webhook}")).await.expect(204);
    api.post("/v1/webhooks", &hook).await.expect(201);
    // Others have their own.
    stack.api.post("/v1/keys", &body).await.expect(201);
    let path = format!("/v1/accounts/{id}");
    let changed = stack.operator.patch(&path, &json!({"max_keys": null, "max_endpoints": UNLIMITED})).await.expect(200);
    assert_eq!(changed["caps"], json!({"max_endpoints": UNLIMITED}));
    api.post("/v1/keys", &body).await.expect(201);
    let bad = stack.operator.patch(&path, &json!({"max_keys": -1, "max_runs": "x"})).await;
    bad.assert_error(422, "validation_failed");
    api.patch(&path, &json!({"max_keys": 9})).await.assert_error(403, "scope_missing");
}

#[tokio::test]
async fn an_account_over_its_daily_run_limit_does_not_stop_others() {
    let stack = Stack::build().evaluators(2).nats().await;
    let (_, api) = account(&stack, &json!({"max_runs": 3})).await;
    let check = |run: &str| {
        let mut body = Api::harmless();
        body["context"]["run_id"] = run.into();
        body
    };
    for run in ["a", "b", "c", "a", "b"] {
        api.check(&check(run)).await.expect(200);
    }
    let refused = api.check(&check("d")).await;
    refused.assert_error(402, "quota_exceeded");
    names(&refused, "`max_runs`");
    names(&refused, "quota of 3 runs");
    assert!(api.get("/v1/runs/d").await.status == 404);
    assert_eq!(api.decisions("").await.len(), 5, "what was refused is no decision");
    assert_eq!(api.get("/usage").await.expect(200)["daily_used"], 5);
    // Ordinary traffic of the account and of another.
    api.check(&check("c")).await.expect(200);
    api.check(&Api::harmless()).await.expect(200);
    stack.api.check(&check("d")).await.expect(200);
    api.delete("/v1/runs/a").await.expect(204);
    wait_for("room for another run", Duration::from_secs(10), async || api.check(&check("d")).await.status == 200)
        .await;
    api.check(&check("a")).await.assert_error(402, "quota_exceeded");
}

#[tokio::test]
async fn inputs_beyond_the_quota_are_not_kept_and_their_checks_are_decided_all_the_same() {
    let stack = Stack::build().gateways(2).nats().await;
    let (_, api) = account(&stack, &json!({"stored_bytes": 100_000})).await;
    let gateways = [api.at(&stack.urls[0]), api.at(&stack.urls[1])];
    let mut body = Api::harmless();
    body["debug_store_input"] = true.into();
    body["context"]["note"] = "n".repeat(9_000).into();
    let (mut kept, mut bytes) = (0, 0);
    for number in 0..40 {
        let answer = gateways[number % 2].check(&body).await.expect(200);
        let stored = answer["meta"]["input_stored"].as_bool().unwrap();
        let id = answer["request_id"].as_str().unwrap();
        let record = api.get(&format!("/v1/decisions/{id}")).await.expect(200);
        assert_eq!(record["meta"]["input_stored"], stored);
        assert_eq!(record.get("input").is_some(), stored, "{record}");
        if stored {
            kept += 1;
            bytes += record["input"].to_string().len();
        }
    }
    assert!((9..=11).contains(&kept) && bytes <= 100_000, "{kept} inputs of {bytes} bytes");
    let usage = api.get("/usage").await.expect(200);
    let number = |name: &str| usage[name].as_u64().unwrap();
    assert_eq!(number("stored_bytes_quota"), 100_000);
    assert_eq!(number("stored_bytes_used") + number("stored_bytes_remaining"), 100_000);
    assert!(number("stored_bytes_used") >= bytes as u64, "{usage}");
    // Without that request the answer does not mention it and counts nothing.
    let plain = api.check(&Api::harmless()).await.expect(200);
    assert!(plain["meta"].get("input_stored").is_none(), "{plain}");
    let other = stack.api.check(&body).await.expect(200);
    assert_eq!(other["meta"]["input_stored"], true, "another account's quota is its own");
    let usage = stack.api.get("/usage").await.expect(200);
    assert!(usage["stored_bytes_quota"].as_u64().is_some_and(|quota| quota < UNLIMITED), "a default is there: {usage}");
    assert!(usage["stored_bytes_used"].as_u64().is_some_and(|used| used > 9_000), "{usage}");
}

#[tokio::test]
async fn the_address_of_an_endpoint_is_shown_as_it_is_connected_to() {
    let stack = Stack::build().dev().await;
    for (typed, shown) in [
        ("HTTPS://Hooks.EXAMPLE:443/a/../in?x=1", "https://hooks.example/in?x=1"),
        ("https://bücher.example", "https://xn--bcher-kva.example/"),
        ("https://0x7f.1/in", "https://127.0.0.1/in"),
        ("https://hooks.example/\\in", "https://hooks.example//in"),
    ] {
        let made = stack.api.post("/v1/webhooks", &json!({"url": typed})).await.expect(201);
        assert_eq!(made["url"], shown);
        let path = format!("/v1/webhooks/{}", made["id"].as_str().unwrap());
        assert_eq!(stack.api.get(&path).await.expect(200)["url"], shown);
        let changed = stack.api.patch(&path, &json!({"url": typed})).await.expect(200);
        assert_eq!(changed["url"], shown);
    }
}
