//! The host's two clocks: the wall clock, which somebody may set, and the kernel's boottime clock, which only runs.
//!
//! Owns two times that a forward jump of the wall clock does not move at once: the steady time (start of the process
//! plus elapsed boottime) and the settled time (follows a jump after an hour). Does not decide which clock is right:
//! code that destroys data by the clock compares several.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// Both clocks, read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// The wall clock.
    pub wall: Timestamp,
    /// Time since the host was started.
    pub boot: Duration,
}

static START: OnceLock<Clocks> = OnceLock::new();
static SETTLED: Mutex<Option<Settled>> = Mutex::new(None);
const MAX_STEP: Duration = Duration::from_secs(3_600);
/// A forward step is followed once the wall clock has kept it for this long.
const MIN_JUMP_AGE: Duration = Duration::from_secs(3_600);
static PROCESS: OnceLock<String> = OnceLock::new();

impl Clocks {
    /// Reads both clocks.
    pub fn now() -> Self {
        simulated().unwrap_or_else(|| Self { wall: Timestamp::now(), boot: kernel_boottime() })
    }

    /// How far the wall clock is ahead of boottime, in microseconds. It changes only when somebody sets the wall clock.
    pub fn offset(&self) -> i64 {
        let boot = i64::try_from(self.boot.as_micros()).unwrap_or(i64::MAX);
        self.wall.as_microsecond().saturating_sub(boot)
    }

    /// What a wall clock with this offset to boottime would show now.
    pub fn at_offset(&self, offset: i64) -> Timestamp {
        let boot = i64::try_from(self.boot.as_micros()).unwrap_or(i64::MAX);
        Timestamp::from_microsecond(offset.saturating_add(boot)).unwrap_or(self.wall)
    }
}

/// Time since the host was started (`CLOCK_BOOTTIME`). It cannot be set, and it runs on while the process is stopped
/// and while the host sleeps. Costs tens of nanoseconds and no system call.
pub fn boottime() -> Duration {
    simulated().map_or_else(kernel_boottime, |simulated| simulated.boot)
}

fn kernel_boottime() -> Duration {
    let boot = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(boot.tv_sec).unwrap_or_default(), u32::try_from(boot.tv_nsec).unwrap_or_default())
}

/// The clocks of the simulation that runs on this thread; none in a build that ships.
fn simulated() -> Option<Clocks> {
    #[cfg(feature = "simulation")]
    return crate::sim::clocks();
    #[cfg(not(feature = "simulation"))]
    None
}

/// Both clocks at the start of the process that asks.
fn start_of_process(now: Clocks) -> Clocks {
    #[cfg(feature = "simulation")]
    if let Some(start) = crate::sim::start_of_process() {
        return start;
    }
    *START.get_or_init(|| now)
}

/// Marks the start of the process for [`steady_now`].
pub fn start() {
    steady_now();
}

/// The wall time at the process's start plus the boottime since, or the wall clock where that is earlier.
pub fn steady_now() -> Timestamp {
    let now = Clocks::now();
    steady_since(start_of_process(now), now)
}

fn steady_since(start: Clocks, now: Clocks) -> Timestamp {
    let elapsed = SignedDuration::try_from(now.boot.saturating_sub(start.boot)).unwrap_or_default();
    start.wall.checked_add(elapsed).map_or(now.wall, |steady| steady.min(now.wall))
}

/// The time for data that a process keeps and expires itself. It follows the wall clock, except that a jump ahead by
/// more than an hour is followed only after an hour: a clock that is wrong for a moment expires nothing.
pub fn settled() -> Timestamp {
    let now = Clocks::now();
    #[cfg(feature = "simulation")]
    if let Some(settled) = crate::sim::settled(now) {
        return settled;
    }
    let mut settled = SETTLED.lock().unwrap_or_else(PoisonError::into_inner);
    settled.get_or_insert_with(|| Settled::new(now)).time(now)
}

pub(crate) struct Settled {
    offset: i64,
    /// Since when (boottime) the wall clock is too far ahead, and with which offset.
    ahead: Option<(Duration, i64)>,
}

impl Settled {
    pub(crate) fn new(now: Clocks) -> Self {
        Self { offset: now.offset(), ahead: None }
    }

    pub(crate) fn time(&mut self, now: Clocks) -> Timestamp {
        let own = now.offset();
        let far = |from: i64| own.saturating_sub(from) > i64::try_from(MAX_STEP.as_micros()).unwrap_or(i64::MAX);
        if far(self.offset) {
            let (since, offset) = *self.ahead.get_or_insert((now.boot, own));
            if far(offset) {
                self.ahead = Some((now.boot, own));
            }
            if far(offset) || now.boot.saturating_sub(since) < MIN_JUMP_AGE {
                return now.at_offset(self.offset);
            }
        }
        (self.offset, self.ahead) = (own, None);
        now.wall
    }
}

/// Identifies this process among all processes of all hosts. Two roles in one process share it, as they share a clock.
pub fn process() -> &'static str {
    PROCESS.get_or_init(|| {
        let since = Clocks::now().boot.as_nanos();
        format!("{}.{}.{since}", boot_id().unwrap_or_default(), std::process::id())
    })
}

/// Identifies this boot of the host; none where the kernel does not provide an id.
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
    fn the_steady_time_ignores_a_wall_clock_set_ahead_and_follows_one_set_back() {
        let start = at(1_000, 50);
        let steady_now = |wall, boot| steady_since(start, at(wall, boot)).as_second();
        assert_eq!(steady_now(1_000, 50), 1_000);
        assert_eq!(steady_now(1_060, 110), 1_060);
        assert_eq!(steady_now(3_456_000, 110), 1_060);
        assert_eq!(steady_now(500, 110), 500);
    }

    #[test]
    fn the_offset_of_the_clocks_changes_only_when_the_wall_clock_is_set() {
        assert_eq!(at(1_000, 50).offset(), at(1_060, 110).offset());
        assert_ne!(at(1_000, 50).offset(), at(1_061, 110).offset());
        assert_eq!(at(9_000, 110).at_offset(at(1_000, 50).offset()).as_second(), 1_060);
    }

    #[test]
    fn the_settled_time_follows_a_clock_set_ahead_only_after_an_hour() {
        let mut settled = Settled::new(at(1_000, 0));
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
    fn both_clocks_run_and_the_process_has_one_id() {
        let (first, second) = (Clocks::now(), Clocks::now());
        assert!(second.boot >= first.boot && !first.boot.is_zero());
        assert_eq!(process(), process());
        assert!(boot_id().is_some_and(|id| process().starts_with(&id)));
    }
}
