//! What an operator sees of deliveries: a log line for each attempt, metrics, and the lag.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_audit_export::egress::EgressConfig;
use stage0_audit_export::{AuditExport, ExportConfig, LagTracker};
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, Batch};
use stage0_contract::{
    AccountId, Delivery, DeliveryState, EndpointsPage, ListDeliveries, ListEndpoints, ManageReply, Page,
    WebhookChanged, WebhookId,
};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::capture::capture;
use crate::receiver::{Answer, Receiver};

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const INVALID_URL: &str = "the endpoint's URL must be an absolute URL without white space";

/// A running exporter with one endpoint, which never changes.
struct Exporter {
    bus: Bus,
    lag: LagTracker,
    /// How often the list of endpoints was fetched.
    listings: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Exporter {
    async fn start(url: &str, recorded: &[(&str, Timestamp)]) -> Self {
        let bus = Bus::new();
        record(&bus.connect(), recorded).await;
        let list: EndpointsPage = serde_json::from_value(json!({"items": [{
            "id": "wh_1", "account": "acc_1", "url": url, "verdicts": null, "environments": null, "description": "",
            "rate_limit": null, "enabled": true, "disabled_reason": null, "created_at": "2026-01-01T00:00:00Z",
            "secrets": ["whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="], "retention_days": 30,
        }], "next_cursor": null}))
        .unwrap();
        let mut requests = bus.connect().requests.serve::<ListEndpoints>().await.unwrap();
        let listings = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&listings);
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                request.answer(&ManageReply::Done(list.clone())).await;
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        let egress = EgressConfig { dangerous_allow_private: true, ..EgressConfig::default() };
        let config = ExportConfig { egress, ..ExportConfig::default() };
        let exporter = AuditExport::build(config, bus.connect()).await.unwrap();
        let (lag, stop) = (exporter.lag(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { exporter.run_until(stopped).await.unwrap() });
        Self { bus, lag, listings, stop, task }
    }

    /// The deliveries of the endpoint, as a gateway lists them.
    async fn deliveries(&self) -> Page<Delivery> {
        let request = ListDeliveries { account: account(), id: webhook() };
        match self.bus.connect().requests.request(&request, WAIT_TIMEOUT).await.unwrap() {
            ManageReply::Done(page) => page,
            reply => panic!("{reply:?}"),
        }
    }

    /// Stops it and completes the attempts in flight.
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        assert_eq!(self.lag.snapshot().held, 0);
        drop(self.bus);
    }
}

async fn record(backplane: &Backplane, recorded: &[(&str, Timestamp)]) {
    let lines: Vec<String> = recorded
        .iter()
        .map(|(id, at)| {
            json!({"type": "decision.recorded", "request_id": id, "account": "acc_1", "verdict": "DENY",
                "recorded_at": at.to_string(), "expires_at": 4_000_000_000_i64, "reason": "tell nobody"})
            .to_string()
        })
        .collect();
    let batch = Batch { account: account(), id: "one".to_owned(), lines: lines.join("\n").into() };
    for appended in backplane.log.append(vec![batch], Instant::now() + WAIT_TIMEOUT).await {
        appended.unwrap();
    }
}

fn account() -> AccountId {
    AccountId::parse("acc_1").unwrap()
}

fn webhook() -> WebhookId {
    WebhookId::parse("wh_1").unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).unwrap()
}

fn only<'a>(lines: &'a [Value], request_id: &str) -> &'a Value {
    let found: Vec<&Value> = lines.iter().filter(|line| line["request_id"] == request_id).collect();
    assert_eq!(found.len(), 1, "{lines:#?}");
    found[0]
}

#[test]
fn each_attempt_is_logged_with_its_request_id_and_counted_by_outcome() {
    let (lines, page) = capture(async {
        let mut receiver = Receiver::plain().await;
        receiver.answer([Answer::status(204), Answer::status(500), Answer::status(410)]);
        let all = [("first", ago(100)), ("second", ago(100)), ("third", ago(100))];
        let exporter = Exporter::start(&receiver.url("/in"), &all).await;
        for _ in all {
            receiver.next().await;
        }
        exporter.stop().await;
    });
    let mut attempts: Vec<_> = ["first", "second", "third"].iter().map(|id| only(&lines, id)).collect();
    for line in &attempts {
        assert_eq!((&line["webhook"], &line["attempt"]), (&json!("wh_1"), &json!(1)));
        assert!(line["duration_ms"].is_f64() && !line.to_string().contains("tell nobody"), "{line}");
    }
    // Three are sent at once, so any of them may get any of the answers.
    attempts.sort_by_key(|line| line["outcome"].to_string());
    let outcomes: Vec<_> = attempts.iter().map(|line| (line["outcome"].as_str(), line["level"].as_str())).collect();
    let wanted = [("delivered", "DEBUG"), ("refused", "WARN"), ("retried", "INFO")];
    assert_eq!(outcomes, wanted.map(|(outcome, level)| (Some(outcome), Some(level))));
    for line in [
        "stage0_deliveries_total{outcome=\"delivered\"} 1",
        "stage0_deliveries_total{outcome=\"retried\"} 1",
        "stage0_deliveries_total{outcome=\"refused\"} 1",
        "stage0_delivery_request_seconds_count 3",
        "stage0_delivery_delay_seconds_count 1",
        "stage0_delivery_delay_seconds_bucket{le=\"1\"} 0",
        "stage0_endpoints{state=\"enabled\"} 1",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
    assert!(!page.contains("wh_1") && !page.contains("acc_1"), "{page}");
}

#[test]
fn an_endpoint_is_behind_while_its_receiver_hangs() {
    capture(async {
        let mut receiver = Receiver::plain().await;
        receiver.answer([Answer::Late(Duration::from_millis(500))]);
        let exporter = Exporter::start(&receiver.url("/in"), &[("first", ago(100))]).await;
        let lag = exporter.lag.clone();
        let reaches = async |wanted: fn(u32, u64) -> bool| {
            while !wanted(lag.snapshot().behind, lag.snapshot().oldest_seconds) {
                tokio::task::yield_now().await;
            }
        };
        timeout(WAIT_TIMEOUT, reaches(|behind, oldest| behind == 1 && (100..200).contains(&oldest))).await.unwrap();
        receiver.next().await;
        timeout(WAIT_TIMEOUT, reaches(|behind, oldest| behind == 0 && oldest == 0)).await.unwrap();
        assert_eq!(exporter.lag.snapshot().held, 1);
        exporter.stop().await;
    });
}

#[test]
fn an_endpoint_whose_url_is_invalid_is_reported_once_and_keeps_its_events() {
    let (lines, page) = capture(async {
        let exporter = Exporter::start("hooks.example/in", &[("first", ago(1))]).await;
        // The list is fetched twice more, with the same endpoint.
        for times in 1..=3 {
            let listed = async {
                while exporter.listings.load(Ordering::Relaxed) < times {
                    tokio::task::yield_now().await;
                }
            };
            timeout(WAIT_TIMEOUT, listed).await.unwrap();
            let changed = WebhookChanged { account: account(), id: webhook() };
            exporter.bus.connect().notices.publish(&changed).await.unwrap();
        }
        let attempted = async {
            while exporter.deliveries().await.items.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(WAIT_TIMEOUT, attempted).await.unwrap();
        let delivery = &exporter.deliveries().await.items[0];
        assert_eq!(delivery.error.as_deref(), Some(INVALID_URL));
        assert_eq!(delivery.state, DeliveryState::Waiting);
        exporter.stop().await;
    });
    let reports: Vec<_> = lines.iter().filter(|line| line["message"] == "endpoint cannot be sent to").collect();
    assert_eq!(reports.len(), 1, "{lines:#?}");
    assert_eq!(
        (&reports[0]["level"], &reports[0]["webhook"], &reports[0]["error"]),
        (&json!("ERROR"), &json!("wh_1"), &json!(INVALID_URL))
    );
    assert_eq!(only(&lines, "first")["reason"], INVALID_URL);
    assert!(page.lines().any(|line| line == "stage0_deliveries_total{outcome=\"retried\"} 1"), "{page}");
}
