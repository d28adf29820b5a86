//! State stores and logs that stand before another one: they do a part themselves, and the rest is that one's.
//!
//! A layer writes the calls that it changes, and no others. INVARIANT: a call that a layer does not write reaches the
//! inner one, also one that has a default of its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stage0_contract::AccountId;
use tokio::time::Instant;

use crate::{
    AppendError, Batch, BoxFuture, Chunk, ClockError, DecisionLog, Entry, EntryFilter, EntryKind, ListError, MarkError,
    NotReady, Position, PutError, ReadError, Record, RecordPage, Revision, Seek, SeekBack, StateStore, StoreClock,
};

/// A state store before another one. What each call promises is in [`StateStore`].
#[expect(missing_docs, reason = "the calls are those of `StateStore`")]
pub trait StateStoreLayer: Send + Sync {
    /// The one behind it.
    fn inner(&self) -> &dyn StateStore;

    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        self.inner().get(key, deadline)
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        self.inner().put(key, value, expected, expires_in, deadline)
    }

    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        self.inner().list(under, after, most, deadline)
    }

    fn was_rolled_back<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, bool> {
        self.inner().was_rolled_back(key, deadline)
    }

    fn clock(&self) -> &Arc<StoreClock> {
        self.inner().clock()
    }

    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        self.inner().read_clock(max_age, deadline)
    }
}

impl<Layer: StateStoreLayer> StateStore for Layer {
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>> {
        StateStoreLayer::get(self, key, deadline)
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>> {
        StateStoreLayer::put(self, key, value, expected, expires_in, deadline)
    }

    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>> {
        StateStoreLayer::list(self, under, after, most, deadline)
    }

    fn was_rolled_back<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, bool> {
        StateStoreLayer::was_rolled_back(self, key, deadline)
    }

    fn clock(&self) -> &Arc<StoreClock> {
        StateStoreLayer::clock(self)
    }

    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>> {
        StateStoreLayer::read_clock(self, max_age, deadline)
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        self.inner().ready()
    }
}

/// A log before another one. What each call promises is in [`DecisionLog`].
#[expect(missing_docs, reason = "the calls are those of `DecisionLog`")]
pub trait DecisionLogLayer: Send + Sync {
    /// The one behind it.
    fn inner(&self) -> &dyn DecisionLog;

    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        self.inner().append(batches, deadline)
    }

    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        self.inner().append_mark(account, line, after, deadline)
    }

    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        filter: EntryFilter,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        self.inner().read(account, filter, from, max_bytes, deadline)
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        self.inner().read_back(account, kind, from, max_bytes, deadline)
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        self.inner().last(account, kind, deadline)
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        self.inner().remove_through(account, kind, through, deadline)
    }
}

impl<Layer: DecisionLogLayer> DecisionLog for Layer {
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        DecisionLogLayer::append(self, batches, deadline)
    }

    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        DecisionLogLayer::append_mark(self, account, line, after, deadline)
    }

    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        filter: EntryFilter,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        DecisionLogLayer::read(self, account, filter, from, max_bytes, deadline)
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        DecisionLogLayer::read_back(self, account, kind, from, max_bytes, deadline)
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        DecisionLogLayer::last(self, account, kind, deadline)
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        DecisionLogLayer::remove_through(self, account, kind, through, deadline)
    }

    fn accounts(&self, deadline: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>> {
        self.inner().accounts(deadline)
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        self.inner().ready()
    }
}
