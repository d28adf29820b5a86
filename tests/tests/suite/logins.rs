//! Logins: one key that is shown many times at once costs one hash, and its failures count once.

use std::time::Duration;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::json;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Answer, Api, Process, Stack};
use tokio::task::JoinHandle;

use crate::abuse::{free_port, metrics, sample};

const AT_ONCE: usize = 64;
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A gateway whose keystore can be stopped, and the address of its metrics.
async fn stack() -> (Stack, String) {
    let address = free_port();
    let settings = ["--failed-logins-per-minute", "5", "--metrics-listen", &address];
    (Stack::build().gateway_with(&settings).nats().await, address)
}

fn keystore(stack: &Stack) -> &Process {
    stack.keystore.as_ref().unwrap()
}

/// Calls with this key, each on a connection of its own, and how many keys the gateway did not know before them.
fn calls(stack: &Stack, key: &str, count: usize) -> Vec<JoinHandle<Answer>> {
    let call = |_| {
        let api = Api::new(&stack.urls[0], &stack.ca(), Some(key));
        tokio::spawn(async move { api.send(Method::GET, "/usage", &[], None).await })
    };
    (0..count).map(call).collect()
}

async fn missed(address: &str) -> f64 {
    sample(&metrics(address).await, r#"stage0_key_cache_total{outcome="miss"}"#)
}

async fn until_missed(address: &str, before: f64, count: usize) {
    let all = before + f64::from(u32::try_from(count).unwrap());
    wait_for("so many calls at the gateway", WAIT_TIMEOUT, async || missed(address).await >= all).await;
}

async fn statuses(calls: Vec<JoinHandle<Answer>>) -> Vec<u16> {
    let mut statuses = Vec::new();
    for call in calls {
        statuses.push(call.await.unwrap().status);
    }
    statuses
}

#[tokio::test]
async fn a_good_key_on_64_fresh_connections_is_verified_once_and_none_is_held_back_meanwhile() {
    let (stack, address) = stack().await;
    let (_, key, _) = stack.operator.account("fresh", None, &["check", "decisions:read"]).await;
    let before = missed(&address).await;
    keystore(&stack).freeze();
    let mut all = calls(&stack, &key, 1);
    until_missed(&address, before, 1).await;
    // Meanwhile others at the same address try what is no key at all, until it is blocked.
    let guesser = stack.api.with_key("s0_nonsense");
    for _ in 0..5 {
        guesser.get("/usage").await.assert_error(401, "unauthorized");
    }
    guesser.get("/usage").await.assert_error(429, "too_many_failed_logins");
    all.extend(calls(&stack, &key, AT_ONCE - 1));
    until_missed(&address, before, AT_ONCE).await;
    // Another key, be it of the same id, would cost a hash.
    let other = format!("{}{}", &key[..key.len() - 1], if key.ends_with('a') { 'b' } else { 'a' });
    stack.api.with_key(&other).get("/usage").await.assert_error(429, "too_many_failed_logins");
    keystore(&stack).signal(Signal::CONT);
    assert_eq!(statuses(all).await, [200; AT_ONCE]);
    guesser.get("/usage").await.assert_error(429, "too_many_failed_logins");
}

#[tokio::test]
async fn a_wrong_key_on_64_connections_is_verified_once_and_is_one_failed_login() {
    let (stack, address) = stack().await;
    let made = json!({"account": stack.account, "name": "k", "scopes": ["check"]});
    let made = stack.operator.post("/v1/keys", &made).await.expect(201);
    stack.operator.delete(&format!("/v1/keys/{}", made["id"].as_str().unwrap())).await;
    let key = made["key"].as_str().unwrap();
    let (before, page) = (missed(&address).await, metrics(&address).await);
    let failed_before = ["address", "key"].map(|by| {
        let series = format!(r#"stage0_failed_logins_total{{by="{by}"}}"#);
        if page.contains(&series) { sample(&page, &series) } else { 0.0 }
    });
    keystore(&stack).freeze();
    let all = calls(&stack, key, AT_ONCE);
    until_missed(&address, before, AT_ONCE).await;
    keystore(&stack).signal(Signal::CONT);
    assert_eq!(statuses(all).await, [401; AT_ONCE]);
    let page = metrics(&address).await;
    for (by, before) in ["address", "key"].into_iter().zip(failed_before) {
        assert_eq!(sample(&page, &format!(r#"stage0_failed_logins_total{{by="{by}"}}"#)), before + 1.0, "{by}");
    }
    // One after the other each is a failure: four more, and no fifth.
    for _ in 0..4 {
        stack.api.with_key(key).get("/usage").await.assert_error(401, "unauthorized");
    }
    stack.api.with_key(key).get("/usage").await.assert_error(429, "too_many_failed_logins");
}
