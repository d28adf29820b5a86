//! *Decision log*: lines that are appended permanently, found again by account and time, and removed by account when
//! they expire.
//!
//! The store's unit is an entry: the lines of one account that were appended together, or one mark. Positions order the
//! entries of the whole log and are never reused. The log does not look into lines.
//! INVARIANT: an append that returned `Ok` is on disk, as far as the server can be made to guarantee it.

use bytes::Bytes;
use jiff::Timestamp;
use stage0_contract::AccountId;
use tokio::time::Instant;

use crate::{BoxFuture, Cause, MAX_MESSAGE_BYTES, NotReady};

/// The log of an installation, shared by all its services.
pub trait DecisionLog: Send + Sync {
    /// Appends each batch, all at once where the store can. The results are in the order of the batches. A batch that
    /// is appended again under its id within two minutes is stored once.
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>>;

    /// Appends a mark if `after` is still the last one of its account (none: if there is none yet).
    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>>;

    /// Reads entries of an account in the order of the log: as many as fit into `max_bytes`, and at least one if there
    /// is one. Where the store has replicas, the one that answers may lag: the newest entries may be missing, never
    /// older ones.
    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        filter: EntryFilter,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>>;

    /// Reads entries of one kind backwards, the newest first; otherwise like [`DecisionLog::read`].
    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>>;

    /// The last entry of an account. Where the store has replicas, the one that answers may lag.
    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>>;

    /// Removes an account's entries of one kind up to and including this position; returns how many.
    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>>;

    /// Accounts that have entries.
    fn accounts(&self, deadline: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>>;

    /// Whether an append would be stored now, with remarks that an operator should see.
    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>>;
}

/// The position of an entry: later entries have greater ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// Lines of decisions.
    Decisions,
    /// One mark.
    Mark,
}

/// Which entries are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryFilter {
    /// Entries of every kind.
    All,
    /// Entries of one kind.
    Only(EntryKind),
}

/// Where a read starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// At the oldest entry.
    Start,
    /// After this entry.
    After(Position),
    /// At the first entry that was stored at or after this time.
    Time(Timestamp),
}

/// Where a backwards read starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekBack {
    /// At the last entry.
    End,
    /// At the last entry before this one.
    Before(Position),
    /// At the last entry that was stored at or before this time.
    Time(Timestamp),
}

/// Lines of one account that are appended together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The account that the decisions belong to.
    pub account: AccountId,
    /// Unique for this batch and the same for each attempt to append it; 1 to 200 visible ASCII characters.
    pub id: String,
    /// The lines, joined by line feeds, without one at the end.
    pub lines: Bytes,
}

/// Lines that were appended together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is in the log.
    pub position: Position,
    /// When it was stored, by the store's clock.
    pub stored_at: Timestamp,
    /// Whether it holds lines of decisions or a mark.
    pub kind: EntryKind,
    /// The lines, joined by line feeds.
    pub lines: Bytes,
}

impl Batch {
    /// Why no store would accept this batch.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        let id = &self.id;
        if id.is_empty() || id.len() > 200 || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            Some("its id is malformed")
        } else if self.lines.len() > MAX_MESSAGE_BYTES {
            Some("it is too large")
        } else {
            None
        }
    }
}

impl Entry {
    /// Each line. An entry without lines yields an empty line, so that a verifier of the log sees it.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let blank = self.lines.iter().all(|byte| *byte == b'\n');
        let lines = self.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.chain(blank.then_some(&[][..]))
    }
}

/// The result of one read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The entries, in the order that was asked for.
    pub entries: Vec<Entry>,
    /// Whether there were more when it was read.
    pub more: bool,
    /// Entries left out because no role that may append had put them there.
    pub rejected: u64,
}

impl Chunk {
    /// Keeps as many entries as fit, and at least one.
    pub(crate) fn fit(&mut self, max_bytes: usize) {
        let mut bytes = 0;
        let fit = self.entries.iter().take_while(|entry| {
            bytes += entry.lines.len();
            bytes <= max_bytes
        });
        let fit = fit.count().max(1);
        self.more |= fit < self.entries.len();
        self.entries.truncate(fit);
    }
}

/// Why a batch was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The batch is not in the log, except that an earlier append of it that ended as `Unknown` may have stored it.
    #[error("not stored")]
    NotStored(#[source] Cause),
    /// The batch may be in the log, or may still reach it.
    #[error("it is not known whether it was stored")]
    Unknown(#[source] Cause),
}

/// Why a mark was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// Another mark was appended first.
    #[error("another mark was written meanwhile")]
    Conflict,
    /// The mark may or may not be in the log.
    #[error("the mark was not acknowledged")]
    Failed(#[source] Cause),
}

/// The log or the state store could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the decision log does not answer")]
pub struct ReadError(#[source] pub Cause);

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let lines = Bytes::copy_from_slice(text.as_bytes());
        let entry = Entry { position: Position(1), stored_at: Timestamp::UNIX_EPOCH, kind: EntryKind::Mark, lines };
        entry.lines().map(|line| String::from_utf8(line.to_vec()).unwrap()).collect()
    }

    #[test]
    fn an_entry_without_a_line_is_an_empty_line_and_no_other_has_one() {
        assert_eq!(lines("a"), ["a"]);
        assert_eq!(lines("a\nb"), ["a", "b"]);
        assert_eq!(lines("a\n\nb\n"), ["a", "b"]);
        for empty in ["", "\n", "\n\n"] {
            assert_eq!(lines(empty), [""]);
        }
    }
}
