//! What the exporter removes by the clock, with clocks that a test sets.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use stage0_audit_export::{AuditExport, ExportConfig, LagWatch};
use stage0_backplane::clock::Clocks;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Batch, Kind, Seek, Which};
use stage0_contract::{AccountId, ListRetentions, ManageReply, MarkSigned, RetentionsPage, SignMark, VouchedTime};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
const DAY: i64 = 86_400;

/// A log with one decision of now, and a keystore that says how long it is kept and which time it is.
struct Stage {
    bus: Bus,
    account: AccountId,
    /// How far this host's clock is ahead, in seconds.
    ahead: Arc<AtomicI64>,
    /// How far the keystore's is, in another process; none: it is in this one.
    keystore: Arc<Mutex<Option<i64>>>,
    /// How often it was asked.
    asked: Arc<AtomicI64>,
}

struct Running {
    lag: LagWatch,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Stage {
    async fn new(keystore: Option<i64>) -> Self {
        let (bus, account) = (Bus::new(), AccountId::parse("acc_1").unwrap());
        let (keystore, asked) = (Arc::new(Mutex::new(keystore)), Arc::new(AtomicI64::new(0)));
        let mut questions = bus.connect().requests.serve::<ListRetentions>().await.unwrap();
        let (says, counts, whose) = (Arc::clone(&keystore), Arc::clone(&asked), account.clone());
        tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let ahead = *says.lock().unwrap();
                let clock = match ahead {
                    Some(ahead) => VouchedTime { process: "another".to_owned(), at: later(ahead) },
                    None => {
                        VouchedTime { process: stage0_backplane::clock::process().to_owned(), at: later(400 * DAY) }
                    }
                };
                let page = RetentionsPage { items: vec![(whose.clone(), 30)], next_cursor: None, clock: Some(clock) };
                question.answer(&ManageReply::Done(page)).await;
                counts.fetch_add(1, Ordering::Relaxed);
            }
        });
        // It signs what it is asked to; what it refuses is tested where it is real.
        let mut marks = bus.connect().requests.serve::<SignMark>().await.unwrap();
        tokio::spawn(async move {
            while let Some(question) = marks.next().await {
                let line = serde_json::to_string(&question.request.mark).unwrap();
                question.answer(&ManageReply::Done(MarkSigned { line, earlier: false })).await;
            }
        });
        let stage = Self { bus, account, ahead: Arc::default(), keystore, asked };
        stage.record("one").await;
        stage
    }

    async fn record(&self, id: &str) {
        let line = json!({"type": "decision.recorded", "request_id": id, "account": "acc_1"}).to_string();
        let batch = Batch { account: self.account.clone(), id: id.to_owned(), lines: line.into() };
        let appended = self.bus.connect().log.append(vec![batch], Instant::now() + PATIENCE).await;
        appended.into_iter().for_each(|one| one.unwrap());
    }

    async fn start(&self) -> Running {
        let config = ExportConfig { retention_every: Duration::from_millis(20), ..ExportConfig::default() };
        let ahead = Arc::clone(&self.ahead);
        let clocks = move || {
            let now = Clocks::now();
            Clocks { wall: now.wall + SignedDuration::from_secs(ahead.load(Ordering::Relaxed)), ..now }
        };
        let exporter = AuditExport::build(config, self.bus.connect()).await.unwrap().by(Arc::new(clocks));
        let (lag, stop) = (exporter.lag(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { exporter.run_until(stopped).await.unwrap() });
        Running { lag, stop, task }
    }

    async fn entries(&self) -> usize {
        let log = self.bus.connect().log;
        let which = Which::Only(Kind::Decisions);
        let read = log.read(&self.account, which, Seek::Start, 1 << 20, Instant::now() + PATIENCE).await;
        read.unwrap().entries.len()
    }

    /// Until the exporter has looked at the clock a few times more.
    async fn looks(&self) {
        let until = self.asked.load(Ordering::Relaxed) + 5;
        let looked = async {
            while self.asked.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, looked).await.unwrap();
    }

    async fn empties(&self) {
        let emptied = async {
            while self.entries().await > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, emptied).await.expect("what is past its time is removed");
    }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::now() + SignedDuration::from_secs(seconds)
}

#[tokio::test]
async fn a_clock_that_is_set_ahead_removes_nothing_and_raises_the_alarm_until_it_is_right_again() {
    for keystore in [None, Some(0)] {
        let stage = Stage::new(keystore).await;
        let running = stage.start().await;
        stage.looks().await;
        assert_eq!(running.lag.retention_stopped(), None);
        stage.ahead.store(40 * DAY, Ordering::Relaxed);
        stage.looks().await;
        let said = running.lag.retention_stopped().expect("an alarm");
        assert!(said.contains("40 days ahead"), "{said}");
        // A decision that is recorded meanwhile confirms nothing.
        stage.record("two").await;
        stage.looks().await;
        assert_eq!(stage.entries().await, 2);
        stage.ahead.store(0, Ordering::Relaxed);
        stage.looks().await;
        assert_eq!((running.lag.retention_stopped(), stage.entries().await), (None, 2));
        running.end().await;
    }
}

#[tokio::test]
async fn an_exporter_that_starts_while_the_clock_is_ahead_removes_nothing() {
    let stage = Stage::new(None).await;
    // With the newest record alone to compare with; and after an exporter of the same boot has left behind what it
    // believed.
    stage.ahead.store(40 * DAY, Ordering::Relaxed);
    for before in [false, true] {
        if before {
            stage.ahead.store(0, Ordering::Relaxed);
            let right = stage.start().await;
            stage.looks().await;
            right.end().await;
            stage.ahead.store(40 * DAY, Ordering::Relaxed);
        }
        let running = stage.start().await;
        stage.looks().await;
        assert!(running.lag.retention_stopped().is_some());
        assert_eq!(stage.entries().await, 1);
        running.end().await;
    }
}

#[tokio::test]
async fn what_is_past_its_time_goes_when_another_process_has_the_same_time() {
    let stage = Stage::new(Some(0)).await;
    stage.ahead.store(40 * DAY, Ordering::Relaxed);
    let running = stage.start().await;
    stage.looks().await;
    assert_eq!(stage.entries().await, 1);
    *stage.keystore.lock().unwrap() = Some(40 * DAY);
    stage.empties().await;
    assert_eq!(running.lag.retention_stopped(), None);
    running.end().await;
}
