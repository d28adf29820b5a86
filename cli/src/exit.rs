//! Exit codes: what each means, and how the result of a command becomes one. Only 0 lets an action run.

use crate::{failure, out};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done; for `check`: ALLOW.
    Done = 0,
    /// Not done; for `check`: DENY.
    Failed = 1,
    /// For `check`: DEFER; for `guard hook`: the tool must not run.
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

impl From<()> for Exit {
    fn from((): ()) -> Self {
        Self::Done
    }
}

/// The exit code of a command's result; an error is printed with its causes.
pub(crate) fn ended<T: Into<Exit>>(result: anyhow::Result<T>) -> Exit {
    match result {
        Ok(result) => result.into(),
        Err(error) => {
            out::stderr_line(format!("error: {}", failure::describe(&error)));
            if error.is::<UsageError>() { Exit::Usage } else { Exit::Failed }
        }
    }
}
