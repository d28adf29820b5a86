//! The backplane inside one process: the same bytes, deadlines and errors as on NATS, without a server.
//!
//! Owns the bus: who serves what, and who hears what. Every queue is bounded; what waits in one is lost with the process, and
//! nothing of it needs to survive: that is the log's and the keystore's business.
//! A `Connection` ends alone, as it does on NATS: services that share a process can drain one after the other.
//! INVARIANT: no lock is held across an await, so a bus works between threads and runtimes.

mod notices;
mod requests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;

use crate::Backplane;

/// What connects the services of one process.
#[derive(Clone, Default)]
pub struct Bus {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    servers: requests::Servers,
    hearers: notices::Hearers,
}

/// One service's end of the bus; questions, inboxes and listeners of a closed one end, those of others do not.
struct Connection {
    bus: Bus,
    closed: CancellationToken,
    waiting: AtomicUsize,
}

impl Bus {
    /// A bus that nobody uses yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to this bus; closing it leaves the others alone.
    #[must_use]
    pub fn connect(&self) -> Backplane {
        let connection =
            Arc::new(Connection { bus: self.clone(), closed: CancellationToken::new(), waiting: AtomicUsize::new(0) });
        Backplane { requests: connection.clone(), notices: connection }
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
