//! Two keystores at one state store: one serves, the other stands by, and one that was frozen too long never answers.
//! What the one has acknowledged the other has, whatever became of the first one's machine.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, BoxFuture, PutError, ReadError, Record, Revision, StateStore, StateStoreLayer};
use stage0_contract::{
    ApiKey, CreateStop, KeyCreated, KeystoreStatus, ListMembers, ListStops, ManageReply, Scope, StopScope, VerifyKey,
    VerifyKeyReply,
};
use stage0_keystore::{
    BuildError, Health, Keystore, KeystoreConfig, LeaseTimes, OPERATOR_KEY_FILE, RunError, SECRETS_KEY_FILE,
    SIGNING_KEY_FILE,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::damage::copy_dir;
use crate::harness::{Running, anonymous, config, done, state_store, wait_for};

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

impl StateStoreLayer for Flaky {
    fn inner(&self) -> &dyn StateStore {
        &*self.inner
    }

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
async fn a_copy_takes_over_and_has_what_was_changed_after_it_was_made() {
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
        let mut made = None;
        if change {
            let account = running.account("a").await.id;
            made = Some(running.key(&account, &[Scope::Check]).await);
        }
        running.stop().await;
        second.serves().await;
        if let Some(key) = made {
            assert!(is_valid(&bus.connect(), &key.key).await);
            // What the copy was is kept.
            let names: Vec<_> = names(&copied).into_iter().filter(|name| name.contains(".older-")).collect();
            assert_eq!(names.len(), 2, "{names:?}");
        }
        second.stop().await.unwrap();
    }
}

/// Lets the keystore's machine be lost: nothing of it reaches the state store any more, and its directory is gone.
async fn lose(running: Running, away: &AtomicBool, dir: &Path) {
    away.store(true, Ordering::SeqCst);
    running.stop().await;
    std::fs::remove_dir_all(dir).unwrap();
}

/// An empty directory with the keys of another keystore.
fn with_keys_of(dir: &Path, empty: &Path) {
    std::fs::create_dir(empty).unwrap();
    for name in [SECRETS_KEY_FILE, SIGNING_KEY_FILE] {
        std::fs::copy(dir.join(name), empty.join(name)).unwrap();
    }
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn is_valid(backplane: &Backplane, key: &ApiKey) -> bool {
    let call = VerifyKey { key: key.clone(), request_id: None };
    matches!(backplane.requests.request(&call, Duration::from_secs(5)).await, Ok(VerifyKeyReply::Valid(_)))
}

/// A keystore with a lease, whose machine can be lost, and an operator.
async fn holder(dir: &Path, bus: &Bus) -> (Running, Arc<AtomicBool>) {
    let (backplane, away) = Flaky::on(bus);
    let config = KeystoreConfig { lease: Some(TIMES), ..config(dir) };
    let mut running = Running::start_on(config, backplane, anonymous()).await.unwrap();
    running.become_operator(&dir.join(OPERATOR_KEY_FILE)).await;
    (running, away)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keystore_with_an_empty_directory_takes_over_everything_when_the_machine_of_the_other_is_lost() {
    let (root, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let (dir, empty) = (root.path().join("data"), root.path().join("empty"));
    let (running, away) = holder(&dir, &bus).await;
    with_keys_of(&dir, &empty);
    let second = Node::start(&empty, bus.connect());
    second.says("has followed every change").await;
    assert!(!empty.join("journal").exists() && !empty.join("store").exists(), "it only stands by");
    let account = running.account("a").await.id;
    let key = running.key(&account, &[Scope::Check]).await;
    let gone = running.key(&account, &[Scope::Check]).await;
    let endpoint = running.webhook(&account).await;
    let (member, _) = running.member(&account, &[]).await;
    let call = CreateStop {
        caller: running.operator.clone(),
        account: Some(account.clone()),
        scope: StopScope::Account,
        value: None,
        reason: "lost".to_owned(),
        until: None,
    };
    let stop = done(running.ask(&call).await).id;
    // The last of all: acknowledged, and then the machine is lost.
    running.revoke(&gone.id).await;
    let operator = running.operator.clone();
    lose(running, &away, &dir).await;
    second.serves().await;
    let taken = Running::beside(bus.connect(), operator);
    assert!(is_valid(&taken.backplane, &key.key).await && !taken.is_active(&gone.id).await);
    assert_eq!(taken.keys_of(&account).await, 3, "the member has one");
    let endpoints = taken.endpoints().await;
    assert_eq!(endpoints.iter().map(|found| &found.webhook.id).collect::<Vec<_>>(), [&endpoint.webhook.id]);
    assert_eq!(endpoints[0].secrets, [endpoint.secret], "its secret opens");
    let (caller, account) = (taken.operator.clone(), Some(account.clone()));
    let stops =
        done(taken.ask(&ListStops { caller: caller.clone(), account: account.clone(), cursor: None, limit: 9 }).await);
    assert_eq!(stops.items.iter().map(|found| &found.id).collect::<Vec<_>>(), [&stop]);
    let members = done(taken.ask(&ListMembers { caller, account, cursor: None, limit: 9 }).await);
    assert_eq!(members.items.iter().map(|found| &found.id).collect::<Vec<_>>(), [&member]);
    second.stop().await.unwrap();
    // From then on it is a directory like any other.
    let again = Node::start(&empty, bus.connect());
    again.serves().await;
    again.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_lost_in_a_flood_of_changes_takes_no_acknowledged_one_with_it() {
    let (root, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let mut dir = root.path().join("0");
    let (mut running, mut away) = holder(&dir, &bus).await;
    let account = running.account("a").await.id;
    for turn in 1..=3 {
        let next = root.path().join(turn.to_string());
        with_keys_of(&dir, &next);
        let acknowledged: Arc<Mutex<Vec<KeyCreated>>> = Arc::default();
        let makers: Vec<_> = (0..4)
            .map(|_| {
                let (backplane, call) = (running.backplane.clone(), running.create(&account, &[Scope::Check]));
                let acknowledged = Arc::clone(&acknowledged);
                tokio::spawn(async move {
                    while let Ok(ManageReply::Done(made)) =
                        backplane.requests.request(&call, Duration::from_secs(2)).await
                    {
                        acknowledged.lock().unwrap().push(made);
                    }
                })
            })
            .collect();
        wait_for("some changes", async || acknowledged.lock().unwrap().len() > 10).await;
        // No caller hears the answers of a lost machine.
        makers.iter().for_each(tokio::task::JoinHandle::abort);
        let operator = running.operator.clone();
        lose(running, &away, &dir).await;
        let (backplane, cut) = Flaky::on(&bus);
        let config = KeystoreConfig { lease: Some(TIMES), ..config(&next) };
        running = Running::start_on(config, backplane, operator).await.unwrap();
        let keys = acknowledged.lock().unwrap().clone();
        for key in keys {
            assert!(running.is_active(&key.id).await, "turn {turn}: {} was acknowledged", key.id);
        }
        (dir, away) = (next, cut);
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_went_on_by_itself_is_refused_and_a_restore_is_not_undone() {
    let root = tempfile::tempdir().unwrap();
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    let (dir, copied) = (one.join("data"), two.join("data"));
    let (running, _) = holder(&dir, &state_store(&one).await).await;
    running.stop().await;
    copy_dir(&one, &two);
    // Beside a copy of the state store: a change of its own.
    let alone = holder(&copied, &state_store(&two).await).await.0;
    alone.account("alone").await;
    alone.stop().await;
    let bus = state_store(&one).await;
    let (running, _) = holder(&dir, &bus).await;
    for name in ["a", "b", "c"] {
        running.account(name).await;
    }
    running.stop().await;
    let text = refused(Node::start(&copied, bus.connect()).ended().await);
    assert!(text.contains("other content than the state store knows of"), "{text}");
    // The operator wants the older state.
    let config = KeystoreConfig { lease: Some(TIMES), accept_restore: true, ..config(&copied) };
    let running = Running::start_on(config, bus.connect(), anonymous()).await.unwrap();
    running.stop().await;
    let text = refused(Node::start(&dir, bus.connect()).ended().await);
    assert!(text.contains("not those of the keystore that served last"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_version_wrote_is_shipped_once_and_not_taken_over_before() {
    let (root, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let (dir, empty) = (root.path().join("data"), root.path().join("empty"));
    // A keystore without a lease ships nothing, as earlier versions do.
    let mut earlier = Running::start_on(config(&dir), bus.connect(), anonymous()).await.unwrap();
    earlier.become_operator(&dir.join(OPERATOR_KEY_FILE)).await;
    let account = earlier.account("a").await.id;
    earlier.stop().await;
    with_keys_of(&dir, &empty);
    let text = refused(Node::start(&empty, bus.connect()).ended().await);
    assert!(text.contains("it holds nothing") && text.contains("did not ship its journal"), "{text}");
    let (running, away) = holder(&dir, &bus).await;
    let operator = running.operator.clone();
    lose(running, &away, &dir).await;
    let second = Node::start(&empty, bus.connect());
    second.serves().await;
    assert_eq!(Running::beside(bus.connect(), operator).keys_of(&account).await, 0);
    second.stop().await.unwrap();
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
