//! What the gateway is told at start. Reading it from flags, environment and files is the command line's.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use stage0_contract::AuditMode;

use crate::address::TrustedProxies;
use crate::quota::OnFailure;

/// Settings of one gateway process.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where HTTPS is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Certificate and key.
    pub tls: TlsFiles,
    /// Put before every path: empty, or `/prefix` without a slash at its end.
    pub base_path: String,
    /// Threads that serve requests, each with its own connection to the backplane.
    pub workers: usize,
    /// From the first byte of a `/check` to its answer, the time in which its body arrives not counted.
    pub request_budget: Duration,
    /// In which a PROXY header, a TLS handshake, and the headers of a request, must arrive.
    pub header_timeout: Duration,
    /// In which a body must arrive.
    pub body_timeout: Duration,
    /// After which an idle connection is closed.
    pub keep_alive: Duration,
    /// Whose word on their clients' addresses is taken.
    pub trusted_proxies: TrustedProxies,
    /// Balancers: their connections begin with a PROXY header, which is believed.
    pub proxy_protocol_from: TrustedProxies,
    /// Failed logins, from an address or with a key's id, in a minute before keys not verified recently are refused with 429.
    pub failed_logins_per_minute: u32,
    /// Requests a second of one address before more get 429; none: no limit.
    pub requests_per_second_per_address: Option<NonZeroU32>,
    /// Calls of the control API a minute with one key before more get 429; none: no limit.
    pub management_calls_per_minute: Option<NonZeroU32>,
    /// Connections that one worker holds at the same time.
    pub max_connections_per_worker: usize,
    /// Connections that the gateway holds at the same time: one more closes an idle one.
    pub max_connections: usize,
    /// Connections that one address holds at the same time: one more closes an idle one of it; none: no limit.
    pub max_connections_per_address: Option<NonZeroU32>,
    /// Bytes of request bodies that arrive, and of answers that are not taken yet; an account and an address have a
    /// quarter.
    pub max_bytes_in_flight: usize,
    /// Reads of the log a second of one account before more get 429; none: no limit.
    pub reads_per_second_per_account: Option<NonZeroU32>,
    /// Whether an answer waits for its record. `None` records nothing: for measurements, no deployment can ask for it.
    pub audit: AuditMode,
    /// What becomes of accounts with limits while the ledger fails.
    pub quotas_on_failure: OnFailure,
    /// Takes endpoints with `http:` addresses too: for local stacks.
    pub dangerous_allow_private_webhooks: bool,
}

/// PEM files; read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then its chain.
    pub cert: PathBuf,
    /// Its private key (PKCS #8, SEC1 or PKCS #1).
    pub key: PathBuf,
}

impl GatewayConfig {
    /// The defaults around the two things that have none.
    pub fn new(listen: SocketAddr, tls: TlsFiles) -> Self {
        Self {
            listen,
            tls,
            base_path: String::new(),
            workers: std::thread::available_parallelism().map_or(2, usize::from),
            request_budget: Duration::from_secs(2),
            header_timeout: Duration::from_secs(5),
            body_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(75),
            trusted_proxies: TrustedProxies::default(),
            proxy_protocol_from: TrustedProxies::default(),
            failed_logins_per_minute: 50,
            requests_per_second_per_address: NonZeroU32::new(10_000),
            management_calls_per_minute: NonZeroU32::new(600),
            max_connections_per_worker: 25_000,
            max_connections: 4_000,
            max_connections_per_address: NonZeroU32::new(2_000),
            max_bytes_in_flight: 64 << 20,
            reads_per_second_per_account: NonZeroU32::new(200),
            audit: AuditMode::Required,
            quotas_on_failure: OnFailure::Closed,
            dangerous_allow_private_webhooks: false,
        }
    }

    /// Which promises the operator's settings give up; `/readyz` and `stage0 status` say the first too.
    pub(crate) fn warnings(&self) -> Vec<&'static str> {
        let audit = match self.audit {
            AuditMode::Required => None,
            AuditMode::BestEffort => Some(
                "audit is `best-effort`: a decision is released even when it is not recorded; \
                 set `audit` to `required` where every answer must be in the log",
            ),
            AuditMode::None => Some("audit is off: no decision is recorded"),
        };
        let quotas = match self.quotas_on_failure {
            OnFailure::Closed => None,
            OnFailure::Open => Some(
                "quotas-on-failure is `open`: limits do not hold while the ledger fails; \
                 set it to `closed` where they must",
            ),
        };
        audit.into_iter().chain(quotas).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_is_given_up_is_told_and_the_usual_settings_are_silent() {
        let tls = TlsFiles { cert: "c".into(), key: "k".into() };
        let usual = GatewayConfig::new("127.0.0.1:0".parse().unwrap(), tls);
        assert!(usual.warnings().is_empty());
        let best_effort = GatewayConfig { audit: AuditMode::BestEffort, ..usual.clone() }.warnings();
        assert!(best_effort.len() == 1 && best_effort[0].contains("best-effort"), "{best_effort:?}");
        let both = GatewayConfig { audit: AuditMode::None, quotas_on_failure: OnFailure::Open, ..usual }.warnings();
        assert!(both.len() == 2 && both[1].contains("quotas-on-failure"), "{both:?}");
    }
}
