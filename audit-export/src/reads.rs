//! Reads of the log, shared by the endpoints of an account: a line is read, parsed and serialised once for all of them.
//!
//! A read is shared while it runs, and then until its readers have taken what it brought; nothing is kept for later.
//! INVARIANT: a read brings every entry that was stored before it began, as far as it reaches. A reader that
//! knows of something newer reads once more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use jiff::Timestamp;
use stage0_backplane::{DecisionLog, Entry, EntryFilter, Position, ReadError, Seek};
use stage0_contract::AccountId;
use tokio::task::yield_now;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::event::Event;
use crate::shared::{self, lock};

const CHUNK_BYTES: usize = 512 * 1024;
/// Lines that are parsed before other tasks get their turn: a fraction of a millisecond.
const LINES_IN_A_TURN: usize = 16;
/// A read that began longer ago is not shared: its lines would soon be read again before they are sent.
const SHARED_FOR: Duration = Duration::from_millis(500);
/// Reads that have ended leave their map entries behind; from this size on they are removed.
const MIN_CLEANUP_THRESHOLD: usize = 256;

type Outcome = Result<Arc<ReadChunk>, ReadError>;
type Running = BoxFuture<'static, Outcome>;

/// What one read brought.
#[derive(Debug, PartialEq)]
pub(crate) struct ReadChunk {
    pub(crate) entries: Vec<ReadEntry>,
    /// Whether there were more when it was read.
    pub(crate) more: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) struct ReadEntry {
    pub(crate) position: u64,
    pub(crate) stored_at: Timestamp,
    /// None for a line that is not an event.
    pub(crate) lines: Vec<Option<Event>>,
}

/// A read, running or finished; others may share it until it is dropped.
pub(crate) struct LogRead {
    pub(crate) began: Instant,
    outcome: Shared<Running>,
}

#[derive(Default)]
pub(crate) struct LogReads(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    /// By account and the position after which is read.
    reads: HashMap<(AccountId, Position), (Instant, WeakShared<Running>)>,
    cleanup_threshold: usize,
}

impl LogReads {
    /// Reads one chunk of the account's entries, or joins a recent read of the same ones.
    pub(crate) fn read(&self, log: &Arc<dyn DecisionLog>, account: &AccountId, seek: Seek) -> LogRead {
        let Seek::After(position) = seek else { return LogRead::begin(Arc::clone(log), account.clone(), seek) };
        let (key, mut recent) = ((account.clone(), position), lock(&self.0));
        if let Some(read) = recent.joinable(&key, Instant::now()) {
            return read;
        }
        let read = LogRead::begin(Arc::clone(log), account.clone(), seek);
        recent.note(key, &read);
        read
    }
}

impl Recent {
    fn joinable(&self, key: &(AccountId, Position), now: Instant) -> Option<LogRead> {
        let (began, outcome) = self.reads.get(key)?;
        if now.saturating_duration_since(*began) >= SHARED_FOR {
            return None;
        }
        let read = LogRead { began: *began, outcome: outcome.upgrade()? };
        // One that found nothing, or failed, says nothing about now.
        let brings_something = |outcome: &Outcome| outcome.as_ref().is_ok_and(|chunk| !chunk.entries.is_empty());
        read.outcome.peek().is_none_or(brings_something).then_some(read)
    }

    fn note(&mut self, key: (AccountId, Position), read: &LogRead) {
        if self.reads.len() >= self.cleanup_threshold {
            self.reads.retain(|_, (_, outcome)| outcome.upgrade().is_some());
            // Each read pays for the removal of a few.
            self.cleanup_threshold = MIN_CLEANUP_THRESHOLD.max(2 * self.reads.len());
        }
        if let Some(outcome) = read.outcome.downgrade() {
            self.reads.insert(key, (read.began, outcome));
        }
    }
}

impl LogRead {
    fn begin(log: Arc<dyn DecisionLog>, account: AccountId, seek: Seek) -> Self {
        let began = Instant::now();
        let reading = AbortOnDropHandle::new(tokio::spawn(async move {
            let deadline = shared::Shared::store_deadline();
            let chunk = log.read(&account, EntryFilter::All, seek, CHUNK_BYTES, deadline).await?;
            Ok(Arc::new(ReadChunk { entries: parse(&chunk.entries).await, more: chunk.more }))
        }));
        let outcome = async move {
            match reading.await {
                Ok(outcome) => outcome,
                Err(error) => Err(ReadError(format!("the read ended early: {error}").into())),
            }
        };
        Self { began, outcome: outcome.boxed().shared() }
    }

    /// Can be awaited any number of times.
    pub(crate) async fn outcome(&self) -> Outcome {
        self.outcome.clone().await
    }
}

/// A chunk has hundreds of lines, so other tasks run in between.
async fn parse(entries: &[Entry]) -> Vec<ReadEntry> {
    let (mut parsed, mut of_turn) = (Vec::with_capacity(entries.len()), 0);
    for entry in entries {
        let mut lines = Vec::new();
        for line in entry.lines() {
            lines.push(Event::parse(line));
            of_turn += 1;
            if of_turn == LINES_IN_A_TURN {
                of_turn = 0;
                yield_now().await;
            }
        }
        parsed.push(ReadEntry { position: entry.position.0, stored_at: entry.stored_at, lines });
    }
    parsed
}

#[cfg(test)]
mod tests {
    use stage0_backplane::{Backplane, Batch};

    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    async fn append(backplane: &Backplane, account: &AccountId, id: &str) {
        let batch = Batch { account: account.clone(), id: id.to_owned(), lines: "{}".into() };
        let deadline = shared::Shared::store_deadline();
        assert_eq!(backplane.log.append(vec![batch], deadline).await, [Ok(())]);
    }

    #[tokio::test]
    async fn readers_of_the_same_entries_share_a_read_until_it_is_dropped() {
        let (backplane, reads, seek) = (Backplane::embedded(), LogReads::default(), Seek::After(Position(0)));
        let (mine, other) = (account("acc_1"), account("acc_2"));
        append(&backplane, &mine, "1").await;
        let first = reads.read(&backplane.log, &mine, seek);
        let running = reads.read(&backplane.log, &mine, seek);
        let chunk = first.outcome().await.unwrap();
        assert_eq!((chunk.entries.len(), chunk.more), (1, false));
        let finished = reads.read(&backplane.log, &mine, seek);
        for shared in [running, finished] {
            assert!(Arc::ptr_eq(&shared.outcome().await.unwrap(), &chunk));
        }
        let of_other = reads.read(&backplane.log, &other, seek);
        assert!(of_other.outcome().await.unwrap().entries.is_empty(), "an account sees its own entries only");
        append(&backplane, &mine, "2").await;
        let last = chunk.entries.last().unwrap().position;
        let next = reads.read(&backplane.log, &mine, Seek::After(Position(last)));
        assert_eq!(next.outcome().await.unwrap().entries.len(), 1);
        drop(first);
        let again = reads.read(&backplane.log, &mine, seek);
        assert_eq!(again.outcome().await.unwrap().entries.len(), 2, "it was read again");
    }

    #[tokio::test]
    async fn a_read_that_found_nothing_is_not_shared_once_it_has_ended() {
        let (backplane, reads, seek) = (Backplane::embedded(), LogReads::default(), Seek::After(Position(0)));
        let account = account("acc_1");
        let empty = reads.read(&backplane.log, &account, seek);
        assert!(empty.outcome().await.unwrap().entries.is_empty());
        append(&backplane, &account, "1").await;
        let later = reads.read(&backplane.log, &account, seek);
        assert_eq!(later.outcome().await.unwrap().entries.len(), 1);
        drop(empty);
    }

    #[tokio::test]
    async fn a_read_that_began_long_ago_is_not_shared() {
        let (backplane, reads, position) = (Backplane::embedded(), LogReads::default(), Position(0));
        let account = account("acc_1");
        append(&backplane, &account, "1").await;
        let read = reads.read(&backplane.log, &account, Seek::After(position));
        read.outcome().await.unwrap();
        let joins = |at: Instant| lock(&reads.0).joinable(&(account.clone(), position), at).is_some();
        assert!(joins(read.began + SHARED_FOR - Duration::from_millis(1)));
        assert!(!joins(read.began + SHARED_FOR));
    }

    #[tokio::test]
    async fn reads_that_have_ended_do_not_pile_up() {
        let (backplane, reads) = (Backplane::embedded(), LogReads::default());
        let account = account("acc_1");
        for position in 0..4 * MIN_CLEANUP_THRESHOLD as u64 {
            drop(reads.read(&backplane.log, &account, Seek::After(Position(position))));
        }
        assert!(lock(&reads.0).reads.len() <= MIN_CLEANUP_THRESHOLD);
    }
}
