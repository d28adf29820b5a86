//! What an operator sees of deliveries: a line for each attempt, counts, and how far they are behind.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value, json};
use stage0_audit_export::egress::EgressConfig;
use stage0_audit_export::{AuditExport, ExportConfig, LagWatch};
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, Batch};
use stage0_contract::{AccountId, EndpointsPage, ListEndpoints, ManageReply};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::LevelFilter;

use crate::receiver::{Answer, Receiver};

const PATIENCE: Duration = Duration::from_secs(30);

/// What was logged.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What work leaves behind: the lines of the log, as a role writes them, and the page of metrics.
fn left_by(work: impl Future<Output = ()>) -> (Vec<Value>, String) {
    let written = Written::default();
    let lines = written.clone();
    let json = tracing_subscriber::fmt().json().flatten_event(true).with_max_level(LevelFilter::DEBUG);
    let subscriber = json.with_writer(move || lines.clone()).finish();
    let recorder = PrometheusBuilder::new().set_buckets(&[1.0]).unwrap().build_recorder();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tracing::subscriber::with_default(subscriber, || {
        metrics::with_local_recorder(&recorder, || runtime.block_on(work));
    });
    let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), recorder.handle().render())
}

/// An exporter that runs, with one endpoint on a list that never changes.
struct Stage {
    bus: Bus,
    lag: LagWatch,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Stage {
    async fn start(url: &str, recorded: &[(&str, Timestamp)]) -> Self {
        let bus = Bus::new();
        record(&bus.connect(), recorded).await;
        let list: EndpointsPage = serde_json::from_value(json!({"items": [{
            "id": "wh_1", "account": "acc_1", "url": url, "verdicts": null, "environments": null, "description": "",
            "rate_limit": null, "enabled": true, "disabled_reason": null, "created_at": "2026-01-01T00:00:00Z",
            "secrets": ["whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc="], "retention_days": 30,
        }], "next_cursor": null}))
        .unwrap();
        let mut asked = bus.connect().requests.serve::<ListEndpoints>().await.unwrap();
        tokio::spawn(async move {
            while let Some(question) = asked.next().await {
                question.answer(&ManageReply::Done(list.clone())).await;
            }
        });
        let egress = EgressConfig { dangerous_allow_private: true, ..EgressConfig::default() };
        let config = ExportConfig { egress, ..ExportConfig::default() };
        let exporter = AuditExport::build(config, bus.connect()).await.unwrap();
        let (lag, stop) = (exporter.lag(), CancellationToken::new());
        let stopped = stop.clone();
        let running = tokio::spawn(async move { exporter.run_until(stopped).await.unwrap() });
        Self { bus, lag, stop, running }
    }

    /// Lands what is on its way.
    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
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
    let account = AccountId::parse("acc_1").unwrap();
    let batch = Batch { account, id: "one".to_owned(), lines: lines.join("\n").into() };
    for appended in backplane.log.append(vec![batch], Instant::now() + PATIENCE).await {
        appended.unwrap();
    }
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
fn each_attempt_leaves_a_line_with_the_decisions_id_and_is_counted_by_what_came_of_it() {
    let (lines, page) = left_by(async {
        let mut receiver = Receiver::plain().await;
        receiver.answer([Answer::status(204), Answer::status(500), Answer::status(410)]);
        let all = [("first", ago(100)), ("second", ago(100)), ("third", ago(100))];
        let stage = Stage::start(&receiver.url("/in"), &all).await;
        for _ in all {
            receiver.next().await;
        }
        stage.end().await;
    });
    let mut told: Vec<_> = ["first", "second", "third"].iter().map(|id| only(&lines, id)).collect();
    for line in &told {
        assert_eq!((&line["webhook"], &line["attempt"]), (&json!("wh_1"), &json!(1)));
        assert!(line["duration_ms"].is_f64() && !line.to_string().contains("tell nobody"), "{line}");
    }
    // Three are sent at once, so that any of them may get any of the answers.
    told.sort_by_key(|line| line["outcome"].to_string());
    let told: Vec<_> = told.iter().map(|line| (line["outcome"].as_str(), line["level"].as_str())).collect();
    let wanted = [("delivered", "DEBUG"), ("refused", "WARN"), ("retried", "INFO")];
    assert_eq!(told, wanted.map(|(outcome, level)| (Some(outcome), Some(level))));
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
fn a_receiver_that_hangs_puts_its_endpoint_behind_until_it_answers() {
    left_by(async {
        let mut receiver = Receiver::plain().await;
        receiver.answer([Answer::Late(Duration::from_millis(500))]);
        let stage = Stage::start(&receiver.url("/in"), &[("first", ago(100))]).await;
        let lag = stage.lag.clone();
        let seen = async |wanted: fn(u32, u64) -> bool| {
            while !wanted(lag.snapshot().behind, lag.snapshot().oldest_seconds) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, seen(|behind, oldest| behind == 1 && (100..200).contains(&oldest))).await.unwrap();
        receiver.next().await;
        timeout(PATIENCE, seen(|behind, oldest| behind == 0 && oldest == 0)).await.unwrap();
        assert_eq!(stage.lag.snapshot().held, 1);
        stage.end().await;
    });
}
