//! The server's process: started in a group of its own, and ended with all of it.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{ChildStdin, ChildStdout};

use super::{Command, StdioError};

/// How long a server may take to end after its input has closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long it may take after SIGTERM.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(2);
/// What shells add to a signal's number.
const SIGNAL_OFFSET: i32 = 128;

pub(super) struct Child {
    inner: tokio::process::Child,
    group: Option<Pid>,
}

impl Child {
    pub(super) fn start(command: &Command) -> Result<(Self, ChildStdin, ChildStdout), StdioError> {
        let mut words = command.launcher.iter().chain(&command.program);
        let program = command.program.first().ok_or(StdioError::NoCommand)?;
        let program = program.to_string_lossy().into_owned();
        let mut process = tokio::process::Command::new(words.next().ok_or(StdioError::NoCommand)?);
        process.args(words).process_group(0).kill_on_drop(true);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let failed = |source| StdioError::Start { program: program.clone(), source };
        let mut inner = process.spawn().map_err(failed)?;
        let missing = || failed(std::io::Error::other("it has no standard streams"));
        let (stdin, stdout) = (inner.stdin.take().ok_or_else(missing)?, inner.stdout.take().ok_or_else(missing)?);
        let group = inner.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok((Self { inner, group }, stdin, stdout))
    }

    /// Waits until the server has ended, its input being closed. One that does not end is ended, with its group.
    pub(super) async fn end(&mut self, at_once: bool) -> std::io::Result<u8> {
        if !at_once && let Ok(status) = tokio::time::timeout(CLOSE_TIMEOUT, self.inner.wait()).await {
            return self.ended(status?);
        }
        self.signal(Signal::TERM);
        if let Ok(status) = tokio::time::timeout(TERMINATE_TIMEOUT, self.inner.wait()).await {
            return self.ended(status?);
        }
        self.signal(Signal::KILL);
        let status = self.inner.wait().await?;
        self.ended(status)
    }

    /// What the server started and left behind ends with it.
    fn ended(&mut self, status: ExitStatus) -> std::io::Result<u8> {
        self.signal(Signal::KILL);
        self.group = None;
        Ok(code(status))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // The group may be gone already.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| SIGNAL_OFFSET + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
