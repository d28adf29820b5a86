//! The backplane on NATS: core request-reply with queue groups, and plain subjects for notices.
//!
//! Owns the connection, the subjects' prefix and what is done when either end or the server fails. Nothing is ever sent twice:
//! a caller who gets an error decides for itself.
//! INVARIANT: what is asked while not connected is refused at once, and whoever waits when the connection breaks is told so;
//! async-nats alone would queue the first and forget the second. A question handed to the client in the very instant of the break
//! may still be sent afterwards; its asker has been told `Lost`, and its deadline ends it.
//!
//! Permissions that a service needs: publish and subscribe on `_INBOX_<name>.>` (answers, and questions to oneself),
//! `allow_responses` if it answers, and its subjects: `<prefix>.req.<subject>` (queue group `<prefix>`) for questions,
//! `<prefix>.<subject>` for notices.

mod config;
mod deadline;
mod dial;
mod health;
mod link;
mod notices;
mod requests;
mod waiters;

use std::sync::Arc;

pub use config::{Login, NatsConfig, Tls};
pub use dial::ConnectError;
pub use health::Health;

use crate::Backplane;
use link::Link;

/// Messages that a subscription holds before the client drops some and says so (a slow consumer).
const SUBSCRIPTION_CAPACITY: usize = 8192;

/// One connection to a NATS server, reconnecting for ever once it stood.
#[derive(Clone)]
pub struct Connection {
    link: Arc<Link>,
}

/// What the server said when the connection was made, or made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The most bytes that a message may have, headers included.
    pub max_payload: usize,
}

impl Connection {
    /// Connects, checks the server and proves that messages come back.
    ///
    /// # Errors
    /// When no server could be used within the configured time; at once when one refused the credentials or the TLS.
    pub async fn open(config: &NatsConfig) -> Result<Self, ConnectError> {
        let link = dial::dial(config).await?;
        Ok(Self { link: Arc::new(link) })
    }

    /// The capabilities that services plug into.
    #[must_use]
    pub fn backplane(&self) -> Backplane {
        Backplane { requests: Arc::new(self.clone()), notices: Arc::new(self.clone()) }
    }

    /// What went wrong so far, for metrics.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.link.health.clone()
    }

    /// Facts about the server.
    #[must_use]
    pub fn server(&self) -> Server {
        let info = self.link.client.server_info();
        Server { name: info.server_name, version: info.version, max_payload: self.link.client.max_payload() }
    }
}

impl Backplane {
    /// A connection to NATS; see [`Connection`] for its health.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn connect(config: &NatsConfig) -> Result<Self, ConnectError> {
        Ok(Connection::open(config).await?.backplane())
    }
}
