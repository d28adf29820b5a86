//! Hostile webhook endpoints: hosts that do not resolve, internal hosts, receivers that hang.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Dns, Known, Receiver, Reply, Stack, account_scopes};

const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Endpoints that an account may have.
const ENDPOINTS: usize = 100;

/// Knows names inside, denies others, and is silent about those that begin with `dead`.
async fn dns() -> Dns {
    Dns::start(|name| match name.split('-').next() {
        Some("inside") => Known::At(Ipv4Addr::new(10, 0, 0, 1)),
        Some("own") => Known::At(Ipv4Addr::LOCALHOST),
        Some("metadata") => Known::At(Ipv4Addr::new(169, 254, 169, 254)),
        Some("dead") => Known::Silence,
        _ => Known::Nowhere,
    })
    .await
}

/// An account whose hundred endpoints are all at hosts like this one.
async fn attacker(stack: &Stack, url: impl Fn(usize) -> String) -> Api {
    let (_, key, _) = stack.operator.account("attacker", None, &account_scopes()).await;
    let attacker = stack.api.with_key(&key);
    for n in 0..ENDPOINTS {
        attacker.webhook(&url(n)).await;
    }
    attacker
}

/// Deliveries and fresh keys of an account go on while another one's endpoints wait for names: nothing of the
/// attacker's is settled when all of it is there.
async fn unresolvable_hosts_delay_no_other_account(stack: &Stack, dns: &Dns) {
    let receiver = Receiver::plain().await;
    let (_, secret) = stack.api.webhook(&receiver.url("/in")).await;
    let attacker = attacker(stack, |n| format!("https://dead-{n}.example/")).await;
    stack.api.decide(&Api::harmless()).await;
    for _ in 0..20 {
        attacker.decide(&Api::harmless()).await;
    }
    wait_for("look-ups under way", WAIT_TIMEOUT, async || dns.asked().iter().any(|name| name.starts_with("dead")))
        .await;
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let began = Instant::now();
        // A key that no gateway knows: it is verified, on the pool that hashes.
        let (_, key, _) = stack.operator.account("another", None, &account_scopes()).await;
        stack.api.with_key(&key).decide(&Api::harmless()).await;
        let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
        let came = receiver
            .wait_for("the event", "/in", WAIT_TIMEOUT, |came| {
                came.iter().find(|delivery| delivery.id() == event).cloned()
            })
            .await;
        assert!(came.is_signed_by(&secret));
        slowest = slowest.max(began.elapsed());
    }
    // Each unresolvable name takes three seconds, and there are a hundred: an endpoint queued behind them would wait
    // minutes.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test]
async fn unresolvable_webhook_hosts_delay_no_other_account_in_one_process() {
    let dns = dns().await;
    let stack = Stack::build().private_webhooks().export_with(&["--webhook-name-servers", &dns.setting()]).dev().await;
    unresolvable_hosts_delay_no_other_account(&stack, &dns).await;
}

#[tokio::test]
async fn unresolvable_webhook_hosts_delay_no_other_account_on_nats() {
    let dns = dns().await;
    let stack = Stack::build().private_webhooks().export_with(&["--webhook-name-servers", &dns.setting()]).nats().await;
    unresolvable_hosts_delay_no_other_account(&stack, &dns).await;
}

#[tokio::test]
async fn receivers_of_one_account_that_hang_keep_no_other_account_waiting() {
    let (hanging, receiver) = (Receiver::plain().await, Receiver::plain().await);
    let stack = Stack::build().private_webhooks().dev().await;
    let (id, _) = stack.api.webhook(&receiver.url("/in")).await;
    for n in 0..ENDPOINTS {
        hanging.always(&format!("/{n}"), Reply::Hang);
    }
    let attacker = attacker(&stack, |n| hanging.url(&format!("/{n}"))).await;
    for _ in 0..20 {
        attacker.decide(&Api::harmless()).await;
    }
    wait_for("attempts that hang", WAIT_TIMEOUT, async || hanging.connections() >= 32).await;
    // Tests hang too, and are few at a time.
    let page = attacker.get("/v1/webhooks").await.expect(200);
    let theirs = page["items"][0]["id"].as_str().unwrap().to_owned();
    let tests: Vec<_> = (0..80)
        .map(|_| {
            let (attacker, path) = (attacker.clone(), format!("/v1/webhooks/{theirs}/test"));
            tokio::spawn(async move { attacker.post(&path, &json!({})).await.status })
        })
        .collect();
    let mut refused = 0;
    wait_for("a refusal", WAIT_TIMEOUT, async || {
        refused = tests.iter().filter(|test| test.is_finished()).count();
        refused >= 72
    })
    .await;
    let began = Instant::now();
    let event = format!("dec_{}", stack.api.decide(&Api::harmless()).await);
    receiver
        .wait_for("the event", "/in", WAIT_TIMEOUT, |came| came.iter().find(|delivery| delivery.id() == event).cloned())
        .await;
    let tested = stack.api.post(&format!("/v1/webhooks/{id}/test"), &json!({})).await.expect(200);
    assert_eq!(tested["delivered"], json!(true), "{tested}");
    // An attempt that hangs takes fifteen.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let mut conflicts = 0;
    for test in tests {
        conflicts += usize::from(test.await.unwrap() == 409);
    }
    assert_eq!(conflicts, 72, "eight of eighty were made");
}

#[tokio::test]
async fn a_webhook_test_does_not_reveal_whether_an_internal_host_exists() {
    let dns = dns().await;
    let stack = Stack::build().export_with(&["--webhook-name-servers", &dns.setting()]).dev().await;
    let mut told: Vec<(String, Value, Duration)> = Vec::new();
    for host in ["inside-1.example", "own-1.example", "metadata-1.example", "nowhere-1.example", "dead-1.example"] {
        let (id, _) = stack.api.webhook(&format!("https://{host}/")).await;
        for _ in 0..2 {
            let began = Instant::now();
            let tested = stack.api.post(&format!("/v1/webhooks/{id}/test"), &json!({})).await.expect(200);
            told.push((host.to_owned(), tested, began.elapsed()));
        }
    }
    for (host, tested, took) in &told {
        assert_eq!((&tested["delivered"], &tested["status"]), (&json!(false), &json!(null)), "{host}");
        assert_eq!(tested["error"], "the host cannot be resolved, or has an address that is not public", "{host}");
        for took in [took.as_millis(), tested["latency_ms"].as_u64().unwrap().into()] {
            assert!((2_990..4_500).contains(&took), "{host}: {took} ms");
        }
    }
}
