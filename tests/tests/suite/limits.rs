//! Quotas and rate limits: by plan and account, on all gateways together, told and refused as the contract says.

use futures_util::future::join_all;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_contract::UNLIMITED;
use stage0_tests::{Answer, Api, Raw, Stack};

/// A key of a new account with limits of its own.
async fn limited(stack: &Stack, limits: &Value) -> Api {
    let (account, key, _) = stack.operator.account("limited", None, &["check"]).await;
    stack.operator.patch(&format!("/v1/accounts/{account}"), limits).await.expect(200);
    stack.api.with_key(&key)
}

fn minute() -> i64 {
    Timestamp::now().as_second().div_euclid(60)
}

async fn usage(api: &Api) -> Value {
    api.get("/usage").await.expect(200)
}

/// What a public client demands: every number there, an integer, and the sums right.
#[track_caller]
fn assert_parses(usage: &Value) {
    let number = |name: &str| usage[name].as_u64().unwrap_or_else(|| panic!("{name} in {usage}"));
    for (used, quota, remaining) in [
        ("monthly_used", "monthly_quota", "monthly_remaining"),
        ("daily_used", "daily_quota", "daily_remaining"),
        ("minute_used", "per_minute_limit", "minute_remaining"),
    ] {
        assert_eq!(number(quota) - number(used), number(remaining), "{usage}");
        assert!(number(quota) <= UNLIMITED);
    }
    for name in ["request_id", "api_key_id", "plan", "month_key", "day_key", "environment", "source"] {
        assert!(usage[name].is_string(), "{name} in {usage}");
    }
    let (month, day) = (usage["month_key"].as_str().unwrap(), usage["day_key"].as_str().unwrap());
    assert!(month.len() == 7 && day.len() == 10 && day.starts_with(month), "{usage}");
    assert!(number("evaluated_at") > 1_700_000_000);
}

#[track_caller]
fn assert_rate_limited(answer: &Answer) {
    answer.assert_error(429, "rate_limited");
    let seconds = answer.body["retry_after_seconds"].as_u64().unwrap();
    assert!((1..=60).contains(&seconds));
    assert_eq!(answer.body["detail"]["retry_after_seconds"], seconds);
    assert_eq!(answer.header("retry-after"), seconds.to_string());
}

#[tokio::test]
async fn the_rate_limit_passes_a_hundred_of_a_thousand_calls_on_two_gateways() {
    let stack = Stack::build().gateways(2).evaluators(2).nats().await;
    let passed = loop {
        let api = limited(&stack, &json!({"per_minute": 100})).await;
        let gateways = [api.at(&stack.urls[0]), api.at(&stack.urls[1])];
        let (began, mut passed) = (minute(), 0);
        for _ in 0..20 {
            let answers = join_all((0..50).map(|number| {
                let api = &gateways[number % 2];
                async move { api.check(&Api::harmless()).await }
            }));
            for answer in answers.await {
                match answer.status {
                    200 => passed += 1,
                    _ => assert_rate_limited(&answer),
                }
            }
        }
        // Over the edge of a minute there are two hundred.
        if minute() == began {
            break passed;
        }
    };
    assert!((90..=100).contains(&passed), "{passed} passed; the lease is five");
}

#[tokio::test]
async fn a_quota_is_shared_by_all_gateways_and_survives_restarts_of_gateways_and_nats() {
    let mut stack = Stack::build().gateways(2).nats().await;
    let api = limited(&stack, &json!({"daily": 30})).await;
    let ask = async |stack: &Stack, gateway: usize| api.at(&stack.urls[gateway]).check(&Api::harmless()).await.status;
    for number in 0..10 {
        assert_eq!(ask(&stack, number % 2).await, 200);
    }
    stack.restart_gateway(0);
    stack.restart_gateway(1);
    stack.restart_nats().await;
    let mut passed = 10;
    for number in 0..80 {
        match ask(&stack, number % 2).await {
            200 => passed += 1,
            402 | 503 => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(passed, 30, "a lease of one is never lost but in a crash between its grant and its check");
    let told = usage(&api.at(&stack.urls[1])).await;
    assert_eq!((&told["daily_used"], &told["daily_remaining"]), (&json!(30), &json!(0)));
}

#[tokio::test]
async fn the_usage_call_shows_the_counts_and_is_not_counted() {
    let stack = Stack::build().dev().await;
    let told = usage(&stack.api).await;
    assert_parses(&told);
    assert_eq!((&told["plan"], &told["monthly_quota"]), (&json!("unlimited"), &json!(UNLIMITED)));
    assert_eq!(told["may_lag_seconds"], 10, "what has no limit is told by gateways every ten seconds");
    let api = limited(&stack, &json!({"plan": "free", "per_minute": 1000})).await;
    for _ in 0..3 {
        usage(&api).await;
        api.check(&Api::harmless()).await.expect(200);
    }
    api.check(&json!({"goal": ""})).await.assert_error(422, "validation_failed");
    let told = usage(&api).await;
    assert_parses(&told);
    assert_eq!((&told["plan"], &told["source"]), (&json!("free"), &json!("stage0")));
    assert_eq!((&told["daily_used"], &told["daily_quota"]), (&json!(3), &json!(1_000)));
    assert_eq!((&told["monthly_used"], &told["monthly_quota"]), (&json!(3), &json!(10_000)));
    assert_eq!(told["per_minute_limit"], 1_000);
    assert_eq!(told["may_lag_seconds"], 0, "a limit is leased before it is used");
    assert!(told["minute_used"].as_u64().unwrap() <= 4, "what was refused for its fields is counted here: {told}");
    assert_eq!(api.head("/usage").await.status, 200);
    api.without_key().get("/usage").await.assert_error(401, "unauthorized");
    assert_parses(&usage(&stack.operator).await);
}

#[tokio::test]
async fn a_used_up_quota_is_402_and_says_so_and_a_missing_plan_is_another() {
    let stack = Stack::build().dev().await;
    let api = limited(&stack, &json!({"daily": 2, "monthly": 3, "plan": "free"})).await;
    for _ in 0..2 {
        api.check(&Api::harmless()).await.expect(200);
    }
    let refused = api.check(&Api::harmless()).await;
    refused.assert_error(402, "quota_exceeded");
    let text = refused.body["message"].as_str().unwrap();
    assert!(text.contains("daily quota of 2") && text.contains("T00:00:00Z"), "{text}");
    // Quota before fields, plan before quota, and a plan is no quota.
    api.check(&json!({"goal": ""})).await.assert_error(402, "quota_exceeded");
    let refused = api.check(&json!({"goal": "", "pro": true})).await;
    refused.assert_error(402, "plan_required");
    assert!(!refused.text.contains("quota"), "{}", refused.text);
    let (account, key, _) = stack.operator.account("monthly", None, &["check"]).await;
    let path = format!("/v1/accounts/{account}");
    stack.operator.patch(&path, &json!({"monthly": 1})).await.expect(200);
    let api = stack.api.with_key(&key);
    api.check(&Api::harmless()).await.expect(200);
    let refused = api.check(&Api::harmless()).await;
    assert!(refused.body["message"].as_str().unwrap().contains("monthly quota of 1"), "{}", refused.text);
    // A change of the limit holds at once.
    stack.operator.patch(&path, &json!({"monthly": UNLIMITED})).await.expect(200);
    api.check(&Api::harmless()).await.expect(200);
    stack.operator.patch(&path, &json!({"plan": "pro", "monthly": null})).await.expect(200);
    assert_eq!(usage(&api).await["monthly_quota"], 1_000_000);
    api.check(&json!({"goal": "Search for docs", "success_criteria": ["x"], "pro": true})).await.expect(200);
}

#[tokio::test]
async fn answers_tell_the_rate_limit_and_repeats_count_for_it_alone() {
    let stack = Stack::build().dev().await;
    let unlimited = stack.api.check(&Api::harmless()).await;
    assert_eq!(unlimited.header("ratelimit-limit"), "", "nothing is limited");
    let api = limited(&stack, &json!({"per_minute": 4, "daily": 2})).await;
    let ask = async || {
        let headers = [("content-type", "application/json"), ("idempotency-key", "again")];
        api.send(Method::POST, "/check", &headers, Some(Api::harmless().to_string().into_bytes())).await
    };
    let (began, mut remaining) = (minute(), Vec::new());
    for _ in 0..5 {
        let answer = ask().await;
        assert_eq!(answer.header("ratelimit-limit"), "4");
        let reset: u64 = answer.header("ratelimit-reset").parse().unwrap();
        assert!((1..=60).contains(&reset));
        remaining.push((answer.status, answer.header("ratelimit-remaining").to_owned()));
    }
    if minute() == began {
        let told: Vec<_> = remaining.iter().map(|(status, left)| (*status, left.as_str())).collect();
        assert_eq!(told, [(200, "3"), (200, "2"), (200, "1"), (200, "0"), (429, "0")]);
    }
    assert_eq!(usage(&api).await["daily_used"], 1, "repeats are no checks");
}

#[tokio::test]
async fn without_a_state_store_limited_accounts_are_refused() {
    let mut stack = Stack::build().nats().await;
    let api = limited(&stack, &json!({"daily": 10})).await;
    api.check(&Api::harmless()).await.expect(200);
    stack.nats.as_mut().unwrap().kill();
    let answer = api.check(&Api::harmless()).await;
    answer.assert_error(503, "unavailable");
    assert!(answer.text.contains("the action must not run"), "{}", answer.text);
    let answer = api.get("/usage").await;
    answer.assert_error(503, "unavailable");
    assert!(answer.text.contains("the state store does not answer"), "{}", answer.text);
}

#[tokio::test]
async fn a_drained_gateway_returns_its_quota_leases_and_reports_its_counts() {
    let mut stack = Stack::build().dev().await;
    let path = format!("/v1/accounts/{}", stack.account);
    for _ in 0..3 {
        stack.api.check(&Api::harmless()).await.expect(200);
    }
    stack.restart_dev();
    assert_eq!(usage(&stack.api).await["daily_used"], 3, "without a limit too");
    stack.operator.patch(&path, &json!({"daily": 1000})).await.expect(200);
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.restart_dev();
    assert_eq!(usage(&stack.api).await["daily_used"], 4, "and not the ten of a lease");
}

#[tokio::test]
async fn a_client_that_disconnects_early_has_used_its_check() {
    let stack = Stack::build().dev().await;
    let api = limited(&stack, &json!({"daily": 30})).await;
    let body = Api::harmless().to_string();
    let key = api.key.clone().unwrap();
    for number in 0..60 {
        let request = format!(
            "POST /check HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\nIdempotency-Key: k{number}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
        raw.send(request.as_bytes()).await;
        drop(raw);
    }
    // No end is reported for a stream that was left alone.
    wait_for("the end", std::time::Duration::from_secs(20), async || {
        let answer = api.check(&Api::harmless()).await;
        answer.status == 402
    })
    .await;
    let reader = json!({"account": account_of(&stack, &api).await, "name": "r", "scopes": ["decisions:read"]});
    let reader = stack.operator.post("/v1/keys", &reader).await.expect(201);
    let recorded = stack.api.with_key(reader["key"].as_str().unwrap()).decisions("").await.len();
    assert!(recorded <= 30, "{recorded} decisions of 30");
}

/// Of whom a key is.
async fn account_of(stack: &Stack, api: &Api) -> String {
    let id = usage(api).await["api_key_id"].as_str().unwrap().to_owned();
    let accounts = stack.operator.get("/v1/accounts").await.expect(200);
    for account in accounts["items"].as_array().unwrap() {
        let account = account["id"].as_str().unwrap();
        let keys = stack.operator.get(&format!("/v1/keys?account={account}")).await.expect(200);
        if keys["items"].as_array().unwrap().iter().any(|key| key["id"] == id.as_str()) {
            return account.to_owned();
        }
    }
    panic!("the key has no account")
}
