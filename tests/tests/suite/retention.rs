//! How long decisions are kept: as the account's retention says, from one moment to the next.
//!
//! No test waits for days: a history of earlier days is written into the log of a stopped server, chained as a gateway
//! chains it.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_contract::{Head, LineHeader, LineType, Link};
use stage0_tests::{Api, Stack};

use crate::tampering::{decisions, entries, put};

#[tokio::test]
async fn retention_is_the_operators_to_set_and_its_bounds_are_named() {
    let stack = Stack::build().dev().await;
    let path = format!("/v1/accounts/{}", stack.account);
    let answer = stack.api.patch(&path, &json!({"retention_days": 7})).await;
    answer.assert_error(403, "scope_missing");
    assert!(answer.body["message"].as_str().unwrap().contains("`operator`"));
    for body in [
        json!({}),
        json!({"retention_days": 0}),
        json!({"retention_days": 3_651}),
        json!({"retention_days": -1}),
        json!({"retention_days": 1.5}),
        json!({"retention_days": "7"}),
    ] {
        let answer = stack.operator.patch(&path, &body).await;
        answer.assert_error(422, "validation_failed");
        assert!(answer.body["message"].as_str().unwrap().contains("retention_days: "), "{}", answer.text);
    }
    let answer = stack.operator.patch(&path, &json!({"retention_days": 7, "plans": "pro"})).await;
    answer.assert_error(422, "validation_failed");
    stack.operator.patch("/v1/accounts/acc_nobody", &json!({"retention_days": 7})).await.assert_error(404, "not_found");
    for days in [1, 3_650] {
        let account = stack.operator.patch(&path, &json!({"retention_days": days})).await.expect(200);
        assert_eq!((&account["id"], &account["retention_days"]), (&json!(stack.account), &json!(days)));
    }
}

/// How many days a new record is kept.
async fn days(api: &Api) -> i64 {
    let id = api.decide(&Api::harmless()).await;
    let record = api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    let recorded_at: Timestamp = record["recorded_at"].as_str().unwrap().parse().unwrap();
    (record["expires_at"].as_i64().unwrap() - recorded_at.as_second()) / 86_400
}

#[tokio::test]
async fn new_records_follow_the_accounts_retention_at_once() {
    let stack = Stack::build().gateways(2).nats().await;
    let path = format!("/v1/accounts/{}", stack.account);
    assert_eq!((days(&stack.api).await, days(&stack.api_at(1)).await), (30, 30));
    for kept in [7, 90] {
        stack.operator.patch(&path, &json!({"retention_days": kept})).await.expect(200);
        assert_eq!((days(&stack.api).await, days(&stack.api_at(1)).await), (kept, kept));
    }
    stack.operator.patch(&path, &json!({"retention_days": null})).await.expect(200);
    assert_eq!(days(&stack.api).await, 30);
    assert_eq!(stack.api.verify().await["ok"], true);
}

/// A stopped server with one decision of today behind others, each so many days old and kept for so many days from then
/// on.
pub(crate) async fn history(ages: &[(i64, i64)]) -> (Stack, Vec<String>) {
    let mut stack = Stack::build().dev().await;
    stack.api.decide(&Api::forbidden()).await;
    let Value::Object(mut members) = stack.api.decisions("").await.pop().unwrap() else { panic!("a record") };
    stack.stop_dev();
    for of_the_line in ["type", "chain", "recorded_at", "expires_at"] {
        members.remove(of_the_line);
    }
    let writer = serde_json::from_value(json!("01890000-0000-7000-8000-000000000001")).unwrap();
    let (mut head, mut ids): (Option<Head>, Vec<String>) = (None, Vec::new());
    for (old, kept) in ages {
        let recorded_at = Timestamp::now() - SignedDuration::from_hours(24 * old);
        let recorded_at = Timestamp::from_millisecond(recorded_at.as_millisecond()).unwrap();
        let millis = recorded_at.as_millisecond();
        let id = format!("{:08x}-{:04x}-7000-8000-{:012x}", millis >> 16, millis & 0xffff, ids.len());
        members.insert("request_id".to_owned(), json!(id));
        let chain = Link {
            writer,
            sequence: head.map_or(1, |head| head.sequence + 1),
            previous: head.map(|head| head.as_previous()),
            after: None,
            mark: None,
        };
        let expires_at = recorded_at.as_second() + kept * 86_400;
        let start = LineHeader { line: LineType::Decision, chain, recorded_at, expires_at };
        let line = start.with(&serde_json::to_vec(&members).unwrap()).unwrap();
        head = Some(start.head(&line));
        let position = u64::try_from(recorded_at.as_microsecond()).unwrap();
        put(&data(&stack), decisions(), &stack.account, &[(position, Some(line))]);
        ids.push(id);
    }
    (stack, ids)
}

pub(crate) fn data(stack: &Stack) -> PathBuf {
    stack.directory.path().join("data")
}

async fn shown(stack: &Stack, ids: &[String]) -> Vec<bool> {
    let listed = stack.api.decisions("").await;
    let export = stack.api.get("/v1/decisions/export").await.text;
    let mut shown = Vec::new();
    for id in ids {
        let found = stack.api.get(&format!("/v1/decisions/{id}")).await.status == 200;
        assert_eq!(listed.iter().any(|record| record["request_id"] == *id), found, "{id} in the list");
        assert_eq!(export.contains(id), found, "{id} in the download");
        shown.push(found);
    }
    shown
}

/// Restarts `dev` until at most this many entries are on its disk, since no event tells when entries are removed.
pub(crate) async fn wait_for_removal(stack: &mut Stack, most: usize) {
    for _ in 0..20 {
        stack.stop_dev();
        if entries(&data(stack), decisions(), &stack.account).len() <= most {
            return;
        }
        stack.start_dev();
        stack.api.verify().await;
    }
    panic!("what is older than the account's retention is still on the disk");
}

#[tokio::test]
async fn expired_decisions_are_hidden_not_reported_missing_and_removed() {
    let (mut stack, ids) = history(&[(40, 30), (35, 30), (20, 30), (2, 30), (2, 1)]).await;
    assert_eq!(entries(&data(&stack), decisions(), &stack.account).len(), 6);
    stack.start_dev();
    assert_eq!(shown(&stack, &ids).await, [false, false, true, true, false]);
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
    wait_for_removal(&mut stack, 4).await;
}

#[tokio::test]
async fn a_shorter_retention_hides_at_once_what_is_older() {
    let (mut stack, ids) = history(&[(20, 30), (9, 30), (5, 30)]).await;
    stack.start_dev();
    assert_eq!(shown(&stack, &ids).await, [true, true, true]);
    let path = format!("/v1/accounts/{}", stack.account);
    stack.operator.patch(&path, &json!({"retention_days": 7})).await.expect(200);
    assert_eq!(shown(&stack, &ids).await, [false, false, true]);
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
    // The next look at the clock removes it from the disk; a start is one.
    stack.restart_dev();
    stack.api.decide(&Api::harmless()).await;
    let report = stack.api.verify().await;
    assert_eq!(report["ok"], true, "{report:#}");
    wait_for_removal(&mut stack, 3).await;
}
