//! What each role makes of its settings: the configuration of the crate that it runs, complete, or every mistake.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use stage0_backplane::nats::NatsConfig;
use stage0_gateway::{GatewayConfig, TlsFiles};
use stage0_keystore::KeystoreConfig;

use super::parse::{address, base_path, count, list, milliseconds, path, text};
use super::{Mistakes, Reader, Sources, nats, table};
use crate::logs::{self, Format, Logs};

/// Any role that runs alone on NATS.
pub(crate) struct OnNats<T> {
    /// What is logged.
    pub(crate) logs: Logs,
    /// How the others are reached.
    pub(crate) nats: NatsConfig,
    /// The role's own.
    pub(crate) service: T,
}

/// `stage0 gateway`.
pub(crate) struct GatewaySettings {
    /// How HTTPS is served.
    pub(crate) http: HttpSettings,
    /// Where the certificate comes from.
    pub(crate) tls: TlsSource,
}

/// Where the certificate comes from.
pub(crate) enum TlsSource {
    /// The operator's files.
    Files(TlsFiles),
    /// Made here, for localhost.
    Dev(PathBuf),
}

/// All of a gateway but its certificate.
pub(crate) struct HttpSettings {
    /// Where HTTPS is served.
    pub(crate) listen: SocketAddr,
    /// Before every path; often empty.
    pub(crate) base_path: String,
    workers: Option<u32>,
    request_budget: Duration,
    header_timeout: Duration,
    body_timeout: Duration,
    keep_alive: Duration,
    failed_logins_per_minute: u32,
    max_connections_per_worker: u32,
}

/// `stage0 dev`.
pub(crate) struct DevSettings {
    /// What is logged.
    pub(crate) logs: Logs,
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
    /// How HTTPS is served.
    pub(crate) http: HttpSettings,
    /// How keys are kept.
    pub(crate) keystore: KeystoreConfig,
    /// What decides.
    pub(crate) evaluator: PolicySettings,
}

/// `stage0 evaluator`.
pub(crate) struct PolicySettings {
    /// Packs beside the built-in one.
    pub(crate) dir: Option<PathBuf>,
    /// What decides; none means the built-in baseline.
    pub(crate) active: Option<String>,
    /// What a request may ask for.
    pub(crate) selectable: Vec<String>,
    /// Threads that decide; none means one per core.
    pub(crate) shards: Option<NonZeroUsize>,
}

impl PolicySettings {
    fn read(reader: &mut Reader) -> Self {
        Self {
            dir: reader.optional(&table::POLICIES, path),
            active: reader.optional(&table::ACTIVE_POLICY, text),
            selectable: reader.optional(&table::SELECTABLE_POLICIES, list).unwrap_or_default(),
            shards: size(reader.optional(&table::SHARDS, count(1024))).and_then(NonZeroUsize::new),
        }
    }
}

impl HttpSettings {
    fn read(reader: &mut Reader) -> Option<Self> {
        let listen = reader.required(&table::LISTEN, address);
        let base_path = reader.optional(&table::BASE_PATH, base_path).unwrap_or_default();
        let workers = reader.optional(&table::WORKERS, count(1024));
        let request_budget = reader.required(&table::REQUEST_BUDGET_MS, milliseconds);
        let header_timeout = reader.required(&table::HEADER_TIMEOUT_MS, milliseconds);
        let body_timeout = reader.required(&table::BODY_TIMEOUT_MS, milliseconds);
        let keep_alive = reader.required(&table::KEEP_ALIVE_MS, milliseconds);
        let failed_logins_per_minute = reader.required(&table::FAILED_LOGINS, count(1_000_000));
        let max_connections_per_worker = reader.required(&table::MAX_CONNECTIONS, count(1_000_000));
        Some(Self {
            listen: listen?,
            base_path,
            workers,
            request_budget: request_budget?,
            header_timeout: header_timeout?,
            body_timeout: body_timeout?,
            keep_alive: keep_alive?,
            failed_logins_per_minute: failed_logins_per_minute?,
            max_connections_per_worker: max_connections_per_worker?,
        })
    }

    /// With its certificate.
    pub(crate) fn config(self, tls: TlsFiles) -> GatewayConfig {
        let defaults = GatewayConfig::new(self.listen, tls);
        GatewayConfig {
            base_path: self.base_path,
            workers: size(self.workers).unwrap_or(defaults.workers),
            request_budget: self.request_budget,
            header_timeout: self.header_timeout,
            body_timeout: self.body_timeout,
            keep_alive: self.keep_alive,
            failed_logins_per_minute: self.failed_logins_per_minute,
            max_connections_per_worker: size(Some(self.max_connections_per_worker))
                .unwrap_or(defaults.max_connections_per_worker),
            ..defaults
        }
    }
}

/// `stage0 dev`.
pub(crate) fn dev(sources: Sources) -> Result<DevSettings, Mistakes> {
    let mut reader = Reader::new(sources);
    let logs = read_logs(&mut reader);
    let http = HttpSettings::read(&mut reader);
    let keystore = read_keystore(&mut reader);
    let evaluator = PolicySettings::read(&mut reader);
    // The certificate names localhost, so no other machine's address can be served; 0.0.0.0 is for containers.
    if http.as_ref().is_some_and(|http| !http.listen.ip().is_loopback() && !http.listen.ip().is_unspecified()) {
        reader.clash(&table::LISTEN, "must be a loopback address (or 0.0.0.0): the certificate names localhost only");
    }
    let built = logs.zip(http.zip(keystore));
    let built = built.map(|(logs, (http, keystore))| DevSettings {
        logs,
        data_dir: keystore.data_dir.clone(),
        http,
        keystore,
        evaluator,
    });
    reader.finish(built)
}

/// `stage0 gateway`.
pub(crate) fn gateway(sources: Sources) -> Result<OnNats<GatewaySettings>, Mistakes> {
    on_nats(sources, |reader| {
        let (http, tls) = (HttpSettings::read(reader), read_tls(reader));
        Some(GatewaySettings { http: http?, tls: tls? })
    })
}

/// `stage0 evaluator`.
pub(crate) fn evaluator(sources: Sources) -> Result<OnNats<PolicySettings>, Mistakes> {
    on_nats(sources, |reader| Some(PolicySettings::read(reader)))
}

/// `stage0 keystore`.
pub(crate) fn keystore(sources: Sources) -> Result<OnNats<KeystoreConfig>, Mistakes> {
    on_nats(sources, read_keystore)
}

/// `stage0 audit-export`.
pub(crate) fn audit_export(sources: Sources) -> Result<OnNats<()>, Mistakes> {
    on_nats(sources, |_| Some(()))
}

fn on_nats<T>(sources: Sources, service: impl FnOnce(&mut Reader) -> Option<T>) -> Result<OnNats<T>, Mistakes> {
    let name = sources.role().command();
    let mut reader = Reader::new(sources);
    let logs = read_logs(&mut reader);
    let nats = nats::read(&mut reader, name);
    let service = service(&mut reader);
    let built = logs.zip(nats.zip(service));
    reader.finish(built.map(|(logs, (nats, service))| OnNats { logs, nats, service }))
}

fn read_logs(reader: &mut Reader) -> Option<Logs> {
    let filter = reader.required(&table::LOG, logs::filter);
    let format = reader.required(&table::LOG_FORMAT, Format::parse);
    filter.zip(format).map(|(filter, format)| Logs { filter, format })
}

fn read_keystore(reader: &mut Reader) -> Option<KeystoreConfig> {
    let data_dir = reader.required(&table::DATA_DIR, path);
    let hash_threads = reader.optional(&table::HASH_THREADS, count(256));
    let hash_queue = reader.required(&table::HASH_QUEUE, count(10_000));
    Some(KeystoreConfig {
        hash_workers: size(hash_threads),
        hash_queue: size(hash_queue)?,
        ..KeystoreConfig::new(data_dir?)
    })
}

/// Exactly one of the operator's files and a directory of our own.
fn read_tls(reader: &mut Reader) -> Option<TlsSource> {
    let (cert, key) = (reader.optional(&table::TLS_CERT, path), reader.optional(&table::TLS_KEY, path));
    let dev = reader.optional(&table::TLS_DEV_DIR, path);
    let files = reader.is_given(&table::TLS_CERT) || reader.is_given(&table::TLS_KEY);
    match (files, reader.is_given(&table::TLS_DEV_DIR)) {
        (true, true) => {
            reader.clash(&table::TLS_DEV_DIR, "does not go with `tls-cert` and `tls-key`");
            None
        }
        (true, false) => {
            reader.both([&table::TLS_CERT, &table::TLS_KEY])?;
            cert.zip(key).map(|(cert, key)| TlsSource::Files(TlsFiles { cert, key }))
        }
        (false, true) => dev.map(TlsSource::Dev),
        (false, false) => {
            reader.miss(&table::TLS_CERT, "and `tls-key` are required, or `tls-dev-dir` on a developer's machine");
            None
        }
    }
}

fn size(count: Option<u32>) -> Option<usize> {
    count.and_then(|count| usize::try_from(count).ok())
}
