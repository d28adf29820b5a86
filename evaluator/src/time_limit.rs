//! The moment at which a decision is given up.
//!
//! Owns the question whether it has come, which is asked between the steps of a decision and between the texts of a
//! request, and never inside a step. Without a limit it never comes.
//! INVARIANT: what was given up is no decision, and teaches a run nothing.

use std::time::{Duration, Instant};

/// When to give up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeLimit(Option<Instant>);

/// The time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the decision took too long")]
pub(crate) struct OutOfTime;

impl TimeLimit {
    /// Decides however long it takes: for packs, cases and benchmarks.
    pub(crate) const NONE: Self = Self(None);

    /// Three quarters of the way to the deadline, so that the asker hears that it was given up before it asks somebody
    /// else.
    pub(crate) fn before(deadline: Instant, now: Instant) -> Self {
        let left: Duration = deadline.saturating_duration_since(now);
        Self(Some(now + left * 3 / 4))
    }

    /// Fails once the time is over.
    pub(crate) fn check(self) -> Result<(), OutOfTime> {
        match self.0 {
            Some(limit) if Instant::now() >= limit => Err(OutOfTime),
            Some(_) | None => Ok(()),
        }
    }

    /// One that is over already.
    #[cfg(test)]
    pub(crate) fn over() -> Self {
        Self(Some(Instant::now()))
    }
}
