//! The two clocks of a host: the wall's, which somebody may set, and the kernel's own, which only runs.
//!
//! Owns reading both, which boot of which host this is, and two times that a wall clock which is set ahead does not
//! change at once: what a process vouches for (its start, and what went by since by the kernel's clock), and the
//! settled time, which follows after an hour. CLOCK_BOOTTIME goes on while the host sleeps. Refuses to say which clock
//! is right: who destroys by the clock compares several.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// The wall's.
    pub wall: Timestamp,
    /// Since the host was started.
    pub boot: Duration,
}

static START: OnceLock<Clocks> = OnceLock::new();
static SETTLED: Mutex<Option<Settled>> = Mutex::new(None);
/// A wall clock that is set ahead by more is not followed at once.
const MAX_STEP: Duration = Duration::from_secs(3_600);
/// After which a clock that was set ahead, and was not set again since, is followed.
const SETTLES_AFTER: Duration = Duration::from_secs(3_600);
static PROCESS: OnceLock<String> = OnceLock::new();

impl Clocks {
    /// As they are now.
    #[must_use]
    pub fn now() -> Self {
        Self { wall: Timestamp::now(), boot: boottime() }
    }

    /// How far the wall's is ahead of the kernel's, in microseconds: it changes only when somebody sets the wall's.
    #[must_use]
    pub fn offset(&self) -> i64 {
        let boot = i64::try_from(self.boot.as_micros()).unwrap_or(i64::MAX);
        self.wall.as_microsecond().saturating_sub(boot)
    }

    /// The time by the kernel's clock, where the wall's was so far ahead of it.
    #[must_use]
    pub fn at_offset(&self, offset: i64) -> Timestamp {
        let boot = i64::try_from(self.boot.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_microsecond(offset.saturating_add(boot)).unwrap_or(self.wall)
    }
}

/// Time since the host was started, by `CLOCK_BOOTTIME`: nobody sets it, and it goes on while the process is stopped and
/// while the host sleeps. Costs tens of nanoseconds, no system call.
#[must_use]
pub fn boottime() -> Duration {
    let boot = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(boot.tv_sec).unwrap_or_default(), u32::try_from(boot.tv_nsec).unwrap_or_default())
}

/// The process starts: from here on it knows how much time went by.
pub fn start() {
    vouched();
}

/// What this process vouches for: never ahead of its start and what went by since, nor of the wall's clock. The first
/// call is the start.
pub fn vouched() -> Timestamp {
    let now = Clocks::now();
    let start = START.get_or_init(|| now);
    vouched_since(*start, now)
}

fn vouched_since(start: Clocks, now: Clocks) -> Timestamp {
    let went_by = SignedDuration::try_from(now.boot.saturating_sub(start.boot)).unwrap_or_default();
    start.wall.checked_add(went_by).map_or(now.wall, |steady| steady.min(now.wall))
}

/// The time for what a process keeps and ends by itself. It follows the wall's clock, but where that is set ahead by
/// more than an hour only after it has stood so for an hour: a clock that is wrong for a moment ends nothing.
#[must_use]
pub fn settled() -> Timestamp {
    let now = Clocks::now();
    // Each use is one step: a panic elsewhere cannot leave it half done.
    let mut settled = SETTLED.lock().unwrap_or_else(PoisonError::into_inner);
    settled.get_or_insert(Settled { offset: now.offset(), ahead: None }).time(now)
}

struct Settled {
    /// Of the clock that is followed.
    offset: i64,
    /// Since when the clock is ahead of it, and by which offset.
    ahead: Option<(Duration, i64)>,
}

impl Settled {
    fn time(&mut self, now: Clocks) -> Timestamp {
        let own = now.offset();
        let far = |from: i64| own.saturating_sub(from) > i64::try_from(MAX_STEP.as_micros()).unwrap_or(i64::MAX);
        if far(self.offset) {
            let (since, offset) = *self.ahead.get_or_insert((now.boot, own));
            if far(offset) {
                self.ahead = Some((now.boot, own));
            }
            if far(offset) || now.boot.saturating_sub(since) < SETTLES_AFTER {
                return now.at_offset(self.offset);
            }
        }
        (self.offset, self.ahead) = (own, None);
        now.wall
    }
}

/// Names this process among all, on whatever host: two roles in one process have one clock.
pub fn process() -> &'static str {
    PROCESS.get_or_init(|| {
        let since = Clocks::now().boot.as_nanos();
        format!("{}.{}.{since}", boot_id().unwrap_or_default(), std::process::id())
    })
}

/// Names this boot of this host; none where the kernel does not tell.
#[must_use]
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    let sound = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    sound.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: i64, boot: u64) -> Clocks {
        Clocks { wall: Timestamp::from_second(wall).unwrap(), boot: Duration::from_secs(boot) }
    }

    #[test]
    fn a_wall_clock_that_is_set_ahead_is_not_vouched_for_and_one_that_is_set_back_is_followed() {
        let start = at(1_000, 50);
        let vouched = |wall, boot| vouched_since(start, at(wall, boot)).as_second();
        assert_eq!(vouched(1_000, 50), 1_000);
        assert_eq!(vouched(1_060, 110), 1_060);
        assert_eq!(vouched(3_456_000, 110), 1_060);
        assert_eq!(vouched(500, 110), 500);
    }

    #[test]
    fn the_offset_is_the_same_until_somebody_sets_the_clock() {
        assert_eq!(at(1_000, 50).offset(), at(1_060, 110).offset());
        assert_ne!(at(1_000, 50).offset(), at(1_061, 110).offset());
        assert_eq!(at(9_000, 110).at_offset(at(1_000, 50).offset()).as_second(), 1_060);
    }

    #[test]
    fn the_settled_time_follows_a_clock_that_is_set_ahead_only_once_it_has_stood_so_for_an_hour() {
        let mut settled = Settled { offset: at(1_000, 0).offset(), ahead: None };
        let mut time = |wall, boot| settled.time(at(wall, boot)).as_second();
        assert_eq!(time(1_060, 60), 1_060);
        // A minute ahead, and back.
        assert_eq!(time(3_456_000, 120), 1_120);
        assert_eq!(time(3_456_060, 180), 1_180);
        assert_eq!(time(1_240, 240), 1_240);
        // Up to an hour is followed, and so is a clock that is set back.
        assert_eq!(time(4_840, 300), 4_840);
        assert_eq!(time(1_300, 300), 1_300);
        // Ahead for good.
        assert_eq!(time(3_456_000, 400), 1_400);
        assert_eq!(time(3_456_000 + 3_599, 400 + 3_599), 1_400 + 3_599);
        assert_eq!(time(3_456_000 + 3_600, 400 + 3_600), 3_456_000 + 3_600);
        assert_eq!(time(3_456_000 + 3_660, 400 + 3_660), 3_456_000 + 3_660);
    }

    #[test]
    fn both_clocks_run_and_the_process_has_one_name() {
        let (first, second) = (Clocks::now(), Clocks::now());
        assert!(second.boot >= first.boot && !first.boot.is_zero());
        assert_eq!(process(), process());
        assert!(boot_id().is_some_and(|id| process().starts_with(&id)));
    }
}
