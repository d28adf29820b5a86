//! What the process says when it ends. Only 0 lets an action run.
//!
//! Owns the numbers; every command returns one of these and nobody else ends the process, but for a second signal
//! (`signals.rs`).

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done; of `check`: ALLOW.
    Done = 0,
    /// Not done; of `check`: DENY.
    Failed = 1,
    /// Of `check`: DEFER.
    Deferred = 2,
    /// Of `check`: nothing was decided, so the action must not run.
    NoDecision = 3,
    /// Asked wrongly: the command line or a setting (`EX_USAGE`).
    Usage = 64,
}

/// A command line that can be read and makes no sense; ends with [`Exit::Usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct AskedWrongly(pub(crate) &'static str);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
