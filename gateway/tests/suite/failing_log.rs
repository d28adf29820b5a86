//! A log whose appends can be made to fail, to lose their outcome, and to hang.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use stage0_backplane::{
    AppendError, Batch, BoxFuture, Chunk, DecisionLog, Entry, EntryFilter, EntryKind, MarkError, NotReady, Position,
    ReadError, Seek, SeekBack,
};
use stage0_contract::AccountId;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// What becomes of appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appends {
    Acknowledged,
    /// Surely not stored.
    Failed,
    /// Stored, but the acknowledgement is lost.
    Unacknowledged,
    /// Lost on the way to the log.
    Lost,
    /// The first one is lost on the way, and those after it fail.
    LostThenFailed,
}

#[derive(Clone)]
pub(crate) struct FailingLog {
    log: Arc<dyn DecisionLog>,
    appends: Arc<Mutex<Appends>>,
    held: Arc<tokio::sync::Mutex<()>>,
    waiting: Arc<AtomicUsize>,
}

impl FailingLog {
    pub(crate) fn new(log: Arc<dyn DecisionLog>) -> Self {
        let appends = Arc::new(Mutex::new(Appends::Acknowledged));
        Self { log, appends, held: Arc::default(), waiting: Arc::default() }
    }

    pub(crate) fn set(&self, appends: Appends) {
        *self.appends.lock().unwrap() = appends;
    }

    /// Appends wait until the guard is dropped, beyond their deadline too.
    pub(crate) async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.held).lock_owned().await
    }

    /// How many appends wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// From now on appends fail, and are surely not stored, or are stored again.
    pub(crate) fn fail(&self, fails: bool) {
        self.set(if fails { Appends::Failed } else { Appends::Acknowledged });
    }
}

impl DecisionLog for FailingLog {
    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        let failed = |_: &Batch| Err(AppendError::NotStored("the test says so".into()));
        let unknown = |_: &Batch| Err(AppendError::Unknown("the test says so".into()));
        Box::pin(async move {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            drop(self.held.lock().await);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            let appends = *self.appends.lock().unwrap();
            match appends {
                Appends::Acknowledged => self.log.append(batches, deadline).await,
                Appends::Failed => batches.iter().map(failed).collect(),
                Appends::Unacknowledged => {
                    let outcomes = batches.iter().map(unknown).collect();
                    self.log.append(batches, deadline).await;
                    outcomes
                }
                Appends::Lost => batches.iter().map(unknown).collect(),
                Appends::LostThenFailed => {
                    self.set(Appends::Failed);
                    batches.iter().map(unknown).collect()
                }
            }
        })
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
