//! Rate limits and quotas: how many checks an account may make, and how much of their input it may store, counted by
//! all gateways together.
//!
//! Owns the leases: a gateway leases a part of a limited window from the state store's counter, never more than the
//! limit, and then counts by itself, so that most checks cost no round trip. What it did not use is given back when it
//! drains, and lost when it is killed. Usage without a limit is reported in the background. Windows follow the state
//! store's clock. When the store fails, limited accounts are refused with 503, unless the operator lets them pass.

mod window;

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use stage0_backplane::{PutError, ReadError, StateStore, StoreClock};
use stage0_contract::{AccountId, KeyIdentity, Limits, RequestId, StoredBytes, UNLIMITED, Usage};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::errors::{ApiError, Part};

use window::{Span, Spend, Window, WindowLease, lease_size};

const FLUSH_INTERVAL: Duration = Duration::from_secs(10);
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_CONCURRENT_FLUSHES: usize = 16;
/// One request to the state store within a check.
const LEASE_TIMEOUT: Duration = Duration::from_millis(500);
/// The state store's own timeout comes first by this much, because its error says what became of the request.
const LEASE_TIMEOUT_MARGIN: Duration = Duration::from_millis(20);
/// With less time than this no bytes are leased for an input: running out of it would count as a failure of the store.
const MIN_LEASE_TIMEOUT: Duration = Duration::from_millis(100);
/// After a failure no lease is requested for this long, so that checks do not queue up behind a store that fails.
const FAILURE_RETRY_DELAY: Duration = Duration::from_secs(1);
/// For this long after a failure leases are a tenth as large: a grant that arrives after its deadline is lost.
const SMALL_LEASES_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Past windows of one account with usage that is not reported yet; further ones are dropped.
const MAX_PENDING: usize = 8;
const ACCOUNT_IDLE_TTL: Duration = Duration::from_secs(3_600);

const SPANS: [Span; 4] = [Span::Minute, Span::Day, Span::Month, Span::StoredBytes];

/// How checks of limited accounts are answered while the state store fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused.
    Closed,
    /// They pass, and are counted once the state store is back.
    Open,
}

/// The usage of all accounts, as far as this gateway counts it.
pub(crate) struct Quotas {
    on_failure: OnFailure,
    clock: Arc<StoreClock>,
    meters: Mutex<HashMap<AccountId, Arc<Meter>>>,
}

/// The state store, and until when it may take.
#[derive(Clone, Copy)]
pub(crate) struct StoreCall<'a> {
    pub(crate) state_store: &'a dyn StateStore,
    pub(crate) deadline: Instant,
}

struct Meter {
    account: AccountId,
    clock: Arc<StoreClock>,
    state: Mutex<State>,
    /// Held while one check requests a lease; the account's other checks wait for its result.
    leasing: tokio::sync::Mutex<()>,
}

struct State {
    /// In the order of [`SPANS`].
    leases: [WindowLease; 4],
    pending: Vec<(Window, u64)>,
    last_used: Instant,
    last_failure: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateLimit {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    pub(crate) reset: u64,
}

/// One check of the day's and the month's quota, or bytes of stored input. Dropping it releases them, unless it is
/// kept.
pub(crate) struct Reservation {
    meter: Arc<Meter>,
    units: Vec<Unit>,
    kept: bool,
}

#[derive(Clone, Copy)]
struct Unit {
    window: Window,
    amount: u64,
    /// The limit under which it was leased; none if it was spent without a lease.
    leased_under: Option<u64>,
}

enum Grant {
    Spent(Unit),
    UsedUp(Window),
}

pub(crate) fn end_of_day(now: Timestamp) -> Timestamp {
    Window::at(Span::Day, now).ends()
}

impl Quotas {
    pub(crate) fn new(on_failure: OnFailure, clock: &Arc<StoreClock>) -> Self {
        Self { on_failure, clock: Arc::clone(clock), meters: Mutex::default() }
    }

    pub(crate) async fn admit(&self, identity: &KeyIdentity, store: StoreCall<'_>) -> Result<(), ApiError> {
        let meter = self.meter(&identity.account);
        let limit = identity.limits.per_minute;
        match self.spend(&meter, Span::Minute, 1, limit, store).await? {
            Grant::Spent(_) => Ok(()),
            Grant::UsedUp(window) => Err(ApiError::RateLimited {
                limit: limit.unwrap_or(UNLIMITED),
                seconds: window.seconds_left(self.clock.now()),
            }),
        }
    }

    pub(crate) async fn reserve(&self, identity: &KeyIdentity, store: StoreCall<'_>) -> Result<Reservation, ApiError> {
        let meter = self.meter(&identity.account);
        let mut reservation = Reservation { meter: Arc::clone(&meter), units: Vec::with_capacity(2), kept: false };
        for (span, limit) in [(Span::Day, identity.limits.daily), (Span::Month, identity.limits.monthly)] {
            match self.spend(&meter, span, 1, limit, store).await? {
                Grant::Spent(unit) => reservation.units.push(unit),
                Grant::UsedUp(window) => {
                    let limit = limit.unwrap_or(UNLIMITED);
                    return Err(ApiError::QuotaUsedUp { monthly: span == Span::Month, limit, again: window.ends() });
                }
            }
        }
        Ok(reservation)
    }

    /// Counts a check's input against the bytes that the account may store today. None means that the input must not be
    /// stored: a check is not refused for its input.
    pub(crate) async fn reserve_bytes(
        &self,
        identity: &KeyIdentity,
        bytes: u64,
        store: StoreCall<'_>,
    ) -> Option<Reservation> {
        let meter = self.meter(&identity.account);
        let Some(limit) = identity.caps.stored_bytes() else {
            let units = vec![meter.spend_uncounted(Span::StoredBytes, bytes)];
            return Some(Reservation { meter, units, kept: false });
        };
        let grant = match meter.spend(Span::StoredBytes, bytes, limit) {
            Some(grant) => grant,
            None => {
                // Half of the time is left for recording the decision.
                let time = store.deadline.saturating_duration_since(Instant::now()) / 2;
                if time < MIN_LEASE_TIMEOUT {
                    return None;
                }
                let store = StoreCall { deadline: Instant::now() + time, ..store };
                self.lease(&meter, Span::StoredBytes, bytes, limit, store).await.ok()?
            }
        };
        let Grant::Spent(unit) = grant else { return None };
        Some(Reservation { meter, units: vec![unit], kept: false })
    }

    /// The account's shortest limited window, for the answer's headers.
    pub(crate) fn rate_limit(&self, identity: &KeyIdentity) -> Option<RateLimit> {
        let Limits { per_minute, daily, monthly } = identity.limits;
        let limits = [(Span::Minute, per_minute), (Span::Day, daily), (Span::Month, monthly)];
        let (span, limit) = limits.into_iter().find_map(|(span, limit)| Some((span, limit?)))?;
        let (meter, now) = (self.meter(&identity.account), self.clock.now());
        let mut state = meter.state(now);
        let lease = state.lease(span);
        Some(RateLimit { limit, remaining: lease.remaining(limit), reset: lease.window.seconds_left(now) })
    }

    async fn spend(
        &self,
        meter: &Meter,
        span: Span,
        amount: u64,
        limit: Option<u64>,
        store: StoreCall<'_>,
    ) -> Result<Grant, ApiError> {
        let Some(limit) = limit else { return Ok(Grant::Spent(meter.spend_uncounted(span, amount))) };
        match (self.lease(meter, span, amount, limit, store).await, self.on_failure) {
            (Err(_), OnFailure::Open) => Ok(Grant::Spent(meter.spend_uncounted(span, amount))),
            (grant, OnFailure::Open | OnFailure::Closed) => grant,
        }
    }

    /// Spends an amount of a limited window, with a new lease if needed.
    async fn lease(
        &self,
        meter: &Meter,
        span: Span,
        amount: u64,
        limit: u64,
        store: StoreCall<'_>,
    ) -> Result<Grant, ApiError> {
        if let Some(grant) = meter.spend(span, amount, limit) {
            return Ok(grant);
        }
        // Running out of time here says nothing about the state store: other checks were first.
        let Ok(_leasing) = timeout_at(store.deadline, meter.leasing.lock()).await else {
            return Err(ApiError::Missing(Part::StateStore));
        };
        if !meter.failed_within(FAILURE_RETRY_DELAY) {
            let until = store.deadline.min(Instant::now() + LEASE_TIMEOUT);
            let refilled = meter.refill(span, amount, limit, StoreCall { deadline: until, ..store });
            let error: Box<dyn Error> = match timeout_at(until + LEASE_TIMEOUT_MARGIN, refilled).await {
                Ok(Ok(grant)) => return Ok(grant),
                Ok(Err(error)) => error.into(),
                Err(_) => "the state store is too slow".into(),
            };
            tracing::warn!(account = %meter.account, error = &*error, "cannot lease from the quota");
            meter.state(self.clock.now()).last_failure = Some(Instant::now());
        }
        Err(ApiError::Missing(Part::StateStore))
    }

    pub(crate) async fn usage(
        &self,
        identity: &KeyIdentity,
        request_id: RequestId,
        StoreCall { state_store, deadline }: StoreCall<'_>,
    ) -> Result<Usage, ReadError> {
        let meter = self.meter(&identity.account);
        let now = self.clock.now();
        let windows = SPANS.map(|span| meter.state(now).lease(span).window);
        let [minute, day, month, bytes] = windows.map(|window| window.counter(&identity.account));
        let (minute, day, month, bytes) = tokio::try_join!(
            state_store.count(&minute, deadline),
            state_store.count(&day, deadline),
            state_store.count(&month, deadline),
            state_store.count(&bytes, deadline)
        )?;
        let mut state = meter.state(now);
        let mut usage = |span, total, limit: Option<u64>| {
            let quota = limit.unwrap_or(UNLIMITED);
            let used = state.lease(span).used(total).min(quota);
            (used, quota, quota - used)
        };
        let limits = identity.limits;
        // Usage with a limit does not lag: it is leased before it is used.
        let is_limited = [limits.daily, limits.monthly, identity.caps.stored_bytes()].iter().all(Option::is_some);
        let (minute_used, per_minute_limit, minute_remaining) = usage(Span::Minute, minute, limits.per_minute);
        let (daily_used, daily_quota, daily_remaining) = usage(Span::Day, day, limits.daily);
        let (monthly_used, monthly_quota, monthly_remaining) = usage(Span::Month, month, limits.monthly);
        let (used, quota, remaining) = usage(Span::StoredBytes, bytes, identity.caps.stored_bytes());
        let [_, day, month, _] = windows;
        Ok(Usage {
            request_id,
            api_key_id: identity.key_id.clone(),
            plan: identity.plan,
            month_key: month.name(),
            monthly_used,
            monthly_quota,
            monthly_remaining,
            day_key: day.name(),
            daily_used,
            daily_quota,
            daily_remaining,
            per_minute_limit,
            minute_used,
            minute_remaining,
            environment: String::new(),
            source: "stage0".to_owned(),
            evaluated_at: now.as_second(),
            stored_bytes: Some(StoredBytes { used, quota, remaining }),
            may_lag_seconds: Some(if is_limited { 0 } else { FLUSH_INTERVAL.as_secs() }),
        })
    }

    /// Reports usage to the state store until stopped, then gives back what was leased and not used.
    pub(crate) async fn run(&self, state_store: &dyn StateStore, stop: CancellationToken) {
        let mut ticks = interval(FLUSH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_running = stop.run_until_cancelled(ticks.tick()).await.is_some();
            let store = StoreCall { state_store, deadline: Instant::now() + FLUSH_TIMEOUT };
            let meters = stream::iter(self.meters());
            let flush = async |meter: Arc<Meter>| {
                meter.flush(store).await;
                if !is_running || meter.is_idle() {
                    meter.give_back(store).await;
                }
            };
            meters.for_each_concurrent(MAX_CONCURRENT_FLUSHES, flush).await;
            if !is_running {
                return;
            }
            self.lock().retain(|_, meter| Arc::strong_count(meter) > 1 || !meter.is_idle() || !meter.is_empty());
        }
    }

    fn meter(&self, account: &AccountId) -> Arc<Meter> {
        let mut meters = self.lock();
        if let Some(meter) = meters.get(account) {
            return Arc::clone(meter);
        }
        let meter = Arc::new(Meter::new(account.clone(), &self.clock));
        meters.insert(account.clone(), Arc::clone(&meter));
        meter
    }

    fn meters(&self) -> Vec<Arc<Meter>> {
        self.lock().values().map(Arc::clone).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Arc<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    fn new(account: AccountId, clock: &Arc<StoreClock>) -> Self {
        let now = clock.now();
        let state = State {
            leases: SPANS.map(|span| WindowLease::new(span, now)),
            pending: Vec::new(),
            last_used: Instant::now(),
            last_failure: None,
        };
        Self { account, clock: Arc::clone(clock), state: Mutex::new(state), leasing: tokio::sync::Mutex::default() }
    }

    /// The state, with its windows at `now`.
    fn state(&self, now: Timestamp) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.roll_over(now);
        state
    }

    /// Spends an amount of the lease. None means that more must be leased first.
    fn spend(&self, span: Span, amount: u64, limit: u64) -> Option<Grant> {
        let now = self.clock.now();
        let mut state = self.state(now);
        state.last_used = Instant::now();
        let lease = state.lease(span);
        let window = lease.window;
        match lease.spend(amount, limit, now) {
            Spend::Done => Some(Grant::Spent(Unit { window, amount, leased_under: Some(lease.leased_under) })),
            Spend::UsedUp => Some(Grant::UsedUp(window)),
            Spend::NeedsLease => None,
        }
    }

    fn spend_uncounted(&self, span: Span, amount: u64) -> Unit {
        let mut state = self.state(self.clock.now());
        state.last_used = Instant::now();
        let lease = state.lease(span);
        lease.spend_uncounted(amount);
        Unit { window: lease.window, amount, leased_under: None }
    }

    /// Leases until the amount can be spent. The caller holds `leasing`.
    async fn refill(&self, span: Span, needed: u64, limit: u64, store: StoreCall<'_>) -> Result<Grant, PutError> {
        loop {
            // A check that leased before this one may have left enough.
            if let Some(grant) = self.spend(span, needed, limit) {
                return Ok(grant);
            }
            let now = self.clock.now();
            let window = self.state(now).lease(span).window;
            self.reconcile(window, store).await?;
            let size = lease_size(span, limit);
            let size = if self.failed_within(SMALL_LEASES_AFTER_FAILURE) { size.div_ceil(10) } else { size };
            let amount = size.max(self.state(now).lease(span).lacking(needed));
            let StoreCall { state_store, deadline } = store;
            let counter = window.counter(&self.account);
            let added = state_store.add(&counter, amount, limit, window.kept_for(now), deadline).await?;
            self.state(self.clock.now()).lease(span).refill(window, added, limit, now);
        }
    }

    /// Reports what was spent without a lease, and gives back what was leased under a higher limit. A lease that is
    /// requested next then counts both.
    async fn reconcile(&self, window: Window, store: StoreCall<'_>) -> Result<(), PutError> {
        let now = self.clock.now();
        let uncounted = self.state(now).lease(window.span).take_uncounted();
        if uncounted > 0 {
            self.report(window, uncounted, store).await?;
        }
        let excess = self.state(now).lease(window.span).take_excess();
        if excess > 0 {
            // An excess whose fate is unknown is lost: given back twice, it would let more pass than the limit.
            let counter = window.counter(&self.account);
            store.state_store.subtract(&counter, excess, window.kept_for(now), store.deadline).await?;
        }
        Ok(())
    }

    /// Adds usage to the window's counter, or keeps it for later if that fails.
    async fn report(&self, window: Window, count: u64, store: StoreCall<'_>) -> Result<(), PutError> {
        let now = self.clock.now();
        let StoreCall { state_store, deadline } = store;
        let counter = window.counter(&self.account);
        let added = state_store.add(&counter, count, u64::MAX, window.kept_for(now), deadline).await;
        added.map(drop).inspect_err(|_| self.state(now).keep_pending(window, count))
    }

    fn failed_within(&self, time: Duration) -> bool {
        self.state(self.clock.now()).last_failure.is_some_and(|failure| failure.elapsed() < time)
    }

    async fn flush(&self, store: StoreCall<'_>) {
        let pending = self.state(self.clock.now()).take_pending();
        for (window, count) in pending {
            if let Err(error) = self.report(window, count, store).await {
                let error: &dyn Error = &error;
                tracing::warn!(account = %self.account, error, "usage was not reported; will retry");
            }
        }
    }

    async fn give_back(&self, StoreCall { state_store, deadline }: StoreCall<'_>) {
        let now = self.clock.now();
        for span in SPANS {
            let (window, left) = {
                let mut state = self.state(now);
                let lease = state.lease(span);
                (lease.window, lease.take_all())
            };
            if left == 0 {
                continue;
            }
            let counter = window.counter(&self.account);
            if let Err(error) = state_store.subtract(&counter, left, window.kept_for(now), deadline).await {
                let error: &dyn Error = &error;
                tracing::warn!(account = %self.account, error, "a lease was not given back and is lost");
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.state(self.clock.now()).last_used.elapsed() > ACCOUNT_IDLE_TTL
    }

    fn is_empty(&self) -> bool {
        let state = self.state(self.clock.now());
        state.pending.is_empty() && state.leases.iter().all(WindowLease::is_empty)
    }
}

impl State {
    fn roll_over(&mut self, now: Timestamp) {
        for (window, count) in self.leases.each_mut().map(|lease| lease.roll_over(now)).into_iter().flatten() {
            // A minute without a limit is not reported: it is over before another gateway could use the number.
            if window.span != Span::Minute {
                self.keep_pending(window, count);
            }
        }
    }

    fn lease(&mut self, span: Span) -> &mut WindowLease {
        let [minute, day, month, stored_bytes] = &mut self.leases;
        match span {
            Span::Minute => minute,
            Span::Day => day,
            Span::Month => month,
            Span::StoredBytes => stored_bytes,
        }
    }

    fn keep_pending(&mut self, window: Window, count: u64) {
        if !self.lease(window.span).restore_uncounted(window, count) && self.pending.len() < MAX_PENDING {
            self.pending.push((window, count));
        }
    }

    fn take_pending(&mut self) -> Vec<(Window, u64)> {
        let mut pending = std::mem::take(&mut self.pending);
        for lease in self.leases.iter_mut().filter(|lease| lease.window.span != Span::Minute) {
            let count = lease.take_uncounted();
            if count > 0 {
                pending.push((lease.window, count));
            }
        }
        pending
    }
}

impl Reservation {
    /// The check counts even if this is dropped.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// The check does not count: dropping this releases it.
    pub(crate) fn give_back(&mut self) {
        self.kept = false;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let mut state = self.meter.state(self.meter.clock.now());
        for Unit { window, amount, leased_under } in &self.units {
            state.lease(window.span).release(*window, *amount, *leased_under);
        }
    }
}

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
