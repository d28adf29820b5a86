//! The gateway's settings: one row each, with name, unit, default and help (`stage0_runtime::settings`).

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use stage0_contract::AuditMode;
use stage0_runtime::settings;
use stage0_runtime::settings::Kind;
use stage0_runtime::settings::kinds::{
    address, base_path, between, choice, count, https_url, limit, list_of, milliseconds,
};

use crate::address::TrustedProxies;
use crate::quota::OnFailure;

/// An account may hold a quarter of the bytes, and the largest body must fit into that.
const MIN_BYTES_IN_FLIGHT: u32 = 16 << 20;

settings! {
    /// Settings of one gateway process.
    #[derive(Debug, Clone)]
    pub struct GatewayConfig {
        /// Address to serve HTTPS on; port 0 takes a free one
        listen: SocketAddr = "listen" "ADDR" in "Server", default(SocketAddr::from(([0, 0, 0, 0], 8443))), address();
        /// Path before every route, such as `/stage0`, when a proxy does not strip it
        base_path: String = "base-path" "PATH" in "Server", or(String::new()), base_path();
        /// Address under which people reach this API, such as `https://stage0.example.com`: what answers link to. With
        /// a path if a proxy puts one before it (default: links are paths)
        public_url: Option<PublicUrl> = "public-url" "URL" in "Server", optional, public_url();
        /// Threads that serve requests, each with its own connection to the backplane (default: one per core)
        workers: usize = "workers" "N" in "Server", or(one_per_core()), count(1024);
        /// Addresses and networks, separated by commas, of proxies whose `Forwarded` or `X-Forwarded-For` header
        /// names the client's address; from any other peer both headers are ignored
        trusted_proxies: TrustedProxies = "trusted-proxies" "LIST" in "Server", or(TrustedProxies::default()),
            proxies();
        /// Addresses and networks, separated by commas, of layer-4 balancers: each of their connections must begin
        /// with a PROXY protocol header of version 2, which names the client's address
        proxy_protocol_from: TrustedProxies = "proxy-protocol-from" "LIST" in "Server", or(TrustedProxies::default()),
            proxies();

        /// Time from a request to its answer, without the time in which its body arrives
        request_budget: Duration = "request-budget-ms" "MS" in "Limits", default(Duration::from_secs(2)),
            milliseconds();
        /// Time in which a PROXY header, a TLS handshake, and the headers of a request, must arrive
        header_timeout: Duration = "header-timeout-ms" "MS" in "Limits", default(Duration::from_secs(5)),
            milliseconds();
        /// Time in which a body must arrive
        body_timeout: Duration = "body-timeout-ms" "MS" in "Limits", default(Duration::from_secs(10)), milliseconds();
        /// Time after which an idle connection is closed
        keep_alive: Duration = "keep-alive-ms" "MS" in "Limits", default(Duration::from_secs(75)), milliseconds();
        /// Failed logins per minute of one address, or with one key id, before keys that were not verified recently
        /// get 429
        failed_logins_per_minute: u32 = "failed-logins-per-minute" "N" in "Limits", default(50), count(1_000_000);
        /// Requests per second of one address, whatever their keys, before more get 429; 0 disables the limit
        requests_per_second_per_address: Option<NonZeroU32> = "requests-per-second-per-address" "N" in "Limits",
            default(NonZeroU32::new(10_000)), limit(1_000_000);
        /// Calls per minute of the control API (accounts, keys, webhooks) with one key before more get 429; all keys
        /// of an account together may make four times as many, and revocations four times as many again; 0 disables
        /// the limit
        management_calls_per_minute: Option<NonZeroU32> = "management-calls-per-minute" "N" in "Limits",
            default(NonZeroU32::new(600)), limit(1_000_000);
        /// Open connections of the gateway; one more closes a connection that is waiting for its client. Each may take
        /// some 80 KiB of memory, and the limit on open files bounds the number too
        max_connections: usize = "max-connections" "N" in "Limits", default(4_000), count(1_000_000);
        /// Open connections of one worker; more wait to be accepted
        max_connections_per_worker: usize = "max-connections-per-worker" "N" in "Limits", default(25_000),
            count(1_000_000);
        /// Open connections of one address; one more closes one of them that is waiting for its client. Trusted
        /// proxies and balancers are exempt; 0 disables the limit
        max_connections_per_address: Option<NonZeroU32> = "max-connections-per-address" "N" in "Limits",
            default(NonZeroU32::new(2_000)), limit(1_000_000);
        /// Bytes of request bodies that are arriving, and of answers from the log that clients have not taken yet,
        /// before the gateway answers 503. An account or an address that holds a quarter of them gets 429, and
        /// stalled connections are closed first. Parsed bodies may take twice as much memory again
        max_bytes_in_flight: usize = "max-bytes-in-flight" "BYTES" in "Limits", default(64 << 20),
            between(MIN_BYTES_IN_FLIGHT, u32::MAX);
        /// Reads of the log (lists, look-ups, downloads, verifications), and calls of `/v1/runs` and `/usage`, per
        /// second of one account before more get 429; 0 disables the limit
        reads_per_second_per_account: Option<NonZeroU32> = "reads-per-second-per-account" "N" in "Limits",
            default(NonZeroU32::new(200)), limit(1_000_000);
        /// How checks of accounts with limits are answered while their counters cannot be reached: `closed` refuses
        /// them (503), `open` allows them and counts them later
        quotas_on_failure: OnFailure = "quotas-on-failure" "MODE" in "Limits", default(OnFailure::Closed),
            choice(&[("closed", OnFailure::Closed), ("open", OnFailure::Open)]);

        /// `required`: no answer leaves before its record is on disk; `best-effort`: answers leave even when they
        /// cannot be recorded
        audit: Audit = "audit" "MODE" in "Audit", default(Audit::Required),
            choice(&[("required", Audit::Required), ("best-effort", Audit::BestEffort)]);
    }
    given {
        /// Certificate and key.
        tls: TlsFiles = TlsFiles::default();
        /// Takes endpoints with `http:` addresses too: for local stacks.
        dangerous_allow_private_webhooks: bool = false;
        /// Every role is in this process: no other version reads the log.
        single_process: bool = false;
    }
}

settings! {
    /// Where the certificate of a gateway on NATS comes from; `stage0 dev` makes its own.
    #[derive(Debug, Clone)]
    pub struct TlsSettings {
        /// PEM file: the server's certificate, then its chain; read again when it changes
        cert: Option<PathBuf> = "tls-cert" "FILE" in "TLS", optional, settings::kinds::path();
        /// PEM file: the certificate's private key
        key: Option<PathBuf> = "tls-key" "FILE" in "TLS", optional, settings::kinds::secret_file();
        /// Instead of the two above: make a local CA (`ca.pem`) and a certificate for localhost in this directory,
        /// once
        dev_dir: Option<PathBuf> = "tls-dev-dir" "DIR" in "TLS", optional, settings::kinds::path();
    }
}

/// Whether an answer waits for its record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audit {
    /// A decision that is not recorded is not released.
    Required,
    /// A decision is released even when recording failed.
    BestEffort,
}

impl From<Audit> for AuditMode {
    fn from(audit: Audit) -> Self {
        match audit {
            Audit::Required => Self::Required,
            Audit::BestEffort => Self::BestEffort,
        }
    }
}

/// PEM files; read again when they change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, followed by its chain.
    pub cert: PathBuf,
    /// Its private key (PKCS #8, SEC1 or PKCS #1).
    pub key: PathBuf,
}

impl GatewayConfig {
    /// The defaults, for this address and certificate.
    pub fn new(listen: SocketAddr, tls: TlsFiles) -> Self {
        Self { listen, tls, ..Self::defaults() }
    }

    /// The promises that the operator's settings give up; `/readyz` and `stage0 status` report the first too.
    pub(crate) fn warnings(&self) -> Vec<&'static str> {
        let audit = (self.audit == Audit::BestEffort).then_some(
            "audit is `best-effort`: a decision is released even when it is not recorded; \
             set `audit` to `required` where every answer must be in the log",
        );
        let quotas = (self.quotas_on_failure == OnFailure::Open).then_some(
            "quotas-on-failure is `open`: limits do not hold while the state store fails; \
             set it to `closed` where they must",
        );
        audit.into_iter().chain(quotas).collect()
    }
}

fn one_per_core() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// An https address without query, to which the API's paths are joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Reads `https://HOST`, with a port and a path where there are some.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = https_url().parse(text)?;
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }

    /// The address of one of the API's paths.
    pub(crate) fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

fn public_url() -> Kind<PublicUrl> {
    Kind::new(PublicUrl::parse, |url| url.0.clone())
}

fn proxies() -> Kind<TrustedProxies> {
    list_of(|items| TrustedProxies::parse(items).map_err(|error| error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_url_is_https_without_query_and_may_have_a_path() {
        for (text, approval) in [
            ("https://stage0.example.com", "https://stage0.example.com/v1/approvals/apr_1"),
            ("https://stage0.example.com/", "https://stage0.example.com/v1/approvals/apr_1"),
            ("https://example.com:8443/stage0", "https://example.com:8443/stage0/v1/approvals/apr_1"),
        ] {
            assert_eq!(PublicUrl::parse(text).unwrap().join("/v1/approvals/apr_1"), approval);
        }
        for bad in
            ["http://stage0.example.com", "https://a.example?x=1", "https://a.example#x", "https://u:p@a.example", "x"]
        {
            assert!(PublicUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_that_give_up_a_promise_are_warned_about() {
        let tls = TlsFiles { cert: "c".into(), key: "k".into() };
        let usual = GatewayConfig::new("127.0.0.1:0".parse().unwrap(), tls);
        assert!(usual.warnings().is_empty());
        let best_effort = GatewayConfig { audit: Audit::BestEffort, ..usual.clone() }.warnings();
        assert!(best_effort.len() == 1 && best_effort[0].contains("best-effort"), "{best_effort:?}");
        let both = GatewayConfig { audit: Audit::BestEffort, quotas_on_failure: OnFailure::Open, ..usual }.warnings();
        assert!(both.len() == 2 && both[1].contains("quotas-on-failure"), "{both:?}");
    }
}
