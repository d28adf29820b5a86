//! *Decision log*: lines appended for good, found again by account and time, expired and removed by account.
//!
//! The store's unit is an entry: the lines of one account that were appended together, or one mark. Its position orders the entries
//! of the whole log and is never used twice. The log does not look into lines; it knows an account, a kind and a time.
//! INVARIANT: an append that returned `Ok` is on disk, as far as the server can be asked to promise it.

use bytes::Bytes;
use jiff::Timestamp;
use stage0_contract::AccountId;
use tokio::time::Instant;

use crate::{BoxFuture, MAX_MESSAGE_BYTES, NotReady};

/// The log of an installation, shared by all its services.
pub trait DecisionLog: Send + Sync {
    /// Appends each batch, all of them at once where the store can. The answers stand in the order of the batches. A batch that is
    /// appended again with its id, within two minutes, is stored once.
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>>;

    /// Appends a mark, if `after` is still the last one of its account (none: if there is none yet).
    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>>;

    /// Entries of an account in the order of the log: at least one if there is one, and no more than fit into `max_bytes` then.
    /// Where the store has replicas, the one that answers may be a moment behind: the end may be missing, never something before it.
    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        which: Which,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>>;

    /// Entries of one kind of an account against the order of the log, the newest first; as [`DecisionLog::read`]
    /// otherwise.
    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>>;

    /// The last entry of an account, or, where the store has replicas, the one that was last a moment ago.
    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>>;

    /// Removes an account's decisions up to and with this position; how many entries went.
    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>>;

    /// Accounts that have entries.
    fn accounts(&self, deadline: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>>;

    /// Whether an append would be stored now, and what should be known about it.
    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>>;
}

/// An entry's place: later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// What an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Lines of decisions.
    Decisions,
    /// One mark.
    Mark,
}

/// Which entries are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All.
    All,
    /// Of one kind.
    Only(Kind),
}

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    /// With the first that is left.
    Start,
    /// With the first one behind it.
    After(Position),
    /// With the first one that was stored then or later.
    Time(Timestamp),
}

/// Where reading against the order of the log begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekBack {
    /// With the last.
    End,
    /// With the last one before it.
    Before(Position),
    /// With the last one that was stored then or earlier.
    Time(Timestamp),
}

/// Lines of one account to be appended together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Whose.
    pub account: AccountId,
    /// The same for the same batch, and for no other; 1 to 200 visible ASCII characters.
    pub id: String,
    /// Joined by line feeds, none at the end.
    pub lines: Bytes,
}

/// What was appended together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub position: Position,
    /// By the store's clock.
    pub stored_at: Timestamp,
    /// Lines, or a mark.
    pub kind: Kind,
    /// Joined by line feeds.
    pub lines: Bytes,
}

impl Batch {
    /// Why no store would take it.
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
    /// Each line. An entry that holds none is one empty line: nobody appends such an entry, so whoever verifies the log
    /// must see it.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let blank = self.lines.iter().all(|byte| *byte == b'\n');
        let lines = self.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.chain(blank.then_some(&[][..]))
    }
}

/// A stretch of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// In the order in which they were asked for.
    pub entries: Vec<Entry>,
    /// Whether there were more, at this moment.
    pub more: bool,
    /// Entries of this stretch that are left out, as nobody who may append put them there.
    pub rejected: u64,
}

/// A batch was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// It is not in the log; an earlier append of the same batch that ended as `Unknown` may still be.
    #[error("not stored: {0}")]
    NotStored(String),
    /// Nobody knows whether it is in the log, or will be.
    #[error("it is not known whether it was stored: {0}")]
    Unknown(String),
}

/// A mark was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// Another mark was there first.
    #[error("another mark was written meanwhile")]
    Conflict,
    /// It may or may not be there.
    #[error("the mark was not acknowledged: {0}")]
    Failed(String),
}

/// The log could not be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the decision log does not answer: {0}")]
pub struct ReadError(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        let lines = Bytes::copy_from_slice(text.as_bytes());
        let entry = Entry { position: Position(1), stored_at: Timestamp::UNIX_EPOCH, kind: Kind::Mark, lines };
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
