//! The state store's clock as this process knows it; windows, runs and idempotency keys of all processes use it.
//!
//! Does not decide which of the store's clock and this host's is right: where they differ by too much, nothing is
//! decided here until one of them is corrected. A store in this process uses the host's clock.
//! INVARIANT: a reading lies between two moments of this host, so a reported difference is certain.

use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout_at};

use crate::clock::{Clocks, settled};
use crate::{StateStore, metrics};

/// How far a host's clock may differ from the state store's; beyond it nothing is decided.
pub const MAX_STORE_CLOCK_SKEW: Duration = Duration::from_secs(10);
const WARN_STORE_CLOCK_SKEW: Duration = Duration::from_secs(2);
/// How often the store's clock is read.
pub const CLOCK_READ_INTERVAL: Duration = Duration::from_secs(5);
/// Where no background task reads it, callers read it again when the last reading is older than this.
pub const CLOCK_READING_TTL: Duration = Duration::from_secs(15);
/// A reading is used for this long while the store cannot be read; by then clocks drift by a fraction of a second.
const MAX_READING_AGE: Duration = Duration::from_secs(3_600);
const READ_TIMEOUT: Duration = Duration::from_millis(500);
/// After a failure, for callers that have an older reading.
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);
/// A slower reading says less than an older one that was quick.
const MAX_READING_WIDTH: Duration = Duration::from_secs(1);

/// Readings of the state store's clock, shared by all connections of a process.
#[derive(Debug)]
pub struct StoreClock {
    /// None: the store is in this process.
    shared: Option<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    reading: Option<Reading>,
    failed_at: Option<Duration>,
}

/// What the store's clock showed between two moments of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    theirs: Timestamp,
    /// Boottime at which the reading was requested.
    asked: Duration,
    answered: Duration,
}

/// Why this host's clock cannot be relied on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// The store's clock could not be read, now or for a long time.
    #[error("the state store's clock cannot be read")]
    Unknown,
    /// This host's clock is ahead by at least this many whole seconds.
    #[error("{0} s ahead of the state store's clock; let NTP set both")]
    Ahead(u64),
    /// This host's clock is behind by at least this many whole seconds.
    #[error("{0} s behind the state store's clock; let NTP set both")]
    Behind(u64),
}

static OWN: LazyLock<Arc<StoreClock>> = LazyLock::new(|| Arc::new(StoreClock { shared: None }));

impl StoreClock {
    /// The clock of a store in this process.
    pub fn own() -> &'static Arc<Self> {
        &OWN
    }

    /// The clock of a remote store, without a reading yet.
    pub fn remote() -> Self {
        Self { shared: Some(Shared::default()) }
    }

    /// The store's time, or this host's until there is a reading. Sends no request.
    pub fn now(&self) -> Timestamp {
        let reading = self.shared.as_ref().and_then(|shared| shared.known().reading);
        reading.and_then(|reading| reading.time(Clocks::now().boot)).unwrap_or_else(settled)
    }

    /// Whether this host's clock is known to be near enough to the store's.
    pub fn check(&self) -> Result<(), ClockError> {
        let now = Clocks::now();
        self.check_at(now.wall, now.boot)
    }

    /// Whether a time that another process sent as its current one is near enough to the store's, or to this host's
    /// until there is a reading. For a store in this process every time is accepted: there is only one clock.
    pub fn check_peer_time(&self, said: Timestamp) -> Result<(), ClockError> {
        let now = Clocks::now();
        match self.check_at(said, now.boot) {
            Err(ClockError::Unknown) => check_skew(said.duration_since(now.wall), MAX_STORE_CLOCK_SKEW),
            checked => checked,
        }
    }

    /// A remark for an operator while everything still works.
    pub fn remark(&self) -> Option<String> {
        let (now, known) = (Clocks::now(), self.shared.as_ref()?.known());
        let checked = check_skew(known.reading?.skew(now.wall, now.boot)?, WARN_STORE_CLOCK_SKEW);
        checked.err().map(|error| format!("{error}: beyond {} s checks are refused", MAX_STORE_CLOCK_SKEW.as_secs()))
    }

    fn check_at(&self, wall: Timestamp, boot: Duration) -> Result<(), ClockError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let reading = shared.known().reading.filter(|reading| reading.age(boot) < MAX_READING_AGE);
        let skew = reading.and_then(|reading| reading.skew(wall, boot)).ok_or(ClockError::Unknown)?;
        check_skew(skew, MAX_STORE_CLOCK_SKEW)
    }

    /// Reads the clock with `ask`, unless it was read within `max_age` or another caller is reading it.
    pub(crate) async fn read<F>(&self, max_age: Duration, deadline: Instant, ask: impl FnOnce(Instant) -> F + Send)
    where
        F: Future<Output = Option<Timestamp>> + Send,
    {
        let Some(shared) = &self.shared else { return };
        if shared.known().suffices(max_age, Clocks::now().boot) {
            return;
        }
        let is_known = shared.known().reading.is_some();
        let _turn = match shared.turn.try_lock() {
            Ok(turn) => turn,
            // Continues with the last reading.
            Err(_) if is_known => return,
            Err(_) => {
                let Ok(turn) = timeout_at(deadline, shared.turn.lock()).await else { return };
                turn
            }
        };
        if shared.known().suffices(max_age, Clocks::now().boot) {
            return;
        }
        let asked = Clocks::now().boot;
        let until = deadline.min(Instant::now() + READ_TIMEOUT);
        let theirs = timeout_at(until, ask(until)).await.ok().flatten();
        let Clocks { wall, boot: answered } = Clocks::now();
        let mut known = shared.known();
        match theirs {
            Some(theirs) => {
                let reading = Reading { theirs, asked, answered };
                if let Some(skew) = reading.skew(wall, answered) {
                    metrics::store_clock_skew(skew.as_secs_f64());
                }
                known.take(reading);
            }
            None => known.failed_at = Some(answered),
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn suffices(&self, max_age: Duration, boot: Duration) -> bool {
        let fresh = self.reading.is_some_and(|reading| reading.age(boot) < max_age);
        let failed = self.failed_at.is_some_and(|at| boot.saturating_sub(at) < READ_RETRY_DELAY);
        fresh || (failed && self.reading.is_some())
    }

    fn take(&mut self, new: Reading) {
        let agrees = |old: Reading| old.age(new.answered) < MAX_READING_AGE && old.agrees(new);
        if new.width() <= MAX_READING_WIDTH || !self.reading.is_some_and(agrees) {
            self.reading = Some(new);
        }
        self.failed_at = None;
    }
}

impl Reading {
    fn age(self, boot: Duration) -> Duration {
        boot.saturating_sub(self.answered)
    }

    fn width(self) -> Duration {
        self.answered.saturating_sub(self.asked)
    }

    /// The store's time, assuming that it was read half way between the two moments.
    fn time(self, boot: Duration) -> Option<Timestamp> {
        self.since(boot, self.asked.saturating_add(self.width() / 2))
    }

    /// How far a clock is certainly ahead of the store's; negative: behind.
    fn skew(self, wall: Timestamp, boot: Duration) -> Option<SignedDuration> {
        let (earliest, latest) = (self.since(boot, self.answered)?, self.since(boot, self.asked)?);
        Some(match wall {
            ahead if ahead > latest => ahead.duration_since(latest),
            behind if behind < earliest => behind.duration_since(earliest),
            _ => SignedDuration::ZERO,
        })
    }

    fn since(self, boot: Duration, read: Duration) -> Option<Timestamp> {
        let passed = SignedDuration::try_from(boot.saturating_sub(read)).ok()?;
        self.theirs.checked_add(passed).ok()
    }

    fn agrees(self, new: Self) -> bool {
        let span = |reading: Self| {
            Some((reading.since(new.answered, reading.answered)?, reading.since(new.answered, reading.asked)?))
        };
        let (Some((earliest, latest)), Some((earliest_new, latest_new))) = (span(self), span(new)) else {
            return false;
        };
        earliest <= latest_new && earliest_new <= latest
    }
}

/// Whole seconds, rounded down.
fn check_skew(skew: SignedDuration, bound: Duration) -> Result<(), ClockError> {
    let differs = skew.unsigned_abs();
    match (differs > bound, skew.is_negative()) {
        (false, _) => Ok(()),
        (true, false) => Err(ClockError::Ahead(differs.as_secs())),
        (true, true) => Err(ClockError::Behind(differs.as_secs())),
    }
}

/// Reads the store's clock for as long as this is polled. Logs when this host's clock starts or ceases to differ.
pub async fn follow_store_clock(state_store: &dyn StateStore) {
    let mut agreed = true;
    loop {
        let checked = state_store.read_clock(CLOCK_READ_INTERVAL / 2, Instant::now() + READ_TIMEOUT).await;
        match &checked {
            Ok(()) if !agreed => tracing::info!("this host's clock agrees with the state store's"),
            Err(error @ (ClockError::Ahead(_) | ClockError::Behind(_))) if agreed => {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "this host's clock is not the state store's: nothing is decided by it");
            }
            // Callers that need the time get the error.
            Ok(()) | Err(_) => {}
        }
        let unknown = checked == Err(ClockError::Unknown);
        agreed = unknown || checked.is_ok();
        tokio::time::sleep(if unknown { READ_RETRY_DELAY } else { CLOCK_READ_INTERVAL }).await;
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    const DAY: i64 = 86_400;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// Asked and answered at these seconds since the boot.
    fn reading(theirs: i64, asked: u64, answered: u64) -> Reading {
        Reading { theirs: at(theirs), asked: seconds(asked), answered: seconds(answered) }
    }

    fn clock(reading: Option<Reading>) -> StoreClock {
        let known = Mutex::new(Known { reading, failed_at: None });
        StoreClock { shared: Some(Shared { known, turn: tokio::sync::Mutex::default() }) }
    }

    #[test]
    fn the_stores_time_goes_on_by_the_kernels_clock_whatever_the_wall_says() {
        let reading = reading(1_000, 50, 52);
        assert_eq!(reading.time(seconds(52)), Some(at(1_001)), "as if it had been read half way");
        assert_eq!(reading.time(seconds(152)), Some(at(1_101)));
    }

    #[test]
    fn a_host_clock_is_refused_only_when_it_certainly_differs_by_more_than_the_limit() {
        let clock = clock(Some(reading(1_000, 50, 52)));
        let check = |wall: i64| clock.check_at(at(wall), seconds(60));
        // The store's clock is between 1008 and 1010.
        for fine in [1_008, 1_010, 1_009 + 11, 1_009 - 11] {
            assert_eq!(check(fine), Ok(()), "{fine}");
        }
        assert_eq!(check(1_010 + 11), Err(ClockError::Ahead(11)));
        assert_eq!(check(1_008 - 11), Err(ClockError::Behind(11)));
        assert_eq!(check(1_010 + DAY), Err(ClockError::Ahead(86_400)));
        assert_eq!(check(1_008 - DAY), Err(ClockError::Behind(86_400)));
    }

    #[test]
    fn a_clock_reading_older_than_an_hour_counts_as_unknown() {
        let old = clock(Some(reading(1_000, 50, 50)));
        assert_eq!(old.check_at(at(1_000 + 3_599), seconds(50 + 3_599)), Ok(()));
        assert_eq!(old.check_at(at(1_000 + 3_600), seconds(50 + 3_600)), Err(ClockError::Unknown));
        assert_eq!(clock(None).check_at(at(0), seconds(1)), Err(ClockError::Unknown));
        assert_eq!(StoreClock::own().check_at(at(0), seconds(1)), Ok(()), "one process, one clock");
    }

    #[test]
    fn a_peers_time_is_compared_with_this_hosts_clock_while_the_stores_clock_is_unknown() {
        let (unknown, now) = (clock(None), Timestamp::now());
        let later = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        assert_eq!(unknown.check_peer_time(later(5)), Ok(()));
        assert!(matches!(unknown.check_peer_time(later(DAY)), Err(ClockError::Ahead(_))));
        assert_eq!(StoreClock::own().check_peer_time(later(DAY)), Ok(()));
    }

    #[test]
    fn a_slow_reading_replaces_a_quick_one_only_where_they_contradict_each_other() {
        let mut known = Known::default();
        known.take(reading(1_000, 50, 50));
        known.take(reading(1_011, 60, 63));
        assert_eq!(known.reading, Some(reading(1_000, 50, 50)));
        known.take(reading(1_020, 70, 71));
        assert_eq!(known.reading, Some(reading(1_020, 70, 71)), "quick enough");
        known.take(reading(1_030 + DAY, 80, 85));
        assert_eq!(known.reading, Some(reading(1_030 + DAY, 80, 85)), "the store's clock was set");
    }

    #[test]
    fn each_reading_says_how_far_this_hosts_clock_is_ahead_of_the_stores() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let hour_behind = Timestamp::now().checked_sub(SignedDuration::from_secs(3_600)).ok();
        ::metrics::with_local_recorder(&recorder, || {
            runtime.block_on(async {
                let until = Instant::now() + seconds(30);
                clock(None).read(Duration::ZERO, until, |_| async move { hour_behind }).await;
            });
        });
        let page = recorder.handle().render();
        let skew = page.lines().find_map(|line| line.strip_prefix("stage0_store_clock_skew_seconds "));
        let skew: f64 = skew.unwrap_or_else(|| panic!("{page}")).parse().unwrap();
        assert!((3_599.0..3_660.0).contains(&skew), "{skew}");
    }

    #[tokio::test]
    async fn the_stores_clock_is_read_once_while_it_is_fresh_and_not_at_once_after_a_failure() {
        let clock = clock(None);
        let soon = || Instant::now() + seconds(30);
        clock.read(seconds(60), soon(), |_| async { None }).await;
        assert_eq!(clock.check(), Err(ClockError::Unknown));
        clock.read(seconds(60), soon(), |_| async { Some(Timestamp::now()) }).await;
        assert_eq!(clock.check(), Ok(()));
        let day_ahead = || Timestamp::now().checked_add(SignedDuration::from_secs(DAY)).ok();
        clock.read(seconds(60), soon(), |_| async move { day_ahead() }).await;
        assert_eq!(clock.check(), Ok(()), "it was fresh");
        clock.read(Duration::ZERO, soon(), |_| async { None }).await;
        clock.read(Duration::ZERO, soon(), |_| async move { day_ahead() }).await;
        assert_eq!(clock.check(), Ok(()), "it had just failed");
        clock.shared.as_ref().unwrap().known().failed_at = None;
        clock.read(Duration::ZERO, soon(), |_| async move { day_ahead() }).await;
        assert!(matches!(clock.check(), Err(ClockError::Behind(86_399 | 86_400))));
        let ahead = clock.now().duration_since(Timestamp::now());
        assert!((ahead.as_secs() - DAY).abs() <= 1, "{ahead:?}");
    }
}
