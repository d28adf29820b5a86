//! The backplane on NATS: core request-reply with queue groups, and plain subjects for notices.
//!
//! Owns the connection, the subjects' prefix and what is done when either end or the server fails. Nothing is ever sent twice:
//! a caller who gets an error decides for itself.
//! INVARIANT: what is asked while not connected is refused at once, and whoever waits when the connection breaks is told so;
//! async-nats alone would queue the first and forget the second. A question handed to the client in the very instant of the break
//! may still be sent afterwards; its asker has been told `Lost`, and its deadline ends it.
//!
//! Subjects: `_INBOX_<login>.<public key>.<token>` for answers and messages to oneself, `<prefix>.req.<subject>` (queue group `<prefix>`) for questions,
//! `<prefix>.<subject>` for notices. The log and the ledger stand on JetStream. `server_file` gives each role an account with what
//! it needs; user permissions alone do not hold a role that was taken over, and that file says why.

mod admin;
mod auth;
mod config;
mod deadline;
mod dial;
mod exposure;
mod health;
mod jetstream;
mod ledger;
mod link;
mod log;
mod monitor;
mod notices;
mod requests;
mod sealing;
mod server_file;
mod stream_watch;
mod streams;
mod sync;
mod waiters;

use std::sync::Arc;
use std::time::Duration;

pub use admin::{AdminError, Sizes, StreamAdmin, StreamState};
pub use auth::{
    KeySet, KeySetError, KeysError, MemoryError, MessageAuth, MessageKeys, Requirement, Rotation, remember_requirement,
};
pub use config::{JETSTREAM_API, Login, NatsConfig, Tls};
pub use dial::ConnectError;
pub use exposure::{Asked, Exposure, exposure};
pub use health::Health;
pub use monitor::JetStreamState;
pub use server_file::{Logins, ServerFile};
pub use sync::SyncMode;

use crate::{Backplane, metrics};
use link::Link;
use serde_json::Value;
use stage0_contract::Role;
use streams::StreamSpec;
use tokio::time::Instant;

/// Messages that a subscription holds before the client drops some and says so (a slow consumer).
const SUBSCRIPTION_CAPACITY: usize = 8192;

/// How long making and checking the streams may take.
const PREPARE_WITHIN: Duration = Duration::from_secs(10);

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
        metrics::describe_nats();
        if let Some(auth) = &config.auth {
            auth.describe();
        }
        let link = dial::dial(config).await?;
        Ok(Self { link: Arc::new(link) })
    }

    /// The capabilities that services plug into.
    #[must_use]
    pub fn backplane(&self) -> Backplane {
        let this = Arc::new(self.clone());
        Backplane { requests: this.clone(), notices: this.clone(), log: this.clone(), ledger: this }
    }

    /// Makes every stream where it is missing and this login may make it, as where nobody logs in; a test's way to start.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub async fn prepare_log(&self, replicas: usize) -> Result<(), PrepareError> {
        self.prepare_streams(StreamSpec::all(&self.link.prefix), replicas).await
    }

    /// Refuses streams that are not as they have to be, of those that a role uses, and a server that does not sync, if
    /// that is to be proven. Where no administrator made the streams and this login may, as on a server that takes
    /// everybody, it makes those that are missing, without limits of size. It never changes one.
    ///
    /// # Errors
    /// When a stream is missing or foreign, or JetStream is off or does not sync.
    pub async fn prepare(&self, role: Role, replicas: usize) -> Result<(), PrepareError> {
        self.prepare_streams(StreamSpec::of_role(&self.link.prefix, role), replicas).await
    }

    async fn prepare_streams(&self, specs: Vec<StreamSpec>, replicas: usize) -> Result<(), PrepareError> {
        let until = Instant::now() + PREPARE_WITHIN;
        for spec in &specs {
            let found = admin::ensure(&self.link, spec, replicas, until).await;
            let found = found.map_err(|error| PrepareError::Stream(error.to_string()))?;
            let copies = found.get("num_replicas").and_then(Value::as_u64).and_then(|copies| copies.try_into().ok());
            if copies != Some(replicas) && spec.used_by.contains(&Role::AuditExport) {
                tracing::warn!(stream = spec.name.as_str(), replicas = ?copies, "stream has another number of replicas than asked for");
            }
            for setting in spec.unknown(&found) {
                tracing::warn!(
                    stream = spec.name.as_str(),
                    setting,
                    "the stream has a setting that this version does not know"
                );
            }
        }
        self.link.streams.use_these(specs.into_iter().map(|spec| spec.name).collect());
        self.link.sync.check(self.link.connects(), until).await.map_err(PrepareError::Sync)
    }

    /// Looks at the streams of a role and changes nothing; what should be known of them.
    ///
    /// # Errors
    /// When one is missing or foreign.
    pub async fn check_streams(&self, role: Role) -> Result<Vec<String>, PrepareError> {
        let until = Instant::now() + PREPARE_WITHIN;
        let mut remarks = Vec::new();
        for spec in StreamSpec::of_role(&self.link.prefix, role) {
            let found = admin::look(&self.link, &spec, until).await;
            let found = found.map_err(|error| PrepareError::Stream(error.to_string()))?;
            let name = spec.name.as_str();
            remarks.extend(spec.unknown(&found).into_iter().map(|s| format!("`{name}` has a `{s}` that is not known")));
        }
        Ok(remarks)
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

/// The log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// There is no stream and none could be made.
    #[error("the streams of the decision log cannot be had: {0}")]
    Stream(String),
    /// A power cut would lose what was acknowledged, or nobody knows.
    #[error("{0}")]
    Sync(String),
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
