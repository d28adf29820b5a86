//! How many runs an account's checks may name per day, counted by all evaluators together.
//!
//! A shard leases some of the daily limit from a counter in the state store and then counts locally. Unused leases are
//! returned when the shard drains, and lost when it is killed. A run counts once on each day on which a check names it;
//! ending it frees its slot of the last such day.
//! INVARIANT: all leases of a day together never exceed the account's cap.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use stage0_backplane::{PutError, StateStore};
use stage0_contract::{AccountId, RUN_RECORDS, UNLIMITED};
use tokio::time::Instant;

const DAY_SECONDS: i64 = 86_400;
const MAX_LEASE: u64 = 100;
/// A lease is this fraction of the cap.
const LEASES: u64 = 100;
/// How long a used-up account is not asked for again. A run may be ended meanwhile.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// A gateway whose clock is behind by less counts on the new day after midnight.
const MAX_SKEW_SECONDS: i64 = 5;
/// How long counters are kept after their day, for gateways whose clock is behind.
const COUNTER_GRACE_SECONDS: i64 = 120;
/// Timeout for returning all leases at shutdown.
const RETURN_TIMEOUT: Duration = Duration::from_secs(3);
/// Accounts of earlier days are removed each time the map has grown by this many.
const SWEEP_INTERVAL: usize = 1_024;

pub(super) struct RunQuota {
    state_store: Arc<dyn StateStore>,
    accounts: RefCell<HashMap<AccountId, Rc<Leases>>>,
}

struct Leases {
    account: AccountId,
    day: Cell<i64>,
    left: Cell<u64>,
    /// The cap at the time of the lease.
    granted_below: Cell<u64>,
    /// When the state store had no more, and at which cap.
    empty: Cell<Option<(Instant, u64)>>,
    /// Held by the task that asks the state store for more; the others wait for its result.
    turn: tokio::sync::Mutex<()>,
}

/// Counts one run on one day, unless it is put back.
pub(super) struct RunSlot {
    leases: Rc<Leases>,
    pub(super) day: i64,
}

/// The result of taking a slot from a lease.
enum LeaseOutcome {
    /// `None` if the state store has no more.
    Known(Option<RunSlot>),
    AskStore,
}

pub(super) fn day_of(now: i64) -> i64 {
    now.div_euclid(DAY_SECONDS)
}

impl RunQuota {
    pub(super) fn new(state_store: Arc<dyn StateStore>) -> Self {
        Self { state_store, accounts: RefCell::default() }
    }

    /// Takes a slot for one more run; `None` if the cap is reached.
    pub(super) async fn take(
        &self,
        account: &AccountId,
        cap: u64,
        now: i64,
        deadline: Instant,
    ) -> Result<Option<RunSlot>, PutError> {
        let leases = self.leases(account, now);
        leases.roll_over(now);
        if let LeaseOutcome::Known(slot) = Leases::take_from_lease(&leases, cap) {
            return Ok(slot);
        }
        let Ok(_turn) = tokio::time::timeout_at(deadline, leases.turn.lock()).await else {
            return Err(PutError::Failed("the count of runs is too slow".into()));
        };
        loop {
            // The task that held the lock before may have leased enough.
            if let LeaseOutcome::Known(slot) = Leases::take_from_lease(&leases, cap) {
                return Ok(slot);
            }
            let day = leases.day.get();
            if leases.granted_below.get() > cap {
                // The lease was granted at a higher cap, so the rest of it must not be used.
                let left = leases.left.take();
                leases.granted_below.set(cap);
                if left > 0 {
                    self.state_store.subtract(&counter(account, day), left, kept_for(day, now), deadline).await?;
                }
            }
            let wanted = (cap / LEASES).clamp(1, MAX_LEASE);
            let added = self.state_store.add(&counter(account, day), wanted, cap, kept_for(day, now), deadline).await?;
            // A lease of a day that has ended meanwhile is useless.
            if leases.day.get() == day {
                leases.left.set(leases.left.get().saturating_add(added.granted));
                leases.granted_below.set(cap);
                leases.empty.set((added.granted == 0).then(|| (Instant::now(), cap)));
            }
        }
    }

    pub(super) fn put_back(&self, slot: RunSlot) {
        let RunSlot { leases, day } = slot;
        if leases.day.get() == day {
            leases.left.set(leases.left.get().saturating_add(1));
            leases.empty.set(None);
        }
    }

    /// A run that was counted on this day was ended.
    pub(super) async fn free(
        &self,
        account: &AccountId,
        day: i64,
        now: i64,
        deadline: Instant,
    ) -> Result<(), PutError> {
        if day < day_of(now) {
            return Ok(());
        }
        self.state_store.subtract(&counter(account, day), 1, kept_for(day, now), deadline).await?;
        if let Some(leases) = self.accounts.borrow().get(account) {
            leases.empty.set(None);
        }
        Ok(())
    }

    pub(super) async fn drain(&self, now: i64) {
        let deadline = Instant::now() + RETURN_TIMEOUT;
        let all: Vec<_> = self.accounts.borrow_mut().drain().map(|(_, leases)| leases).collect();
        for leases in all {
            let (day, left) = (leases.day.get(), leases.left.take());
            if left == 0 || day < day_of(now) {
                continue;
            }
            let given =
                self.state_store.subtract(&counter(&leases.account, day), left, kept_for(day, now), deadline).await;
            if let Err(error) = given {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(account = %leases.account, error, "a lease of runs was not given back, and is lost");
            }
        }
    }

    fn leases(&self, account: &AccountId, now: i64) -> Rc<Leases> {
        let mut accounts = self.accounts.borrow_mut();
        if let Some(leases) = accounts.get(account) {
            return Rc::clone(leases);
        }
        if accounts.len() % SWEEP_INTERVAL == SWEEP_INTERVAL - 1 {
            let today = day_of(now);
            accounts.retain(|_, leases| leases.day.get() >= today || Rc::strong_count(leases) > 1);
        }
        let leases = Rc::new(Leases::new(account.clone(), day_of(now)));
        accounts.insert(account.clone(), Rc::clone(&leases));
        leases
    }
}

impl Leases {
    fn new(account: AccountId, day: i64) -> Self {
        Self {
            account,
            day: Cell::new(day),
            left: Cell::new(0),
            granted_below: Cell::new(UNLIMITED),
            empty: Cell::new(None),
            turn: tokio::sync::Mutex::default(),
        }
    }

    fn roll_over(&self, now: i64) {
        let (day, current) = (day_of(now), self.day.get());
        let wavers = day < current && day_of(now + MAX_SKEW_SECONDS) == current;
        if day != current && !wavers {
            self.day.set(day);
            self.left.set(0);
            self.empty.set(None);
        }
    }

    fn take_from_lease(this: &Rc<Self>, cap: u64) -> LeaseOutcome {
        if this.granted_below.get() <= cap
            && let Some(left) = this.left.get().checked_sub(1)
        {
            this.left.set(left);
            return LeaseOutcome::Known(Some(RunSlot { leases: Rc::clone(this), day: this.day.get() }));
        }
        // A cap that was raised has more at once.
        let empty = this.empty.get().is_some_and(|(since, below)| cap <= below && since.elapsed() < RETRY_DELAY);
        if empty { LeaseOutcome::Known(None) } else { LeaseOutcome::AskStore }
    }
}

/// No run stands there: the hash of a run's name has no `n`.
fn counter(account: &AccountId, day: i64) -> String {
    format!("{RUN_RECORDS}.{account}.n{day}")
}

fn kept_for(day: i64, now: i64) -> Duration {
    let end = day.saturating_add(1).saturating_mul(DAY_SECONDS).saturating_add(COUNTER_GRACE_SECONDS);
    Duration::from_secs(u64::try_from(end.saturating_sub(now)).unwrap_or(1).max(1))
}

#[cfg(test)]
mod simulated;

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_backplane::embedded::Bus;

    const NOW: i64 = 20_000 * DAY_SECONDS + 100;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn account() -> AccountId {
        AccountId::parse("acc").unwrap()
    }

    fn shard(bus: &Bus) -> RunQuota {
        RunQuota::new(bus.connect().state_store)
    }

    async fn takes(quota: &RunQuota, cap: u64, now: i64) -> bool {
        quota.take(&account(), cap, now, soon()).await.unwrap().is_some()
    }

    #[tokio::test]
    async fn of_a_cap_all_shards_together_open_as_many_runs_as_it_says() {
        let bus = Bus::new();
        let shards: Vec<_> = (0..3).map(|_| shard(&bus)).collect();
        let mut opened = 0;
        for turn in 0..1_500 {
            opened += usize::from(takes(&shards[turn % 3], 500, NOW).await);
        }
        assert_eq!(opened, 500, "all three had traffic, so that nothing was left in a lease");
        assert!(takes(&shards[0], 500, NOW + DAY_SECONDS).await, "another day");
        let other = shards[0].take(&AccountId::parse("other").unwrap(), 1, NOW, soon()).await.unwrap();
        assert!(other.is_some(), "another account");
    }

    #[tokio::test]
    async fn a_run_that_was_not_written_or_was_ended_makes_room() {
        let quota = shard(&Bus::new());
        let slot = quota.take(&account(), 1, NOW, soon()).await.unwrap().unwrap();
        assert!(!takes(&quota, 1, NOW).await);
        let day = slot.day;
        quota.put_back(slot);
        assert!(takes(&quota, 1, NOW).await && !takes(&quota, 1, NOW).await);
        quota.free(&account(), day, NOW, soon()).await.unwrap();
        assert!(takes(&quota, 1, NOW).await);
        quota.free(&account(), day - 1, NOW, soon()).await.unwrap();
        assert!(!takes(&quota, 1, NOW).await, "one of yesterday makes none today");
    }

    #[tokio::test]
    async fn a_cap_that_was_raised_or_lowered_holds_at_once() {
        let quota = shard(&Bus::new());
        assert!(takes(&quota, 1_000, NOW).await, "nine more are leased");
        assert!(!takes(&quota, 1, NOW).await);
        assert!(!takes(&quota, 0, NOW).await);
        assert!(takes(&quota, 2, NOW).await && !takes(&quota, 2, NOW).await);
    }

    #[tokio::test]
    async fn a_shard_that_drains_gives_back_what_it_did_not_use() {
        let bus = Bus::new();
        let (first, second) = (shard(&bus), shard(&bus));
        assert!(takes(&first, 100, NOW).await && takes(&first, 200, NOW).await);
        first.drain(NOW).await;
        let mut opened = 0;
        while takes(&second, 200, NOW).await {
            opened += 1;
        }
        assert_eq!(opened, 198);
    }

    #[tokio::test]
    async fn a_clock_that_is_a_little_behind_counts_on_the_day_that_has_begun() {
        let quota = shard(&Bus::new());
        let midnight = 20_001 * DAY_SECONDS;
        assert!(takes(&quota, 1, midnight).await);
        assert!(!takes(&quota, 1, midnight - 1).await);
        assert!(takes(&quota, 1, midnight - MAX_SKEW_SECONDS - 1).await, "that is another day");
    }

    #[tokio::test]
    async fn without_a_state_store_no_run_is_counted_and_that_is_an_error() {
        let gone = Bus::new().connect();
        gone.requests.close().await;
        assert!(RunQuota::new(gone.state_store).take(&account(), 5, NOW, soon()).await.is_err());
    }
}
