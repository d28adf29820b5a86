//! The duration of a check's steps, and the number of checks in flight.
//!
//! Owns the names of the steps. A step is measured whether it succeeds or fails, but not if its check is cancelled. A
//! step that a check repeats, as when attempts with one idempotency key race, is measured each time.

use std::time::Instant;

use super::{check_began, check_ended, step_took};

/// The steps of a check, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckStep {
    Authenticate,
    /// The body arrives, which takes the caller's time.
    Body,
    /// The account's limit per minute.
    Admit,
    /// Whether its idempotency key was used before.
    LookUp,
    /// The account's quotas per day and month.
    Reserve,
    /// The fields are validated; if some are invalid, an evaluator validates them, too.
    Parse,
    /// The idempotency key is reserved for this check.
    Claim,
    /// An evaluator decides, retries included.
    Evaluate,
    /// The decision is written to the log.
    Record,
}

impl CheckStep {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Authenticate => "authenticate",
            Self::Body => "body",
            Self::Admit => "admit",
            Self::LookUp => "look_up",
            Self::Reserve => "reserve",
            Self::Parse => "parse",
            Self::Claim => "claim",
            Self::Evaluate => "evaluate",
            Self::Record => "record",
        }
    }
}

/// Measures how long the work takes.
pub(crate) async fn timed<T>(step: CheckStep, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    step_took(step, began.elapsed());
    done
}

/// A check is in flight until this is dropped.
pub(crate) struct InFlight(());

impl InFlight {
    pub(crate) fn begin() -> Self {
        check_began();
        Self(())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        check_ended();
    }
}
