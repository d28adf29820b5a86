//! The decision log in a file of one node.
//!
//! Batches that arrive together become one transaction, and so one fsync. A batch's id is remembered for two minutes, in the same
//! transaction. A sweep removes what is older than the store is told to keep.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use redb::{AccessGuard, ReadableTable, WriteTransaction};
use stage0_contract::AccountId;
use tokio::time::Instant;

use super::store::{DECISIONS, Entries, IDS, IDS_BY_AGE, MARKS, Session, first_since, micros, next_position, time_of};
use super::threads::Lane;
use crate::clock::settled;
use crate::{
    AppendError, Batch, BoxFuture, Chunk, DecisionLog, Entry, Kind, MarkError, NotReady, Position, ReadError, Seek,
    SeekBack, Which,
};

const REMEMBER: Duration = Duration::from_secs(120);
/// Entries that one transaction of the sweep removes: others get their turn between two.
const SWEEP: usize = 1_000;

/// Whoever asks for more makes a long read.
const QUICK_BYTES: usize = 64 << 10;
const READY_WITHIN: Duration = Duration::from_secs(1);

/// An entry as the file holds it.
type Pair<'t> = (AccessGuard<'t, (&'static str, u64)>, AccessGuard<'t, &'static [u8]>);

/// The log as one connection has it.
pub(super) struct FileLog(pub(super) Session);

impl FileLog {
    async fn store_all(&self, batches: Vec<Batch>, deadline: Instant) -> Result<(), String> {
        self.0
            .write(deadline, move |transaction| {
                let now = settled();
                forget_old_ids(transaction, now)?;
                let mut table = transaction.open_table(DECISIONS)?;
                let (mut ids, mut by_age) = (transaction.open_table(IDS)?, transaction.open_table(IDS_BY_AGE)?);
                for batch in batches {
                    if ids.get(batch.id.as_str())?.is_none() {
                        let position = next_position(transaction, now)?;
                        table.insert((batch.account.as_str(), position), &*batch.lines)?;
                        ids.insert(batch.id.as_str(), position)?;
                        by_age.insert(position, batch.id.as_str())?;
                    }
                }
                Ok(())
            })
            .await
    }
}

fn forget_old_ids(transaction: &WriteTransaction, now: Timestamp) -> Result<(), redb::Error> {
    let oldest = micros(now.checked_sub(REMEMBER).unwrap_or(Timestamp::UNIX_EPOCH));
    let (mut ids, mut by_age) = (transaction.open_table(IDS)?, transaction.open_table(IDS_BY_AGE)?);
    for old in by_age.extract_from_if(..oldest, |_, _| true)? {
        ids.remove(old?.1.value())?;
    }
    Ok(())
}

impl DecisionLog for FileLog {
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        Box::pin(async move {
            if let Some(why) = self.0.refusal(deadline) {
                return vec![Err(AppendError::NotStored(why)); batches.len()];
            }
            let faults: Vec<_> = batches.iter().map(Batch::fault).collect();
            let sound = batches.into_iter().filter(|batch| batch.fault().is_none()).collect();
            let outcome = self.store_all(sound, deadline).await;
            self.0.store.note(&outcome);
            // A failed commit may have reached the disk all the same.
            let outcome = outcome.map_err(AppendError::Unknown);
            let answers = faults.into_iter().map(|fault| match fault {
                Some(why) => Err(AppendError::NotStored(why.to_owned())),
                None => outcome.clone(),
            });
            answers.collect()
        })
    }

    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        let account = account.clone();
        let put = self.0.write(deadline, move |transaction| {
            let mut table = transaction.open_table(MARKS)?;
            let last = last_in(&table, account.as_str())?.map(|(position, _)| Position(position));
            if last != after {
                return Ok(Err(MarkError::Conflict));
            }
            let position = next_position(transaction, settled())?;
            table.insert((account.as_str(), position), &*line)?;
            Ok(Ok(Position(position)))
        });
        Box::pin(async move { put.await.map_err(MarkError::Failed)? })
    }

    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        which: Which,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        let account = account.clone();
        let start = match from {
            Seek::Start => 0,
            Seek::After(position) => position.0.saturating_add(1),
            Seek::Time(time) => first_since(time),
        };
        let lane = if max_bytes > QUICK_BYTES { Lane::Long } else { Lane::Quick };
        let read = self.0.read(lane, deadline, move |transaction| {
            let from_table = |table: Entries, kind| -> Result<Chunk, redb::Error> {
                let table = transaction.open_table(table)?;
                stretch(&table, account.as_str(), start, kind, max_bytes)
            };
            Ok(match which {
                Which::Only(Kind::Decisions) => from_table(DECISIONS, Kind::Decisions)?,
                Which::Only(Kind::Mark) => from_table(MARKS, Kind::Mark)?,
                Which::All => {
                    merged(from_table(DECISIONS, Kind::Decisions)?, from_table(MARKS, Kind::Mark)?, max_bytes)
                }
            })
        });
        Box::pin(async move { read.await.map_err(ReadError) })
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        let account = account.clone();
        let end = match from {
            SeekBack::End => u64::MAX,
            SeekBack::Before(position) => position.0,
            SeekBack::Time(time) => micros(time).saturating_add(1),
        };
        let lane = if max_bytes > QUICK_BYTES { Lane::Long } else { Lane::Quick };
        let read = self.0.read(lane, deadline, move |transaction| {
            let table = transaction.open_table(table(kind))?;
            let found = table.range((account.as_str(), 0)..(account.as_str(), end))?.rev();
            collected(found, kind, max_bytes)
        });
        Box::pin(async move { read.await.map_err(ReadError) })
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        let account = account.clone();
        let read = self.0.read(Lane::Quick, deadline, move |transaction| {
            let table = transaction.open_table(table(kind))?;
            let last = last_in(&table, account.as_str())?;
            Ok(last.map(|(position, lines)| entry(position, kind, lines)))
        });
        Box::pin(async move { read.await.map_err(ReadError) })
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: Kind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        Box::pin(async move {
            let mut removed = 0;
            loop {
                let account = account.clone();
                let some = self.0.write(deadline, move |transaction| {
                    let mut table = transaction.open_table(table(kind))?;
                    remove_some(&mut table, account.as_str(), through.0)
                });
                let some = some.await.map_err(ReadError)?;
                removed += some as u64;
                if some < SWEEP {
                    return Ok(removed);
                }
            }
        })
    }

    fn accounts(&self, deadline: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>> {
        let read = self.0.read(Lane::Quick, deadline, |transaction| {
            let mut accounts = Vec::new();
            for table in [DECISIONS, MARKS] {
                let table = transaction.open_table(table)?;
                let mut next = String::new();
                // One look for each account, not one for each entry: `\0` is in no id.
                while let Some(entry) = table.range((next.as_str(), 0)..)?.next() {
                    let account = entry?.0.value().0.to_owned();
                    next = format!("{account}\0");
                    accounts.extend(AccountId::parse(&account));
                }
            }
            accounts.sort_unstable();
            accounts.dedup();
            Ok(accounts)
        });
        Box::pin(async move { read.await.map_err(ReadError) })
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        Box::pin(async move {
            // A disk that is full can still be read, and takes what is small enough: both are asked, a write and the last append.
            let probe = |transaction: &WriteTransaction| next_position(transaction, settled());
            let written = self.0.write(Instant::now() + READY_WITHIN, probe).await;
            let trouble = written.err().or_else(|| self.0.store.trouble());
            trouble.map_or(Ok(Vec::new()), |why| Err(NotReady(format!("the decision log cannot be written: {why}"))))
        })
    }
}

fn table(kind: Kind) -> Entries {
    match kind {
        Kind::Decisions => DECISIONS,
        Kind::Mark => MARKS,
    }
}

fn entry(position: u64, kind: Kind, lines: Vec<u8>) -> Entry {
    let position = Position(position);
    Entry { position, stored_at: time_of(position), kind, lines: lines.into() }
}

fn last_in(
    table: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    account: &str,
) -> Result<Option<(u64, Vec<u8>)>, redb::Error> {
    let last = table.range((account, 0)..=(account, u64::MAX))?.next_back().transpose()?;
    Ok(last.map(|(key, lines)| (key.value().1, lines.value().to_vec())))
}

fn stretch(
    table: &impl ReadableTable<(&'static str, u64), &'static [u8]>,
    account: &str,
    start: u64,
    kind: Kind,
    max_bytes: usize,
) -> Result<Chunk, redb::Error> {
    collected(table.range((account, start)..=(account, u64::MAX))?, kind, max_bytes)
}

/// As many as fit, and at least one.
fn collected<'t>(
    found: impl Iterator<Item = Result<Pair<'t>, redb::StorageError>>,
    kind: Kind,
    max_bytes: usize,
) -> Result<Chunk, redb::Error> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    for found in found {
        let (key, lines) = found?;
        bytes += lines.value().len();
        if bytes > max_bytes && !entries.is_empty() {
            return Ok(Chunk { entries, more: true, rejected: 0 });
        }
        entries.push(entry(key.value().1, kind, lines.value().to_vec()));
    }
    Ok(Chunk { entries, more: false, rejected: 0 })
}

/// Both in the order of the log. Where one of them was cut off, nothing behind the cut may be shown of the other.
fn merged(first: Chunk, second: Chunk, max_bytes: usize) -> Chunk {
    let end = |chunk: &Chunk| {
        let last = chunk.entries.last().map(|entry| entry.position);
        last.filter(|_| chunk.more)
    };
    let cut = [end(&first), end(&second)].into_iter().flatten().min();
    let mut entries: Vec<Entry> = first.entries.into_iter().chain(second.entries).collect();
    entries.sort_unstable_by_key(|entry| entry.position);
    let all = entries.len();
    if let Some(cut) = cut {
        entries.retain(|entry| entry.position <= cut);
    }
    let mut bytes = 0;
    let fitting = entries.iter().take_while(|entry| {
        bytes += entry.lines.len();
        bytes <= max_bytes
    });
    let fitting = fitting.count().max(1).min(entries.len());
    entries.truncate(fitting);
    Chunk { more: cut.is_some() || fitting < all, entries, rejected: 0 }
}

fn remove_some(
    table: &mut redb::Table<'_, (&'static str, u64), &'static [u8]>,
    account: &str,
    through: u64,
) -> Result<usize, redb::Error> {
    let keys: Vec<u64> = table
        .range((account, 0)..=(account, through))?
        .take(SWEEP)
        .map(|found| Ok(found?.0.value().1))
        .collect::<Result<_, redb::StorageError>>()?;
    for key in &keys {
        table.remove((account, *key))?;
    }
    Ok(keys.len())
}
