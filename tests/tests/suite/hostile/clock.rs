//! Clocks that are wrong, and what they must not do.
//!
//! No clock of the machine is set here: what the host remembers of its clock is moved instead, in the log of a stopped
//! server, which looks the same to a process that compares the two clocks.

use std::time::Duration;

use redb::{Database, ReadableTable as _, TableDefinition};
use serde_json::{Value, json};
use stage0_backplane::clock::{Clocks, boot_id};
use stage0_backplane::testing::wait_for;
use stage0_tests::{Api, Stack};

use crate::retention::{data, history, wait_for_removal};
use crate::tampering::{decisions, entries, put};

const LEDGER: TableDefinition<'static, &str, (u64, u64, &[u8])> = TableDefinition::new("ledger");
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const DAY_MICROS: i64 = 86_400_000_000;

/// Lets the host remember a clock that was so many days behind the one that it has.
fn remember(stack: &Stack, days_behind: i64) {
    let database = Database::open(data(stack).join("decisions.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut state_store = transaction.open_table(LEDGER).unwrap();
        let key = format!("cursor.clock-{}", boot_id().unwrap());
        let revision = state_store.get(key.as_str()).unwrap().map_or(1, |found| found.value().0);
        let offset = Clocks::now().offset() - days_behind * DAY_MICROS;
        let value = json!({"offset_micros": offset}).to_string();
        state_store.insert(key.as_str(), (revision, u64::MAX, value.as_bytes())).unwrap();
    }
    transaction.commit().unwrap();
}

async fn remarks(stack: &Stack) -> Vec<String> {
    let status = stack.operator.get("/v1/status").await.expect(200);
    let of = |one: &Value| one["remarks"].as_array().cloned().unwrap_or_default();
    let all = status["instances"].as_array().unwrap().iter().flat_map(of);
    all.map(|remark| remark.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_clock_forty_days_ahead_removes_nothing_and_says_so() {
    let (mut stack, _) = history(&[(40, 30), (35, 30), (2, 30)]).await;
    remember(&stack, 40);
    stack.start_dev();
    wait_for("the alarm in the status", WAIT_TIMEOUT, async || {
        remarks(&stack).await.iter().any(|remark| remark.starts_with("retention: ") && remark.contains("40 days ahead"))
    })
    .await;
    assert!(stack.said().contains("nothing is removed from the decision log"), "{}", stack.said());
    // A decision that the wrong clock records is no second clock, nor is a new start.
    stack.api.decide(&Api::harmless()).await;
    stack.restart_dev();
    stack.api.decide(&Api::harmless()).await;
    stack.dev.as_ref().unwrap().wait_for("the alarm", |line| line.contains("nothing is removed").then_some(()));
    stack.stop_dev();
    assert_eq!(entries(&data(&stack), decisions(), &stack.account).len(), 6);
    // The clock is what it was: what is past its time goes.
    remember(&stack, 0);
    stack.start_dev();
    wait_for_removal(&mut stack, 4).await;
}

#[tokio::test]
async fn a_deployment_that_was_idle_for_weeks_still_removes() {
    let (mut stack, _) = history(&[(60, 30), (50, 30), (40, 30)]).await;
    let newest = entries(&data(&stack), decisions(), &stack.account).pop().unwrap().0;
    put(&data(&stack), decisions(), &stack.account, &[(newest, None)]);
    remember(&stack, 0);
    stack.start_dev();
    wait_for_removal(&mut stack, 0).await;
}

#[tokio::test]
async fn a_decision_is_found_by_its_id_although_the_store_once_had_a_clock_that_was_ahead() {
    let mut stack = Stack::build().dev().await;
    let id = stack.api.decide(&Api::harmless()).await;
    stack.stop_dev();
    let (position, line) = entries(&data(&stack), decisions(), &stack.account).pop().unwrap();
    let ahead = position + 40 * DAY_MICROS.unsigned_abs();
    put(&data(&stack), decisions(), &stack.account, &[(position, None), (ahead, Some(line))]);
    stack.start_dev();
    stack.api.get(&format!("/v1/decisions/{id}")).await.expect(200);
    let unknown = id.replace(&id[24..], "000000000000");
    stack.api.get(&format!("/v1/decisions/{unknown}")).await.assert_error(404, "not_found");
}

#[tokio::test]
async fn the_clock_of_nats_removes_nothing_for_a_year_beyond_the_longest_retention() {
    let stack = Stack::build().nats().await;
    stack.operator.patch(&format!("/v1/accounts/{}", stack.account), &json!({"retention_days": 90})).await.expect(200);
    let client = async_nats::connect(stack.nats.as_ref().unwrap().url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("S0_LOG").await.unwrap();
    let days = stream.cached_info().config.max_age.as_secs() / 86_400;
    assert!(days >= 30 + 365, "{days} days");
}
