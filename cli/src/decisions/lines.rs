//! The lines of an export, each handed on once, however often the download is cut.
//!
//! Owns where a download is resumed and what of the resumed one is there already; pure, it neither asks nor writes. A
//! server resumes behind a decision, or, once that has expired, at a time. Of the lines behind that decision (marks,
//! lines that nobody can read) and of those of the last seconds hashes are remembered in their order, and what a
//! resumed download repeats of them is dropped.
//! INVARIANT: only repetitions are dropped: a line that stands twice in
//! the log leaves twice, as `verify` must see it.

use std::collections::VecDeque;
use std::ops::Range;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use stage0_contract::{LineHash, LineType, RequestId};

/// A request's body is at most 1 MB, and its line is not much longer. What is longer is none of ours.
pub(super) const MAX_LINE_BYTES: usize = 16 << 20;
/// Marks behind one decision (an exporter writes a few a minute), and the lines of [`CLOCK_SKEW`].
const MAX_KNOWN_LINES: usize = 1_000_000;
/// Lines stand in the store's order: by gateways' own clocks, one may be recorded this much before another in front of
/// it.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(10);

/// What has come of the log.
#[derive(Default)]
pub(super) struct Lines {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// The last decision that was handed on: a download is resumed behind it.
    after: Option<Decision>,
    /// The last lines that were handed on: those since then, and before it those that a download from a time repeats.
    known: VecDeque<Known>,
    /// Where the lines since then begin.
    since: usize,
    /// What of the known lines a resumed download may still repeat.
    repeatable: Range<usize>,
}

/// The answer is no export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAnExport {
    #[error("the download has a line of more than {MAX_LINE_BYTES} bytes")]
    LongLine,
    #[error("the download has more than {MAX_KNOWN_LINES} lines without a decision")]
    NoDecisions,
}

impl Lines {
    /// Takes what came and appends to `whole` the lines that it completes, but for repetitions.
    pub(super) fn take(&mut self, piece: &[u8], whole: &mut Vec<u8>) -> Result<(), NotAnExport> {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            if self.partial.len() + part.len() > MAX_LINE_BYTES {
                return Err(NotAnExport::LongLine);
            }
            self.partial.extend_from_slice(part);
            if self.partial.pop_if(|last| *last == b'\n').is_some() {
                let mut line = std::mem::take(&mut self.partial);
                if self.is_new(&line)? {
                    whole.extend_from_slice(&line);
                    whole.push(b'\n');
                }
                line.clear();
                self.partial = line;
            }
        }
        Ok(())
    }

    /// The download was cut. Gives the decision behind which it is resumed; none: from its beginning.
    pub(super) fn cut(&mut self) -> Option<RequestId> {
        self.partial.clear();
        self.repeatable = self.since..self.known.len();
        self.after.map(|after| after.request_id)
    }

    /// It was cut, and that decision has expired, so all before it have too. Gives the time from which it is resumed.
    pub(super) fn cut_behind_expired(&mut self) -> Option<Timestamp> {
        self.partial.clear();
        self.repeatable = 0..self.known.len();
        self.after.map(|after| after.recorded_at.checked_sub(CLOCK_SKEW).unwrap_or(Timestamp::UNIX_EPOCH))
    }

    /// When the last decision that was handed on was recorded.
    pub(super) fn last_recorded(&self) -> Option<Timestamp> {
        self.after.map(|after| after.recorded_at)
    }

    /// The download is complete: what stands behind its last line feed, often nothing.
    pub(super) fn end(self) -> Vec<u8> {
        self.partial
    }

    fn is_new(&mut self, line: &[u8]) -> Result<bool, NotAnExport> {
        let hash = LineHash::of(line);
        let repeated = self.known.range(self.repeatable.clone()).position(|known| known.hash == hash);
        if let Some(at) = repeated {
            // What was passed over has expired meanwhile.
            self.repeatable.start += at + 1;
            return Ok(false);
        }
        let decision = Decision::read(line);
        // The same id again is damage: a server resumes behind the first of them, and sends this one again.
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

    /// Drops what no download repeats once it is resumed behind, or at the time of, a decision of this time.
    fn forget_before(&mut self, recorded_at: Timestamp) {
        let is_old = |known: &Known| known.at.is_none_or(|at| recorded_at.duration_since(at) > 2 * CLOCK_SKEW);
        while self.known.front().is_some_and(is_old) || self.known.len() >= MAX_KNOWN_LINES {
            self.known.pop_front();
        }
    }
}

/// A line that was handed on.
struct Known {
    hash: LineHash,
    at: Option<Timestamp>,
}

/// A decision that a server can find again: it reads these members of a line, too.
#[derive(Clone, Copy, Deserialize)]
struct Decision {
    #[serde(rename = "type")]
    line: LineType,
    request_id: RequestId,
    recorded_at: Timestamp,
    #[serde(rename = "expires_at")]
    _expires_at: i64,
}

/// When a line of any kind was recorded; none of one that cannot be read.
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

    /// Marks before, between and behind decisions; two lines that are the same, and one that nobody can read.
    fn log() -> Vec<String> {
        let mut log = vec![mark(1), mark(2), decision_line(1), decision_line(2), mark(3), mark(4), mark(4)];
        log.extend(["damaged".to_owned(), String::new(), decision_line(3), decision_line(3), mark(5)]);
        log
    }

    fn text(lines: &[String]) -> String {
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// What a server sends that begins behind the first decision of this id.
    fn behind(log: &[String], after: Option<RequestId>) -> String {
        let from = after.map_or(0, |after| {
            1 + log
                .iter()
                .position(|line| Decision::read(line.as_bytes()).is_some_and(|decision| decision.request_id == after))
                .unwrap()
        });
        text(&log[from..])
    }

    #[test]
    fn wherever_a_download_is_cut_each_line_is_there_once() {
        let log = log();
        let whole = text(&log);
        for first in 0..=whole.len() {
            for step in [1, 7, 64, 300, 1_000] {
                let (mut lines, mut taken) = (Lines::default(), Vec::new());
                lines.take(&whole.as_bytes()[..first], &mut taken).unwrap();
                let mut rest = behind(&log, lines.cut());
                // Each further download is cut as well, until one is long enough.
                for length in (step..).step_by(step) {
                    let piece = rest.as_bytes().get(..length).unwrap_or(rest.as_bytes());
                    lines.take(piece, &mut taken).unwrap();
                    if piece.len() == rest.len() {
                        break;
                    }
                    rest = behind(&log, lines.cut());
                }
                assert_eq!(String::from_utf8(taken).unwrap(), whole, "cut at {first}, then each {step}");
                assert!(lines.end().is_empty());
            }
        }
    }

    #[test]
    fn a_line_that_the_log_has_twice_leaves_twice() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        let doubled = [decision_line(1), mark(1), mark(1), decision_line(1)];
        lines.take(text(&doubled).as_bytes(), &mut taken).unwrap();
        assert_eq!(taken, text(&doubled).into_bytes());
        let after_cut = [mark(2), mark(2), decision_line(4), decision_line(4)];
        lines.cut();
        taken.clear();
        lines.take(text(&after_cut).as_bytes(), &mut taken).unwrap();
        assert_eq!(taken, text(&after_cut).into_bytes(), "what is new behind a cut is no repetition of itself");
    }

    #[test]
    fn marks_that_expired_meanwhile_hide_no_repetition() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        lines.take(text(&[decision_line(1), mark(1), mark(2)]).as_bytes(), &mut taken).unwrap();
        lines.cut();
        taken.clear();
        lines.take(text(&[mark(2), mark(3), decision_line(2)]).as_bytes(), &mut taken).unwrap();
        assert_eq!(taken, text(&[mark(3), decision_line(2)]).into_bytes());
    }

    #[test]
    fn a_download_behind_a_decision_that_expired_goes_on_at_its_time() {
        let mut log: Vec<String> = (0..60).flat_map(|n| [decision_line(n), mark(n)]).collect();
        // Of two gateways whose clocks differ, around second 40.
        log.splice(80..80, [decision_at(1_000, 44), decision_at(1_001, 36)]);
        for handed_on in (1..log.len()).step_by(3) {
            let (mut lines, mut taken) = (Lines::default(), Vec::new());
            lines.take(text(&log[..handed_on]).as_bytes(), &mut taken).unwrap();
            let from = lines.cut_behind_expired().unwrap();
            // Whatever has expired meanwhile, before or behind the decision.
            for expired in [0, handed_on / 2, handed_on.saturating_sub(1), handed_on] {
                let mut lines = Lines::default();
                let mut taken = Vec::new();
                lines.take(text(&log[..handed_on]).as_bytes(), &mut taken).unwrap();
                assert_eq!(lines.cut_behind_expired(), Some(from));
                let is_asked = |line: &&String| recorded_at(line.as_bytes()).is_none_or(|at| at >= from);
                let first = log.iter().position(|line| is_asked(&line)).unwrap();
                let sent: Vec<String> = log[first.max(expired)..].iter().filter(is_asked).cloned().collect();
                lines.take(text(&sent).as_bytes(), &mut taken).unwrap();
                assert_eq!(String::from_utf8(taken).unwrap(), text(&log), "{handed_on} handed on, {expired} expired");
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
    fn the_end_of_a_whole_download_is_kept_and_the_one_of_a_cut_download_is_not() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        lines.take(b"half", &mut taken).unwrap();
        lines.cut();
        lines.take(b"whole\nrest", &mut taken).unwrap();
        assert_eq!((taken.as_slice(), lines.end().as_slice()), (&b"whole\n"[..], &b"rest"[..]));
    }

    #[test]
    fn a_line_without_end_is_not_held() {
        let (mut lines, mut taken) = (Lines::default(), Vec::new());
        let piece = vec![b'x'; 1 << 20];
        for _ in 0..16 {
            lines.take(&piece, &mut taken).unwrap();
        }
        assert_eq!(lines.take(b"x", &mut taken), Err(NotAnExport::LongLine));
    }
}
