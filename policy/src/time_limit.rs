//! The time limit of a decision.
//!
//! It is checked between the steps of a decision and between the texts of a request, never within a step, and between
//! the cases of a pack that is judged.
//! INVARIANT: an evaluation that ran out of time is no decision and does not change the state of a run.

use std::time::Instant;

/// When to stop evaluating.
#[derive(Debug, Clone, Copy)]
pub struct TimeLimit(Option<Instant>);

/// The time limit has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the decision took too long")]
pub struct OutOfTime;

impl TimeLimit {
    /// No limit, for loading packs, running cases and benchmarks.
    pub const NONE: Self = Self(None);

    /// Three quarters of the way to the deadline, so that the caller has the error before it asks another evaluator.
    pub fn before(deadline: Instant, now: Instant) -> Self {
        Self(Some(now + deadline.saturating_duration_since(now) * 3 / 4))
    }

    /// At this time.
    pub fn at(limit: Instant) -> Self {
        Self(Some(limit))
    }

    /// Fails once the limit has passed.
    pub fn check(self) -> Result<(), OutOfTime> {
        match self.0 {
            Some(limit) if Instant::now() >= limit => Err(OutOfTime),
            _ => Ok(()),
        }
    }

    /// A limit that has passed already.
    #[doc(hidden)]
    pub fn over() -> Self {
        Self(Some(Instant::now()))
    }
}
