//! What a check costs and how many are under way.
//!
//! Owns the words for its steps. A step is measured however it ends; one whose check is dropped on the way is not. What one check
//! does more than once, as when attempts with one idempotency key race, is measured each time.

use std::time::Instant;

use super::{check_began, check_ended, step_took};

/// What a check goes through, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its key is judged.
    Authenticate,
    /// Its body arrives and is read: the caller's time.
    Body,
    /// The account's minute.
    Admit,
    /// What its idempotency key was used for before.
    LookUp,
    /// The account's day and month.
    Reserve,
    /// Its fields; when some are bad, an evaluator looks at them too.
    Parse,
    /// Its idempotency key becomes its own.
    Claim,
    /// An evaluator decides, tries included.
    Evaluate,
    /// The decision is on disk.
    Record,
}

impl Step {
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

/// Does the work and measures it.
pub(crate) async fn timed<T>(step: Step, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let done = work.await;
    step_took(step, began.elapsed());
    done
}

/// A check is under way until this is dropped.
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
