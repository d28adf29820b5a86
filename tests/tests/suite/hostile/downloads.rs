//! Attacks with reads: downloads that are never read, endless lists. They slow down their own account and no check of
//! another.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Raw, Stack};

/// Some 110 KB of log.
fn large() -> Value {
    let tools: Vec<_> = (0..100).map(|number| format!("tool_{number}_{}", "x".repeat(900))).collect();
    json!({"goal": "g ".repeat(3_900), "tools": tools, "context": {}, "debug_store_input": true})
}

/// Records `count` decisions. On a busy machine large checks may be refused, and are sent once more.
async fn fill(api: &Api, count: usize, body: &Value) {
    let until = Instant::now() + Duration::from_secs(60);
    let mut left = count;
    while left > 0 {
        for answer in join_all((0..left.min(3)).map(|_| api.check(body))).await {
            match answer.status {
                503 => assert!(Instant::now() < until, "{left} of {count} are left: {}", answer.text),
                _ => {
                    answer.expect(200);
                    left -= 1;
                }
            }
        }
    }
}

/// Asks for a download; nothing of it is read.
async fn download(stack: &Stack, key: &str, query: &str) -> Raw {
    let mut raw = Raw::connect(&stack.address(), &stack.ca()).await;
    let head = format!("GET /v1/decisions/export{query} HTTP/1.1\r\nHost: localhost\r\nx-api-key: {key}\r\n\r\n");
    raw.send(head.as_bytes()).await;
    raw
}

fn ids(lines: &str) -> Vec<String> {
    let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["request_id"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn an_interrupted_download_resumes_after_its_last_line() {
    for nats in [false, true] {
        let stack = if nats { Stack::build().nats().await } else { Stack::build().dev().await };
        fill(&stack.api, 60, &Api::harmless()).await;
        let whole = ids(&stack.api.get("/v1/decisions/export").await.text);
        assert_eq!(whole.len(), 60);
        assert_eq!(whole.iter().collect::<HashSet<_>>().len(), 60);
        for cut in [1, 2, 17, 59, 60] {
            let rest = stack.api.get(&format!("/v1/decisions/export?after={}", whole[cut - 1])).await;
            assert_eq!((rest.status, ids(&rest.text)), (200, whole[cut..].to_vec()), "cut behind line {cut}");
        }
        // The same filters; and what came meanwhile follows.
        let decision = stack.api.get(&format!("/v1/decisions/{}", whole[20])).await.expect(200);
        let query = format!("after={}&to={}", whole[9], decision["recorded_at"].as_str().unwrap());
        let some = ids(&stack.api.get(&format!("/v1/decisions/export?{query}")).await.text);
        assert!(some.starts_with(&whole[10..20]) && some.len() < 50, "{}", some.len());
        let new = stack.api.decide(&Api::harmless()).await;
        let more = stack.api.get(&format!("/v1/decisions/export?after={}", whole[59])).await;
        assert_eq!(ids(&more.text), [new]);
    }
}

#[tokio::test]
async fn a_download_cannot_resume_after_a_record_that_does_not_exist() {
    let stack = Stack::build().dev().await;
    let (_, other, _) = stack.operator.account("other", None, &["check", "decisions:read"]).await;
    let foreign = stack.api.with_key(&other).decide(&Api::harmless()).await;
    let own = stack.api.decide(&Api::harmless()).await;
    for after in [foreign.as_str(), "01940a6e-8c00-7d7a-b1f5-2f4d3c1a9e55", "1.2", ""] {
        let answer = stack.api.get(&format!("/v1/decisions/export?after={after}")).await;
        answer.assert_error(422, "validation_failed");
        assert!(answer.body["message"].as_str().unwrap().starts_with("after: "), "{}", answer.text);
    }
    assert_eq!(stack.api.get(&format!("/v1/decisions/export?after={own}")).await.status, 200);
}

#[tokio::test]
async fn unread_downloads_delay_only_their_own_account() {
    let stack = Stack::build().dev().await;
    let (_, hostile, _) = stack.operator.account("hostile", None, &["check", "decisions:read"]).await;
    let hostile_api = stack.api.with_key(&hostile);
    fill(&hostile_api, 150, &large()).await;
    fill(&stack.api, 20, &Api::harmless()).await;
    let mut held = vec![download(&stack, &hostile, "").await, download(&stack, &hostile, "").await];
    for raw in &mut held {
        assert!(raw.until("200 OK").await.contains("200 OK"));
    }
    let third = hostile_api.get("/v1/decisions/export").await;
    third.assert_error(429, "rate_limited");
    assert_eq!(third.header("retry-after"), third.body["retry_after_seconds"].to_string());
    // Its other reads, and all of others.
    assert_eq!(hostile_api.get("/v1/decisions?limit=1").await.status, 200);
    assert_eq!(hostile_api.get("/v1/decisions/verify").await.status, 200);
    for _ in 0..3 {
        assert_eq!(ids(&stack.api.get("/v1/decisions/export").await.text).len(), 20);
        assert_eq!(stack.api.verify().await["ok"], true);
    }
    drop(held);
    wait_for("a place for a download", Duration::from_secs(10), async || {
        hostile_api.get("/v1/decisions/export?from=2099-01-01T00:00:00Z").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_slow_download_goes_on_as_long_as_its_client_takes_it() {
    // Two seconds after its headers an ordinary connection would be closed.
    let limits = ["--keep-alive-ms", "1000", "--header-timeout-ms", "1000"];
    let stack = Stack::build().gateway_with(&limits).dev().await;
    // On one connection, which is never idle for long.
    for _ in 0..150 {
        stack.api.check(&large()).await.expect(200);
    }
    let key = stack.api.key.clone().unwrap();
    let mut raw = download(&stack, &key, "").await;
    let (started, mut all, mut chunk) = (Instant::now(), Vec::new(), vec![0; 256 << 10]);
    let mut pace = tokio::time::interval(Duration::from_millis(250));
    loop {
        // Slow for as long as it would have taken to be cut, twice over.
        if started.elapsed() < Duration::from_secs(5) {
            pace.tick().await;
        }
        match raw.some(&mut chunk).await {
            0 => break,
            count => all.extend_from_slice(&chunk[..count]),
        }
    }
    assert!(started.elapsed() > Duration::from_secs(4));
    let text = String::from_utf8_lossy(&all);
    assert!(text.ends_with("0\r\n\r\n"), "the download has its end");
    assert_eq!(text.matches("\"type\":\"decision.recorded\"").count(), 150);
}

#[tokio::test]
async fn reads_of_one_account_are_limited_and_those_of_others_are_not_by_it() {
    let stack = Stack::build().gateway_with(&["--reads-per-second-per-account", "5"]).dev().await;
    let (_, other, _) = stack.operator.account("other", None, &["check", "decisions:read"]).await;
    let answers = join_all((0..40).map(|_| stack.api.get("/v1/decisions?limit=1"))).await;
    let refused: Vec<_> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!(refused.len() >= 20, "{} of 40 refused", refused.len());
    refused[0].assert_error(429, "rate_limited");
    assert_eq!((refused[0].header("retry-after"), &refused[0].body["retry_after_seconds"]), ("1", &json!(1)));
    assert_eq!(stack.api.with_key(&other).get("/v1/decisions").await.status, 200);
    stack.api.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn lists_of_a_thousand_run_beside_checks_of_others() {
    let stack = Stack::build().dev().await;
    let (_, hostile, _) = stack.operator.account("hostile", None, &["check", "decisions:read"]).await;
    let hostile = stack.api.with_key(&hostile);
    fill(&hostile, 1_000, &Api::harmless()).await;
    let checks = async |count: usize| {
        let mut times = Vec::new();
        for _ in 0..count {
            let started = Instant::now();
            stack.api.check(&Api::harmless()).await.expect(200);
            times.push(started.elapsed());
        }
        times.sort_unstable();
        times
    };
    checks(50).await;
    let before = checks(100).await;
    let done = std::cell::Cell::new(false);
    let lists = (0..8).map(|_| async {
        let mut lists = 0;
        while !done.get() {
            let answer = hostile.get("/v1/decisions?limit=1000").await;
            assert!([200, 429].contains(&answer.status), "{}", answer.text);
            if answer.status == 200 {
                assert_eq!(answer.body["items"].as_array().unwrap().len(), 1_000);
                lists += 1;
            }
        }
        lists
    });
    let (lists, during) = tokio::join!(join_all(lists), async {
        let during = checks(100).await;
        done.set(true);
        during
    });
    assert!(lists.iter().sum::<usize>() > 0);
    eprintln!("p50 {:?} before, {:?} beside {} lists", before[50], during[50], lists.iter().sum::<usize>());
    // Their client is this process as well: the floor is what it needs to read them.
    assert!(during[50] <= (before[50] * 5).max(Duration::from_millis(100)), "{:?}, {:?}", before[50], during[50]);
}
