//! The first connection: which server is tried, how often, and why it failed.
//!
//! Servers are tried one by one, so that an error names the server that refused. Refused credentials and failed TLS are
//! final; an unreachable server is tried again until the configured time is over, or for as long as it takes.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ServerAddr, rustls};
use tokio::time::{Instant, sleep, timeout_at};

use super::NatsConfig;
use super::link::{Events, Link};

/// The oldest server on which `sync_interval: always` was measured to be safe, and to cost what our numbers say.
const OLDEST_SERVER: (i64, i64) = (2, 15);
const MIN_RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(2);

/// Why NATS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A setting breaks its rule.
    #[error("nats setting `{setting}` must be {rule}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// There is no server at the address.
    #[error("no NATS server at `{server}`")]
    Unreachable {
        /// The server that was tried last.
        server: String,
        /// The error of async-nats.
        source: async_nats::ConnectError,
    },
    /// A server accepts the connection and does not finish the handshake.
    #[error("the NATS server at `{server}` does not answer")]
    Silent {
        /// The server that was tried last.
        server: String,
    },
    /// Wrong user, password, token or certificate.
    #[error("the NATS server at `{server}` refuses the credentials")]
    Refused {
        /// The server that refused.
        server: String,
    },
    /// Only one side uses TLS, or a certificate is not trusted.
    #[error("no TLS with the NATS server at `{server}`")]
    Tls {
        /// The server.
        server: String,
        /// The error of async-nats.
        source: async_nats::ConnectError,
    },
    /// The server is too old for what the backplane relies on.
    #[error("the NATS server at `{server}` has version `{version}`; at least 2.15 is needed")]
    TooOld {
        /// The server.
        server: String,
        /// The version that it reports.
        version: String,
    },
    /// Connected, but a self-ping does not come back.
    #[error("the NATS server at `{server}` does not carry messages: {reason}")]
    NotCarried {
        /// The server.
        server: String,
        /// Often a missing permission.
        reason: String,
    },
}

impl ConnectError {
    fn is_temporary(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Silent { .. })
    }
}

pub(super) async fn dial(config: &NatsConfig) -> Result<Link, ConnectError> {
    let servers = config.addresses()?;
    let deadline = config.connect_timeout.map(|timeout| Instant::now() + timeout);
    let mut delay = MIN_RETRY_DELAY;
    loop {
        let error = match dial_each(config, &servers, deadline).await {
            Ok(link) => {
                config.waiting.clear();
                return Ok(link);
            }
            Err(error) => error,
        };
        if !error.is_temporary() || deadline.is_some_and(|deadline| Instant::now() + delay >= deadline) {
            return Err(error);
        }
        if config.waiting.set(&error.to_string()) {
            tracing::warn!(error = %error, "backplane not reached yet");
        }
        sleep(delay).await;
        delay = (delay * 2).min(MAX_RETRY_DELAY);
    }
}

/// Tries every server once. A final error of one does not stop the search for another that works.
async fn dial_each(
    config: &NatsConfig,
    servers: &[ServerAddr],
    deadline: Option<Instant>,
) -> Result<Link, ConnectError> {
    let mut worst = None;
    for address in servers {
        match dial_one(config, address, servers, deadline).await {
            Ok(link) => return Ok(link),
            Err(error) if worst.as_ref().is_none_or(ConnectError::is_temporary) => worst = Some(error),
            Err(_) => {}
        }
    }
    let rule = "at least one address";
    Err(worst.unwrap_or(ConnectError::Setting { setting: "servers", rule }))
}

async fn dial_one(
    config: &NatsConfig,
    address: &ServerAddr,
    servers: &[ServerAddr],
    deadline: Option<Instant>,
) -> Result<Link, ConnectError> {
    let server = format!("{}:{}", address.host(), address.port());
    let events = Events::default();
    let options = config.options().event_callback(events.callback());
    let connecting = options.connect(address.clone());
    let attempt = match deadline {
        Some(deadline) => timeout_at(deadline, connecting).await,
        None => Ok(connecting.await),
    };
    let client = match attempt {
        Ok(Ok(client)) => client,
        Ok(Err(source)) => return Err(classify(server, source)),
        Err(_) => return Err(ConnectError::Silent { server }),
    };
    let version = client.server_info().version;
    if !client.is_server_compatible(OLDEST_SERVER.0, OLDEST_SERVER.1, 0) {
        return Err(ConnectError::TooOld { server, version });
    }
    share_pool(&client, servers).await;
    let link = Link::start(client, config, events).await;
    let link = link.map_err(|reason| ConnectError::NotCarried { server: server.clone(), reason })?;
    let max_payload = link.client.max_payload();
    if max_payload <= crate::MAX_MESSAGE_BYTES {
        tracing::warn!(server, max_payload, "server carries less than the largest message; raise its max_payload");
    }
    tracing::info!(server, version, max_payload, prefix = config.prefix, "backplane connected");
    Ok(link)
}

/// Uses all servers for reconnects from now on. If that fails there is one to reconnect to.
async fn share_pool(client: &Client, servers: &[ServerAddr]) {
    if servers.len() > 1
        && let Err(error) = client.set_server_pool(servers).await
    {
        tracing::warn!(%error, "backplane reconnects to one server only");
    }
}

fn classify(server: String, source: async_nats::ConnectError) -> ConnectError {
    match source.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => ConnectError::Refused { server },
        ConnectErrorKind::Tls => ConnectError::Tls { server, source },
        ConnectErrorKind::TimedOut => ConnectError::Silent { server },
        _ if is_tls(&source) => ConnectError::Tls { server, source },
        _ => ConnectError::Unreachable { server, source },
    }
}

/// A failed handshake arrives as an I/O error, so its source tells.
pub(super) fn is_tls(error: &async_nats::ConnectError) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if cause.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        source = cause.source();
    }
    false
}
