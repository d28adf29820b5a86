//! Records in the state store: how long each is kept, and which copy counts.

use stage0_backplane::{ClockError, StoreClock};

use super::*;
use crate::approval::store::StoreError;

#[tokio::test]
async fn an_earlier_copy_of_an_ended_approval_is_overwritten_until_another_took_its_place() {
    let backplane = Backplane::embedded();
    let store = Approvals::new(&backplane, RunConfig::default()).store;
    let deadline = deadline();
    let (earlier, mut ended) = (approved(), approved());
    let place = ApprovalStore::place(&ended.account, &digest());
    assert!(store.put(&place, &earlier, None, deadline).await.unwrap());
    let current = async || store.current(&earlier.account, slot_of(&digest()), deadline).await.unwrap();
    let first = current().await.revision.unwrap();
    store.archive(&earlier, &first, deadline).await.unwrap();
    claim(&mut ended, 2, 2, 1);
    assert!(store.put(&place, &ended, Some(first), deadline).await.unwrap());
    let second = current().await.revision.unwrap();
    store.archive(&ended, &second, deadline).await.unwrap();
    store.archive(&earlier, &first, deadline).await.unwrap();
    let heir = StoredApproval { id: id_in(slot_of(&digest()), [9; 4]).unwrap(), ..earlier.clone() };
    assert!(store.put(&place, &heir, Some(second), deadline).await.unwrap());
    let (found, kept, _) = store.find(&earlier.account, &earlier.id, deadline).await.unwrap().unwrap();
    assert_eq!((found.is_current, kept), (false, ended), "the older state did not replace the newer one");
}

const DAY: Duration = Duration::from_secs(86_400);

/// A record is kept for as little as the settings allow.
fn briefly() -> RunConfig {
    RunConfig { approval_kept_for: Duration::from_secs(1), ..RunConfig::default() }
}

/// How long the record of such an approval is kept.
async fn ttl_of(approval: &StoredApproval, config: RunConfig) -> Duration {
    let mut backplane = Backplane::embedded();
    let noted = NotedStore::of(&mut backplane);
    let store = Approvals::new(&backplane, config).store;
    let place = ApprovalStore::place(&approval.account, &digest());
    assert!(store.put(&place, approval, None, deadline()).await.unwrap());
    noted.take_ttl(&place.key)
}

#[tokio::test]
async fn a_record_lives_while_it_is_open_and_then_for_as_long_as_it_is_kept_or_denies() {
    let started = Instant::now();
    let pending = StoredApproval { expires_at: from_now(1_000), ..approval_of(terms(&[(&["rm"], 1)])) };
    let approved = StoredApproval { usable_until: Some(from_now(500)), ..approved() };
    let mut reserved = approved.clone();
    assert_eq!(claim(&mut reserved, 2, 2, 1), Reserved::ForThis);
    let unconfirmed = StoredApproval { usable_until: Some(from_now(-500)), ..reserved.clone() };
    let mut consumed = reserved.clone();
    let event_id = consumed.used.as_ref().unwrap().attempts[0].event_id;
    assert!(consumed.confirm(event_id));
    let mut denied = pending.clone();
    deny(&mut denied, &team(), "ann", "not on a Friday").unwrap();
    let cancelled = StoredApproval { status: ApprovalStatus::Cancelled, ..pending.clone() };
    let late = StoredApproval { expires_at: from_now(-1_000), ..pending.clone() };
    let month = RunConfig::default();
    let long_denial = RunConfig { denied_for: 3 * DAY, ..briefly() };
    for (what, approval, config, open_for, kept_for) in [
        ("pending", &pending, briefly(), 1_000, DAY),
        ("pending, with the default", &pending, month, 1_000, 30 * DAY),
        ("pending, and its time is over", &late, briefly(), 0, DAY),
        ("approved", &approved, briefly(), 500, DAY),
        ("reserved", &reserved, briefly(), 500, DAY),
        ("reserved, and no one knows whether it was recorded", &unconfirmed, briefly(), 0, DAY),
        ("consumed, without an outcome", &consumed, briefly(), 0, DAY),
        ("consumed, with the default", &consumed, month, 0, 30 * DAY),
        ("denied for an hour", &denied, briefly(), 0, DAY),
        ("denied for longer than anything is kept", &denied, long_denial, 0, 3 * DAY),
        ("cancelled, with events that are not settled", &cancelled, briefly(), 0, DAY),
    ] {
        let (ttl, most) = (ttl_of(approval, config).await, Duration::from_secs(open_for) + kept_for);
        // The store's clock is read in milliseconds.
        let rounding = Duration::from_millis(1);
        assert!(ttl <= most + rounding && ttl + started.elapsed() + rounding >= most, "{what}: {ttl:?}, not {most:?}");
    }
}

#[tokio::test]
async fn the_index_outlives_each_pending_approval_also_one_that_is_looked_at_sooner() {
    let mut backplane = Backplane::embedded();
    let noted = NotedStore::of(&mut backplane);
    let store = Approvals::new(&backplane, briefly()).store;
    let pending = StoredApproval { expires_at: from_now(7 * 86_400), ..approval_of(terms(&[(&["rm"], 1)])) };
    assert!(pending.due_at().unwrap() < from_now(60), "its first event is not recorded");
    store.reindex(&pending, deadline()).await.unwrap();
    assert!(noted.take_ttl("approvals.i.acc") > 7 * DAY);
}

#[tokio::test]
async fn events_that_are_not_settled_renew_their_record_and_the_index_with_each_round() {
    let mut backplane = Backplane::embedded();
    let noted = NotedStore::of(&mut backplane);
    let approvals = Approvals::new(&backplane, briefly());
    let ended = StoredApproval { status: ApprovalStatus::Cancelled, ..approval_of(terms(&[(&["rm"], 1)])) };
    let place = ApprovalStore::place(&ended.account, &digest());
    assert!(approvals.store.put(&place, &ended, None, deadline()).await.unwrap());
    approvals.store.reindex(&ended, deadline()).await.unwrap();
    for key in [&place.key, "approvals.i.acc"] {
        noted.take_ttl(key);
    }
    assert_eq!(collect::page(&approvals, None).await.0.len(), 1);
    for key in [&place.key, "approvals.i.acc"] {
        assert!(noted.take_ttl(key) >= DAY, "{key}");
    }
}

/// A store whose clock cannot be read.
struct Clockless {
    store: Arc<dyn StateStore>,
    clock: Arc<StoreClock>,
}

impl StateStoreLayer for Clockless {
    fn inner(&self) -> &dyn StateStore {
        &*self.store
    }

    fn clock(&self) -> &Arc<StoreClock> {
        &self.clock
    }

    fn read_clock(&self, _: Duration, _: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        Box::pin(async { Err(ClockError::Unknown) })
    }
}

/// Found by simulation: a grant was good for weeks, by the wrong clock of an evaluator that had just started.
#[tokio::test]
async fn nothing_is_changed_by_a_hosts_own_clock_before_the_stores_was_read() {
    let backplane = Backplane::embedded();
    let approvals = Approvals::new(&backplane, RunConfig::default());
    let pending = StoredApproval { expires_at: from_now(1_000), ..approval_of(terms(&[(&["rm"], 1)])) };
    let place = ApprovalStore::place(&pending.account, &digest());
    assert!(approvals.store.put(&place, &pending, None, deadline()).await.unwrap());
    let (store, clock) = (Arc::clone(&backplane.state_store), Arc::new(StoreClock::remote()));
    let clockless = Backplane { state_store: Arc::new(Clockless { store, clock }), ..backplane.clone() };
    let started = Approvals::new(&clockless, RunConfig::default());
    let changed = async |approvals: &Approvals| {
        approvals.update(&pending.account, &pending.id, deadline(), |approval, _| approval.confirm(Uuid::nil())).await
    };
    assert!(matches!(changed(&started).await, Err(StoreError::Clock(ClockError::Unknown))));
    assert!(changed(&approvals).await.is_ok());
}
