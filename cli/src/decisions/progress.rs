//! How far a long command is, on standard error: a line that is written over on a terminal, else one now and then for
//! whoever asked.
//!
//! Owns when something is said; time is an argument. It is silent where nobody looks: without a terminal and without
//! `--progress`.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::out;

const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Who reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Nobody,
    Terminal,
    Lines,
}

/// Tells how far it is.
pub(super) struct Progress {
    reader: Reader,
    said: Option<Instant>,
}

impl Progress {
    /// Where standard error is a terminal, or where it was asked for.
    pub(super) fn new(asked: bool) -> Self {
        let reader = match (out::stderr_is_terminal(), asked) {
            (true, _) => Reader::Terminal,
            (false, true) => Reader::Lines,
            (false, false) => Reader::Nobody,
        };
        Self { reader, said: None }
    }

    /// Says it, unless something was said just now.
    pub(super) fn tell(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if !self.is_due(now) {
            return;
        }
        self.said = Some(now);
        match self.reader {
            Reader::Nobody => {}
            Reader::Terminal => out::status_line(text()),
            Reader::Lines => out::complain(text()),
        }
    }

    /// Says something that stays, on a line of its own.
    pub(super) fn note(&mut self, text: impl Display) {
        self.clear();
        out::complain(text);
    }

    /// What was written over is gone from the terminal.
    pub(super) fn clear(&mut self) {
        if self.reader == Reader::Terminal && self.said.take().is_some() {
            out::status_line("");
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let interval = match self.reader {
            Reader::Nobody => return false,
            Reader::Terminal => TERMINAL_INTERVAL,
            Reader::Lines => LINE_INTERVAL,
        };
        self.said.is_none_or(|said| now.saturating_duration_since(said) >= interval)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Bytes as people read them.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_said_to_nobody_and_not_too_often_to_others() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!Progress { reader: Reader::Nobody, said: None }.is_due(at(9)));
        let lines = Progress { reader: Reader::Lines, said: Some(start) };
        assert!(!lines.is_due(at(1)) && lines.is_due(at(2)));
        assert!(Progress { reader: Reader::Terminal, said: Some(start) }.is_due(at(1)));
        assert!(Progress { reader: Reader::Lines, said: None }.is_due(start), "the first at once");
    }

    #[test]
    fn bytes_are_shown_with_one_decimal() {
        assert_eq!(
            [size(0), size(999_999), size(1_000_000), size(86_449_999)],
            ["0 kB", "999 kB", "1.0 MB", "86.4 MB"]
        );
    }
}
