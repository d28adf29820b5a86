//! The decision log in a file of one node.
//!
//! Batches that arrive together become one transaction, and so one fsync. A batch's id is remembered for two minutes.

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
    AppendError, Batch, BoxFuture, Cause, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MarkError, NotReady,
    Position, ReadError, Seek, SeekBack,
};

const BATCH_ID_TTL: Duration = Duration::from_secs(120);
/// Entries that one transaction removes; other writes get their turn between two of them.
const SWEEP_BATCH: usize = 1_000;

const MAX_QUICK_BYTES: usize = 64 << 10;
const READY_TIMEOUT: Duration = Duration::from_secs(1);

type RawEntry<'t> = (AccessGuard<'t, (&'static str, u64)>, AccessGuard<'t, &'static [u8]>);

pub(super) struct FileLog(pub(super) Session);

impl FileLog {
    async fn store_all(&self, batches: Vec<Batch>, deadline: Instant) -> Result<(), Cause> {
        self.0
            .write(deadline, move |transaction| {
                let now = settled();
                remove_expired_ids(transaction, now)?;
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

fn remove_expired_ids(transaction: &WriteTransaction, now: Timestamp) -> Result<(), redb::Error> {
    let oldest = micros(now.checked_sub(BATCH_ID_TTL).unwrap_or(Timestamp::UNIX_EPOCH));
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
            self.0.store.note_append(&outcome);
            // A failed commit may still have reached the disk.
            let outcome = outcome.map_err(AppendError::Unknown);
            let answers = faults.into_iter().map(|fault| match fault {
                Some(why) => Err(AppendError::NotStored(why.into())),
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
        filter: EntryFilter,
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
        let read = self.0.read(lane(max_bytes), deadline, move |transaction| {
            let from_table = |kind| -> Result<Chunk, redb::Error> {
                let table = transaction.open_table(table(kind))?;
                collect_chunk(table.range((account.as_str(), start)..=(account.as_str(), u64::MAX))?, kind, max_bytes)
            };
            Ok(match filter {
                EntryFilter::Only(kind) => from_table(kind)?,
                EntryFilter::All => {
                    merge_chunks(from_table(EntryKind::Decisions)?, from_table(EntryKind::Mark)?, max_bytes)
                }
            })
        });
        Box::pin(async move { read.await.map_err(ReadError) })
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
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
        let read = self.0.read(lane(max_bytes), deadline, move |transaction| {
            let table = transaction.open_table(table(kind))?;
            let found = table.range((account.as_str(), 0)..(account.as_str(), end))?.rev();
            collect_chunk(found, kind, max_bytes)
        });
        Box::pin(async move { read.await.map_err(ReadError) })
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
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
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        Box::pin(async move {
            let mut removed = 0;
            loop {
                let account = account.clone();
                let some = self.0.write(deadline, move |transaction| {
                    let mut table = transaction.open_table(table(kind))?;
                    let range = (account.as_str(), 0)..=(account.as_str(), through.0);
                    let mut some = 0_u64;
                    for removed in table.extract_from_if(range, |_, _| true)?.take(SWEEP_BATCH) {
                        removed?;
                        some += 1;
                    }
                    Ok(some)
                });
                let some = some.await.map_err(ReadError)?;
                removed += some;
                if some < SWEEP_BATCH as u64 {
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
                // One lookup for each account instead of one for each entry: `\0` is in no account id.
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
            // A full disk still takes small writes, so the last append is checked as well.
            let probe = |transaction: &WriteTransaction| next_position(transaction, settled());
            let written = self.0.write(Instant::now() + READY_TIMEOUT, probe).await;
            let failure = written.err().or_else(|| self.0.store.recent_failure());
            failure.map_or(Ok(Vec::new()), |why| {
                Err(NotReady(format!("the decision log cannot be written: {why}").into()))
            })
        })
    }
}

fn lane(max_bytes: usize) -> Lane {
    if max_bytes > MAX_QUICK_BYTES { Lane::Long } else { Lane::Quick }
}

fn table(kind: EntryKind) -> Entries {
    match kind {
        EntryKind::Decisions => DECISIONS,
        EntryKind::Mark => MARKS,
    }
}

fn entry(position: u64, kind: EntryKind, lines: Vec<u8>) -> Entry {
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

fn collect_chunk<'t>(
    found: impl Iterator<Item = Result<RawEntry<'t>, redb::StorageError>>,
    kind: EntryKind,
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

/// Where one of them was cut off, entries of the other behind the cut are left out.
fn merge_chunks(first: Chunk, second: Chunk, max_bytes: usize) -> Chunk {
    let end = |chunk: &Chunk| {
        let last = chunk.entries.last().map(|entry| entry.position);
        last.filter(|_| chunk.more)
    };
    let cut = [end(&first), end(&second)].into_iter().flatten().min();
    let mut entries: Vec<Entry> = first.entries.into_iter().chain(second.entries).collect();
    entries.sort_unstable_by_key(|entry| entry.position);
    if let Some(cut) = cut {
        entries.retain(|entry| entry.position <= cut);
    }
    let mut chunk = Chunk { entries, more: cut.is_some(), rejected: 0 };
    chunk.fit(max_bytes);
    chunk
}
