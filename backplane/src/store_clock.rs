//! The state store's clock, as this process knows it: windows, runs and idempotency keys of all processes go by it.
//!
//! Owns the last reading of the store's clock, how it is carried on by the kernel's clock that nobody sets, and how far
//! this host's clock may differ. Refuses to say which of the two is right: where they differ by more, nothing is
//! decided here until somebody has set one of them. A store in this process has no other clock than this host's.
//! INVARIANT: a reading is the store's own time between two moments of this host; what is said to differ surely does.

use std::future::Future;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, timeout_at};

use crate::Ledger;
use crate::clock::{Clocks, settled};

/// How far a host's clock may be from the state store's: beyond it nothing is decided. Two hosts that keep to it are
/// within what authenticated messages allow (30 s).
pub const MAX_STORE_CLOCK_SKEW: Duration = Duration::from_secs(10);
/// From here on an operator is told.
const WARN_STORE_CLOCK_SKEW: Duration = Duration::from_secs(2);
/// How often the store's clock is read.
pub const CLOCK_READ_INTERVAL: Duration = Duration::from_secs(5);
/// Where nothing in the background reads it, whoever asks for the time does after this.
pub const MAX_FRESH_CLOCK: Duration = Duration::from_secs(15);
/// A reading is of use for so long while the store cannot be read: by then clocks drift by a fraction of a second.
const MAX_READING_AGE: Duration = Duration::from_secs(3_600);
/// One reading.
const READ_TIMEOUT: Duration = Duration::from_millis(500);
/// After a failure, for whoever has an older reading.
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);
/// A slower one says less than an older one that was quick.
const MAX_READING_WIDTH: Duration = Duration::from_secs(1);

/// The state store's clock.
#[derive(Debug)]
pub struct StoreClock {
    /// None: the store is in this process.
    shared: Option<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<Known>,
    /// Who reads; one at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Known {
    reading: Option<Reading>,
    /// When it could not be read, by the kernel's clock.
    failed_at: Option<Duration>,
}

/// What the store's clock said between two moments of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    theirs: Timestamp,
    /// By the kernel's clock.
    asked: Duration,
    answered: Duration,
}

/// Why nothing is decided by this host's clock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockError {
    /// It could not be read, or not for long.
    #[error("the state store's clock cannot be read")]
    Unknown,
    /// This host's is ahead by at least so many whole seconds.
    #[error("{0} s ahead of the state store's clock; let NTP set both")]
    Ahead(u64),
    /// Or behind.
    #[error("{0} s behind the state store's clock; let NTP set both")]
    Behind(u64),
}

static OWN: LazyLock<Arc<StoreClock>> = LazyLock::new(|| Arc::new(StoreClock { shared: None }));

impl StoreClock {
    /// Of a store in this process.
    #[must_use]
    pub fn own() -> &'static Arc<Self> {
        &OWN
    }

    /// Of a store somewhere else; nothing is known of it yet.
    #[must_use]
    pub fn remote() -> Self {
        Self { shared: Some(Shared::default()) }
    }

    /// The store's time; this host's as long as nothing is known of it. Costs no question.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let reading = self.shared.as_ref().and_then(|shared| shared.known().reading);
        reading.and_then(|reading| reading.time(Clocks::now().boot)).unwrap_or_else(settled)
    }

    /// Whether this host's clock is near enough to the store's.
    ///
    /// # Errors
    /// When it is not, or when nothing is known.
    pub fn judge(&self) -> Result<(), ClockError> {
        if self.shared.is_none() {
            return Ok(());
        }
        let now = Clocks::now();
        self.judge_at(now.wall, now.boot)
    }

    /// Whether a time that another process calls now is near enough to the store's, or to this host's as long as
    /// nothing is known of the store's.
    ///
    /// # Errors
    /// When it is not. Of a store in this process every time is right: there is one clock.
    pub fn judge_of_another(&self, said: Timestamp) -> Result<(), ClockError> {
        if self.shared.is_none() {
            return Ok(());
        }
        let now = Clocks::now();
        match self.judge_at(said, now.boot) {
            Err(ClockError::Unknown) => judge(said.duration_since(now.wall), MAX_STORE_CLOCK_SKEW),
            judged => judged,
        }
    }

    /// What an operator should know though all goes on.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        let (now, known) = (Clocks::now(), self.shared.as_ref()?.known());
        let judged = judge(known.reading?.skew(now.wall, now.boot)?, WARN_STORE_CLOCK_SKEW);
        judged.err().map(|error| format!("{error}: beyond {} s checks are refused", MAX_STORE_CLOCK_SKEW.as_secs()))
    }

    fn judge_at(&self, wall: Timestamp, boot: Duration) -> Result<(), ClockError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let reading = shared.known().reading.filter(|reading| reading.age(boot) < MAX_READING_AGE);
        let skew = reading.and_then(|reading| reading.skew(wall, boot)).ok_or(ClockError::Unknown)?;
        judge(skew, MAX_STORE_CLOCK_SKEW)
    }

    /// Reads the clock by `ask`, unless it was read within `max_age`, or somebody else is about to.
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
            // It goes on by what is known.
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
        let answered = Clocks::now().boot;
        let mut known = shared.known();
        match theirs {
            Some(theirs) => known.take(Reading { theirs, asked, answered }),
            None => known.failed_at = Some(answered),
        }
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Each use is one step: a panic elsewhere cannot leave it half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Whether there is nothing to be gained by reading now.
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

    /// The store's time: as if it had been read half way.
    fn time(self, boot: Duration) -> Option<Timestamp> {
        self.since(boot, self.asked.saturating_add(self.width() / 2))
    }

    /// By how much a clock is surely ahead of the store's; negative: behind.
    fn skew(self, wall: Timestamp, boot: Duration) -> Option<SignedDuration> {
        let (earliest, latest) = (self.since(boot, self.answered)?, self.since(boot, self.asked)?);
        Some(match wall {
            ahead if ahead > latest => ahead.duration_since(latest),
            behind if behind < earliest => behind.duration_since(earliest),
            _ => SignedDuration::ZERO,
        })
    }

    /// The store's time at `boot`, had it been read at `read`.
    fn since(self, boot: Duration, read: Duration) -> Option<Timestamp> {
        let passed = SignedDuration::try_from(boot.saturating_sub(read)).ok()?;
        self.theirs.checked_add(passed).ok()
    }

    /// Whether both can be readings of one clock.
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
fn judge(skew: SignedDuration, bound: Duration) -> Result<(), ClockError> {
    let differs = skew.unsigned_abs();
    match (differs > bound, skew.is_negative()) {
        (false, _) => Ok(()),
        (true, false) => Err(ClockError::Ahead(differs.as_secs())),
        (true, true) => Err(ClockError::Behind(differs.as_secs())),
    }
}

/// Reads the store's clock for as long as this is polled, so that nobody who needs the time waits for it. Says in the
/// log when this host's clock begins, or ceases, to differ by too much.
pub async fn follow_store_clock(ledger: &dyn Ledger) {
    let mut agreed = true;
    loop {
        let judged = ledger.read_clock(CLOCK_READ_INTERVAL / 2, Instant::now() + READ_TIMEOUT).await;
        match &judged {
            Ok(()) if !agreed => tracing::info!("this host's clock agrees with the state store's"),
            Err(error @ (ClockError::Ahead(_) | ClockError::Behind(_))) if agreed => {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, "this host's clock is not the state store's: nothing is decided by it");
            }
            // Who needs the time is told so.
            Ok(()) | Err(_) => {}
        }
        let unknown = judged == Err(ClockError::Unknown);
        agreed = unknown || judged.is_ok();
        tokio::time::sleep(if unknown { READ_RETRY_DELAY } else { CLOCK_READ_INTERVAL }).await;
    }
}

#[cfg(test)]
mod tests {
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
    fn a_clock_is_refused_beyond_the_bound_and_only_when_it_surely_differs() {
        let clock = clock(Some(reading(1_000, 50, 52)));
        let judge = |wall: i64| clock.judge_at(at(wall), seconds(60));
        // The store's clock is between 1008 and 1010.
        for fine in [1_008, 1_010, 1_009 + 11, 1_009 - 11] {
            assert_eq!(judge(fine), Ok(()), "{fine}");
        }
        assert_eq!(judge(1_010 + 11), Err(ClockError::Ahead(11)));
        assert_eq!(judge(1_008 - 11), Err(ClockError::Behind(11)));
        assert_eq!(judge(1_010 + DAY), Err(ClockError::Ahead(86_400)));
        assert_eq!(judge(1_008 - DAY), Err(ClockError::Behind(86_400)));
    }

    #[test]
    fn what_was_read_an_hour_ago_says_nothing_and_neither_does_nothing() {
        let old = clock(Some(reading(1_000, 50, 50)));
        assert_eq!(old.judge_at(at(1_000 + 3_599), seconds(50 + 3_599)), Ok(()));
        assert_eq!(old.judge_at(at(1_000 + 3_600), seconds(50 + 3_600)), Err(ClockError::Unknown));
        assert_eq!(clock(None).judge_at(at(0), seconds(1)), Err(ClockError::Unknown));
        assert_eq!(StoreClock::own().judge_at(at(0), seconds(1)), Ok(()), "one process, one clock");
    }

    #[test]
    fn another_process_is_measured_by_this_hosts_clock_while_the_stores_is_unknown() {
        let (unknown, now) = (clock(None), Timestamp::now());
        let later = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
        assert_eq!(unknown.judge_of_another(later(5)), Ok(()));
        assert!(matches!(unknown.judge_of_another(later(DAY)), Err(ClockError::Ahead(_))));
        assert_eq!(StoreClock::own().judge_of_another(later(DAY)), Ok(()));
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

    #[tokio::test]
    async fn it_is_read_once_while_it_is_fresh_and_a_failure_is_not_repeated_at_once() {
        let clock = clock(None);
        let soon = || Instant::now() + seconds(30);
        clock.read(seconds(60), soon(), |_| async { None }).await;
        assert_eq!(clock.judge(), Err(ClockError::Unknown));
        clock.read(seconds(60), soon(), |_| async { Some(Timestamp::now()) }).await;
        assert_eq!(clock.judge(), Ok(()));
        let day_ahead = || Timestamp::now().checked_add(SignedDuration::from_secs(DAY)).ok();
        clock.read(seconds(60), soon(), |_| async move { day_ahead() }).await;
        assert_eq!(clock.judge(), Ok(()), "it was fresh");
        clock.read(Duration::ZERO, soon(), |_| async { None }).await;
        clock.read(Duration::ZERO, soon(), |_| async move { day_ahead() }).await;
        assert_eq!(clock.judge(), Ok(()), "it had just failed");
        clock.shared.as_ref().unwrap().known().failed_at = None;
        clock.read(Duration::ZERO, soon(), |_| async move { day_ahead() }).await;
        assert!(matches!(clock.judge(), Err(ClockError::Behind(86_399 | 86_400))));
        let ahead = clock.now().duration_since(Timestamp::now());
        assert!((ahead.as_secs() - DAY).abs() <= 1, "{ahead:?}");
    }
}
