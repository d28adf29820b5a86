//! The backplane inside one process: the same bytes, deadlines and errors as on NATS, without a server.
//!
//! Owns the bus: who serves what, and who hears what. Every queue is bounded; what waits in one is lost with the process, and
//! nothing of it needs to survive: that is the business of the log and the ledger, which stand in one file, and the keystore's.
//! A `Connection` ends alone, as it does on NATS: services that share a process can drain one after the other.
//! INVARIANT: no lock is held across an await, so a bus works between threads and runtimes.

mod identity;
mod ledger;
mod log;
mod notices;
mod requests;
mod store;
mod threads;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use crate::{Backplane, metrics};
pub use identity::{Fault, LogHistory};
use ledger::FileLedger;
use log::FileLog;
pub use store::OpenError;
use store::Session;

/// What connects the services of one process.
#[derive(Clone)]
pub struct Bus {
    shared: Arc<Shared>,
}

struct Shared {
    servers: requests::Servers,
    hearers: notices::Hearers,
    store: Arc<store::Store>,
}

/// The file of log and ledger, in a data directory.
pub const LOG_FILE: &str = "decisions.redb";

/// One service's end of the bus; questions, inboxes and listeners of a closed one end, those of others do not.
struct Connection {
    bus: Bus,
    closed: CancellationToken,
    waiting: AtomicUsize,
}

impl Bus {
    /// A bus that nobody uses yet; its log and ledger end with the process.
    #[must_use]
    pub fn new() -> Self {
        Self::on(store::Store::in_memory())
    }

    /// A bus whose log and ledger stand in [`LOG_FILE`] of this directory. Blocks, for as long as a crash takes to repair.
    ///
    /// # Errors
    /// When the file is in use, damaged, or the disk refuses.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Ok(Self::on(store::Store::open(&directory.join(LOG_FILE), None)?))
    }

    /// As [`Bus::open`], for a directory that remembers which log it has.
    ///
    /// # Errors
    /// As there, and when the log is missing, empty or another one, unless that is accepted.
    pub fn open_remembered(directory: &Path, history: LogHistory) -> Result<Self, OpenError> {
        Ok(Self::on(store::Store::open(&directory.join(LOG_FILE), Some(history))?))
    }

    fn on(store: store::Store) -> Self {
        let (servers, hearers) = (requests::Servers::default(), notices::Hearers::default());
        Self { shared: Arc::new(Shared { servers, hearers, store: Arc::new(store) }) }
    }

    /// A connection to this bus; closing it leaves the others alone.
    #[must_use]
    pub fn connect(&self) -> Backplane {
        metrics::describe();
        let closed = CancellationToken::new();
        let session = Session { store: Arc::clone(&self.shared.store), closed: closed.clone() };
        let connection = Arc::new(Connection { bus: self.clone(), closed, waiting: AtomicUsize::new(0) });
        Backplane {
            requests: connection.clone(),
            notices: connection,
            log: Arc::new(FileLog(session.clone())),
            ledger: Arc::new(FileLedger(session)),
        }
    }
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Backplane {
    /// One connection to a new bus of its own. Clones share it, and its end; for connections that close one by one, see [`Bus`].
    #[must_use]
    pub fn embedded() -> Self {
        Bus::new().connect()
    }
}

/// Counts one question while somebody waits for its answer.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
