//! Rate limits and quotas: how many checks an account may make, and how much of their input it may have kept, counted
//! by all gateways together.
//!
//! Owns the leases: from a limited window a gateway takes some at a time out of the ledger's counter and then counts for itself, so
//! that most checks cost no round trip. Never more than the limit is leased; what a gateway leased and did not use is given back when
//! it drains, and lost when it is killed. What has no limit is counted afterwards, in the background.
//! Windows are those of the state store's clock, so that a gateway whose own clock is wrong opens none of its own.
//! When the ledger fails, limited accounts are refused with 503, unless the operator chose to let them pass.

mod window;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use jiff::Timestamp;
use stage0_backplane::{Ledger, PutError, ReadError, StoreClock};
use stage0_contract::{AccountId, KeyIdentity, Limits, RequestId, StoredBytes, UNLIMITED, Usage};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::errors::{ApiError, Part};

use window::{Purse, Span, Spent, Window, lease};

/// What is not limited is told to the ledger so often.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// One question to the ledger within a check.
const ASK_WITHIN: Duration = Duration::from_millis(500);
const GRACE: Duration = Duration::from_millis(20);
/// In less time the ledger is not asked whether an input may be kept: its failure would count as one of the ledger.
const MIN_ASK_TIMEOUT: Duration = Duration::from_millis(100);
/// All that is told at the end.
const FAREWELL_WITHIN: Duration = Duration::from_secs(3);
/// After a failure the ledger is left alone for a moment: checks that wait for it pile up.
const FAILS_FOR: Duration = Duration::from_secs(1);
/// And for so long a tenth is leased at a time: what is granted too late is lost.
const CAREFUL_FOR: Duration = Duration::from_secs(60);
/// Accounts that are told of at the same time.
const AT_ONCE: usize = 16;
/// Old windows that wait to be told, of one account.
const MOST_OWED: usize = 8;
/// An account that made no check for so long is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(3_600);

/// All windows.
const SPANS: [Span; 4] = [Span::Minute, Span::Day, Span::Month, Span::StoredBytes];

/// What becomes of limited accounts while the ledger fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused.
    Closed,
    /// They pass, and are counted when the ledger is back.
    Open,
}

/// The accounts that this gateway counts for.
pub(crate) struct Quotas {
    on_failure: OnFailure,
    /// By which all gateways have the same windows.
    clock: Arc<StoreClock>,
    meters: Mutex<HashMap<AccountId, Arc<Meter>>>,
}

/// One account.
struct Meter {
    account: AccountId,
    clock: Arc<StoreClock>,
    state: Mutex<State>,
    /// Who asks the ledger for more; the others wait for what it brings.
    turn: tokio::sync::Mutex<()>,
}

struct State {
    minute: Purse,
    day: Purse,
    month: Purse,
    stored_bytes: Purse,
    /// Windows that are over, with what is still to be told of them.
    owed: Vec<(Window, u64)>,
    used: Instant,
    failed: Option<Instant>,
}

/// The three numbers that an answer tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RateLimit {
    pub(crate) limit: u64,
    pub(crate) remaining: u64,
    /// Seconds.
    pub(crate) reset: u64,
}

/// One check of a day's and a month's quota, or bytes of stored input: given back unless it is kept. Whoever holds one
/// does not end with its caller.
pub(crate) struct Reservation {
    meter: Arc<Meter>,
    units: Vec<Unit>,
    kept: bool,
}

/// Something spent.
#[derive(Clone, Copy)]
struct Unit {
    window: Window,
    amount: u64,
    /// Below which limit it was granted; none where nobody was asked.
    granted: Option<u64>,
}

/// How far what other gateways counted may be behind: what has a limit is taken out of the ledger before it is used.
fn may_lag_seconds(identity: &KeyIdentity) -> u64 {
    let Limits { daily, monthly, .. } = identity.limits;
    let are_limited = [daily, monthly, identity.caps.stored_bytes()].iter().all(Option::is_some);
    if are_limited { 0 } else { TELL_EVERY.as_secs() }
}

/// When the day of the clock ends.
pub(crate) fn end_of_day(now: Timestamp) -> Timestamp {
    Window::at(Span::Day, now).ends()
}

impl Quotas {
    pub(crate) fn new(on_failure: OnFailure, clock: &Arc<StoreClock>) -> Self {
        Self { on_failure, clock: Arc::clone(clock), meters: Mutex::default() }
    }

    /// Counts a request against the account's minute.
    pub(crate) async fn admit(
        &self,
        identity: &KeyIdentity,
        ledger: &dyn Ledger,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let meter = self.meter(&identity.account);
        let limit = identity.limits.per_minute;
        match self.spend(&meter, Span::Minute, 1, limit, ledger, deadline).await? {
            Ok(_) => Ok(()),
            Err(window) => Err(ApiError::RateLimited {
                limit: limit.unwrap_or(UNLIMITED),
                seconds: window.seconds_left(self.clock.now()),
            }),
        }
    }

    /// Counts a check against the account's day and month.
    pub(crate) async fn reserve(
        &self,
        identity: &KeyIdentity,
        ledger: &dyn Ledger,
        deadline: Instant,
    ) -> Result<Reservation, ApiError> {
        let meter = self.meter(&identity.account);
        let mut reservation = Reservation { meter: Arc::clone(&meter), units: Vec::with_capacity(2), kept: false };
        for (span, limit) in [(Span::Day, identity.limits.daily), (Span::Month, identity.limits.monthly)] {
            match self.spend(&meter, span, 1, limit, ledger, deadline).await? {
                Ok(unit) => reservation.units.push(unit),
                Err(window) => {
                    let limit = limit.unwrap_or(UNLIMITED);
                    return Err(ApiError::QuotaUsedUp { monthly: span == Span::Month, limit, again: window.ends() });
                }
            }
        }
        Ok(reservation)
    }

    /// Counts a check's input against the bytes that the account may have kept today. None: it is not to be kept, be it
    /// that there is no more room or that nobody could be asked: a check is not refused for its input.
    pub(crate) async fn reserve_bytes(
        &self,
        identity: &KeyIdentity,
        bytes: u64,
        ledger: &dyn Ledger,
        deadline: Instant,
    ) -> Option<Reservation> {
        let meter = self.meter(&identity.account);
        let Some(limit) = identity.caps.stored_bytes() else {
            let units = vec![meter.spend_uncounted(Span::StoredBytes, bytes)];
            return Some(Reservation { meter, units, kept: false });
        };
        let unit = match meter.spend(Span::StoredBytes, bytes, limit) {
            Some(spent) => spent.ok()?,
            None => {
                // The rest of the time is for the record.
                let time = deadline.saturating_duration_since(Instant::now()) / 2;
                if time < MIN_ASK_TIMEOUT {
                    return None;
                }
                let until = Instant::now() + time;
                self.lease(&meter, Span::StoredBytes, bytes, limit, ledger, until).await.ok()?.ok()?
            }
        };
        Some(Reservation { meter, units: vec![unit], kept: false })
    }

    /// What the answer says: the account's shortest limited window.
    pub(crate) fn told(&self, identity: &KeyIdentity) -> Option<RateLimit> {
        let Limits { per_minute, daily, monthly } = identity.limits;
        let limits = [(Span::Minute, per_minute), (Span::Day, daily), (Span::Month, monthly)];
        let (span, limit) = limits.into_iter().find_map(|(span, limit)| Some((span, limit?)))?;
        let (meter, now) = (self.meter(&identity.account), self.clock.now());
        let mut state = meter.state(now);
        let purse = state.purse(span);
        Some(RateLimit { limit, remaining: purse.remaining(limit), reset: purse.window().seconds_left(now) })
    }

    /// So many, or the window that has no more.
    async fn spend(
        &self,
        meter: &Meter,
        span: Span,
        amount: u64,
        limit: Option<u64>,
        ledger: &dyn Ledger,
        deadline: Instant,
    ) -> Result<Result<Unit, Window>, ApiError> {
        let Some(limit) = limit else { return Ok(Ok(meter.spend_uncounted(span, amount))) };
        match (self.lease(meter, span, amount, limit, ledger, deadline).await, self.on_failure) {
            (Err(_), OnFailure::Open) => Ok(Ok(meter.spend_uncounted(span, amount))),
            (spent, OnFailure::Open | OnFailure::Closed) => spent,
        }
    }

    /// As above, of a limited window; an error where the ledger cannot be asked.
    async fn lease(
        &self,
        meter: &Meter,
        span: Span,
        amount: u64,
        limit: u64,
        ledger: &dyn Ledger,
        deadline: Instant,
    ) -> Result<Result<Unit, Window>, ApiError> {
        if let Some(spent) = meter.spend(span, amount, limit) {
            return Ok(spent);
        }
        // Whoever waits for the turn waits for others, not for the ledger.
        let Ok(_turn) = timeout_at(deadline, meter.turn.lock()).await else {
            return Err(ApiError::Missing(Part::Ledger));
        };
        if !meter.failed_within(FAILS_FOR) {
            let until = deadline.min(Instant::now() + ASK_WITHIN);
            // A little later, so that the ledger's own answer comes first: it says what became of what was in hand.
            let error = match timeout_at(until + GRACE, meter.refill(span, amount, limit, ledger, until)).await {
                Ok(Ok(spent)) => return Ok(spent),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the ledger is too slow".to_owned(),
            };
            meter.fails();
            tracing::warn!(account = %meter.account, error, "quota could not be asked for");
        }
        Err(ApiError::Missing(Part::Ledger))
    }

    /// The answer to `GET /usage`.
    pub(crate) async fn usage(
        &self,
        identity: &KeyIdentity,
        request_id: RequestId,
        ledger: &dyn Ledger,
        deadline: Instant,
    ) -> Result<Usage, ReadError> {
        let (meter, now) = (self.meter(&identity.account), self.clock.now());
        let windows = SPANS.map(|span| meter.state(now).purse(span).window());
        let [minute, day, month, bytes] = windows.map(|window| window.counter(&identity.account));
        let (minute, day, month, bytes) = tokio::try_join!(
            ledger.count(&minute, deadline),
            ledger.count(&day, deadline),
            ledger.count(&month, deadline),
            ledger.count(&bytes, deadline)
        )?;
        let mut state = meter.state(now);
        let mut told = |span, total, limit: Option<u64>| {
            let (used, quota) = (state.purse(span).used(total), limit.unwrap_or(UNLIMITED));
            let used = used.min(quota);
            (used, quota, quota - used)
        };
        let limits = identity.limits;
        let (minute_used, per_minute_limit, minute_remaining) = told(Span::Minute, minute, limits.per_minute);
        let (daily_used, daily_quota, daily_remaining) = told(Span::Day, day, limits.daily);
        let (monthly_used, monthly_quota, monthly_remaining) = told(Span::Month, month, limits.monthly);
        let (used, quota, remaining) = told(Span::StoredBytes, bytes, identity.caps.stored_bytes());
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
            may_lag_seconds: Some(may_lag_seconds(identity)),
        })
    }

    /// Tells the ledger what was counted here, until stopped; then gives back what was leased and not used.
    pub(crate) async fn run(&self, ledger: Arc<dyn Ledger>, stop: CancellationToken) {
        let mut ticks = interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let deadline = Instant::now() + FAREWELL_WITHIN;
            let told = self.all().into_iter().map(|meter| {
                let ledger = &ledger;
                async move {
                    meter.tell(&**ledger, deadline).await;
                    if meter.is_idle() {
                        meter.give_back(&**ledger, deadline).await;
                    }
                }
            });
            stream::iter(told).for_each_concurrent(AT_ONCE, |telling| telling).await;
            self.forget_idle();
        }
        let deadline = Instant::now() + FAREWELL_WITHIN;
        let told = self.all().into_iter().map(|meter| {
            let ledger = &ledger;
            async move {
                meter.tell(&**ledger, deadline).await;
                meter.give_back(&**ledger, deadline).await;
            }
        });
        stream::iter(told).for_each_concurrent(AT_ONCE, |telling| telling).await;
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

    fn all(&self) -> Vec<Arc<Meter>> {
        self.lock().values().map(Arc::clone).collect()
    }

    fn forget_idle(&self) {
        let forgotten = |meter: &Arc<Meter>| Arc::strong_count(meter) == 1 && meter.is_idle() && meter.holds_nothing();
        self.lock().retain(|_, meter| !forgotten(meter));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Arc<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter {
    fn new(account: AccountId, clock: &Arc<StoreClock>) -> Self {
        let now = clock.now();
        let purse = |span| Purse::new(span, now);
        let state = State {
            minute: purse(Span::Minute),
            day: purse(Span::Day),
            month: purse(Span::Month),
            stored_bytes: purse(Span::StoredBytes),
            owed: Vec::new(),
            used: Instant::now(),
            failed: None,
        };
        Self { account, clock: Arc::clone(clock), state: Mutex::new(state), turn: tokio::sync::Mutex::default() }
    }

    /// The state, in the windows of now.
    fn state(&self, now: Timestamp) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.turn(now);
        state
    }

    fn spend(&self, span: Span, amount: u64, limit: u64) -> Option<Result<Unit, Window>> {
        let now = self.clock.now();
        let mut state = self.state(now);
        state.used = Instant::now();
        let purse = state.purse(span);
        match purse.spend(amount, limit, now) {
            Spent::Yes => Some(Ok(Unit { window: purse.window(), amount, granted: Some(purse.leased_below()) })),
            Spent::UsedUp => Some(Err(purse.window())),
            Spent::AskFirst => None,
        }
    }

    fn spend_uncounted(&self, span: Span, amount: u64) -> Unit {
        let mut state = self.state(self.clock.now());
        state.used = Instant::now();
        let purse = state.purse(span);
        purse.spend_uncounted(amount);
        Unit { window: purse.window(), amount, granted: None }
    }

    /// Spends of what the ledger grants. Whoever calls has the turn.
    async fn refill(
        &self,
        span: Span,
        needed: u64,
        limit: u64,
        ledger: &dyn Ledger,
        deadline: Instant,
    ) -> Result<Result<Unit, Window>, PutError> {
        loop {
            // Whoever had the turn before may have brought enough.
            if let Some(spent) = self.spend(span, needed, limit) {
                return Ok(spent);
            }
            let now = self.clock.now();
            let window = self.state(now).purse(span).window();
            self.square(window, ledger, deadline).await?;
            let lease = lease(span, limit);
            let lease = if self.failed_within(CAREFUL_FOR) { lease.div_ceil(10) } else { lease };
            let amount = lease.max(self.state(now).purse(span).lacking(needed));
            let (counter, kept_for) = (window.counter(&self.account), window.kept_for(now));
            let added = ledger.add(&counter, amount, limit, kept_for, deadline).await?;
            self.state(self.clock.now()).purse(span).refill(window, added, limit, now);
        }
    }

    /// Before anything is leased the ledger hears what was spent without a lease, and gets back what was leased under a higher limit.
    async fn square(&self, window: Window, ledger: &dyn Ledger, deadline: Instant) -> Result<(), PutError> {
        let now = self.clock.now();
        let (counter, kept_for) = (window.counter(&self.account), window.kept_for(now));
        let uncounted = self.state(now).purse(window.span).take_uncounted();
        if uncounted > 0 {
            let told = ledger.add(&counter, uncounted, u64::MAX, kept_for, deadline).await;
            told.inspect_err(|_| self.state(now).owe(window, uncounted))?;
        }
        let surplus = self.state(now).purse(window.span).take_surplus();
        if surplus > 0 {
            // Where it is not known what became of it, it is lost: given back twice, more would pass than may.
            ledger.give_back(&counter, surplus, kept_for, deadline).await?;
        }
        Ok(())
    }

    fn failed_within(&self, time: Duration) -> bool {
        self.state(self.clock.now()).failed.is_some_and(|failed| failed.elapsed() < time)
    }

    fn fails(&self) {
        self.state(self.clock.now()).failed = Some(Instant::now());
    }

    /// Tells the ledger what it does not know: days and months, as a minute is over before anybody asks.
    async fn tell(&self, ledger: &dyn Ledger, deadline: Instant) {
        let now = self.clock.now();
        let owed = self.state(now).take_owed();
        for (window, count) in owed {
            let (counter, kept_for) = (window.counter(&self.account), window.kept_for(now));
            if let Err(error) = ledger.add(&counter, count, u64::MAX, kept_for, deadline).await {
                tracing::warn!(account = %self.account, error = &error as &dyn std::error::Error, "usage was not told; it is tried again");
                self.state(now).owe(window, count);
            }
        }
    }

    async fn give_back(&self, ledger: &dyn Ledger, deadline: Instant) {
        let now = self.clock.now();
        let left = SPANS.map(|span| {
            let mut state = self.state(now);
            let purse = state.purse(span);
            (purse.window(), purse.take_left())
        });
        for (window, left) in left.into_iter().filter(|(_, left)| *left > 0) {
            let (counter, kept_for) = (window.counter(&self.account), window.kept_for(now));
            if let Err(error) = ledger.give_back(&counter, left, kept_for, deadline).await {
                tracing::warn!(account = %self.account, error = &error as &dyn std::error::Error, "a lease was not given back, and is lost");
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.state(self.clock.now()).used.elapsed() > FORGET_AFTER
    }

    fn holds_nothing(&self) -> bool {
        let state = self.state(self.clock.now());
        let purses = [&state.minute, &state.day, &state.month, &state.stored_bytes];
        state.owed.is_empty() && purses.into_iter().all(Purse::holds_nothing)
    }
}

impl State {
    fn turn(&mut self, now: Timestamp) {
        // A minute's count without a limit is this gateway's alone.
        self.minute.turn(now);
        let over = [self.day.turn(now), self.month.turn(now), self.stored_bytes.turn(now)];
        for (window, count) in over.into_iter().flatten() {
            self.owe(window, count);
        }
    }

    fn purse(&mut self, span: Span) -> &mut Purse {
        match span {
            Span::Minute => &mut self.minute,
            Span::Day => &mut self.day,
            Span::Month => &mut self.month,
            Span::StoredBytes => &mut self.stored_bytes,
        }
    }

    fn owe(&mut self, window: Window, count: u64) {
        if !self.purse(window.span).put_uncounted(window, count) && self.owed.len() < MOST_OWED {
            self.owed.push((window, count));
        }
    }

    fn take_owed(&mut self) -> Vec<(Window, u64)> {
        let mut owed = std::mem::take(&mut self.owed);
        for purse in [&mut self.day, &mut self.month, &mut self.stored_bytes] {
            let count = purse.take_uncounted();
            if count > 0 {
                owed.push((purse.window(), count));
            }
        }
        owed
    }
}

impl Reservation {
    /// The check counts from now on, whatever becomes of whoever holds this.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// It does not, after all.
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
        for Unit { window, amount, granted } in &self.units {
            state.purse(window.span).unspend(*window, *amount, *granted);
        }
    }
}

#[cfg(test)]
mod tests;
