//! Tests of a copy: shipped, followed, taken over and begun again, with the keystores that write and read it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use stage0_backplane::{
    Backplane, BoxFuture, ClockError, ListError, NotReady, PutError, ReadError, RecordPage, StoreClock,
};
use tokio::time::Duration;

use super::follower::{FollowError, Follower};
use super::shipper::{Shipper, Step};
use super::*;
use crate::config::KeystoreConfig;
use crate::head::Head;
use crate::keyfile::{self, KeyBytes, SECRETS_KEY_FILE};
use crate::lease::tenure::{Loss, Tenure};
use crate::seal::tests::sealer_of;
use crate::store::DurableStore;
use crate::store::record::Record as Entry;
use crate::store::record::tests::{account, at, key};
use crate::store::snapshot::{Position, StoreId};

/// A state store that has room for new parts, or not.
struct Bounded {
    inner: Arc<dyn StateStore>,
    is_full: AtomicBool,
}

impl StateStore for Bounded {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
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

    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        let full = self.is_full.load(Ordering::SeqCst);
        Box::pin(async move { if full { Err(NotReady("there is no room".into())) } else { Ok(()) } })
    }
}

/// A keystore that serves: its directory, and what it ships.
struct Holder {
    dir: tempfile::TempDir,
    durable: DurableStore,
    shipper: Shipper,
    tenure: Tenure,
    state_store: Arc<dyn StateStore>,
}

impl Holder {
    async fn start() -> Self {
        Self::on(Backplane::embedded().state_store).await
    }

    async fn on(state_store: Arc<dyn StateStore>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut durable = DurableStore::open(dir.path(), StoreId::from_random([1; 16]), at(1)).unwrap();
        durable.commit(&[Entry::Account(account("a"))]).unwrap();
        Self::attached(dir, durable, state_store, None).await
    }

    async fn attached(
        dir: tempfile::TempDir,
        durable: DurableStore,
        state_store: Arc<dyn StateStore>,
        head: Option<Head>,
    ) -> Self {
        let (tenure, sealer) = (Tenure::unlimited(), sealer_of(1).journal_sealer().unwrap());
        let shared = (Arc::clone(&state_store), sealer, tenure.clone());
        let mut shipper = Shipper::attach(shared, dir.path(), durable.changes.clone(), head.as_ref()).await.unwrap();
        shipper.begin().await.unwrap();
        Self { dir, durable, shipper, tenure, state_store }
    }

    /// Ends it, and starts it again on its directory.
    async fn restarted(self, head: Head, unshipped: &[&str]) -> Self {
        let Self { dir, mut durable, shipper, state_store, .. } = self;
        drop(shipper);
        for id in unshipped {
            durable.commit(&[Entry::Key(key(id, "a", &[]))]).unwrap();
        }
        drop(durable);
        let durable = DurableStore::open(dir.path(), StoreId::from_random([9; 16]), at(1)).unwrap();
        Self::attached(dir, durable, state_store, Some(head)).await
    }

    fn commit(&mut self, id: &str, name_bytes: usize) {
        let mut record = key(id, "a", &[]);
        record.name = "n".repeat(name_bytes);
        self.durable.commit(&[Entry::Key(record)]).unwrap();
    }

    /// The head after everything was shipped.
    async fn head(&mut self) -> Head {
        let position = self.shipper.ship().await.unwrap();
        Head { position, term: 1, journal: self.shipper.shipped() }
    }

    /// Works until there is nothing to do, with a change before each step.
    async fn work(&mut self) -> u32 {
        let (mut copies, mut steps) = (0, 0);
        while self.shipper.has_work() {
            steps += 1;
            self.commit(&format!("w{steps}"), 100);
            self.shipper.ship().await.unwrap();
            copies += u32::from(self.shipper.step().await == Ok(Step::NewCopy));
        }
        copies
    }

    fn follower(&self, key_byte: Option<u8>) -> (Follower, tempfile::TempDir) {
        let empty = tempfile::tempdir().unwrap();
        if let Some(byte) = key_byte {
            keyfile::write(empty.path(), SECRETS_KEY_FILE, &KeyBytes::new([byte; 32])).unwrap();
        }
        (Follower::new(Arc::clone(&self.state_store), KeystoreConfig::new(empty.path())), empty)
    }

    /// What a keystore with an empty directory takes over is what this one has.
    async fn is_followed(&self, follower: &mut Follower, head: &Head) {
        let journal = follower.journal(head).await.unwrap();
        let (found, own) = (journal.replay.snapshot.unwrap(), self.durable.store.snapshot().unwrap());
        assert_eq!((found.position, found.records()), (own.position, own.records()));
        assert_eq!(found.position, head.position);
    }
}

async fn parts_in(state_store: &Arc<dyn StateStore>, half: Half) -> usize {
    let mut found = 0;
    for part in 0..200 {
        let until = Instant::now() + STORE_TIMEOUT;
        found += usize::from(state_store.get(&half.key(part), until).await.unwrap().is_some());
    }
    found
}

#[tokio::test]
async fn each_change_can_be_taken_over_as_soon_as_the_head_has_it() {
    let mut holder = Holder::start().await;
    let (mut follower, _dir) = holder.follower(Some(1));
    for change in 0..60 {
        // Most share a part, some get one of their own, one needs several.
        holder.commit(&format!("k{change}"), if change == 30 { 600_000 } else { change * 90 });
        let head = holder.head().await;
        assert_eq!(head.position.sequence, head.journal.unwrap().sequence);
        follower.follow(&head).await.unwrap();
    }
    let head = holder.head().await;
    assert!(head.journal.unwrap().parts > 6, "{head:?}");
    holder.is_followed(&mut follower, &head).await;
    let (mut late, _dir) = holder.follower(Some(1));
    holder.is_followed(&mut late, &head).await;
}

#[tokio::test]
async fn a_copy_that_has_grown_is_replaced_while_changes_go_on_and_its_records_expire() {
    let mut holder = Holder::start().await;
    let first = holder.head().await.journal.unwrap();
    let (mut follower, _dir) = holder.follower(Some(1));
    for change in 0..12 {
        holder.commit(&format!("k{}", change % 3), 250_000);
        let head = holder.head().await;
        follower.follow(&head).await.unwrap();
    }
    assert_eq!(holder.work().await, 1);
    let head = holder.head().await;
    let second = head.journal.unwrap();
    assert!(second.copy != first.copy && second.half != first.half && second.bytes < 1_000_000, "{second:?}");
    holder.is_followed(&mut follower, &head).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(parts_in(&holder.state_store, first.half).await, 0);
    assert_eq!(parts_in(&holder.state_store, second.half).await, second.parts as usize);
}

#[tokio::test]
async fn a_restart_continues_the_copy_and_ships_what_it_lacks() {
    let mut holder = Holder::start().await;
    holder.commit("k1", 10);
    let head = holder.head().await;
    // Stored, and the machine failed before it was shipped.
    let mut holder = holder.restarted(head, &["k2", "k3"]).await;
    let next = holder.head().await;
    assert_eq!(next.journal.unwrap().copy, head.journal.unwrap().copy);
    assert_eq!(next.position.sequence, head.position.sequence + 2);
    let (mut follower, _dir) = holder.follower(Some(1));
    holder.is_followed(&mut follower, &next).await;
}

#[tokio::test]
async fn a_head_of_an_earlier_version_or_of_another_directory_needs_a_new_copy() {
    for change in [
        |head: &mut Head| head.journal = None,
        |head: &mut Head| head.position.store_id = StoreId::from_random([7; 16]),
        |head: &mut Head| head.journal.as_mut().unwrap().digest = Digest::default(),
        |head: &mut Head| head.journal.as_mut().unwrap().parts = 9,
    ] {
        let mut holder = Holder::start().await;
        holder.commit("k1", 10);
        let mut head = holder.head().await;
        let before = head.journal.unwrap();
        change(&mut head);
        let mut holder = holder.restarted(head, &["k2"]).await;
        let next = holder.head().await;
        assert_ne!(next.journal.unwrap().copy, before.copy);
        // The copy that the head names stays whole until the head names the new one.
        assert!(head.journal.is_none() || next.journal.unwrap().half != before.half);
        let (mut follower, _dir) = holder.follower(Some(1));
        holder.is_followed(&mut follower, &next).await;
    }
}

#[tokio::test]
async fn the_first_write_of_a_term_makes_late_writes_of_the_term_before_conflict() {
    let mut holder = Holder::start().await;
    holder.commit("k1", 10);
    let head = holder.head().await;
    let shipped = head.journal.unwrap();
    let last = shipped.half.key(shipped.parts - 1);
    let store = Arc::clone(&holder.state_store);
    let until = Instant::now() + STORE_TIMEOUT;
    let seen = store.get(&last, until).await.unwrap().unwrap();
    let holder = holder.restarted(head, &[]).await;
    let late = store.put(&last, seen.value, Some(seen.revision), None, Instant::now() + STORE_TIMEOUT).await;
    assert_eq!(late, Err(PutError::Conflict));
    assert_eq!(holder.shipper.shipped().unwrap().copy, shipped.copy);
}

#[tokio::test]
async fn a_keystore_that_was_replaced_ships_nothing() {
    let mut holder = Holder::start().await;
    let head = holder.head().await;
    holder.commit("k1", 10);
    holder.tenure.lose(Loss::TakenOver);
    assert_eq!(holder.shipper.ship().await, Err("the lease is over".to_owned()));
    let (mut follower, _dir) = holder.follower(Some(1));
    let found = follower.journal(&head).await.unwrap().replay.snapshot.unwrap();
    assert_eq!(found.position, head.position);
}

#[tokio::test]
async fn a_change_that_the_head_does_not_have_yet_is_taken_over_too() {
    let mut holder = Holder::start().await;
    holder.commit("k0", 10);
    let head = holder.head().await;
    holder.commit("k1", 10);
    let newer = holder.head().await.position;
    let (mut follower, _dir) = holder.follower(Some(1));
    let found = follower.journal(&head).await.unwrap().replay.snapshot.unwrap();
    assert_eq!(found.position, newer);
    // One that was cut off in the middle is not.
    let cut = holder.head().await.journal.unwrap();
    let (store, last) = (Arc::clone(&holder.state_store), cut.parts - 1);
    let sealer = sealer_of(1).journal_sealer().unwrap();
    let (mut part, revision) = read_part(&store, &sealer, (cut.copy, cut.half, last)).await.unwrap().unwrap();
    part.pop();
    let value = sealed(&sealer, cut.copy, last, &part).unwrap();
    store.put(&cut.half.key(last), value, Some(revision), None, Instant::now() + STORE_TIMEOUT).await.unwrap();
    let found = follower.journal(&head).await.unwrap().replay.snapshot.unwrap();
    assert_eq!(found.position, head.position);
}

#[tokio::test]
async fn what_is_missing_changed_or_sealed_with_another_key_is_never_taken_over() {
    let mut holder = Holder::start().await;
    holder.commit("k1", 600_000);
    let head = holder.head().await;
    let missed = async |key_byte, head: Head| {
        let (mut follower, _dir) = holder.follower(key_byte);
        follower.follow(&head).await.unwrap_err()
    };
    assert!(matches!(missed(None, head).await, FollowError::NoKey));
    assert!(matches!(missed(Some(2), head).await, FollowError::Part(0)));
    assert!(matches!(missed(Some(1), Head { journal: None, ..head }).await, FollowError::NotShipped));
    let (mut ahead, mut different) = (head, head);
    ahead.position.sequence += 1;
    different.journal.as_mut().unwrap().digest = Digest::default();
    let dir = tempfile::tempdir().unwrap();
    keyfile::write(dir.path(), SECRETS_KEY_FILE, &KeyBytes::new([1; 32])).unwrap();
    let follower = || Follower::new(Arc::clone(&holder.state_store), KeystoreConfig::new(dir.path()));
    let behind = follower().journal(&ahead).await.unwrap_err();
    assert!(matches!(behind, FollowError::Behind { shipped: 2, known: 3 }), "{behind:?}");
    let other = follower().journal(&different).await.unwrap_err();
    assert!(matches!(other, FollowError::Different), "{other:?}");
    let Shipped { copy, half, .. } = head.journal.unwrap();
    let sealer = sealer_of(1).journal_sealer().unwrap();
    let (part, revision) = read_part(&holder.state_store, &sealer, (copy, half, 1)).await.unwrap().unwrap();
    // At another place.
    let value = sealed(&sealer, copy, 2, &part).unwrap();
    let until = Instant::now() + STORE_TIMEOUT;
    holder.state_store.put(&half.key(1), value, Some(revision), None, until).await.unwrap();
    assert!(matches!(missed(Some(1), head).await, FollowError::Part(1)));
}

#[tokio::test]
async fn without_room_changes_are_acknowledged_and_a_copy_is_tried_again() {
    let inner = Backplane::embedded().state_store;
    let bounded = Arc::new(Bounded { inner, is_full: AtomicBool::new(true) });
    let mut holder = Holder::on(Arc::clone(&bounded) as Arc<dyn StateStore>).await;
    assert!(holder.shipper.fault().unwrap().contains("no room"), "{:?}", holder.shipper.fault());
    holder.commit("k1", 10);
    let head = holder.head().await;
    assert_eq!((head.position.sequence, head.journal), (2, None));
    assert!(!holder.shipper.has_work(), "not at once");
    bounded.is_full.store(false, Ordering::SeqCst);
    holder.shipper.retry_now();
    assert_eq!(holder.work().await, 1);
    let head = holder.head().await;
    assert!(holder.shipper.fault().is_none());
    let (mut follower, _dir) = holder.follower(Some(1));
    holder.is_followed(&mut follower, &head).await;
}

#[tokio::test]
async fn changes_that_found_no_room_in_memory_are_shipped_with_a_new_copy() {
    let mut holder = Holder::start().await;
    let before = holder.head().await.journal.unwrap();
    for change in 0..3 {
        holder.commit(&format!("k{change}"), 6 << 20);
    }
    let head = holder.head().await;
    // Acknowledged all the same: this machine's disk has them.
    assert_eq!((head.position.sequence, head.journal), (4, Some(before)));
    let (mut follower, _dir) = holder.follower(Some(1));
    assert!(matches!(follower.journal(&head).await, Err(FollowError::Behind { shipped: 1, known: 4 })));
    assert_eq!(holder.work().await, 1);
    let head = holder.head().await;
    holder.is_followed(&mut follower, &head).await;
}

/// The files of a keystore with this many keys.
fn filled(dir: &Path, keys: usize) -> (DurableStore, Position) {
    let mut durable = DurableStore::open(dir, StoreId::from_random([1; 16]), at(1)).unwrap();
    durable.commit(&[Entry::Account(account("a"))]).unwrap();
    for chunk in (0..keys).collect::<Vec<_>>().chunks(1_000) {
        let records: Vec<_> = chunk.iter().map(|id| Entry::Key(key(&format!("k{id}"), "a", &[]))).collect();
        durable.commit(&records).unwrap();
    }
    let position = durable.changes.position();
    (durable, position)
}

/// `STAGE0_TAKEOVER_KEYS=100000` measures more.
#[tokio::test]
async fn a_keystore_with_many_keys_is_taken_over_in_under_a_minute() {
    let keys = std::env::var("STAGE0_TAKEOVER_KEYS").map_or(2_000, |keys| keys.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (durable, position) = filled(dir.path(), keys);
    let began = std::time::Instant::now();
    let mut holder = Holder::attached(dir, durable, Backplane::embedded().state_store, None).await;
    let (head, shipped) = (holder.head().await, began.elapsed());
    let began = std::time::Instant::now();
    let (mut follower, empty) = holder.follower(Some(1));
    let journal = follower.journal(&head).await.unwrap();
    let read = began.elapsed();
    let bytes = journal.bytes.len();
    let locked = crate::store::lock::LockedDirectory::take(empty.path()).unwrap();
    let found = crate::store::InspectedDirectory::inspect(locked).unwrap().replace(journal, at(2)).unwrap();
    assert_eq!(found.snapshot().unwrap().position, position);
    drop(found.open(StoreId::from_random([9; 16]), at(2), Tenure::unlimited()).unwrap());
    let took = began.elapsed();
    println!("{keys} keys, {bytes} bytes: shipped in {shipped:?}, read in {read:?}, open after {took:?}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(
        DurableStore::open(empty.path(), StoreId::from_random([9; 16]), at(2)).unwrap().changes.position(),
        position
    );
    drop(holder.dir);
}
