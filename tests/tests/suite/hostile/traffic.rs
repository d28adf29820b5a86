//! What one tenant reads must not tell how much another one asks.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Receiver, Stack, account_scopes};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

fn at(record: &Value) -> Timestamp {
    record["recorded_at"].as_str().unwrap().parse().unwrap()
}

/// Between a record and the moment after which its mark was read, with some room for clocks.
fn is_a_time_near(micros: i64, record: &Value) -> bool {
    let difference = micros - at(record).as_microsecond();
    (-2_000_000..30_000_000).contains(&difference)
}

async fn asks(tenant: &Api) {
    for _ in 0..40 {
        tenant.decide(&Api::harmless()).await;
    }
}

async fn positions_tell_nothing_of_others(stack: &Stack) {
    let (_, key, _) = stack.operator.account("other", None, &account_scopes()).await;
    let (other, receiver) = (stack.api.with_key(&key), Receiver::plain().await);
    stack.api.webhook(&receiver.url("/in")).await;
    asks(&other).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(stack.api.decide(&Api::harmless()).await);
        asks(&other).await;
    }
    // Cursors: a time of the account's own record, and how many lines of that moment are through.
    let (mut query, mut seen) = (String::new(), Vec::new());
    for _ in 0..3 {
        let page = stack.api.get(&format!("/v1/decisions?limit=1{query}")).await.expect(200);
        let (record, cursor) = (&page["items"][0], page["next_cursor"].as_str().unwrap());
        let (nanos, lines) = cursor.strip_prefix('t').unwrap().split_once('.').unwrap();
        assert_eq!(lines, "1", "{cursor}");
        assert!(is_a_time_near(nanos.parse::<i64>().unwrap() / 1_000, record), "{cursor} of {record}");
        seen.push(record["request_id"].as_str().unwrap().to_owned());
        query = format!("&cursor={cursor}");
    }
    assert_eq!(seen, ids);
    // What is no cursor of these: places in the store, another spelling, another account's log.
    for forged in ["120.1", "0.0", "t120", "t.1", "t0120.1", "t1.-1", "t99999999999999999999999999.1", "u1.1"] {
        let answer = stack.api.get(&format!("/v1/decisions?cursor={forged}")).await;
        answer.assert_error(422, "validation_failed");
        assert!(answer.body["message"].as_str().unwrap().contains("cursor: "), "{}", answer.text);
    }
    let theirs = other.get(&format!("/v1/decisions?limit=1000{query}")).await.expect(200);
    assert!(
        theirs["items"]
            .as_array()
            .unwrap()
            .iter()
            .all(|item| !ids.contains(&item["request_id"].as_str().unwrap().to_owned()))
    );

    // Marks, in the download and as events.
    wait_for("a checkpoint", WAIT_TIMEOUT, async || stack.api.verify().await["unsealed"] == 0).await;
    let last = stack.api.decisions("").await.pop().unwrap();
    let before = Timestamp::now();
    stack.api.delete(&format!("/v1/decisions?before={before}")).await.expect(200);
    let export = stack.api.get("/v1/decisions/export").await.text;
    let marks: Vec<Value> = export.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let deletions = marks.iter().filter(|mark| mark["type"] == "decisions.deleted").count();
    assert!(deletions == 1 && marks.len() > 1, "{export}");
    for mark in &marks {
        let through = mark["through"].as_i64().unwrap();
        assert!(through > 0 && at(mark).as_microsecond() + 2_000_000 > through, "{mark}");
        assert!(mark.get("deleted_through").is_none_or(|through| *through == json!(0)), "{mark}");
    }
    assert!(is_a_time_near(marks[marks.len() - 1]["through"].as_i64().unwrap(), &last), "{export}");
    let event = receiver
        .wait_for("the event", "/in", WAIT_TIMEOUT, |came| {
            came.iter().find(|d| d.kind() == "decisions.deleted").cloned()
        })
        .await;
    assert_eq!(event.event()["data"]["deleted_through"], json!(0));
    let report = stack.api.verify().await;
    assert_eq!((&report["ok"], &report["deletions"]), (&json!(true), &json!(1)), "{report:#}");
}

#[tokio::test]
async fn cursors_and_marks_reveal_nothing_about_other_accounts_on_nats() {
    let stack = Stack::build().private_webhooks().gateways(2).nats().await;
    positions_tell_nothing_of_others(&stack).await;
}

#[tokio::test]
async fn cursors_and_marks_reveal_nothing_about_other_accounts_in_one_process() {
    let stack = Stack::build().private_webhooks().dev().await;
    positions_tell_nothing_of_others(&stack).await;
}
