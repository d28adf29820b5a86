//! The decision log of a simulation: pure, and as forgetful of batch ids as a real one.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use stage0_contract::AccountId;
use tokio::time::Instant;

use super::Sim;
use super::exchange::Unanswered;
use super::hosts::true_time;
use super::links::Peer;
use super::plan::Flaw;
use super::world::{StoredEntry, World};
use crate::{
    AppendError, Batch, BoxFuture, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MarkError, NotReady, Position,
    ReadError, Seek, SeekBack,
};

/// How long the id of a batch is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(120);

pub(super) struct SimLog {
    pub(super) sim: Sim,
    pub(super) node: usize,
}

impl World {
    fn append(&mut self, account: AccountId, id: String, kind: EntryKind, lines: Bytes) -> Option<Position> {
        let now = Instant::now();
        let is_known = |entry: &&StoredEntry| entry.id == id && now - entry.appended_at < REMEMBERED_FOR;
        if self.plan.flaw != Some(Flaw::StoresTwice)
            && let Some(known) = self.entries.iter().rev().find(is_known)
        {
            return Some(Position(known.position));
        }
        let position = self.next_revision();
        if self.fails_by(Flaw::Forgets) || self.is_alone {
            return Some(Position(position));
        }
        let stored_at = true_time();
        self.entries.push(StoredEntry { account, id, position, stored_at, appended_at: now, kind, lines });
        Some(Position(position))
    }

    /// The account's entries as a read of this process sees them, the oldest first.
    fn entries_of(&mut self, node: usize, account: &AccountId, filter: EntryFilter) -> Vec<Entry> {
        let at = self.seen_at(node);
        let is_wanted = |entry: &&StoredEntry| {
            let is_kind = filter == EntryFilter::All || filter == EntryFilter::Only(entry.kind);
            entry.account == *account && is_kind && entry.appended_at <= at
        };
        self.entries.iter().filter(is_wanted).map(StoredEntry::entry).collect()
    }
}

impl StoredEntry {
    fn entry(&self) -> Entry {
        let Self { position, stored_at, kind, lines, .. } = self.clone();
        Entry { position: Position(position), stored_at, kind, lines }
    }
}

fn chunk(mut entries: Vec<Entry>, max_bytes: usize) -> Chunk {
    let mut chunk = Chunk { entries: Vec::new(), more: false, rejected: 0 };
    chunk.entries.append(&mut entries);
    chunk.fit(max_bytes);
    chunk
}

impl SimLog {
    async fn read_entries<T: Send + 'static>(
        &self,
        account: &AccountId,
        filter: EntryFilter,
        deadline: Instant,
        take: impl FnOnce(Vec<Entry>) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        let (node, account) = (self.node, account.clone());
        let work = move |world: &mut World| {
            let entries = world.entries_of(node, &account, filter);
            let last = entries.last().map_or(0, |entry| entry.position.0);
            world.note(node, format_args!("reads the log of {account} up to {last}"));
            take(entries)
        };
        self.sim.exchange(node, Peer::Replica, deadline, work).await.map_err(|why| ReadError(why.cause()))
    }

    async fn append_one(&self, batch: Batch, deadline: Instant) -> Result<(), AppendError> {
        let node = self.node;
        let work = move |world: &mut World| {
            let Batch { account, id, lines } = batch;
            let of = account.clone();
            let position = world.append(account, id, EntryKind::Decisions, lines);
            world.note(node, format_args!("appends for {of} at {}", position.map_or(0, |position| position.0)));
            position
        };
        match self.sim.exchange(node, Peer::Leader, deadline, work).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(AppendError::Unknown("there is no clock".into())),
            Err(why @ Unanswered::Refused) => Err(AppendError::NotStored(why.cause())),
            Err(why @ Unanswered::Unknown) => Err(AppendError::Unknown(why.cause())),
        }
    }
}

impl DecisionLog for SimLog {
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        Box::pin(async move { join_all(batches.into_iter().map(|batch| self.append_one(batch, deadline))).await })
    }

    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        Box::pin(async move {
            let (node, account) = (self.node, account.clone());
            let work = move |world: &mut World| {
                let is_mark = |entry: &&StoredEntry| entry.account == account && entry.kind == EntryKind::Mark;
                let last = world.entries.iter().rev().find(is_mark).map(|entry| Position(entry.position));
                if last != after {
                    return Err(MarkError::Conflict);
                }
                let id = format!("mark after {}", after.map_or(0, |after| after.0));
                let stored = world.append(account, id, EntryKind::Mark, line);
                stored.ok_or_else(|| MarkError::Failed("there is no clock".into()))
            };
            self.sim.exchange(node, Peer::Leader, deadline, work).await.map_err(|why| MarkError::Failed(why.cause()))?
        })
    }

    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        filter: EntryFilter,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(self.read_entries(account, filter, deadline, move |mut entries| {
            entries.retain(|entry| match from {
                Seek::Start => true,
                Seek::After(position) => entry.position > position,
                Seek::Time(time) => entry.stored_at >= time,
            });
            chunk(entries, max_bytes)
        }))
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        Box::pin(self.read_entries(account, EntryFilter::Only(kind), deadline, move |mut entries| {
            entries.retain(|entry| match from {
                SeekBack::End => true,
                SeekBack::Before(position) => entry.position < position,
                SeekBack::Time(time) => entry.stored_at <= time,
            });
            entries.reverse();
            chunk(entries, max_bytes)
        }))
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        Box::pin(self.read_entries(account, EntryFilter::Only(kind), deadline, |mut entries| entries.pop()))
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        Box::pin(async move {
            let account = account.clone();
            let work = move |world: &mut World| {
                let before = world.entries.len();
                let is_kept =
                    |entry: &StoredEntry| entry.account != account || entry.kind != kind || entry.position > through.0;
                world.entries.retain(is_kept);
                (before - world.entries.len()) as u64
            };
            self.sim.exchange(self.node, Peer::Leader, deadline, work).await.map_err(|why| ReadError(why.cause()))
        })
    }

    fn accounts(&self, deadline: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>> {
        Box::pin(async move {
            let work = |world: &mut World| {
                let mut accounts: Vec<AccountId> = world.entries.iter().map(|entry| entry.account.clone()).collect();
                accounts.sort();
                accounts.dedup();
                accounts
            };
            self.sim.exchange(self.node, Peer::Replica, deadline, work).await.map_err(|why| ReadError(why.cause()))
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}
