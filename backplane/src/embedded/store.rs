//! The file behind the embedded log and state store: one redb database, or memory for tests.
//!
//! Owns opening it, and reopening it after the disk failed: redb refuses all work after a failed write until then.
//! Positions are microseconds since the epoch, made unique, so an entry carries its time.
//! INVARIANT: a transaction that returned `Ok` is on disk; one that failed is on disk as a whole or not at all.

use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use redb::backends::InMemoryBackend;
use redb::{Builder, Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::identity::{self, Fault, LogHistory};
use super::threads::{Lane, Threads};
use super::writer::Writer;
use crate::{Cause, Position};

/// Account and position → lines.
pub(super) type Entries = TableDefinition<'static, (&'static str, u64), &'static [u8]>;

pub(super) const DECISIONS: Entries = TableDefinition::new("decisions");
pub(super) const MARKS: Entries = TableDefinition::new("marks");
/// Key → revision, expiry in microseconds since the epoch, value.
pub(super) const LEDGER: TableDefinition<'static, &str, (u64, u64, &[u8])> = TableDefinition::new("ledger");
/// Expiry and key of each record that expires.
pub(super) const LEDGER_ENDS: TableDefinition<'static, (u64, &str), ()> = TableDefinition::new("ledger_ends");
/// Ids of recently stored batches, and the same by age.
pub(super) const IDS: TableDefinition<'static, &str, u64> = TableDefinition::new("ids");
pub(super) const IDS_BY_AGE: TableDefinition<'static, u64, &str> = TableDefinition::new("ids_by_age");
/// The last position that was assigned.
pub(super) const CLOCK: TableDefinition<'static, (), u64> = TableDefinition::new("clock");

const TABLES: usize = 7;

/// How long a failed append counts against readiness; afterwards the next one may show that the failure has passed.
const FAILED_APPEND_TTL: Duration = Duration::from_secs(5);

const CACHE_BYTES: usize = 32 << 20;

/// Why the log's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the decision log `{}` is in use by another process: end it, or give another --data-dir", .0.display())]
    Locked(PathBuf),
    /// Its content is not what redb wrote.
    #[error(
        "the decision log `{}` is damaged: {}; put it aside, or restore it from a backup, and start again",
        .0.display(),
        .1
    )]
    Damaged(PathBuf, String),
    /// The directory had a different log.
    #[error(
        "the decision log `{}` cannot be used: {}; restore `decisions.redb` and `log.id` from one \
         backup; to go on with what is there now, start once with `--accept-new-log` (docs/OPERATIONS.md)",
        .0.display(),
        .1
    )]
    NotTheSame(PathBuf, Fault),
    /// The file system failed.
    #[error("the decision log `{}` cannot be opened: {}", .0.display(), .1)]
    Io(PathBuf, String),
}

pub(super) struct Store {
    core: Arc<Core>,
    threads: Threads,
    writer: Writer,
    last_failure: Mutex<Option<(Instant, Cause)>>,
}

pub(super) struct Core {
    path: Option<PathBuf>,
    open: Mutex<Option<Arc<Database>>>,
}

/// One connection's access to the store.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) store: Arc<Store>,
    pub(super) closed: CancellationToken,
}

impl Session {
    pub(super) fn refusal(&self, deadline: Instant) -> Option<Cause> {
        if self.closed.is_cancelled() {
            Some("the connection is closed".into())
        } else if deadline <= Instant::now() {
            Some("the deadline has passed".into())
        } else {
            None
        }
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Instant,
        work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Cause> {
        let core = Arc::clone(&self.store.core);
        let attempt = move || core.attempt(|database| work(&database.begin_read()?));
        self.within(deadline, self.store.threads.run(lane, deadline, attempt)).await
    }

    /// A write that has started goes on when the deadline passes.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Cause> {
        self.write_if(deadline, move |transaction| work(transaction).map(|done| (done, true))).await
    }

    /// Like [`Session::write`], for work that may change nothing: then nothing is written.
    pub(super) async fn write_if<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce(&WriteTransaction) -> Result<(T, bool), redb::Error> + Send + 'static,
    ) -> Result<T, Cause> {
        self.within(deadline, self.store.writer.write(deadline, work)).await
    }

    async fn within<T>(&self, deadline: Instant, work: impl Future<Output = Result<T, Cause>>) -> Result<T, Cause> {
        if let Some(why) = self.refusal(deadline) {
            return Err(why);
        }
        timeout_at(deadline, work).await.unwrap_or_else(|_| Err("the disk did not answer in time".into()))
    }
}

impl Store {
    pub(super) fn in_memory() -> Self {
        Self::of(Core::in_memory())
    }

    pub(super) fn open(path: &Path, history: Option<LogHistory>) -> Result<Self, OpenError> {
        if let Some(history) = history {
            identity::before_open(path, history)?;
        }
        let database = open(path)?;
        if let Some(history) = history {
            identity::after_open(path, &database, history)?;
        }
        let open = Mutex::new(Some(Arc::new(database)));
        Ok(Self::of(Core { path: Some(path.to_owned()), open }))
    }

    fn of(core: Core) -> Self {
        let core = Arc::new(core);
        Self { writer: Writer::start(Arc::clone(&core)), core, threads: Threads::new(), last_failure: Mutex::default() }
    }

    pub(super) fn note_append(&self, outcome: &Result<(), Cause>) {
        let failure = outcome.as_ref().err().map(|why| (Instant::now(), why.clone()));
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
    }

    pub(super) fn recent_failure(&self) -> Option<Cause> {
        let failure = self.last_failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        failure.filter(|(at, _)| at.elapsed() < FAILED_APPEND_TTL).map(|(_, why)| why)
    }
}

impl Core {
    pub(super) fn in_memory() -> Self {
        let database = Builder::new().set_cache_size(CACHE_BYTES).create_with_backend(InMemoryBackend::new());
        // Without memory the store is a log that never answers.
        let open = database.ok().and_then(|database| create_tables(database).ok()).map(Arc::new);
        Self { path: None, open: Mutex::new(open) }
    }

    /// Runs `work` on the open database, reopening the file first if needed. After a failure the database is closed.
    pub(super) fn attempt<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, Cause> {
        let database = self.database()?;
        let done = catch_unwind(AssertUnwindSafe(|| work(&database)));
        let failure = match done {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => Cause::new(error),
            Err(_) => "the store panicked".into(),
        };
        self.close(&database, &failure);
        Err(failure)
    }

    fn database(&self) -> Result<Arc<Database>, Cause> {
        let mut slot = self.lock();
        if let Some(database) = &*slot {
            return Ok(Arc::clone(database));
        }
        let path = self.path.as_ref().ok_or("the store in memory is gone")?;
        let database = Arc::new(open(path).map_err(Cause::new)?);
        tracing::info!("decision log was opened again");
        *slot = Some(Arc::clone(&database));
        Ok(database)
    }

    /// After a failure only what is on disk can be trusted.
    fn close(&self, failed: &Arc<Database>, failure: &Cause) {
        if self.path.is_some() && self.lock().take_if(|open| Arc::ptr_eq(open, failed)).is_some() {
            let error = failure as &dyn std::error::Error;
            tracing::error!(error, "decision log failed; it is opened again when it is used next");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Database>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next position: not before the clock, and never used twice.
pub(super) fn next_position(transaction: &WriteTransaction, now: Timestamp) -> Result<u64, redb::Error> {
    let mut clock = transaction.open_table(CLOCK)?;
    let last = clock.get(())?.map_or(0, |last| last.value());
    let next = micros(now).max(last.saturating_add(1));
    clock.insert((), next)?;
    Ok(next)
}

/// The first position that an entry stored at or after `time` can have.
pub(super) fn first_since(time: Timestamp) -> u64 {
    micros(time).saturating_add(u64::from(time.subsec_nanosecond() % 1_000 != 0))
}

pub(super) fn micros(time: Timestamp) -> u64 {
    u64::try_from(time.as_microsecond()).unwrap_or(0)
}

pub(super) fn time_of(position: Position) -> Timestamp {
    i64::try_from(position.0).ok().and_then(|micros| Timestamp::from_microsecond(micros).ok()).unwrap_or(Timestamp::MAX)
}

fn open(path: &Path) -> Result<Database, OpenError> {
    let io = |error: io::Error| OpenError::Io(path.to_owned(), error.to_string());
    let fresh = !path.try_exists().map_err(io)?;
    // Readable only by its owner; redb itself would create it with the process's umask.
    let mut file = std::fs::OpenOptions::new();
    file.read(true).write(true).create(true).truncate(false).mode(0o600).open(path).map_err(io)?;
    // Damage can make redb panic instead of returning an error.
    let opened =
        catch_unwind(AssertUnwindSafe(|| create_tables(Builder::new().set_cache_size(CACHE_BYTES).create(path)?)));
    let database = match opened {
        Ok(Ok(database)) => database,
        Ok(Err(redb::Error::DatabaseAlreadyOpen)) => return Err(OpenError::Locked(path.to_owned())),
        Ok(Err(redb::Error::Io(error))) if !is_damage(&error) => return Err(io(error)),
        Ok(Err(error)) => return Err(OpenError::Damaged(path.to_owned(), error.to_string())),
        Err(_) => return Err(OpenError::Damaged(path.to_owned(), "it cannot be read".to_owned())),
    };
    if fresh && let Some(parent) = path.parent() {
        std::fs::File::open(parent).and_then(|directory| directory.sync_all()).map_err(io)?;
    }
    Ok(database)
}

/// Content that is not redb's is also reported as an I/O error.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Creates the tables for readers. If they exist nothing is written, so that a full disk can still be read.
fn create_tables(database: Database) -> Result<Database, redb::Error> {
    if database.begin_read()?.list_tables()?.count() >= TABLES {
        return Ok(database);
    }
    let transaction = database.begin_write()?;
    transaction.open_table(DECISIONS)?;
    transaction.open_table(MARKS)?;
    transaction.open_table(LEDGER)?;
    transaction.open_table(LEDGER_ENDS)?;
    transaction.open_table(IDS)?;
    transaction.open_table(IDS_BY_AGE)?;
    transaction.open_table(CLOCK)?;
    transaction.commit()?;
    Ok(database)
}
