//! Two keystores at one state store: one serves, the other stands by, and one that was frozen too long never answers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{
    Backplane, BoxFuture, ClockError, ListError, PutError, ReadError, Record, RecordPage, Revision, StateStore,
    StoreClock,
};
use stage0_contract::{ApiKey, KeystoreStatus, Scope};
use stage0_keystore::{BuildError, Health, Keystore, KeystoreConfig, LeaseTimes, OPERATOR_KEY_FILE, RunError};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::damage::copy_dir;
use crate::harness::{Running, anonymous, config, wait_for};

/// Shorter than a deployment's, so that no test takes long; long enough for a slow machine.
const TIMES: LeaseTimes = LeaseTimes { ttl: Duration::from_secs(2), renew_interval: Duration::from_millis(100) };

/// A keystore that may have to wait before it serves.
pub(crate) struct Node {
    pub(crate) health: Health,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Ended>>,
}

#[derive(Debug)]
pub(crate) enum Ended {
    Build(BuildError),
    Run(RunError),
}

impl Node {
    pub(crate) fn start(dir: &Path, backplane: Backplane) -> Self {
        let config = KeystoreConfig { lease: Some(TIMES), ..config(dir) };
        let (health, stop) = (Health::default(), CancellationToken::new());
        let (own, stopping) = (health.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let building: BoxFuture<'static, _> = Box::pin(Keystore::build(config, backplane, own));
            let keystore = building.await.map_err(Ended::Build)?;
            let running: BoxFuture<'static, _> = Box::pin(keystore.run_until(stopping.cancelled_owned()));
            running.await.map_err(Ended::Run)
        });
        Self { health, stop, task }
    }

    pub(crate) async fn serves(&self) {
        wait_for("a serving keystore", async || self.health.fault().is_none()).await;
    }

    pub(crate) async fn says(&self, what: &str) {
        wait_for(what, async || self.health.fault().is_some_and(|fault| fault.contains(what))).await;
    }

    pub(crate) async fn stop(self) -> Result<(), Ended> {
        self.stop.cancel();
        self.task.await.unwrap()
    }

    pub(crate) async fn ended(self) -> Ended {
        self.task.await.unwrap().unwrap_err()
    }
}

/// The state store of a keystore that can be cut off from it.
struct Flaky {
    inner: Arc<dyn StateStore>,
    away: Arc<AtomicBool>,
    /// Refuses one write of the head.
    fails_once: Arc<AtomicBool>,
}

impl Flaky {
    fn on(bus: &Bus) -> (Backplane, Arc<AtomicBool>) {
        let (backplane, away) = (bus.connect(), Arc::new(AtomicBool::new(false)));
        let state_store =
            Arc::new(Self { inner: backplane.state_store.clone(), away: away.clone(), fails_once: Arc::default() });
        (Backplane { state_store, ..backplane }, away)
    }

    /// One write of the head fails after the flag is set.
    fn once(bus: &Bus) -> (Backplane, Arc<AtomicBool>) {
        let (backplane, fails_once) = (bus.connect(), Arc::new(AtomicBool::new(false)));
        let state_store = Arc::new(Self {
            inner: backplane.state_store.clone(),
            away: Arc::default(),
            fails_once: fails_once.clone(),
        });
        (Backplane { state_store, ..backplane }, fails_once)
    }
}

impl StateStore for Flaky {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        if self.away.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(ReadError("it is away".into()))));
        }
        self.inner.get(key, deadline)
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        if self.away.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(PutError::Failed("it is away".into()))));
        }
        if key == "keystore.head" && self.fails_once.swap(false, Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(PutError::Failed("it failed once".into()))));
        }
        self.inner.put(key, value, expected, expires_in, deadline)
    }

    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        self.inner.list(under, after, most, deadline)
    }

    fn clock(&self) -> &Arc<StoreClock> {
        self.inner.clock()
    }

    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        self.inner.read_clock(max_age, deadline)
    }
}

fn operator(dir: &Path) -> ApiKey {
    ApiKey::parse(std::fs::read_to_string(dir.join(OPERATOR_KEY_FILE)).unwrap().trim_end()).unwrap()
}

async fn answers(backplane: &Backplane) -> bool {
    backplane.requests.request(&KeystoreStatus {}, Duration::from_secs(1)).await.is_ok()
}

fn refused(ended: Ended) -> String {
    match ended {
        Ended::Build(error) => std::error::Error::source(&error).unwrap().to_string(),
        Ended::Run(error) => panic!("it served: {error:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_keystore_stands_by_and_takes_over_when_the_first_ends() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let first = Node::start(dir.path(), bus.connect());
    first.serves().await;
    let second = Node::start(dir.path(), bus.connect());
    second.says("stands by: another").await;
    assert!(first.health.fault().is_none());
    first.stop().await.unwrap();
    second.serves().await;
    assert!(answers(&bus.connect()).await);
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_second_keystore_answers_nothing_and_is_refused_when_its_turn_comes() {
    let (dir, empty, bus) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Bus::new());
    let first = Node::start(dir.path(), bus.connect());
    first.serves().await;
    let second = Node::start(empty.path(), bus.connect());
    second.says("stands by: another keystore holds the lease").await;
    first.stop().await.unwrap();
    let text = refused(second.ended().await);
    assert!(text.contains("it holds nothing") && text.contains("--accept-restore"), "{text}");
    assert!(!empty.path().join("journal").exists());
    let again = Node::start(dir.path(), bus.connect());
    again.serves().await;
    again.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_takes_over_while_it_is_the_newest_and_is_refused_when_it_is_not() {
    for change in [false, true] {
        let (root, bus) = (tempfile::tempdir().unwrap(), Bus::new());
        let (dir, copied) = (root.path().join("data"), root.path().join("copy"));
        let first = Node::start(&dir, bus.connect());
        first.serves().await;
        first.stop().await.unwrap();
        copy_dir(&dir, &copied);
        let config = KeystoreConfig { lease: Some(TIMES), ..config(&dir) };
        let mut running = Running::start_on(config, bus.connect(), anonymous()).await.unwrap();
        let second = Node::start(&copied, bus.connect());
        second.says("stands by: another keystore holds the lease").await;
        running.become_operator(&dir.join(OPERATOR_KEY_FILE)).await;
        if change {
            let account = running.account("a").await.id;
            running.key(&account, &[Scope::Check]).await;
        }
        running.stop().await;
        if change {
            assert!(refused(second.ended().await).contains("older than what was acknowledged"));
        } else {
            second.serves().await;
            second.stop().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keystore_that_cannot_renew_its_lease_answers_nothing_and_ends_when_it_was_followed() {
    let (root, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let (dir, copied) = (root.path().join("data"), root.path().join("copy"));
    let first = Node::start(&dir, bus.connect());
    first.serves().await;
    first.stop().await.unwrap();
    copy_dir(&dir, &copied);
    let (cut_off, away) = Flaky::on(&bus);
    let first = Node::start(&dir, cut_off);
    first.serves().await;
    away.store(true, Ordering::SeqCst);
    first.says("the lease cannot be renewed").await;
    assert!(!answers(&bus.connect()).await);
    // Alone, it continues once the state store is back.
    away.store(false, Ordering::SeqCst);
    first.serves().await;
    assert!(answers(&bus.connect()).await);
    away.store(true, Ordering::SeqCst);
    let second = Node::start(&copied, bus.connect());
    second.serves().await;
    assert!(first.health.fault().is_some_and(|fault| fault.contains("cannot be renewed")));
    let mut running = answers(&bus.connect()).await;
    for _ in 0..20 {
        // Half of the requests still reach the first keystore and get no reply.
        running |= answers(&bus.connect()).await;
    }
    assert!(running);
    away.store(false, Ordering::SeqCst);
    assert!(matches!(first.ended().await, Ended::Run(RunError::LeaseLost)));
    assert!(answers(&bus.connect()).await);
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_state_store_a_keystore_waits_and_says_why() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let (backplane, away) = Flaky::on(&bus);
    away.store(true, Ordering::SeqCst);
    let node = Node::start(dir.path(), backplane);
    node.says("the state store does not answer").await;
    node.says("it is away").await;
    assert!(!answers(&bus.connect()).await);
    away.store(false, Ordering::SeqCst);
    node.serves().await;
    assert!(operator(dir.path()).id().as_str().len() > 4);
    node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_does_not_wait_for_a_state_store_that_is_away_and_reaches_it_later() {
    let (root, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let dir = root.path().join("data");
    let (backplane, away) = Flaky::on(&bus);
    let mut running = Running::start_on(config(&dir), backplane, anonymous()).await.unwrap();
    running.become_operator(&dir.join(OPERATOR_KEY_FILE)).await;
    let account = running.account("a").await.id;
    let key = running.key(&account, &[Scope::Check]).await;
    let backup = root.path().join("backup");
    away.store(true, Ordering::SeqCst);
    running.revoke(&key.id).await;
    assert!(!running.is_active(&key.id).await);
    away.store(false, Ordering::SeqCst);
    running.stop().await;
    copy_dir(&dir, &backup);
    let running = Running::start_on(config(&dir), bus.connect(), anonymous()).await.unwrap();
    assert!(!running.is_active(&key.id).await);
    running.stop().await;
}

/// The number of the newest change that the state store knows of.
async fn known(backplane: &Backplane) -> u64 {
    let record = backplane.state_store.get("keystore.head", Instant::now() + Duration::from_secs(5)).await.unwrap();
    let head: serde_json::Value = serde_json::from_slice(&record.unwrap().value).unwrap();
    head["sequence"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_could_not_be_written_is_written_again() {
    let (root, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let dir = root.path().join("data");
    let (backplane, fails_once) = Flaky::once(&bus);
    let mut running = Running::start_on(config(&dir), backplane, anonymous()).await.unwrap();
    running.become_operator(&dir.join(OPERATOR_KEY_FILE)).await;
    let account = running.account("a").await.id;
    let key = running.key(&account, &[Scope::Check]).await;
    let before = known(&bus.connect()).await;
    fails_once.store(true, Ordering::SeqCst);
    running.revoke(&key.id).await;
    assert!(!fails_once.load(Ordering::SeqCst), "the write was tried");
    assert_eq!(known(&bus.connect()).await, before + 1, "a backup from before the revocation would be taken");
    running.stop().await;
}
