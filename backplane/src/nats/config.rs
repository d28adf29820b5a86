//! How to reach NATS, as a value: where, as whom, under which prefix. Reads no files and no environment.
//!
//! Credentials are in fields of their own and never in an address, so that an address can be logged.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};
use stage0_contract::Role;

use super::dial::ConnectError;
use super::{MessageAuth, SUBSCRIPTION_CAPACITY, SyncMode};
use crate::{StoreClock, WaitReason};

/// The API prefix in an account that has JetStream.
pub const JETSTREAM_API: &str = "$JS.API";

/// What every reply subject starts with; the login's name follows.
pub(super) const INBOXES: &str = "_INBOX_";

/// What the server puts in place of a reply subject from another account.
pub(super) const OTHER_ACCOUNT: &str = "_R_.";

const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);

/// How to reach NATS.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port`, tried in this order at start; all are used to reconnect.
    pub servers: Vec<String>,
    /// What every subject starts with, so that deployments can share a server.
    pub prefix: String,
    /// The service's name: shown in the server's monitoring and part of its reply subjects.
    pub name: String,
    /// The credentials; `None` for a server that needs none, or only a client certificate.
    pub login: Option<Login>,
    /// Requires TLS when given.
    pub tls: Option<Tls>,
    /// How often the server is pinged; it counts as gone after three intervals of silence.
    pub ping_interval: Duration,
    /// How long one attempt to connect may take.
    pub attempt_timeout: Duration,
    /// How long all attempts at start may take together; none: a server is waited for as long as it takes.
    pub connect_timeout: Option<Duration>,
    /// How long a self-ping may take before the connection counts as not ready.
    pub ready_timeout: Duration,
    /// The prefix of JetStream's API subjects; another one where this service's account imports them.
    pub jetstream_api: String,
    /// Whether the server's sync mode is verified before anything is recorded.
    pub sync: SyncMode,
    /// The role whose streams readiness checks on each connection; none: those that the connection was prepared for.
    pub role: Option<Role>,
    /// Authenticates messages end to end, and refuses others; all connections of a process share it.
    pub auth: Option<Arc<MessageAuth>>,
    /// The clock of log and state store; all connections of a process share its readings.
    pub store_clock: Arc<StoreClock>,
    /// Why a connection waits at start; all connections of a process share it.
    pub waiting: WaitReason,
}

/// Credentials for the server.
#[derive(Clone)]
pub enum Login {
    /// A user of the server's configuration.
    Password {
        /// The user's name, which is not secret.
        user: String,
        /// The user's password.
        password: String,
    },
    /// A shared token; secret.
    Token(String),
}

/// Which authorities to trust, and the client's own certificate.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// PEM file with the authorities to trust; `None` trusts the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of the client's certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::Token(_) => f.write_str("Token(..)"),
        }
    }
}

impl NatsConfig {
    /// One server, no login, default times.
    pub fn new(server: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            servers: vec![server.into()],
            prefix: "s0".to_owned(),
            name: name.into(),
            login: None,
            tls: None,
            ping_interval: Duration::from_secs(1),
            attempt_timeout: Duration::from_secs(2),
            connect_timeout: Some(Duration::from_secs(10)),
            ready_timeout: Duration::from_secs(1),
            jetstream_api: JETSTREAM_API.to_owned(),
            sync: SyncMode::default(),
            role: None,
            auth: None,
            store_clock: Arc::new(StoreClock::remote()),
            waiting: WaitReason::default(),
        }
    }

    pub(super) fn addresses(&self) -> Result<Vec<ServerAddr>, ConnectError> {
        if !self.prefix.split('.').all(is_token) {
            return Err(setting("prefix", "letters, digits, `-` and `_`, in parts joined by dots"));
        }
        if !is_token(&self.name) {
            return Err(setting("name", "letters, digits, `-` and `_`"));
        }
        if self.jetstream_api != JETSTREAM_API && !self.jetstream_api.split('.').all(is_token) {
            return Err(setting(
                "jetstream api",
                "`$JS.API`, or letters, digits, `-` and `_`, in parts joined by dots",
            ));
        }
        if self.servers.is_empty() {
            return Err(setting("servers", "at least one address"));
        }
        if !self.sync.monitors.iter().all(|monitor| is_monitor(monitor)) {
            return Err(setting("monitors", "`http://host:port` or `https://host:port`, without credentials"));
        }
        self.servers.iter().map(|server| address(server)).collect()
    }

    /// The name in this process's reply subjects. Its login, where that is one of several of the role (`gateway-2`), so
    /// that the server can keep other processes from receiving its replies.
    pub(super) fn inbox_name(&self) -> &str {
        match &self.login {
            Some(Login::Password { user, .. }) if is_numbered(user, &self.name) => user,
            Some(_) | None => &self.name,
        }
    }

    /// Whether a connection without TLS is refused, whatever the server announces.
    pub(super) fn requires_tls(&self) -> bool {
        self.tls.is_some() || self.servers.iter().any(|server| server.starts_with("tls://"))
    }

    pub(super) fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .name(&self.name)
            .custom_inbox_prefix(format!("{INBOXES}{}", self.inbox_name()))
            .ping_interval(self.ping_interval)
            .connection_timeout(self.attempt_timeout)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .max_reconnects(None)
            .reconnect_delay_callback(reconnect_delay);
        options = match self.login.clone() {
            None => options,
            Some(Login::Password { user, password }) => options.user_and_password(user, password),
            Some(Login::Token(token)) => options.token(token),
        };
        // Also for servers that another server announces.
        if self.requires_tls() {
            options = options.require_tls(true);
        }
        if let Some(tls) = &self.tls {
            if let Some(ca) = &tls.ca {
                options = options.add_root_certificates(ca.clone());
            }
            if let Some((certificate, key)) = &tls.client {
                options = options.add_client_certificate(certificate.clone(), key.clone());
            }
        }
        options
    }
}

fn setting(setting: &'static str, rule: &'static str) -> ConnectError {
    ConnectError::Setting { setting, rule }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

fn is_numbered(user: &str, name: &str) -> bool {
    let number = user.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The text is not repeated in the error, as it may hold a password.
fn address(text: &str) -> Result<ServerAddr, ConnectError> {
    let rule = "`nats://host:port` or `tls://host:port`, without credentials";
    let address = text.parse::<ServerAddr>().map_err(|_| setting("servers", rule))?;
    let plain = matches!(address.scheme(), "nats" | "tls") && !address.has_user_pass() && address.password().is_none();
    if plain { Ok(address) } else { Err(setting("servers", rule)) }
}

fn is_monitor(text: &str) -> bool {
    let Ok(url) = text.parse::<reqwest::Url>() else { return false };
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    matches!(url.scheme(), "http" | "https") && plain
}

/// At once, then with a delay that doubles from 20 ms.
fn reconnect_delay(attempt: usize) -> Duration {
    match attempt {
        0 | 1 => Duration::ZERO,
        _ => Duration::from_millis(10 << attempt.min(10)).min(MAX_RECONNECT_DELAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_credentials_is_refused_and_not_echoed() {
        let error = NatsConfig::new("nats://user:hunter2@localhost:4222", "gateway").addresses().unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(NatsConfig::new("nats://user@localhost", "gateway").addresses().is_err());
    }

    #[test]
    fn a_monitor_that_is_no_plain_address_is_refused_and_not_echoed() {
        let with = |monitor: &str| {
            let sync = SyncMode { monitors: vec![monitor.to_owned()], dangerous_relaxed: false };
            NatsConfig { sync, ..NatsConfig::new("nats://localhost", "gateway") }.addresses()
        };
        for bad in ["", "localhost:8222", "nats://localhost:8222", "http://user:hunter2@localhost:8222"] {
            assert!(!with(bad).unwrap_err().to_string().contains("hunter2"), "{bad:?}");
        }
        assert!(with("http://localhost:8222").is_ok() && with("https://nats.example:8222/").is_ok());
    }

    #[test]
    fn a_prefix_or_name_that_is_no_subject_is_refused() {
        for bad in ["", "a.", ".a", "a b", "a.*", "a.>", "ä"] {
            let config = NatsConfig { prefix: bad.to_owned(), ..NatsConfig::new("nats://localhost", "gateway") };
            assert!(config.addresses().is_err(), "{bad:?}");
            assert!(NatsConfig::new("nats://localhost", bad).addresses().is_err(), "{bad:?}");
            let api = bad.to_owned();
            let config = NatsConfig { jetstream_api: api, ..NatsConfig::new("nats://localhost", "gateway") };
            assert!(config.addresses().is_err(), "{bad:?}");
        }
        assert!(NatsConfig::new("localhost:4222", "gateway-1").addresses().is_ok());
    }

    #[test]
    fn tls_is_required_by_a_tls_address_or_an_authority_and_by_nothing_that_a_server_says() {
        let config = |server: &str| NatsConfig::new(server, "gateway");
        assert!(config("tls://nats:4222").requires_tls() && !config("nats://nats:4222").requires_tls());
        assert!(NatsConfig { tls: Some(Tls::default()), ..config("nats://nats:4222") }.requires_tls());
    }

    #[test]
    fn reply_subjects_are_named_after_a_login_of_several_and_else_after_the_role() {
        let with = |user: &str| {
            let login = Login::Password { user: user.to_owned(), password: "x".to_owned() };
            NatsConfig { login: Some(login), ..NatsConfig::new("nats://localhost", "gateway") }
        };
        for (user, name) in [
            ("gateway-2", "gateway-2"),
            ("gateway", "gateway"),
            ("somebody", "gateway"),
            ("gateway-", "gateway"),
            ("gateway-1.>", "gateway"),
            ("evaluator-1", "gateway"),
        ] {
            assert_eq!(with(user).inbox_name(), name, "{user}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let password = Login::Password { user: "gateway".to_owned(), password: "hunter2".to_owned() };
        let config = NatsConfig { login: Some(password), ..NatsConfig::new("nats://localhost", "gateway") };
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!format!("{:?}", Login::Token("hunter2".to_owned())).contains("hunter2"));
    }

    #[test]
    fn the_reconnect_delay_grows_to_a_limit() {
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        assert!(reconnect_delay(2) < reconnect_delay(5));
        assert_eq!(reconnect_delay(usize::MAX), MAX_RECONNECT_DELAY);
    }
}
