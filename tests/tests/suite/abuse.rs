//! Floods and forged addresses: only the client that makes them is throttled.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, Stack};

/// A client with a well-formed key that does not exist.
async fn wrong_key(api: &Api, key: &str, headers: &[(&str, &str)]) -> Answer {
    let headers = [&[("content-type", "application/json")], headers].concat();
    api.with_key(key).send(Method::POST, "/check", &headers, Some(Api::harmless().to_string().into_bytes())).await
}

/// Keys that were right once.
async fn revoked(stack: &Stack, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    for _ in 0..count {
        let body = json!({"account": stack.account, "name": "k", "scopes": ["check"]});
        let made = stack.operator.post("/v1/keys", &body).await.expect(201);
        stack.operator.delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).await;
        keys.push(made["key"].as_str().unwrap().to_owned());
    }
    keys
}

pub(crate) async fn metrics(address: &str) -> String {
    let answer = reqwest::get(format!("http://{address}/metrics")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    answer.text().await.unwrap()
}

pub(crate) fn sample(text: &str, series: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("{series} in:\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
}

/// The series of this build in a role; the commit is whatever the binary was built from.
fn build_info(role: &str) -> String {
    let version = stage0_tests::command().arg("--version").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let (version, commit) = version.trim().strip_prefix("stage0 ").unwrap().split_once(" (").unwrap();
    let commit = commit.trim_end_matches(')');
    format!("stage0_build_info{{version=\"{version}\",commit=\"{commit}\",role=\"{role}\"}}")
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn an_address_is_the_callers_only_when_a_trusted_proxy_says_so() {
    let limits = ["--failed-logins-per-minute", "3"];
    for (trusted, expected) in [(true, 401), (false, 429)] {
        let mut stack = Stack::build().gateway_with(&limits);
        if trusted {
            stack = stack.gateway_with(&["--trusted-proxies", "127.0.0.1,10.0.0.0/8"]);
        }
        let stack = stack.dev().await;
        let keys = revoked(&stack, 4).await;
        stack.api.check(&Api::harmless()).await.expect(200);
        for key in &keys[..3] {
            let forwarded = [("x-forwarded-for", "203.0.113.9, 198.51.100.7, 10.1.2.3")];
            wrong_key(&stack.api, key, &forwarded).await.assert_error(401, "unauthorized");
        }
        // Another client behind the same proxy; without trust it is the same peer all the time.
        let other = [("forwarded", "for=\"[2001:db8::1]:4711\";proto=https")];
        assert_eq!(wrong_key(&stack.api, &keys[3], &other).await.status, expected);
        // The client itself cannot choose whom it is taken for: what stands left of its own address is its own text.
        let same = [("x-forwarded-for", "192.0.2.77, 198.51.100.7")];
        wrong_key(&stack.api, &keys[3], &same).await.assert_error(429, "too_many_failed_logins");
        // A verified key is not held back, and the record says whose address counted.
        let headers = [("content-type", "application/json"), ("x-forwarded-for", "1.2.3.4, 198.51.100.7")];
        stack.api.check(&Api::harmless()).await.expect(200);
        let body = Some(Api::harmless().to_string().into_bytes());
        let answer = stack.api.send(Method::POST, "/check", &headers, body).await.expect(200);
        let id = answer["request_id"].as_str().unwrap();
        let record = stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
        let address = if trusted { "198.51.100.7" } else { "127.0.0.1" };
        assert_eq!(record["client"]["address"], address, "{record}");
    }
}

#[tokio::test]
async fn two_headers_that_disagree_and_junk_are_not_believed() {
    let stack = Stack::build().gateway_with(&["--trusted-proxies", "127.0.0.0/8"]).dev().await;
    let address = async |headers: &[(&str, &str)]| {
        let headers = [&[("content-type", "application/json")], headers].concat();
        let body = Some(Api::harmless().to_string().into_bytes());
        let answer = stack.api.send(Method::POST, "/check", &headers, body).await.expect(200);
        let path = format!("/v1/decisions/{}", answer["request_id"].as_str().unwrap());
        stack.api.get(&path).await.expect(200)["client"]["address"].as_str().unwrap().to_owned()
    };
    assert_eq!(address(&[("x-forwarded-for", "192.0.2.1")]).await, "192.0.2.1");
    assert_eq!(address(&[("forwarded", "for=192.0.2.1")]).await, "192.0.2.1");
    assert_eq!(address(&[("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.1")]).await, "192.0.2.1");
    assert_eq!(address(&[("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.2")]).await, "127.0.0.1");
    for junk in ["unknown", "_hidden", "999.1.1.1", "'; DROP", "192.0.2.1.5"] {
        assert_eq!(address(&[("x-forwarded-for", junk)]).await, "127.0.0.1", "{junk}");
    }
}

#[tokio::test]
async fn failed_logins_for_one_key_id_are_throttled_across_addresses() {
    let settings = ["--failed-logins-per-minute", "4", "--trusted-proxies", "127.0.0.1"];
    let stack = Stack::build().gateway_with(&settings).dev().await;
    let key = &revoked(&stack, 1).await[0];
    for number in 0..4 {
        let from = format!("192.0.2.{number}");
        wrong_key(&stack.api, key, &[("x-forwarded-for", &from)]).await.assert_error(401, "unauthorized");
    }
    let held = wrong_key(&stack.api, key, &[("x-forwarded-for", "198.51.100.1")]).await;
    held.assert_error(429, "too_many_failed_logins");
    let seconds = held.body["retry_after_seconds"].as_u64().unwrap();
    assert!((1..=61).contains(&seconds) && held.header("retry-after") == seconds.to_string());
    // Other keys from that address are judged as ever.
    let other = &revoked(&stack, 1).await[0];
    wrong_key(&stack.api, other, &[("x-forwarded-for", "198.51.100.1")]).await.assert_error(401, "unauthorized");
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn a_burst_of_requests_is_refused_before_the_key_is_checked() {
    let settings = ["--requests-per-second-per-address", "20", "--trusted-proxies", "127.0.0.1"];
    let stack = Stack::build().gateway_with(&settings).dev().await;
    let from = async |address: &str, count: usize| {
        let api = stack.api.without_key();
        let asks = (0..count).map(|_| {
            let (api, headers) = (api.clone(), [("x-forwarded-for", address.to_owned())]);
            async move {
                let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                api.send(Method::GET, "/v1/keys", &headers, None).await
            }
        });
        join_all(asks).await
    };
    let answers = from("192.0.2.1", 100).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(refused.len() >= 20 && refused.len() <= 80, "{} refused", refused.len());
    refused[0].assert_error(429, "rate_limited");
    assert_eq!(refused[0].body["retry_after_seconds"], 1);
    assert!(answers.iter().all(|answer| [401, 429].contains(&answer.status)));
    assert!(from("192.0.2.2", 10).await.iter().all(|answer| answer.status == 401), "another address");
    // Health probes are exempt from the burst limit.
    for _ in 0..30 {
        let headers = [("x-forwarded-for", "192.0.2.1")];
        assert_eq!(stack.api.send(Method::GET, "/healthz", &headers, None).await.status, 200);
    }
}

#[tokio::test]
async fn the_metrics_of_a_role_on_nats_say_that_it_is_ready_how_full_the_log_is_and_that_clocks_agree() {
    let address = free_port();
    let _stack = Stack::build().gateway_with(&["--metrics-listen", &address]).nats().await;
    let mut text = String::new();
    wait_for("a gateway that is ready", Duration::from_secs(30), async || {
        text = metrics(&address).await;
        sample(&text, r#"stage0_ready{role="gateway"}"#) == 1.0
    })
    .await;
    assert_eq!(sample(&text, &build_info("gateway")), 1.0);
    assert!(text.lines().any(|line| line.starts_with("stage0_stream_bytes{stream=\"S0_LOG\"} ")), "{text}");
    assert!(sample(&text, "stage0_store_clock_skew_seconds").abs() < 2.0, "{text}");
}

#[tokio::test]
async fn metrics_count_what_an_operator_needs() {
    let address = free_port();
    let settings = ["--metrics-listen", &address, "--failed-logins-per-minute", "2"];
    let stack = Stack::build().gateway_with(&settings).dev().await;
    let path = format!("/v1/accounts/{}", stack.account);
    stack.operator.patch(&path, &json!({"daily": 3})).await.expect(200);
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.api.check(&Api::forbidden()).await.expect(200);
    let mut unclear = Api::unclear();
    unclear["constraints"] = json!(["allowed_environment: staging", "tenant_isolation"]);
    unclear["side_effects"] = json!(["write"]);
    let unclear = stack.api.check(&unclear).await.expect(200);
    let codes: Vec<_> = unclear["issues"].as_array().unwrap().iter().map(|issue| issue["code"].clone()).collect();
    assert_eq!(codes, ["CONTEXT_REQUIRED"; 2]);
    stack.api.check(&Api::harmless()).await.assert_error(402, "quota_exceeded");
    for key in revoked(&stack, 3).await {
        wrong_key(&stack.api, &key, &[]).await;
    }
    // Keys of its account were revoked: it is asked for again.
    stack.api.get("/usage").await.expect(200);
    let text = metrics(&address).await;
    assert!(sample(&text, r#"stage0_checks_total{verdict="ALLOW"}"#) >= 1.0);
    assert!(sample(&text, r#"stage0_checks_total{verdict="DENY"}"#) >= 1.0);
    assert_eq!(sample(&text, r#"stage0_refused_total{reason="quota_exceeded"}"#), 1.0);
    assert_eq!(sample(&text, r#"stage0_refused_total{reason="unauthorized"}"#), 2.0);
    assert_eq!(sample(&text, r#"stage0_refused_total{reason="too_many_failed_logins"}"#), 1.0);
    assert!(sample(&text, r#"stage0_failed_logins_total{by="address"}"#) >= 2.0);
    assert_eq!(sample(&text, r#"stage0_issues_total{code="CONTEXT_REQUIRED"}"#), 1.0, "once a check");
    let steps = [
        ("authenticate", 7.0),
        ("body", 4.0),
        ("admit", 4.0),
        ("reserve", 4.0),
        ("parse", 3.0),
        ("evaluate", 3.0),
        ("record", 3.0),
    ];
    for (step, count) in steps {
        let series = format!(r#"stage0_check_step_seconds_count{{step="{step}"}}"#);
        assert_eq!(sample(&text, &series), count, "{step}");
    }
    assert_eq!(sample(&text, "stage0_checks_in_flight"), 0.0);
    assert_eq!(sample(&text, r#"stage0_record_lines_total{outcome="recorded"}"#), 3.0);
    assert_eq!(sample(&text, "stage0_record_round_seconds_count"), 3.0);
    // The first check and every revoked key; a change of a key puts those of its account in doubt.
    assert!(sample(&text, r#"stage0_key_cache_total{outcome="miss"}"#) >= 4.0);
    assert!(sample(&text, r#"stage0_key_cache_total{outcome="hit"}"#) >= 1.0);
    assert!(sample(&text, r#"stage0_key_cache_total{outcome="refreshed"}"#) >= 1.0);
    // A counter that alerts watch is there before its first increment.
    assert_eq!(sample(&text, r#"stage0_record_lines_total{outcome="failed"}"#), 0.0);
    assert_eq!(sample(&text, r#"stage0_ready{role="dev"}"#), 1.0);
    assert_eq!(sample(&text, &build_info("dev")), 1.0);
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_virtual_memory_bytes",
        "process_threads",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    ] {
        assert!(sample(&text, name) > 0.0, "{name}");
    }
    for told in [
        "# TYPE stage0_http_requests_total counter",
        "# HELP stage0_checks_total ",
        "stage0_http_request_seconds_bucket",
    ] {
        assert!(text.contains(told), "{told} in:\n{text}");
    }
    for never in [stack.account.as_str(), stack.api.key.as_deref().unwrap(), "Search for"] {
        assert!(!text.contains(never), "{never}");
    }
    let other = reqwest::get(format!("http://{address}/check")).await.unwrap();
    assert_eq!(other.status(), 404);
    let body: Value = serde_json::from_str(&other.text().await.unwrap()).unwrap_or_default();
    assert!(body.get("verdict").is_none());
}
