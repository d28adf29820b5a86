//! The backplane inside one process: the same bytes, deadlines and errors as on NATS, without a server.
//!
//! Owns the bus: which connection serves or subscribes to which subject. Every queue is bounded. What is queued is lost
//! with the process; data that must survive belongs to the log and the state store, which share one file.
//! Each `Connection` closes on its own, as on NATS, so services that share a process can drain one after the other.
//! INVARIANT: no lock is held across an await, so that a bus works between threads and runtimes.

mod identity;
mod log;
mod notices;
mod requests;
mod state_store;
mod store;
mod threads;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use crate::{Backplane, metrics};
pub use identity::{Fault, LogHistory};
use log::FileLog;
use state_store::FileStateStore;
pub use store::OpenError;
use store::Session;

/// Connects the services of one process.
#[derive(Clone)]
pub struct Bus {
    shared: Arc<Shared>,
}

struct Shared {
    servers: requests::Servers,
    subscribers: notices::Subscribers,
    store: Arc<store::Store>,
}

/// The file that holds log and state store, in a data directory.
pub const LOG_FILE: &str = "decisions.redb";

/// One service's end of the bus. Closing it ends its requests, queues and subscriptions, and no one else's.
struct Connection {
    bus: Bus,
    closed: CancellationToken,
    waiting: AtomicUsize,
}

impl Bus {
    /// A new bus whose log and state store end with the process.
    #[must_use]
    pub fn new() -> Self {
        Self::on(store::Store::in_memory())
    }

    /// A bus whose log and state store are in [`LOG_FILE`] of this directory. Blocks while redb repairs the file after
    /// a crash.
    ///
    /// # Errors
    /// When the file is in use, damaged, or the disk refuses.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Ok(Self::on(store::Store::open(&directory.join(LOG_FILE), None)?))
    }

    /// Like [`Bus::open`], for a directory that remembers which log it has.
    ///
    /// # Errors
    /// Like [`Bus::open`], and when the log is missing, empty or a different one, unless `history` accepts that.
    pub fn open_remembered(directory: &Path, history: LogHistory) -> Result<Self, OpenError> {
        Ok(Self::on(store::Store::open(&directory.join(LOG_FILE), Some(history))?))
    }

    fn on(store: store::Store) -> Self {
        let (servers, subscribers) = (requests::Servers::default(), notices::Subscribers::default());
        Self { shared: Arc::new(Shared { servers, subscribers, store: Arc::new(store) }) }
    }

    /// A connection to this bus; closing it leaves the others open.
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
            state_store: Arc::new(FileStateStore(session)),
        }
    }
}

impl Default for Bus {
    fn default() -> Self {
        Self::new()
    }
}

impl Backplane {
    /// A connection to a new bus. Clones share it and close together; for connections that close one by one, see
    /// [`Bus`].
    #[must_use]
    pub fn embedded() -> Self {
        Bus::new().connect()
    }
}

/// Counts one request while its caller waits for the reply.
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
