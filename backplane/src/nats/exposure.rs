//! Who may use a server: whether it takes somebody without credentials, whether what is said to it is encrypted, and
//! from where it is reached.
//!
//! Owns the looking, by a connection of its own that has no credentials: what a server says of itself is not proof.
//! What follows is the caller's business. A server that cannot be reached now is said to be unknown, and never to be
//! safe.

use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, ServerAddr};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::NatsConfig;
use super::dial::{ConnectError, is_tls};

const LOOK_WITHIN: Duration = Duration::from_secs(4);
/// Of the server's first line.
const MAX_INFO_BYTES: u64 = 65_536;

/// What was found of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// `host:port`.
    pub server: String,
    /// It is reached over this machine's loopback alone, as far as its address says.
    pub is_loopback: bool,
    /// Whether it refuses who has no credentials.
    pub login: Asked,
    /// Whether this role insists that what it says to it is encrypted.
    pub tls: Asked,
}

/// What is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// So it is.
    Yes,
    /// It is not.
    No,
    /// It could not be found out.
    Unknown(String),
}

/// The line that a server begins with.
#[derive(Default, Deserialize)]
struct Info {
    #[serde(default)]
    tls_required: bool,
    #[serde(default)]
    tls_verify: bool,
}

impl Exposure {
    /// What everybody who reaches it may do, in words; none: nothing.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        match (self.login == Asked::No, self.tls == Asked::No) {
            (true, true) => Some("takes no login and no TLS that this role requires (`tls://…` or `--nats-ca`)"),
            (true, false) => Some("takes no login"),
            (false, true) => Some("takes no TLS that this role requires (`tls://…` or `--nats-ca`)"),
            (false, false) => None,
        }
    }

    /// Why it is not known, where it is not.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        [&self.login, &self.tls].into_iter().find_map(|asked| match asked {
            Asked::Unknown(why) => Some(why.as_str()),
            Asked::Yes | Asked::No => None,
        })
    }
}

/// Looks at every server of a configuration.
///
/// # Errors
/// When a setting breaks its rule.
pub async fn exposure(config: &NatsConfig) -> Result<Vec<Exposure>, ConnectError> {
    let servers = config.addresses()?;
    Ok(futures_util::future::join_all(servers.iter().map(|server| look(config, server))).await)
}

async fn look(config: &NatsConfig, address: &ServerAddr) -> Exposure {
    let server = format!("{}:{}", address.host(), address.port());
    let unknown = |why: &str| Asked::Unknown(why.to_owned());
    let is_loopback = is_loopback(address).await;
    let info = match timeout(LOOK_WITHIN, info(address)).await {
        Ok(Some(info)) => info,
        Ok(None) | Err(_) => {
            let why = "it does not say what it is";
            return Exposure { server, is_loopback, login: unknown(why), tls: unknown(why) };
        }
    };
    // What the server says in plain text, whoever stands between can leave out at the next connection.
    let tls = if config.requires_tls() { Asked::Yes } else { Asked::No };
    let is_encrypted = config.requires_tls() || info.tls_required;
    let mut options = ConnectOptions::new().name("stage0-exposure").connection_timeout(config.attempt_within);
    if is_encrypted {
        options = options.require_tls(true);
        if let Some(ca) = config.tls.as_ref().and_then(|tls| tls.ca.clone()) {
            options = options.add_root_certificates(ca);
        }
    }
    let login = match timeout(LOOK_WITHIN, options.connect(address.clone())).await {
        Ok(Ok(_)) => Asked::No,
        Ok(Err(error)) => match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => Asked::Yes,
            // It wants a certificate, and says so in many ways. That ours is trusted by it, and its by us, the role's
            // own connection shows.
            _ if info.tls_verify || error.kind() == ConnectErrorKind::Tls || is_tls(&error) => Asked::Yes,
            _ => unknown("a connection without credentials ended, but was not refused"),
        },
        Err(_) => unknown("a connection without credentials is not answered"),
    };
    Exposure { server, is_loopback, login, tls }
}

/// All of its addresses are. What cannot be looked up is not.
async fn is_loopback(address: &ServerAddr) -> bool {
    let found = lookup_host((address.host(), address.port())).await;
    let Ok(found) = found else { return false };
    let mut all = found.peekable();
    all.peek().is_some() && all.all(|address| address.ip().to_canonical().is_loopback())
}

async fn info(address: &ServerAddr) -> Option<Info> {
    let stream = TcpStream::connect((address.host(), address.port())).await.ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_INFO_BYTES)).read_line(&mut line).await.ok()?;
    serde_json::from_str(line.strip_prefix("INFO ")?.trim()).ok()
}
