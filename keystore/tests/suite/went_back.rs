//! The state store or the machine of a keystore is put back to an earlier state while it runs, or the keystore is
//! copied. It goes on only with records that it wrote or tried last.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use stage0_backplane::embedded::Bus;
use stage0_backplane::{Backplane, BoxFuture, PutError, ReadError, Record, Revision, StateStore, StateStoreLayer};
use stage0_contract::Scope;
use stage0_keystore::{BuildError, OPERATOR_KEY_FILE, RunError};
use tokio::time::Instant;

use crate::harness::{Running, anonymous, config, wait_for};
use crate::two::{Ended, Node};

const LEASE: &str = "keystore.lease";
const HEAD: &str = "keystore.head";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

async fn read(backplane: &Backplane, key: &str) -> Record {
    backplane.state_store.get(key, soon()).await.unwrap().expect("a record")
}

/// Replaces a record, whatever its revision.
async fn replace(backplane: &Backplane, key: &str, value: &Bytes) {
    loop {
        let revision = read(backplane, key).await.revision;
        match backplane.state_store.put(key, value.clone(), Some(revision), None, soon()).await {
            Ok(_) => return,
            Err(PutError::Conflict) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A state store whose acknowledgements are lost, or which went back.
struct Faulty {
    inner: Arc<dyn StateStore>,
    /// Stores this many writes of the head and the lease without acknowledging them.
    loses: Arc<AtomicUsize>,
    went_back: Arc<AtomicBool>,
}

impl Faulty {
    fn on(bus: &Bus) -> (Backplane, Arc<AtomicUsize>, Arc<AtomicBool>) {
        let (backplane, loses, went_back) = (bus.connect(), Arc::default(), Arc::default());
        let inner = backplane.state_store.clone();
        let state_store = Arc::new(Self { inner, loses: Arc::clone(&loses), went_back: Arc::clone(&went_back) });
        (Backplane { state_store, ..backplane }, loses, went_back)
    }
}

impl StateStoreLayer for Faulty {
    fn inner(&self) -> &dyn StateStore {
        &*self.inner
    }

    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        if self.went_back.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(ReadError("it was heard before".into()))));
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
        Box::pin(async move {
            if self.went_back.load(Ordering::SeqCst) {
                return Err(PutError::Conflict);
            }
            let stored = self.inner.put(key, value, expected, expires_in, deadline).await?;
            let less = |left: usize| left.checked_sub(1);
            if [LEASE, HEAD].contains(&key) && self.loses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
            {
                return Err(PutError::Failed("no acknowledgement".into()));
            }
            Ok(stored)
        })
    }

    fn was_rolled_back<'a>(&'a self, _: &'a str, _: Instant) -> BoxFuture<'a, bool> {
        Box::pin(async { self.went_back.load(Ordering::SeqCst) })
    }
}

async fn change(dir: &Path, running: &mut Running) {
    running.become_operator(&dir.join(OPERATOR_KEY_FILE)).await;
    let account = running.account("a").await.id;
    running.key(&account, &[Scope::Check]).await;
}

fn is_went_back(ended: &Ended) {
    assert!(matches!(ended, Ended::Run(RunError::StateStoreWentBack)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_its_own_name_that_it_did_not_write_last_ends_a_keystore() {
    let as_it_is: fn(&mut Value) = |_| {};
    let of_a_copy: fn(&mut Value) = |lease| lease["renewal"] = "another".into();
    let released: fn(&mut Value) = |lease| lease["released"] = true.into();
    let of_an_earlier_holder: fn(&mut Value) = |lease| {
        lease["holder"] = "another".into();
        lease["term"] = 1.into();
    };
    for put_back in [as_it_is, of_a_copy, released, of_an_earlier_holder] {
        let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
        let (node, backplane) = (Node::start(dir.path(), bus.connect()), bus.connect());
        node.serves().await;
        let earlier = read(&backplane, LEASE).await;
        wait_for("two renewals", async || read(&backplane, LEASE).await.revision.0 > earlier.revision.0 + 2).await;
        let mut lease = serde_json::from_slice(&earlier.value).unwrap();
        put_back(&mut lease);
        replace(&backplane, LEASE, &serde_json::to_vec(&lease).unwrap().into()).await;
        is_went_back(&node.ended().await);
        let again = Node::start(dir.path(), bus.connect());
        again.serves().await;
        again.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_of_its_own_term_that_it_did_not_write_last_ends_a_keystore() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let mut running = Running::start_on(config(dir.path()), bus.connect(), anonymous()).await.unwrap();
    let backplane = bus.connect();
    let earlier = read(&backplane, HEAD).await.value;
    change(dir.path(), &mut running).await;
    wait_for("the head", async || read(&backplane, HEAD).await.value != earlier).await;
    replace(&backplane, HEAD, &earlier).await;
    let create = running.create(&running.operator.account, &[Scope::Check]);
    // It may end without a reply.
    drop(backplane.requests.request(&create, Duration::from_secs(2)).await);
    assert!(matches!(running.ended().await, RunError::StateStoreWentBack));
    // The directory is newer than the head and proves it.
    Running::start_on(config(dir.path()), bus.connect(), anonymous()).await.unwrap().stop().await;
}

/// The state store went back between two renewals of the lease, and nothing changed since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_went_back_is_noticed_without_a_change_and_one_that_is_gone_is_written_again() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let mut running = Running::start_on(config(dir.path()), bus.connect(), anonymous()).await.unwrap();
    let backplane = bus.connect();
    let earlier = read(&backplane, HEAD).await.value;
    change(dir.path(), &mut running).await;
    wait_for("the head", async || read(&backplane, HEAD).await.value != earlier).await;
    let Record { revision, value } = read(&backplane, HEAD).await;
    let brief = Some(Duration::from_millis(1));
    let ended = backplane.state_store.put(HEAD, value.clone(), Some(revision), brief, soon()).await.unwrap();
    wait_for("the head again", async || {
        let found = backplane.state_store.get(HEAD, soon()).await.unwrap();
        found.is_some_and(|found| found.revision > ended && found.value == value)
    })
    .await;
    replace(&backplane, HEAD, &earlier).await;
    assert!(matches!(running.ended().await, RunError::StateStoreWentBack));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keystore_whose_acknowledgements_are_lost_goes_on_with_what_it_tried() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let (faulty, loses, _) = Faulty::on(&bus);
    loses.store(1, Ordering::SeqCst);
    let node = Node::start(dir.path(), faulty);
    node.serves().await;
    loses.store(5, Ordering::SeqCst);
    wait_for("lost acknowledgements", async || loses.load(Ordering::SeqCst) == 0).await;
    let (backplane, renewed) = (bus.connect(), read(&bus.connect(), LEASE).await.revision.0);
    wait_for("renewals", async || read(&backplane, LEASE).await.revision.0 > renewed + 3).await;
    node.stop().await.unwrap();

    let (faulty, loses, _) = Faulty::on(&bus);
    let mut running = Running::start_on(config(dir.path()), faulty, anonymous()).await.unwrap();
    loses.store(2, Ordering::SeqCst);
    change(dir.path(), &mut running).await;
    wait_for("lost acknowledgements", async || loses.load(Ordering::SeqCst) == 0).await;
    change(dir.path(), &mut running).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_state_store_went_back_the_holder_and_who_stands_by_say_so_and_end() {
    let (dir, bus) = (tempfile::tempdir().unwrap(), Bus::new());
    let ((first, _, first_went_back), (second, _, second_went_back)) = (Faulty::on(&bus), Faulty::on(&bus));
    let first = Node::start(dir.path(), first);
    first.serves().await;
    let second = Node::start(dir.path(), second);
    second.says("stands by: another").await;
    second_went_back.store(true, Ordering::SeqCst);
    let ended = second.ended().await;
    assert!(matches!(&ended, Ended::Build(BuildError::StateStoreWentBack)), "{ended:?}");
    assert!(first.health.fault().is_none());
    first_went_back.store(true, Ordering::SeqCst);
    is_went_back(&first.ended().await);
}
