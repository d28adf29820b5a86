//! The backplane inside one process: the same bytes, deadlines and errors as on NATS, without a server.
//!
//! Every queue is bounded; what is queued is lost with the process. Log and state store share one file. Each
//! `Connection` closes on its own, as on NATS, so services that share a process can drain one after the other.
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
    pub fn new() -> Self {
        Self::on(store::Store::in_memory())
    }

    /// A bus whose log and state store are in [`LOG_FILE`] of this directory. Blocks while redb repairs it.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Ok(Self::on(store::Store::open(&directory.join(LOG_FILE), None)?))
    }

    /// Like [`Bus::open`], for a directory that remembers which log it has.
    pub fn open_remembered(directory: &Path, history: LogHistory) -> Result<Self, OpenError> {
        Ok(Self::on(store::Store::open(&directory.join(LOG_FILE), Some(history))?))
    }

    fn on(store: store::Store) -> Self {
        let (servers, subscribers) = (requests::Servers::default(), notices::Subscribers::default());
        Self { shared: Arc::new(Shared { servers, subscribers, store: Arc::new(store) }) }
    }

    /// A connection to this bus; closing it leaves the others open.
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
    /// A connection to a new bus. Clones share it and close together.
    pub fn embedded() -> Self {
        Bus::new().connect()
    }
}

/// Counts a caller while it waits.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    /// None: as many are waiting as may.
    fn below(most: usize, count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
