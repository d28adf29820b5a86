//! The time limit of a decision.
//!
//! It is checked between the steps of a decision and between the texts of a request, never within a step, and between
//! the cases of a pack that is judged.
//! INVARIANT: an evaluation that ran out of time is no decision and does not change the state of a run.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// When to stop evaluating.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimit(Limit);

#[derive(Debug, Clone, Copy)]
enum Limit {
    None,
    At(Instant),
    /// Of the clock of the thread.
    OfThread(Duration),
}

/// The time limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the decision took too long")]
pub struct OutOfTime;

impl TimeLimit {
    /// No limit, for loading packs, running cases and benchmarks.
    pub const NONE: Self = Self(Limit::None);

    /// Three quarters of the way to the deadline, so that the caller has the error before it asks another evaluator.
    pub fn before(deadline: Instant, now: Instant) -> Self {
        Self(Limit::At(now + deadline.saturating_duration_since(now) * 3 / 4))
    }

    /// At this time.
    pub fn at(limit: Instant) -> Self {
        Self(Limit::At(limit))
    }

    /// After this much processor time of the calling thread, which must be the one that checks the limit. For work that
    /// gives way to other work: how busy the machine is says nothing of a pack.
    pub fn of_thread(work: Duration) -> Self {
        Self(Limit::OfThread(thread_time() + work))
    }

    /// Fails once the limit has passed.
    pub fn check(self) -> Result<(), OutOfTime> {
        match self.0 {
            Limit::At(limit) if Instant::now() >= limit => Err(OutOfTime),
            Limit::OfThread(limit) if thread_time() >= limit => Err(OutOfTime),
            Limit::None | Limit::At(_) | Limit::OfThread(_) => Ok(()),
        }
    }

    /// A limit that has passed already.
    #[doc(hidden)]
    pub fn over() -> Self {
        Self(Limit::At(Instant::now()))
    }
}

/// The processor time that the calling thread has used.
fn thread_time() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(used).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_processor_time_stands_still_while_its_thread_waits() {
        let limit = TimeLimit::of_thread(Duration::from_millis(20));
        std::thread::sleep(Duration::from_millis(40));
        assert_eq!(limit.check(), Ok(()));
        let began = thread_time();
        while thread_time() < began + Duration::from_millis(25) {
            std::hint::spin_loop();
        }
        assert_eq!(limit.check(), Err(OutOfTime));
    }
}
