//! A log that can be made to store nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use stage0_backplane::{
    AppendError, Batch, BoxFuture, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MarkError, NotReady, Position,
    ReadError, Seek, SeekBack,
};
use stage0_contract::AccountId;
use tokio::time::Instant;

#[derive(Clone)]
pub(crate) struct FailingLog {
    log: Arc<dyn DecisionLog>,
    fails: Arc<AtomicBool>,
}

impl FailingLog {
    pub(crate) fn new(log: Arc<dyn DecisionLog>) -> Self {
        Self { log, fails: Arc::default() }
    }

    /// From now on appends fail, and are surely not stored, or are stored again.
    pub(crate) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }
}

impl DecisionLog for FailingLog {
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        if self.fails.load(Ordering::SeqCst) {
            let failed = |_| Err(AppendError::NotStored("the test says so".into()));
            return Box::pin(async move { batches.into_iter().map(failed).collect() });
        }
        self.log.append(batches, deadline)
    }

    fn append_mark<'a>(
        &'a self,
        account: &'a AccountId,
        line: Bytes,
        after: Option<Position>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Position, MarkError>> {
        self.log.append_mark(account, line, after, deadline)
    }

    fn read<'a>(
        &'a self,
        account: &'a AccountId,
        filter: EntryFilter,
        from: Seek,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        self.log.read(account, filter, from, max_bytes, deadline)
    }

    fn read_back<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        from: SeekBack,
        max_bytes: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Chunk, ReadError>> {
        self.log.read_back(account, kind, from, max_bytes, deadline)
    }

    fn last<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Entry>, ReadError>> {
        self.log.last(account, kind, deadline)
    }

    fn remove_through<'a>(
        &'a self,
        account: &'a AccountId,
        kind: EntryKind,
        through: Position,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<u64, ReadError>> {
        self.log.remove_through(account, kind, through, deadline)
    }

    fn accounts(&self, deadline: Instant) -> BoxFuture<'_, Result<Vec<AccountId>, ReadError>> {
        self.log.accounts(deadline)
    }

    fn ready(&self) -> BoxFuture<'_, Result<Vec<String>, NotReady>> {
        self.log.ready()
    }
}
