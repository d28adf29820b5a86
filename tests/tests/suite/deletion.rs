//! Deletion on demand: exactly what was asked for is gone, and the log proves that nothing else is.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Receiver, Stack, account_scopes};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// As times: as texts they do not sort, since their fractions are of different lengths.
fn at(record: &Value) -> Timestamp {
    text(record, "recorded_at").parse().unwrap()
}

fn text<'a>(record: &'a Value, name: &str) -> &'a str {
    record[name].as_str().unwrap()
}

/// Ten decisions; what was recorded before the sixth is deleted.
async fn exactly_what_was_asked_for_is_gone(stack: &Stack) {
    let receiver = Receiver::plain().await;
    let (_, secret) = stack.api.webhook(&receiver.url("/in")).await;
    let (_, theirs, _) = stack.operator.account("theirs", None, &account_scopes()).await;
    let theirs = stack.api.with_key(&theirs);
    let their_id = theirs.decide(&Api::harmless()).await;
    for n in 0..10 {
        stack.api.decide(&if n % 2 == 0 { Api::harmless() } else { Api::forbidden() }).await;
    }
    let records = stack.api.decisions("").await;
    let before = text(&records[5], "recorded_at");
    let (gone, kept): (Vec<_>, Vec<_>) = records.iter().cloned().partition(|record| at(record) < at(&records[5]));
    assert!(gone.len() >= 4, "{} of 10", gone.len());

    let deleted = stack.api.delete(&format!("/v1/decisions?before={before}")).await.expect(200);
    let first_and_last = (&gone[0]["recorded_at"], &gone[gone.len() - 1]["recorded_at"]);
    assert_eq!((&deleted["count"], &deleted["before"]), (&json!(gone.len()), &json!(before)));
    assert_eq!((&deleted["from"], &deleted["to"]), first_and_last);
    let mark = deleted["mark"].as_u64().expect("a mark says so");

    assert_eq!(stack.api.decisions("").await, kept);
    for record in &gone {
        let path = format!("/v1/decisions/{}", text(record, "request_id"));
        stack.api.get(&path).await.assert_error(404, "not_found");
    }
    for record in &kept {
        stack.api.get(&format!("/v1/decisions/{}", text(record, "request_id"))).await.expect(200);
    }
    let export = stack.api.get("/v1/decisions/export").await.text;
    let exported = export.lines().filter(|line| line.contains("decision.recorded")).count();
    assert_eq!(exported, kept.len());
    theirs.get(&format!("/v1/decisions/{their_id}")).await.expect(200);

    // The chain goes on behind what is gone.
    stack.api.decide(&Api::harmless()).await;
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!((&report["deletions"], &report["records"]), (&json!(1), &json!(kept.len() + 1)));

    let event = receiver
        .wait_for("the event", "/in", WAIT_TIMEOUT, |came| {
            came.iter().find(|d| d.kind() == "decisions.deleted").cloned()
        })
        .await;
    assert!(event.is_signed_by(&secret));
    let data = event.event()["data"].clone();
    assert_eq!((&data["count"], &data["before"], &data["number"]), (&deleted["count"], &json!(before), &json!(mark)));
    let key = stack.api.key.as_ref().unwrap();
    assert!(key.contains(text(&data, "requested_by")));

    // A second deletion finds nothing and writes no mark.
    let again = stack.api.delete(&format!("/v1/decisions?before={before}")).await.expect(200);
    assert_eq!((&again["count"], &again["mark"], &again["from"]), (&json!(0), &json!(null), &json!(null)));
    assert_eq!(stack.api.verify().await["deletions"], 1);
}

#[tokio::test]
async fn a_deletion_removes_exactly_the_requested_decisions_in_one_process() {
    let mut stack = Stack::build().private_webhooks().dev().await;
    exactly_what_was_asked_for_is_gone(&stack).await;
    stack.restart_dev();
    stack.api.decide(&Api::harmless()).await;
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], &report["deletions"]), (&json!(true), &json!(1)), "{report:#}");
}

#[tokio::test]
async fn a_deletion_removes_exactly_the_requested_decisions_on_nats() {
    let mut stack = Stack::build().private_webhooks().nats().await;
    exactly_what_was_asked_for_is_gone(&stack).await;
    stack.restart_gateway(0);
    wait_for("the gateway", WAIT_TIMEOUT, async || stack.api.check(&Api::harmless()).await.status == 200).await;
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], &report["deletions"]), (&json!(true), &json!(1)), "{report:#}");
}

#[tokio::test]
async fn everything_can_be_deleted_and_the_log_goes_on() {
    let stack = Stack::build().gateways(2).nats().await;
    for n in 0..20 {
        stack.api_at(n % 2).decide(&Api::unclear()).await;
    }
    let last = stack.api.decisions("").await.pop().unwrap();
    let now = Timestamp::now();
    assert!(at(&last) < now);
    let deleted = stack.api.delete(&format!("/v1/decisions?before={now}")).await.expect(200);
    assert_eq!(deleted["count"], 20);
    assert!(stack.api.decisions("").await.is_empty());
    for n in 0..4 {
        stack.api_at(n % 2).decide(&Api::unclear()).await;
    }
    wait_for("a checkpoint behind the deletion", WAIT_TIMEOUT, async || stack.api.verify().await["unsealed"] == 0)
        .await;
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!((&report["records"], &report["deletions"], &report["writers"]), (&json!(4), &json!(1), &json!(2)));
}

#[tokio::test]
async fn decisions_that_go_on_while_others_are_deleted_are_kept() {
    let stack = Stack::build().gateways(2).nats().await;
    let ask = |gateway: usize, count: usize| {
        let api = stack.api_at(gateway);
        tokio::spawn(async move {
            let mut made = Vec::new();
            for _ in 0..count {
                made.push(api.decide(&Api::harmless()).await);
            }
            made
        })
    };
    let old = ask(0, 20).await.unwrap();
    let (first, second) = (ask(0, 60), ask(1, 60));
    let mut deleted = 0;
    while !(first.is_finished() && second.is_finished()) {
        let now = Timestamp::now();
        let answer = stack.api.delete(&format!("/v1/decisions?before={now}")).await.expect(200);
        deleted += answer["count"].as_u64().unwrap();
    }
    let made = old.len() + first.await.unwrap().len() + second.await.unwrap().len();
    let left = stack.api.decisions("").await.len();
    assert_eq!(usize::try_from(deleted).unwrap() + left, made, "{deleted} deleted, {left} left");
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
}

#[tokio::test]
async fn without_an_exporter_a_deletion_is_refused_with_503() {
    let mut stack = Stack::build().nats().await;
    let id = stack.api.decide(&Api::harmless()).await;
    let now = Timestamp::now();
    stack.exporters[0].kill();
    stack.api.delete(&format!("/v1/decisions?before={now}")).await.assert_error(503, "unavailable");
    stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    stack.restart_exporter(0);
    assert_eq!(stack.api.delete(&format!("/v1/decisions?before={now}")).await.expect(200)["count"], 1);
}
