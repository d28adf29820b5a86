//! A gateway whose clock was set back says of what it records that it is old. Its decisions are delivered all the same.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use stage0_backplane::Batch;
use stage0_backplane::embedded::Bus;
use stage0_contract::{Head, LineHeader, LineType, Link, WriterId};
use tokio::time::Instant;
use uuid::Uuid;

use crate::newer_log::{account, received, start};
use crate::receiver::Receiver;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Appends the next decision of one writer's chain.
async fn record(bus: &Bus, head: &mut Option<Head>, number: u64, recorded_at: Timestamp) {
    let chain = Link {
        writer: WriterId::new(Uuid::from_u128(7)),
        sequence: number,
        previous: head.as_ref().map(|head| head.as_previous()),
        after: None,
        mark: None,
    };
    let expires_at = recorded_at.as_second() + 30 * 86_400;
    let header = LineHeader { line: LineType::Decision, chain, recorded_at, expires_at };
    let body = json!({"account": "acc_1", "request_id": format!("d{number}"), "verdict": "DENY"});
    let line = header.with(body.to_string().as_bytes()).unwrap();
    *head = Some(header.head(&line));
    let batch = Batch { account: account(), id: number.to_string(), lines: line.into() };
    let appended = bus.connect().log.append(vec![batch], Instant::now() + WAIT_TIMEOUT).await;
    appended.into_iter().for_each(|one| one.unwrap());
}

/// Found by a fault run: two decisions of the moment in which a clock was set back by 200 seconds were never delivered.
#[tokio::test]
async fn a_decision_is_delivered_that_was_stored_after_the_endpoint_was_created_and_says_that_it_is_older() {
    let (bus, mut receiver) = (Bus::new(), Receiver::plain().await);
    let mut head = None;
    record(&bus, &mut head, 1, Timestamp::now()).await;
    // The log keeps milliseconds.
    tokio::time::sleep(Duration::from_millis(5)).await;
    let created_at = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(5)).await;
    record(&bus, &mut head, 2, created_at - SignedDuration::from_secs(200)).await;
    record(&bus, &mut head, 3, Timestamp::now()).await;
    let (stop, task) = start(&bus, &receiver.url("/in"), json!({"created_at": created_at})).await;
    let ids = received(&mut receiver, 2).await.into_iter().map(|(_, id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids, ["dec_d2", "dec_d3"]);
    stop.cancel();
    task.await.unwrap();
}
