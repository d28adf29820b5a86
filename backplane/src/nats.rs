//! The backplane on NATS: core request/reply with queue groups, and plain subjects for notices.
//!
//! Nothing is ever sent twice: a caller that gets an error decides itself.
//! INVARIANT: a request made while disconnected fails at once, and a request that waits when the connection breaks
//! fails at that moment; async-nats alone would queue the first and forget the second. A request handed to the client
//! just as the connection breaks may still be sent afterwards: its caller has got `Disconnected`, and its deadline ends
//! it.
//!
//! Subjects: `_INBOX_<login>.<public key>.<token>` for replies and self-pings, `<prefix>.req.<subject>` (queue group
//! `<prefix>`) for requests, `<prefix>.<subject>` for notices. Log and state store are on JetStream.

mod admin;
mod auth;
mod config;
mod deadline;
mod dial;
mod exposure;
mod fsync_check;
mod health;
mod jetstream;
mod link;
mod log;
mod monitor;
mod nats_conf;
mod notices;
mod release;
mod requests;
mod sealing;
mod state_store;
mod stream_watch;
mod streams;
mod waiters;

use std::sync::Arc;
use std::time::Duration;

pub use admin::{AdminError, Sizes, StreamAdmin, StreamState};
#[doc(hidden)]
pub use auth::fuzz_support;
pub use auth::{
    KeySet, KeySetError, KeysError, MessageAuth, MessageKeys, Requirement, RequirementError, Rotation,
    persist_requirement,
};
pub use config::{JETSTREAM_API, Login, NatsConfig, Tls};
pub use dial::ConnectError;
pub use exposure::{Enforced, Exposure, exposure};
pub use fsync_check::{SyncFault, SyncMode};
pub use health::Health;
pub use monitor::JetStreamState;
pub use nats_conf::{ClusterConf, ClusterRoute, Logins, NatsServerConf};
pub use release::{Release, ReleaseError};

use crate::{Backplane, metrics};
use jetstream::JetError;
use link::Link;
use serde_json::Value;
use stage0_contract::Role;
use streams::StreamSpec;
use tokio::time::Instant;

/// Messages that a subscription buffers before the client drops some and reports a slow consumer.
const SUBSCRIPTION_CAPACITY: usize = 8192;

const PREPARE_TIMEOUT: Duration = Duration::from_secs(10);

/// One connection to a NATS server, which reconnects for ever once it was established.
#[derive(Clone)]
pub struct Connection {
    link: Arc<Link>,
}

/// What the server reported when the connection was made, or made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The server's name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// The largest message that it accepts, in bytes and including headers.
    pub max_payload: usize,
}

impl Connection {
    /// Connects, checks the server and proves that messages come back. Fails at once when a server refused the
    /// credentials or the TLS, otherwise after the configured time.
    pub async fn open(config: &NatsConfig) -> Result<Self, ConnectError> {
        metrics::describe_nats();
        if let Some(auth) = &config.auth {
            auth.describe();
        }
        let link = dial::dial(config).await?;
        Ok(Self { link: Arc::new(link) })
    }

    /// The capabilities that services use.
    pub fn backplane(&self) -> Backplane {
        let this = Arc::new(self.clone());
        Backplane { requests: this.clone(), notices: this.clone(), log: this.clone(), state_store: this }
    }

    /// Creates every stream that is missing, on a server without logins; used by tests.
    pub async fn prepare_log(&self, replicas: usize) -> Result<(), PrepareError> {
        self.prepare_streams(StreamSpec::all(&self.link.prefix), replicas).await
    }

    /// Checks the streams that a role uses and, if configured, that the server syncs. Creates missing streams, without
    /// size limits, where this login may, as on a server without logins. Never changes a stream.
    pub async fn prepare(&self, role: Role, replicas: usize) -> Result<(), PrepareError> {
        self.prepare_streams(StreamSpec::of_role(&self.link.prefix, role), replicas).await
    }

    async fn prepare_streams(&self, specs: Vec<StreamSpec>, replicas: usize) -> Result<(), PrepareError> {
        let deadline = Instant::now() + PREPARE_TIMEOUT;
        for spec in &specs {
            let found = admin::ensure(&self.link, spec, replicas, deadline).await?;
            let copies = found.get("num_replicas").and_then(Value::as_u64).and_then(|copies| copies.try_into().ok());
            let stream = spec.name.as_str();
            if copies != Some(replicas) {
                tracing::warn!(stream, replicas = ?copies, "stream has another number of replicas than asked for");
            }
            for setting in spec.unknown(&found) {
                tracing::warn!(stream, setting, "the stream has a setting that this version does not know");
            }
        }
        self.link.streams.set_used(specs.into_iter().map(|spec| spec.name).collect());
        self.link.fsync_check.check(self.link.connects(), deadline).await.map_err(PrepareError::Sync)
    }

    /// Checks the streams of a role without changing anything; returns remarks for an operator.
    pub async fn check_streams(&self, role: Role) -> Result<Vec<String>, PrepareError> {
        let deadline = Instant::now() + PREPARE_TIMEOUT;
        let mut remarks = Vec::new();
        for spec in StreamSpec::of_role(&self.link.prefix, role) {
            let found = admin::inspect(&self.link, &spec, deadline).await?;
            let name = spec.name.as_str();
            remarks.extend(spec.unknown(&found).into_iter().map(|s| format!("`{name}` has a `{s}` that is not known")));
        }
        Ok(remarks)
    }

    /// Counts of what went wrong so far.
    pub fn health(&self) -> Arc<Health> {
        self.link.health.clone()
    }

    /// What the server reported about itself.
    pub fn server(&self) -> Server {
        let info = self.link.client.server_info();
        Server { name: info.server_name, version: info.version, max_payload: self.link.client.max_payload() }
    }
}

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A stream is missing, or that of an earlier version, and this login may not make it.
    #[error("the streams of the decision log cannot be had: {0}")]
    Missing(String),
    /// The server says nothing of a stream now.
    #[error("the streams of the decision log cannot be had: {0}")]
    Unanswered(String),
    /// A stream differs, or this login may not look at it.
    #[error("the streams of the decision log cannot be had: {0}")]
    Stream(String),
    /// A power cut would lose acknowledged decisions, or it is unknown whether it would.
    #[error("{0}")]
    Sync(SyncFault),
}

impl PrepareError {
    /// Whether waiting may help: for an administrator who makes the streams, or for a server that starts.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Unanswered(_) | Self::Sync(SyncFault::Unknown(_)) => true,
            Self::Stream(_) | Self::Sync(SyncFault::Relaxed(_)) => false,
        }
    }
}

impl From<JetError> for PrepareError {
    fn from(error: JetError) -> Self {
        let why = error.to_string();
        match error {
            JetError::Missing(_) | JetError::OldLayout(_) => Self::Missing(why),
            error if error.is_temporary() => Self::Unanswered(why),
            _ => Self::Stream(why),
        }
    }
}

impl Backplane {
    /// A connection to NATS; see [`Connection`] for its health.
    pub async fn connect(config: &NatsConfig) -> Result<Self, ConnectError> {
        Ok(Connection::open(config).await?.backplane())
    }
}
