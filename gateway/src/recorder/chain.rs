//! One account's chain as this gateway writes it, as a pure value.
//!
//! Drafting lines returns the chain as it will be once they are stored; the chain itself does not change until then.

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::Entry;
use stage0_contract::{Head, LineHash, LineHeader, LineType, Link, Mark, MarkRef, WriterId};
use uuid::Uuid;

const DAY: SignedDuration = SignedDuration::from_hours(24);

/// The end of an account's chain.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chain {
    writer: WriterId,
    /// The last stored line; none before the first.
    head: Option<Head>,
    /// The line of another writer that the first line follows.
    after: Option<Head>,
    mark: Option<MarkRef>,
}

/// Linked lines, and the chain behind them.
#[derive(Debug)]
pub(super) struct Drafted {
    /// Identifies these lines and no others: a store that knows the id has exactly these bytes.
    pub(super) id: String,
    /// Joined by line feeds.
    pub(super) lines: Vec<u8>,
    pub(super) chain: Chain,
}

impl Chain {
    /// Begins the chain of a new writer, after the account's last decisions and last checkpoint.
    pub(super) fn begin(writer: Uuid, decisions: Option<&Entry>, mark: Option<&Entry>) -> Self {
        let after = decisions.and_then(|entry| entry.lines().last()).and_then(|line| {
            let header: LineHeader = serde_json::from_slice(line).ok()?;
            Some(header.head(line))
        });
        let mark = mark.and_then(|entry| {
            let line = entry.lines().next()?;
            let mark: Mark = serde_json::from_slice(line).ok()?;
            Some(MarkRef { number: mark.number, hash: LineHash::of(line) })
        });
        Self { writer: WriterId::new(writer), head: None, after, mark }
    }

    /// Links each body to the line before it.
    pub(super) fn draft<'b>(
        &self,
        bodies: impl Iterator<Item = (&'b [u8], u32)>,
        recorded_at: Timestamp,
    ) -> Result<Drafted, serde_json::Error> {
        let first = self.head.map_or(1, |head| head.sequence + 1);
        let mut chain = self.clone();
        let mut lines = Vec::new();
        for (body, retention_days) in bodies {
            let header = chain.next_header(recorded_at, retention_days);
            if !lines.is_empty() {
                lines.push(b'\n');
            }
            let line_start = lines.len();
            header.write(body, &mut lines)?;
            chain.head = Some(header.head(lines.get(line_start..).unwrap_or_default()));
        }
        let content = LineHash::of(&lines).to_string();
        let id = format!("{}-{first}-{}", self.writer, content.get(..16).unwrap_or_default());
        Ok(Drafted { id, lines, chain })
    }

    fn next_header(&self, recorded_at: Timestamp, retention_days: u32) -> LineHeader {
        let kept = DAY.checked_mul(i32::try_from(retention_days).unwrap_or(i32::MAX)).unwrap_or(SignedDuration::MAX);
        let expires_at = recorded_at.checked_add(kept).unwrap_or(Timestamp::MAX).as_second();
        let is_first = self.head.is_none();
        let chain = Link {
            writer: self.writer,
            sequence: self.head.map_or(1, |head| head.sequence + 1),
            previous: self.head.map(|head| head.as_previous()),
            after: self.after.filter(|_| is_first),
            mark: self.mark.filter(|_| is_first),
        };
        LineHeader { line: LineType::Decision, chain, recorded_at: whole_millis(recorded_at), expires_at }
    }
}

/// Milliseconds are precise enough, and every JSON reader can represent them.
fn whole_millis(time: Timestamp) -> Timestamp {
    Timestamp::from_millisecond(time.as_millisecond()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use stage0_backplane::{EntryKind, Position};
    use stage0_contract::{ChainVerifier, Window};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn entry(lines: &[u8]) -> Entry {
        let (position, kind) = (Position(1), EntryKind::Decisions);
        Entry { position, stored_at: at(0), kind, lines: Bytes::copy_from_slice(lines) }
    }

    fn draft(chain: &Chain, bodies: &[&str]) -> Drafted {
        chain.draft(bodies.iter().map(|body| (body.as_bytes(), 30)), at(100)).unwrap()
    }

    fn judged(lines: &[Vec<u8>]) -> bool {
        let window = Window { from: None, to: None, now: at(200), horizon: at(0), kept: None, signed: None };
        let mut verifier = ChainVerifier::new(window, Vec::new(), []);
        lines.iter().flat_map(|lines| lines.split(|b| *b == b'\n')).for_each(|line| verifier.read_line(line));
        verifier.finish().ok
    }

    #[test]
    fn lines_of_consecutive_drafts_form_one_chain() {
        let chain = Chain::begin(Uuid::from_u128(1), None, None);
        let first = draft(&chain, &["{\"a\":1}", "{\"a\":2}"]);
        let second = draft(&first.chain, &["{\"a\":3}"]);
        assert_ne!(first.id, second.id);
        assert!(judged(&[first.lines.clone(), second.lines.clone()]));
        assert!(!judged(&[second.lines]));
        let header: LineHeader = serde_json::from_slice(first.lines.split(|b| *b == b'\n').next().unwrap()).unwrap();
        assert_eq!(header.expires_at, 100 + 30 * 86_400);
    }

    #[test]
    fn a_draft_that_is_not_stored_does_not_change_the_chain() {
        let chain = Chain::begin(Uuid::from_u128(1), None, None);
        let (lost, stored) = (draft(&chain, &["{\"a\":1}"]), draft(&chain, &["{\"a\":2}"]));
        assert_ne!(lost.id, stored.id, "a store would take the one for the other");
        assert_eq!(stored.id, draft(&chain, &["{\"a\":2}"]).id);
        assert!(judged(&[stored.lines]));
    }

    #[test]
    fn a_new_writer_follows_the_previous_one_whose_lines_are_missed_if_gone() {
        let old = draft(&Chain::begin(Uuid::from_u128(1), None, None), &["{\"a\":1}", "{\"a\":2}"]);
        let next = Chain::begin(Uuid::from_u128(2), Some(&entry(&old.lines)), None);
        let new = draft(&next, &["{\"a\":3}", "{\"a\":4}"]);
        assert!(judged(&[old.lines, new.lines.clone()]));
        assert!(!judged(&[new.lines]));
    }
}
