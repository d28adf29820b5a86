//! Splits an export into lines and passes each on once, however often the download breaks off: pure.
//!
//! A server resumes after a decision or, once that has expired, at a time. The hashes of the lines after that decision
//! and of the last seconds are remembered in order, and their repetitions are dropped. INVARIANT: only repetitions are
//! dropped: a line that occurs twice in the log is passed on twice, because `verify` must see it.

use std::collections::VecDeque;
use std::ops::Range;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use stage0_contract::{LineHash, LineType, RequestId};

/// Far more than any line of the log: the body of a request has at most 1 MB.
pub(super) const MAX_LINE_BYTES: usize = 16 << 20;
/// A bound on the marks after one decision (an exporter writes a few a minute) and the lines of [`CLOCK_SKEW`].
const MAX_KNOWN_LINES: usize = 1_000_000;
/// Lines are in the store's order. By the gateways' clocks, a line may be this much older than the one before it.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(10);

#[derive(Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
    after: Option<Decision>,
    /// The last lines that were passed on, as far back as a download from a time would repeat them.
    known: VecDeque<Known>,
    /// The index in `known` of the first line since that decision.
    since: usize,
    /// The known lines that a resumed download may still repeat.
    repeatable: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAnExport {
    #[error("the download has a line of more than {MAX_LINE_BYTES} bytes")]
    LongLine,
    #[error("the download has more than {MAX_KNOWN_LINES} lines without a decision")]
    NoDecisions,
}

impl Lines {
    /// Appends to `complete` the lines that the chunk completes, except repetitions.
    pub(super) fn take(&mut self, chunk: &[u8], complete: &mut Vec<u8>) -> Result<(), NotAnExport> {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.len() + part.len() > MAX_LINE_BYTES {
                return Err(NotAnExport::LongLine);
            }
            self.partial.extend_from_slice(part);
            if self.partial.pop_if(|last| *last == b'\n').is_some() {
                let mut line = std::mem::take(&mut self.partial);
                if self.is_new(&line)? {
                    complete.extend_from_slice(&line);
                    complete.push(b'\n');
                }
                line.clear();
                self.partial = line;
            }
        }
        Ok(())
    }

    /// The download broke off. Returns the decision after which to resume; `None` means from the beginning.
    pub(super) fn cut(&mut self) -> Option<RequestId> {
        self.partial.clear();
        self.repeatable = self.since..self.known.len();
        self.after.map(|after| after.request_id)
    }

    /// The download broke off, and that decision has expired. Returns the time from which to resume.
    pub(super) fn cut_after_expired(&mut self) -> Option<Timestamp> {
        self.partial.clear();
        self.repeatable = 0..self.known.len();
        self.after.map(|after| after.recorded_at.checked_sub(CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    pub(super) fn last_recorded(&self) -> Option<Timestamp> {
        self.after.map(|after| after.recorded_at)
    }

    /// The download is complete. Returns the bytes after the last line feed, usually none.
    pub(super) fn end(self) -> Vec<u8> {
        self.partial
    }

    fn is_new(&mut self, line: &[u8]) -> Result<bool, NotAnExport> {
        let hash = LineHash::of(line);
        let repeated = self.known.range(self.repeatable.clone()).position(|known| known.hash == hash);
        if let Some(at) = repeated {
            // Lines before it that were not repeated have expired.
            self.repeatable.start += at + 1;
            return Ok(false);
        }
        let decision = Decision::read(line);
        // A repeated id is damage: the server resumes after its first occurrence and sends this line again.
        if let Some(decision) = decision.filter(|new| self.after.is_none_or(|after| after.request_id != new.request_id))
        {
            self.after = Some(decision);
            self.forget_before(decision.recorded_at);
            self.since = self.known.len() + 1;
            self.repeatable = 0..0;
        }
        if self.known.len() >= MAX_KNOWN_LINES {
            return Err(NotAnExport::NoDecisions);
        }
        self.known.push_back(Known { hash, at: recorded_at(line) });
        self.since = self.since.min(self.known.len());
        Ok(true)
    }

    /// Forgets lines that no download repeats which resumes after a decision of this time.
    fn forget_before(&mut self, recorded_at: Timestamp) {
        let is_old = |known: &Known| known.at.is_none_or(|at| recorded_at.duration_since(at) > 2 * CLOCK_SKEW);
        while self.known.front().is_some_and(is_old) || self.known.len() >= MAX_KNOWN_LINES {
            self.known.pop_front();
        }
    }
}

struct Known {
    hash: LineHash,
    at: Option<Timestamp>,
}

/// The members of a decision that a server needs to resume after it.
#[derive(Clone, Copy, Deserialize)]
struct Decision {
    #[serde(rename = "type")]
    line: LineType,
    request_id: RequestId,
    recorded_at: Timestamp,
    #[serde(rename = "expires_at")]
    _expires_at: i64,
}

fn recorded_at(line: &[u8]) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Recorded {
        recorded_at: Timestamp,
    }
    serde_json::from_slice::<Recorded>(line).ok().map(|line| line.recorded_at)
}

impl Decision {
    fn read(line: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(line).ok().filter(|decision| decision.line == LineType::Decision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision_line(number: u32) -> String {
        decision_at(number, number)
    }

    fn decision_at(number: u32, second: u32) -> String {
        let (minutes, seconds) = (second / 60, second % 60);
        format!(
            r#"{{"type":"decision.recorded","recorded_at":"2027-01-15T08:{minutes:02}:{seconds:02}Z","expires_at":1802592001,"request_id":"0190163d-8694-739b-aea5-{number:012x}","reason":"é"}}"#
        )
    }

    fn mark(number: u32) -> String {
        let (minutes, seconds) = (number / 60, number % 60);
        format!(
            r#"{{"type":"checkpoint.signed","number":{number},"recorded_at":"2027-01-15T08:{minutes:02}:{seconds:02}Z","expires_at":1}}"#
        )
    }

    /// A line about an approval of this decision; the type may be one that only a newer version knows.
    fn other(kind: &str, number: u32) -> String {
        decision_line(number).replacen("decision.recorded", kind, 1)
    }

    /// Marks and other lines before, between and after decisions, two equal lines, and an unreadable one.
    fn log() -> Vec<String> {
        let mut log = vec![mark(1), mark(2), other("approval.foreseen", 1), decision_line(1), decision_line(2)];
        log.extend([other("approval.requested", 1), other("approval.foreseen", 2), mark(3), mark(4), mark(4)]);
        log.extend(["damaged".to_owned(), String::new(), decision_line(3), decision_line(3), mark(5)]);
        log.push(other("approval.foreseen", 3));
        log
    }

    fn text(lines: &[String]) -> String {
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// The response of a server that resumes after the first decision of this id.
    fn resumed(log: &[String], after: Option<RequestId>) -> String {
        let from = after.map_or(0, |after| {
            1 + log
                .iter()
                .position(|line| Decision::read(line.as_bytes()).is_some_and(|decision| decision.request_id == after))
                .unwrap()
        });
        text(&log[from..])
    }

    #[test]
    fn wherever_a_download_breaks_off_each_line_is_passed_on_once() {
        let log = log();
        let whole = text(&log);
        for first in 0..=whole.len() {
            for step in [1, 7, 64, 300, 1_000] {
                let (mut lines, mut taken) = (Lines::default(), Vec::new());
                lines.take(&whole.as_bytes()[..first], &mut taken).unwrap();
                let mut rest = resumed(&log, lines.cut());
                // Each further download breaks off too, until one is long enough.
                for length in (step..).step_by(step) {
                    let piece = rest.as_bytes().get(..length).unwrap_or(rest.as_bytes());
                    lines.take(piece, &mut taken).unwrap();
                    if piece.len() == rest.len() {
                        break;
                    }
                    rest = resumed(&log, lines.cut());
                }
                assert_eq!(String::from_utf8(taken).unwrap(), whole, "cut at {first}, then each {step}");
                assert!(lines.end().is_empty());
            }
        }
    }

    #[test]
    fn a_line_that_occurs_twice_is_passed_on_twice() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        let doubled = [decision_line(1), mark(1), mark(1), decision_line(1)];
        lines.take(text(&doubled).as_bytes(), &mut taken).unwrap();
        assert_eq!(taken, text(&doubled).into_bytes());
        let after_cut = [mark(2), mark(2), decision_line(4), decision_line(4)];
        lines.cut();
        taken.clear();
        lines.take(text(&after_cut).as_bytes(), &mut taken).unwrap();
        assert_eq!(taken, text(&after_cut).into_bytes(), "new lines after a cut are no repetitions");
    }

    #[test]
    fn marks_that_expired_do_not_hide_repetitions() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        lines.take(text(&[decision_line(1), mark(1), mark(2)]).as_bytes(), &mut taken).unwrap();
        lines.cut();
        taken.clear();
        lines.take(text(&[mark(2), mark(3), decision_line(2)]).as_bytes(), &mut taken).unwrap();
        assert_eq!(taken, text(&[mark(3), decision_line(2)]).into_bytes());
    }

    #[test]
    fn a_download_resumes_at_a_time_once_the_decision_has_expired() {
        let mut log: Vec<String> = (0..60).flat_map(|n| [decision_line(n), mark(n)]).collect();
        // The clocks of two gateways differ around second 40.
        log.splice(80..80, [decision_at(1_000, 44), decision_at(1_001, 36)]);
        for passed_on in (1..log.len()).step_by(3) {
            let (mut lines, mut taken) = (Lines::default(), Vec::new());
            lines.take(text(&log[..passed_on]).as_bytes(), &mut taken).unwrap();
            let from = lines.cut_after_expired().unwrap();
            // However many lines have expired, before or after the decision.
            for expired in [0, passed_on / 2, passed_on.saturating_sub(1), passed_on] {
                let mut lines = Lines::default();
                let mut taken = Vec::new();
                lines.take(text(&log[..passed_on]).as_bytes(), &mut taken).unwrap();
                assert_eq!(lines.cut_after_expired(), Some(from));
                let is_sent = |line: &&String| recorded_at(line.as_bytes()).is_none_or(|at| at >= from);
                let first = log.iter().position(|line| is_sent(&line)).unwrap();
                let sent: Vec<String> = log[first.max(expired)..].iter().filter(is_sent).cloned().collect();
                lines.take(text(&sent).as_bytes(), &mut taken).unwrap();
                assert_eq!(String::from_utf8(taken).unwrap(), text(&log), "{passed_on} passed on, {expired} expired");
            }
        }
    }

    #[test]
    fn only_the_lines_of_the_last_seconds_are_remembered() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        for n in 0..3_000 {
            lines.take(text(&[decision_line(n)]).as_bytes(), &mut taken).unwrap();
        }
        assert!(lines.known.len() < 30, "{}", lines.known.len());
    }

    #[test]
    fn an_incomplete_last_line_is_kept_only_if_the_download_is_complete() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        lines.take(b"half", &mut taken).unwrap();
        lines.cut();
        lines.take(b"whole\nrest", &mut taken).unwrap();
        assert_eq!((taken.as_slice(), lines.end().as_slice()), (&b"whole\n"[..], &b"rest"[..]));
    }

    #[test]
    fn a_line_that_is_too_long_is_refused() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..16 {
            lines.take(&piece, &mut taken).unwrap();
        }
        assert_eq!(lines.take(b"x", &mut taken), Err(NotAnExport::LongLine));
    }
}
