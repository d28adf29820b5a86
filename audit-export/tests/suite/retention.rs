//! What the exporter removes by the clock, with clocks that a test sets.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use stage0_audit_export::{AuditExport, ExportConfig, LagTracker};
use stage0_backplane::clock::Clocks;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Batch, EntryFilter, EntryKind, Seek};
use stage0_contract::{AccountId, ListRetentions, ManageReply, MarkSigned, RetentionsPage, SecondClock, SignMark};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const WAIT_TIMEOUT: Duration = Duration::from_secs(30);
const DAY: i64 = 86_400;

/// A log with one decision of now, and a keystore that lists its retention and reports its own time.
struct Stage {
    bus: Bus,
    account: AccountId,
    /// How far this host's clock is ahead, in seconds.
    ahead: Arc<AtomicI64>,
    /// How far the clock of the keystore, in another process, is ahead; none if it runs in this process.
    keystore: Arc<Mutex<Option<i64>>>,
    /// How often the keystore listed the retentions.
    listings: Arc<AtomicI64>,
}

struct Running {
    lag: LagTracker,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Stage {
    async fn new(keystore: Option<i64>) -> Self {
        let (bus, account) = (Bus::new(), AccountId::parse("acc_1").unwrap());
        let (keystore, listings) = (Arc::new(Mutex::new(keystore)), Arc::new(AtomicI64::new(0)));
        let mut requests = bus.connect().requests.serve::<ListRetentions>().await.unwrap();
        let (keystore_ahead, count, owner) = (Arc::clone(&keystore), Arc::clone(&listings), account.clone());
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let ahead = *keystore_ahead.lock().unwrap();
                let clock = match ahead {
                    Some(ahead) => SecondClock { process: "another".to_owned(), at: later(ahead) },
                    None => {
                        SecondClock { process: stage0_backplane::clock::process().to_owned(), at: later(400 * DAY) }
                    }
                };
                let page = RetentionsPage { items: vec![(owner.clone(), 30)], next_cursor: None, clock: Some(clock) };
                request.answer(&ManageReply::Done(page)).await;
                count.fetch_add(1, Ordering::Relaxed);
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
        let stage = Self { bus, account, ahead: Arc::default(), keystore, listings };
        stage.record("one").await;
        stage
    }

    async fn record(&self, id: &str) {
        let line = json!({"type": "decision.recorded", "request_id": id, "account": "acc_1"}).to_string();
        let batch = Batch { account: self.account.clone(), id: id.to_owned(), lines: line.into() };
        let appended = self.bus.connect().log.append(vec![batch], Instant::now() + WAIT_TIMEOUT).await;
        appended.into_iter().for_each(|one| one.unwrap());
    }

    async fn start(&self) -> Running {
        let config = ExportConfig { retention_interval: Duration::from_millis(20), ..ExportConfig::default() };
        let ahead = Arc::clone(&self.ahead);
        let clocks = move || {
            let now = Clocks::now();
            Clocks { wall: now.wall + SignedDuration::from_secs(ahead.load(Ordering::Relaxed)), ..now }
        };
        let exporter = AuditExport::build(config, self.bus.connect()).await.unwrap().with_clocks(Arc::new(clocks));
        let (lag, stop) = (exporter.lag(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { exporter.run_until(stopped).await.unwrap() });
        Running { lag, stop, task }
    }

    async fn entries(&self) -> usize {
        let log = self.bus.connect().log;
        let which = EntryFilter::Only(EntryKind::Decisions);
        let read = log.read(&self.account, which, Seek::Start, 1 << 20, Instant::now() + WAIT_TIMEOUT).await;
        read.unwrap().entries.len()
    }

    /// Waits until the exporter has checked the clock a few more times.
    async fn checks_clock(&self) {
        let until = self.listings.load(Ordering::Relaxed) + 5;
        let looked = async {
            while self.listings.load(Ordering::Relaxed) < until {
                tokio::task::yield_now().await;
            }
        };
        timeout(WAIT_TIMEOUT, looked).await.unwrap();
    }

    /// Waits until the log has no decisions left.
    async fn becomes_empty(&self) {
        let emptied = async {
            while self.entries().await > 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(WAIT_TIMEOUT, emptied).await.expect("expired decisions are removed");
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
async fn a_clock_that_is_set_ahead_stops_retention_until_it_is_set_back() {
    for keystore in [None, Some(0)] {
        let stage = Stage::new(keystore).await;
        let running = stage.start().await;
        stage.checks_clock().await;
        assert_eq!(running.lag.retention_stopped(), None);
        stage.ahead.store(40 * DAY, Ordering::Relaxed);
        stage.checks_clock().await;
        let reason = running.lag.retention_stopped().expect("an alarm");
        assert!(reason.contains("40 days ahead"), "{reason}");
        // A decision that is recorded in the meantime does not confirm the clock.
        stage.record("two").await;
        stage.checks_clock().await;
        assert_eq!(stage.entries().await, 2);
        stage.ahead.store(0, Ordering::Relaxed);
        stage.checks_clock().await;
        assert_eq!((running.lag.retention_stopped(), stage.entries().await), (None, 2));
        running.end().await;
    }
}

#[tokio::test]
async fn an_exporter_that_starts_while_the_clock_is_ahead_removes_nothing() {
    let stage = Stage::new(None).await;
    // First with only the newest record to compare with, then with the offset that an earlier exporter on this boot
    // stored.
    stage.ahead.store(40 * DAY, Ordering::Relaxed);
    for before in [false, true] {
        if before {
            stage.ahead.store(0, Ordering::Relaxed);
            let right = stage.start().await;
            stage.checks_clock().await;
            right.end().await;
            stage.ahead.store(40 * DAY, Ordering::Relaxed);
        }
        let running = stage.start().await;
        stage.checks_clock().await;
        assert!(running.lag.retention_stopped().is_some());
        assert_eq!(stage.entries().await, 1);
        running.end().await;
    }
}

#[tokio::test]
async fn expired_decisions_are_removed_when_another_process_confirms_the_clock() {
    let stage = Stage::new(Some(0)).await;
    stage.ahead.store(40 * DAY, Ordering::Relaxed);
    let running = stage.start().await;
    stage.checks_clock().await;
    assert_eq!(stage.entries().await, 1);
    *stage.keystore.lock().unwrap() = Some(40 * DAY);
    stage.becomes_empty().await;
    assert_eq!(running.lag.retention_stopped(), None);
    running.end().await;
}
