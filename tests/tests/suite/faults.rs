//! Processes killed and frozen: no decision without an evaluator, no refusal without a keystore, and back by
//! themselves.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Stack};

const RECOVERY_TIMEOUT: Duration = Duration::from_secs(15);

#[tokio::test]
async fn without_an_evaluator_nothing_is_allowed_and_with_a_new_one_it_goes_on() {
    let mut stack = Stack::build().usual_budget().nats().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.evaluators[0].kill();
    let answer = stack.api.check(&Api::harmless()).await;
    answer.assert_error(503, "unavailable");
    assert!(answer.text.contains("no evaluator serves: the action must not run"), "{}", answer.text);
    assert!(!answer.header("retry-after").is_empty());
    // The report may be a second old.
    wait_for("the report", RECOVERY_TIMEOUT, async || stack.api.get("/readyz").await.status == 503).await;
    let ready = stack.api.get("/readyz").await;
    assert_eq!((ready.status, &ready.body["ready"]), (503, &serde_json::json!(false)));
    assert!(ready.text.contains("evaluator: "), "{}", ready.text);
    assert_eq!(stack.api.get("/healthz").await.status, 200);
    stack.start_evaluator();
    stack.api.check(&Api::harmless()).await.expect(200);
    wait_for("readiness", RECOVERY_TIMEOUT, async || stack.api.get("/readyz").await.status == 200).await;
}

#[tokio::test]
async fn one_of_three_evaluators_killed_or_frozen_stops_no_check() {
    let mut stack = Stack::build().usual_budget().evaluators(3).nats().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.evaluators[0].kill();
    for _ in 0..50 {
        stack.api.check(&Api::harmless()).await.expect(200);
    }
    stack.evaluators[1].freeze();
    let started = Instant::now();
    let mut answered = 0;
    for _ in 0..20 {
        answered += u32::from(stack.api.check(&Api::harmless()).await.status == 200);
    }
    stack.evaluators[1].thaw();
    // Half of the shards are frozen: three tries miss them all once in eight, and those are refused, never wrong.
    assert!(answered >= 8, "{answered} of 20 in {:?}", started.elapsed());
}

#[tokio::test]
async fn without_a_keystore_known_keys_pass_for_a_while_and_unknown_ones_are_503_not_401() {
    let mut stack = Stack::build().usual_budget().nats().await;
    let (_, fresh, _) = stack.operator.account("a", None, &["check"]).await;
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.keystore.as_mut().unwrap().kill();
    stack.api.check(&Api::harmless()).await.expect(200);
    let fresh = stack.api.with_key(&fresh);
    let answer = fresh.check(&Api::harmless()).await;
    answer.assert_error(503, "unavailable");
    assert!(answer.text.contains("no keystore serves: the action must not run"), "{}", answer.text);
    assert!(!answer.header("retry-after").is_empty());
    stack.operator.post("/v1/accounts", &serde_json::json!({"name": "x"})).await.assert_error(503, "unavailable");
    stack.start_keystore();
    fresh.check(&Api::harmless()).await.expect(200);
}

#[tokio::test]
async fn nats_killed_is_503_within_the_budget_and_it_comes_back_by_itself() {
    let mut stack = Stack::build().usual_budget().nats().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.nats.as_mut().unwrap().kill();
    let started = Instant::now();
    stack.api.check(&Api::harmless()).await.assert_error(503, "unavailable");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    stack.nats.as_mut().unwrap().restart().await;
    wait_for("the return", RECOVERY_TIMEOUT, async || stack.api.check(&Api::harmless()).await.status == 200).await;
}

#[tokio::test]
async fn nats_frozen_is_503_within_the_budget_and_it_comes_back_by_itself() {
    let stack = Stack::build().usual_budget().nats().await;
    stack.api.check(&Api::harmless()).await.expect(200);
    stack.nats.as_ref().unwrap().freeze();
    for _ in 0..3 {
        let started = Instant::now();
        stack.api.check(&Api::harmless()).await.assert_error(503, "unavailable");
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    stack.nats.as_ref().unwrap().thaw();
    wait_for("the return", RECOVERY_TIMEOUT, async || stack.api.check(&Api::harmless()).await.status == 200).await;
}

#[tokio::test]
async fn a_revocation_that_a_cut_off_gateway_missed_holds_when_it_is_back() {
    let mut stack = Stack::build().usual_budget().nats().await;
    let (_, key, id) = stack.operator.account("a", None, &["check"]).await;
    let key = stack.api.with_key(&key);
    key.check(&Api::harmless()).await.expect(200);
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    stack.nats.as_mut().unwrap().kill();
    stack.nats.as_mut().unwrap().restart().await;
    wait_for("a decision about a living key", RECOVERY_TIMEOUT, async || {
        stack.api.check(&Api::harmless()).await.status == 200
    })
    .await;
    assert_eq!(key.check(&Api::harmless()).await.status, 401);
}

#[tokio::test]
async fn keys_survive_a_killed_keystore() {
    let mut stack = Stack::build().usual_budget().nats().await;
    let (_, key, _) = stack.operator.account("a", None, &["check"]).await;
    let (_, revoked, id) = stack.operator.account("b", None, &["check"]).await;
    stack.operator.delete(&format!("/v1/keys/{id}")).await.expect(204);
    stack.keystore.as_mut().unwrap().kill();
    stack.start_keystore();
    stack.api.with_key(&key).check(&Api::harmless()).await.expect(200);
    stack.api.with_key(&revoked).check(&Api::harmless()).await.assert_error(401, "unauthorized");
}

#[tokio::test]
async fn a_role_stopped_while_nats_is_down_exits() {
    let mut stack = Stack::build().nats().await;
    stack.nats.as_mut().unwrap().kill();
    for (role, process) in stack.processes() {
        process.signal(Signal::TERM);
        let ended = tokio::time::timeout(RECOVERY_TIMEOUT, async {
            while process.is_alive() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(ended.await.is_ok(), "{role} still runs: {}", process.said());
    }
}
