//! How a server is protected: whether it requires credentials, whether the traffic to it is encrypted, and from where
//! it can be reached.
//!
//! Probes with a connection of its own that has no credentials: what a server announces about itself is not proof. A
//! server that cannot be reached now is reported as unknown, never as safe.

use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, ServerAddr};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::NatsConfig;
use super::dial::{ConnectError, is_tls};

const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_INFO_BYTES: u64 = 65_536;

/// What was found out about one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The server's `host:port`.
    pub server: String,
    /// Whether its address is on this machine's loopback interface.
    pub is_loopback: bool,
    /// Whether it refuses clients without credentials.
    pub login: Enforced,
    /// Whether this role insists on encryption.
    pub tls: Enforced,
}

/// Whether a protection is in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enforced {
    /// The protection is in place.
    Yes,
    /// The protection is missing.
    No,
    /// It could not be found out.
    Unknown(String),
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Info {
    tls_required: bool,
    tls_verify: bool,
}

impl Exposure {
    /// Why every client that reaches the server has access, for a message; none: it is protected.
    pub fn fault(&self) -> Option<&'static str> {
        match (self.login == Enforced::No, self.tls == Enforced::No) {
            (true, true) => Some("takes no login and no TLS that this role requires (`tls://…` or `--nats-ca`)"),
            (true, false) => Some("takes no login"),
            (false, true) => Some("takes no TLS that this role requires (`tls://…` or `--nats-ca`)"),
            (false, false) => None,
        }
    }

    /// Why the protection is unknown, if it is.
    pub fn unknown(&self) -> Option<&str> {
        [&self.login, &self.tls].into_iter().find_map(|enforced| match enforced {
            Enforced::Unknown(why) => Some(why.as_str()),
            Enforced::Yes | Enforced::No => None,
        })
    }
}

/// Probes every server of a configuration.
pub async fn exposure(config: &NatsConfig) -> Result<Vec<Exposure>, ConnectError> {
    let servers = config.addresses()?;
    Ok(futures_util::future::join_all(servers.iter().map(|server| probe(config, server))).await)
}

async fn probe(config: &NatsConfig, address: &ServerAddr) -> Exposure {
    let server = format!("{}:{}", address.host(), address.port());
    let unknown = |why: &str| Enforced::Unknown(why.to_owned());
    let is_loopback = is_loopback(address).await;
    let server_info = match timeout(PROBE_TIMEOUT, server_info(address)).await {
        Ok(Some(server_info)) => server_info,
        Ok(None) | Err(_) => {
            let why = "it does not say what it is";
            return Exposure { server, is_loopback, login: unknown(why), tls: unknown(why) };
        }
    };
    // The server's announcement in plain text proves nothing: a man in the middle can drop it from the next connection.
    let tls = if config.requires_tls() { Enforced::Yes } else { Enforced::No };
    let is_encrypted = config.requires_tls() || server_info.tls_required;
    let mut options = ConnectOptions::new().name("stage0-exposure").connection_timeout(config.attempt_timeout);
    if is_encrypted {
        options = options.require_tls(true);
        if let Some(ca) = config.tls.as_ref().and_then(|tls| tls.ca.clone()) {
            options = options.add_root_certificates(ca);
        }
    }
    let login = match timeout(PROBE_TIMEOUT, options.connect(address.clone())).await {
        Ok(Ok(_)) => Enforced::No,
        Ok(Err(error)) => match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => Enforced::Yes,
            // It wants a certificate, which servers say in many ways.
            _ if server_info.tls_verify || error.kind() == ConnectErrorKind::Tls || is_tls(&error) => Enforced::Yes,
            _ => unknown("a connection without credentials ended, but was not refused"),
        },
        Err(_) => unknown("a connection without credentials is not answered"),
    };
    Exposure { server, is_loopback, login, tls }
}

/// Whether all of its addresses are loopback addresses. A name that cannot be resolved is not.
async fn is_loopback(address: &ServerAddr) -> bool {
    let found = lookup_host((address.host(), address.port())).await;
    let Ok(found) = found else { return false };
    let mut all = found.peekable();
    all.peek().is_some() && all.all(|address| address.ip().to_canonical().is_loopback())
}

async fn server_info(address: &ServerAddr) -> Option<Info> {
    let stream = TcpStream::connect((address.host(), address.port())).await.ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_INFO_BYTES)).read_line(&mut line).await.ok()?;
    serde_json::from_str(line.strip_prefix("INFO ")?.trim()).ok()
}
