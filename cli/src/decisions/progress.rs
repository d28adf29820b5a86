//! The progress of a long command, on standard error: one line that is updated on a terminal, or with `--progress` a
//! line every few seconds. Without a terminal and without `--progress` nothing is printed. Time is an argument.

use std::fmt::Display;
use std::time::{Duration, Instant};

use crate::out;

const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
const LINE_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    Terminal,
    Lines,
}

pub(super) struct Progress {
    mode: Mode,
    printed_at: Option<Instant>,
}

impl Progress {
    pub(super) fn new(lines: bool) -> Self {
        let mode = match (out::stderr_is_terminal(), lines) {
            (true, _) => Mode::Terminal,
            (false, true) => Mode::Lines,
            (false, false) => Mode::Off,
        };
        Self { mode, printed_at: None }
    }

    /// Prints the text, unless the last was printed a moment ago.
    pub(super) fn update(&mut self, now: Instant, text: impl FnOnce() -> String) {
        if !self.is_due(now) {
            return;
        }
        self.printed_at = Some(now);
        match self.mode {
            Mode::Off => {}
            Mode::Terminal => out::status_line(text()),
            Mode::Lines => out::stderr_line(text()),
        }
    }

    pub(super) fn note(&mut self, text: impl Display) {
        self.clear();
        out::stderr_line(text);
    }

    pub(super) fn clear(&mut self) {
        if self.mode == Mode::Terminal && self.printed_at.take().is_some() {
            out::status_line("");
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let interval = match self.mode {
            Mode::Off => return false,
            Mode::Terminal => TERMINAL_INTERVAL,
            Mode::Lines => LINE_INTERVAL,
        };
        self.printed_at.is_none_or(|printed| now.saturating_duration_since(printed) >= interval)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

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
    fn progress_is_printed_at_intervals_and_not_when_it_is_off() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!Progress { mode: Mode::Off, printed_at: None }.is_due(at(9)));
        let lines = Progress { mode: Mode::Lines, printed_at: Some(start) };
        assert!(!lines.is_due(at(1)) && lines.is_due(at(2)));
        assert!(Progress { mode: Mode::Terminal, printed_at: Some(start) }.is_due(at(1)));
        assert!(Progress { mode: Mode::Lines, printed_at: None }.is_due(start), "the first at once");
    }

    #[test]
    fn bytes_are_shown_with_one_decimal() {
        assert_eq!(
            [size(0), size(999_999), size(1_000_000), size(86_449_999)],
            ["0 kB", "999 kB", "1.0 MB", "86.4 MB"]
        );
    }
}
