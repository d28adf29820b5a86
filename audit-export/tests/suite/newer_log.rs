//! A log that a newer version wrote: lines of types that this version does not know are neither delivered nor lost.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use stage0_audit_export::egress::EgressConfig;
use stage0_audit_export::{AuditExport, ExportConfig};
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Batch, EntryKind};
use stage0_contract::{
    AccountId, ChainedLine, DecisionsRecorded, EndpointsPage, Head, LineHeader, LineType, Link, ListEndpoints,
    ListRetentions, ManageReply, Mark, MarkSigned, RetentionsPage, SignMark, WriterId,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::receiver::Receiver;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const APPROVED: &str = "0190163d-8694-7000-8000-000000000001";

pub(crate) fn account() -> AccountId {
    AccountId::parse("acc_1").unwrap()
}

/// One writer's chain, a line for each type, in two entries of the log: a new type first and last.
fn log() -> [String; 2] {
    let body = |number: usize, kind: &str| match kind {
        "decision.recorded" => json!({"account": "acc_1", "request_id": format!("d{number}"), "verdict": "DENY"}),
        _ => json!({"account": "acc_1", "event_id": APPROVED, "request_id": "d1", "approval_id": "apr_1"}),
    };
    let mut head: Option<Head> = None;
    let mut lines = Vec::new();
    for (number, kind) in [
        "approval.foreseen",
        "decision.recorded",
        "approval.approved",
        "approval.foreseen",
        "decision.recorded",
        // Recorded once more, as by another gateway.
        "approval.approved",
        "stop.started",
        "approval.foreseen",
    ]
    .into_iter()
    .enumerate()
    {
        let chain = Link {
            writer: WriterId::new(Uuid::from_u128(7)),
            sequence: number as u64 + 1,
            previous: head.map(|head| head.as_previous()),
            after: None,
            mark: None,
        };
        let recorded_at = Timestamp::now();
        let expires_at = recorded_at.as_second() + 30 * 86_400;
        let header = LineHeader { line: LineType::Decision, chain, recorded_at, expires_at };
        let line = header.with(body(number, kind).to_string().as_bytes()).unwrap();
        let line = String::from_utf8(line).unwrap().replacen("decision.recorded", kind, 1);
        head = Some(header.head(line.as_bytes()));
        lines.push(line);
    }
    let second = lines.split_off(4);
    [lines.join("\n"), second.join("\n")]
}

async fn append(bus: &Bus) {
    for (number, lines) in log().into_iter().enumerate() {
        let batch = Batch { account: account(), id: number.to_string(), lines: lines.into() };
        let appended = bus.connect().log.append(vec![batch], Instant::now() + WAIT_TIMEOUT).await;
        appended.into_iter().for_each(|one| one.unwrap());
    }
}

/// An exporter, with one endpoint that has these members.
pub(crate) async fn start(bus: &Bus, url: &str, members: Value) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let mut endpoint = json!({
        "id": "wh_1", "account": "acc_1", "url": url, "verdicts": null, "environments": null, "description": "",
        "rate_limit": null, "enabled": true, "disabled_reason": null, "created_at": "2026-01-01T00:00:00Z",
        "secrets": ["whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="], "retention_days": 30,
    });
    for (name, value) in members.as_object().unwrap() {
        endpoint[name] = value.clone();
    }
    let list: EndpointsPage = serde_json::from_value(json!({"items": [endpoint], "next_cursor": null})).unwrap();
    let mut endpoints = bus.connect().requests.serve::<ListEndpoints>().await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = endpoints.next().await {
            request.answer(&ManageReply::Done(list.clone())).await;
        }
    });
    let mut retentions = bus.connect().requests.serve::<ListRetentions>().await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = retentions.next().await {
            let page = RetentionsPage { items: vec![(account(), 30)], next_cursor: None, clock: None };
            request.answer(&ManageReply::Done(page)).await;
        }
    });
    // It signs every mark. The real keystore's refusals are tested with the keystore.
    let mut marks = bus.connect().requests.serve::<SignMark>().await.unwrap();
    tokio::spawn(async move {
        while let Some(request) = marks.next().await {
            let line = serde_json::to_string(&request.request.mark).unwrap();
            request.answer(&ManageReply::Done(MarkSigned { line, earlier: false })).await;
        }
    });
    let egress = EgressConfig { dangerous_allow_private: true, ..EgressConfig::default() };
    let checkpoint_interval = Duration::from_millis(50);
    let config = ExportConfig { egress, checkpoint_interval, ..ExportConfig::default() };
    let exporter = AuditExport::build(config, bus.connect()).await.unwrap();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    (stop, tokio::spawn(async move { exporter.run_until(stopped).await.unwrap() }))
}

/// The next events that are no marks: type, `webhook-id` and number. Several are sent at once, in any order.
pub(crate) async fn received(receiver: &mut Receiver, count: usize) -> Vec<(String, String, u64)> {
    let mut events = Vec::new();
    while events.len() < count {
        let request = receiver.next().await;
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let kind = body["type"].as_str().unwrap().to_owned();
        if kind != "checkpoint.signed" {
            let id = request.header("webhook-id").unwrap().to_owned();
            events.push((kind, id, body["data"]["sequence"].as_u64().unwrap()));
        }
    }
    events.sort_by_key(|(.., sequence)| *sequence);
    events
}

fn event(kind: &str, id: &str, sequence: u64) -> (String, String, u64) {
    (kind.to_owned(), id.to_owned(), sequence)
}

#[tokio::test]
async fn lines_of_unknown_types_take_no_number_and_hold_up_no_event() {
    let (decision, approved) = ("decision.recorded", format!("evt_{APPROVED}"));
    for (members, wanted) in [
        (json!({}), vec![event(decision, "dec_d1", 1), event(decision, "dec_d4", 2)]),
        (
            json!({"events": ["decision.recorded", "approval.*"]}),
            vec![
                event(decision, "dec_d1", 1),
                event("approval.approved", &approved, 2),
                event(decision, "dec_d4", 3),
                // The same event once more: its receiver knows it by its id.
                event("approval.approved", &approved, 4),
            ],
        ),
        (json!({"events": ["stop.started"]}), vec![event("stop.started", &approved, 1)]),
    ] {
        let (bus, mut receiver) = (Bus::new(), Receiver::plain().await);
        append(&bus).await;
        let (stop, task) = start(&bus, &receiver.url("/in"), members).await;
        assert_eq!(received(&mut receiver, wanted.len()).await, wanted);
        stop.cancel();
        task.await.unwrap();
        while let Some(request) = receiver.another() {
            assert!(String::from_utf8_lossy(&request.body).contains("checkpoint.signed"), "nothing else is sent");
        }
    }
}

#[tokio::test]
async fn a_checkpoint_names_the_last_line_of_a_chain_whatever_its_type() {
    let (bus, receiver) = (Bus::new(), Receiver::plain().await);
    append(&bus).await;
    let (stop, task) = start(&bus, &receiver.url("/in"), json!({})).await;
    bus.connect().notices.publish(&DecisionsRecorded { accounts: vec![account()] }).await.unwrap();
    let log = bus.connect().log;
    let marked = async {
        loop {
            let last = log.last(&account(), EntryKind::Mark, Instant::now() + WAIT_TIMEOUT).await.unwrap();
            if let Some(entry) = last {
                return serde_json::from_slice::<Mark>(entry.lines().next().unwrap()).unwrap();
            }
            tokio::task::yield_now().await;
        }
    };
    let mark = timeout(WAIT_TIMEOUT, marked).await.unwrap();
    stop.cancel();
    task.await.unwrap();
    let last = log.last(&account(), EntryKind::Decisions, Instant::now() + WAIT_TIMEOUT).await.unwrap().unwrap();
    let line = last.lines().last().unwrap();
    let chained = ChainedLine::read(line).unwrap();
    assert_eq!((chained.line, chained.chain.sequence), (None, 8));
    assert_eq!((mark.heads, mark.covered), (vec![chained.head(line)], 8));
}
