//! Exit codes: what each means, and how the result of a command becomes one. Only 0 lets an action run.
//!
//! Every command returns an [`Exit`]; apart from a second signal (`stage0_runtime`), nothing else ends the process.

use std::process::ExitCode;

use crate::{failure, out};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done; for `check`: ALLOW.
    Done = 0,
    /// Not done; for `check`: DENY.
    Failed = 1,
    /// `check` only: DEFER.
    Deferred = 2,
    /// `check` only: nothing was decided, so the action must not run.
    NoDecision = 3,
    /// The command line or a setting is wrong (`EX_USAGE`).
    Usage = 64,
}

/// Arguments that parse and contradict each other; ends with [`Exit::Usage`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) &'static str);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Prints the error with its causes, if there is one.
pub(crate) fn finished(result: anyhow::Result<()>) -> Exit {
    ended(result.map(|()| Exit::Done))
}

/// As [`finished`], where success has more than one code.
pub(crate) fn ended(result: anyhow::Result<Exit>) -> Exit {
    result.unwrap_or_else(|error| {
        out::stderr_line(format!("error: {}", failure::describe(&error)));
        if error.is::<UsageError>() { Exit::Usage } else { Exit::Failed }
    })
}
