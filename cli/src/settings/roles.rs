//! What each role makes of its settings: the configuration of the crate that it runs, complete, or every mistake.

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use stage0_audit_export::ExportConfig;
use stage0_audit_export::egress::EgressConfig;
use stage0_backplane::nats::{NatsConfig, Sizes};
use stage0_contract::{self as contract, AuditMode};
use stage0_evaluator::RunConfig;
use stage0_gateway::{GatewayConfig, OnFailure, TlsFiles, TrustedProxies};
use stage0_keystore::{KeystoreConfig, Plans, SecretsKey};

use super::nats::NatsSafety;
use super::parse::{address, addresses, base_path, boolean, count, count_or_off, list, milliseconds, path, text};
use super::{Mistakes, Reader, Sources, nats, table};
use crate::logs::{self, Format, Logs};

/// A month.
const MOST_RUN_SECONDS: u32 = 31 * 86_400;
/// The server keeps some of each in memory.
const MOST_RECORDS: u32 = 100_000_000;
/// Four times what one download of the log holds, which is more than a body may.
const MIN_BYTES_IN_FLIGHT: u32 = 16 << 20;

/// What every role's process has.
pub(crate) struct Process {
    /// What is logged.
    pub(crate) logs: Logs,
    /// Where metrics are served, if they are.
    pub(crate) metrics_listen: Option<SocketAddr>,
}

/// Any role that runs alone on NATS.
pub(crate) struct OnNats<T> {
    /// What every role's process has.
    pub(crate) process: Process,
    /// How the others are reached.
    pub(crate) nats: NatsConfig,
    /// What is done about NATS' safety.
    pub(crate) safety: NatsSafety,
    /// The role's own.
    pub(crate) service: T,
}

/// `stage0 gateway`.
pub(crate) struct GatewaySettings {
    /// How HTTPS is served.
    pub(crate) http: HttpSettings,
    /// Where the certificate comes from.
    pub(crate) tls: TlsSource,
    /// Copies of the log, where its streams are missing.
    pub(crate) log_replicas: usize,
}

/// `stage0 audit-export`.
pub(crate) struct ExportSettings {
    /// How it delivers.
    pub(crate) export: ExportConfig,
    /// Copies of the log, where its streams are missing.
    pub(crate) log_replicas: usize,
}

/// `stage0 nats-admin`.
pub(crate) struct AdminSettings {
    /// How the server is reached.
    pub(crate) nats: NatsConfig,
    /// What is done about its safety.
    pub(crate) safety: NatsSafety,
    /// What the streams may take.
    pub(crate) sizes: Sizes,
}

/// `stage0 receiver`.
pub(crate) struct ReceiverSettings {
    /// What every role's process has.
    pub(crate) process: Process,
    /// Where deliveries arrive.
    pub(crate) listen: SocketAddr,
    /// Certificate and key.
    pub(crate) tls: TlsFiles,
    /// One secret a line.
    pub(crate) secret_file: PathBuf,
    /// Where the page is, if anywhere.
    pub(crate) page_listen: Option<SocketAddr>,
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
    trusted_proxies: TrustedProxies,
    proxy_protocol_from: TrustedProxies,
    failed_logins_per_minute: u32,
    requests_per_second_per_address: u32,
    max_connections: u32,
    management_calls_per_minute: u32,
    max_connections_per_worker: u32,
    max_connections_per_address: u32,
    max_bytes_in_flight: u32,
    reads_per_second_per_account: u32,
    audit: AuditMode,
    quotas_on_failure: OnFailure,
    dangerous_allow_private_webhooks: bool,
}

/// `stage0 health`: where the operator's listener is.
pub(crate) fn health(sources: Sources) -> Result<SocketAddr, Mistakes> {
    let mut reader = Reader::new(sources);
    let listener = reader.required(&table::METRICS_LISTEN, address);
    reader.finish(listener)
}

/// `stage0 dev`.
pub(crate) struct DevSettings {
    /// What every role's process has.
    pub(crate) process: Process,
    /// Where everything is kept.
    pub(crate) data_dir: PathBuf,
    /// Whether a decision log that is not the one of before is taken.
    pub(crate) accept_new_log: bool,
    /// How HTTPS is served.
    pub(crate) http: HttpSettings,
    /// How keys are kept.
    pub(crate) keystore: KeystoreConfig,
    /// What decides.
    pub(crate) evaluator: PolicySettings,
    /// What delivers.
    pub(crate) export: ExportConfig,
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
    /// How long runs are remembered.
    pub(crate) runs: RunConfig,
}

impl PolicySettings {
    fn read(reader: &mut Reader) -> Option<Self> {
        let dir = reader.optional(&table::POLICIES, path);
        let active = reader.optional(&table::ACTIVE_POLICY, text);
        let selectable = reader.optional(&table::SELECTABLE_POLICIES, list).unwrap_or_default();
        let shards = size(reader.optional(&table::SHARDS, count(1024))).and_then(NonZeroUsize::new);
        let kept_for = reader.required(&table::RUNS_KEPT, count(MOST_RUN_SECONDS));
        let reserved_for = reader.required(&table::RESERVATIONS_KEPT, count(MOST_RUN_SECONDS));
        let seconds = |n| Duration::from_secs(u64::from(n));
        let runs = RunConfig { kept_for: seconds(kept_for?), reserved_for: seconds(reserved_for?) };
        Some(Self { dir, active, selectable, shards, runs })
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
        let trusted_proxies = reader.optional(&table::TRUSTED_PROXIES, proxies).unwrap_or_default();
        let proxy_protocol_from = reader.optional(&table::PROXY_PROTOCOL_FROM, proxies).unwrap_or_default();
        let requests_per_second_per_address = reader.required(&table::REQUESTS_PER_SECOND, count_or_off(1_000_000));
        let management_calls_per_minute = reader.required(&table::MANAGEMENT_CALLS, count_or_off(1_000_000));
        let max_connections_per_address = reader.required(&table::CONNECTIONS_PER_ADDRESS, count_or_off(1_000_000));
        let max_connections = reader.required(&table::CONNECTIONS, count(1_000_000));
        let max_bytes_in_flight = reader.required(&table::BYTES_IN_FLIGHT, bytes_in_flight);
        let reads_per_second_per_account = reader.required(&table::READS_PER_SECOND, count_or_off(1_000_000));
        let max_connections_per_worker = reader.required(&table::MAX_CONNECTIONS, count(1_000_000));
        let audit = reader.required(&table::AUDIT, audit_mode);
        let quotas_on_failure = reader.required(&table::QUOTAS_ON_FAILURE, on_failure);
        let dangerous_allow_private_webhooks = reader.required(&table::PRIVATE_WEBHOOKS, boolean);
        Some(Self {
            listen: listen?,
            base_path,
            workers,
            request_budget: request_budget?,
            header_timeout: header_timeout?,
            body_timeout: body_timeout?,
            keep_alive: keep_alive?,
            trusted_proxies,
            proxy_protocol_from,
            failed_logins_per_minute: failed_logins_per_minute?,
            requests_per_second_per_address: requests_per_second_per_address?,
            max_connections: max_connections?,
            management_calls_per_minute: management_calls_per_minute?,
            max_connections_per_worker: max_connections_per_worker?,
            max_connections_per_address: max_connections_per_address?,
            max_bytes_in_flight: max_bytes_in_flight?,
            reads_per_second_per_account: reads_per_second_per_account?,
            audit: audit?,
            quotas_on_failure: quotas_on_failure?,
            dangerous_allow_private_webhooks: dangerous_allow_private_webhooks?,
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
            trusted_proxies: self.trusted_proxies,
            proxy_protocol_from: self.proxy_protocol_from,
            failed_logins_per_minute: self.failed_logins_per_minute,
            requests_per_second_per_address: NonZeroU32::new(self.requests_per_second_per_address),
            max_connections: size(Some(self.max_connections)).unwrap_or(defaults.max_connections),
            max_bytes_in_flight: size(Some(self.max_bytes_in_flight)).unwrap_or(defaults.max_bytes_in_flight),
            reads_per_second_per_account: NonZeroU32::new(self.reads_per_second_per_account),
            management_calls_per_minute: NonZeroU32::new(self.management_calls_per_minute),
            max_connections_per_worker: size(Some(self.max_connections_per_worker))
                .unwrap_or(defaults.max_connections_per_worker),
            max_connections_per_address: NonZeroU32::new(self.max_connections_per_address),
            audit: self.audit,
            quotas_on_failure: self.quotas_on_failure,
            dangerous_allow_private_webhooks: self.dangerous_allow_private_webhooks,
            ..defaults
        }
    }
}

/// An account has a quarter, and one whole body must fit into it.
fn bytes_in_flight(text: &str) -> Result<u32, String> {
    let bytes = count(u32::MAX)(text)?;
    if bytes < MIN_BYTES_IN_FLIGHT { Err(format!("must be at least {MIN_BYTES_IN_FLIGHT}")) } else { Ok(bytes) }
}

/// `stage0 dev`.
pub(crate) fn dev(sources: Sources) -> Result<DevSettings, Mistakes> {
    let mut reader = Reader::new(sources);
    let process = read_process(&mut reader);
    let http = HttpSettings::read(&mut reader);
    let keystore = read_keystore(&mut reader);
    let evaluator = PolicySettings::read(&mut reader);
    let export = read_export(&mut reader);
    let accept_new_log = reader.required(&table::ACCEPT_NEW_LOG, boolean).unwrap_or_default();
    // The certificate names localhost, so no other machine's address can be served; 0.0.0.0 is for containers.
    if http.as_ref().is_some_and(|http| !http.listen.ip().is_loopback() && !http.listen.ip().is_unspecified()) {
        reader.clash(&table::LISTEN, "must be a loopback address (or 0.0.0.0): the certificate names localhost only");
    }
    let built = process.zip(http.zip(keystore.zip(evaluator.zip(export))));
    let built = built.map(|(process, (http, (keystore, (evaluator, export))))| DevSettings {
        process,
        data_dir: keystore.data_dir.clone(),
        accept_new_log,
        http,
        keystore,
        evaluator,
        export,
    });
    reader.finish(built)
}

/// `stage0 gateway`.
pub(crate) fn gateway(sources: Sources) -> Result<OnNats<GatewaySettings>, Mistakes> {
    on_nats(sources, contract::Role::Gateway, |reader| {
        let (http, tls) = (HttpSettings::read(reader), read_tls(reader));
        let log_replicas = reader.required(&table::LOG_REPLICAS, replicas);
        Some(GatewaySettings { http: http?, tls: tls?, log_replicas: log_replicas? })
    })
}

/// `stage0 evaluator`.
pub(crate) fn evaluator(sources: Sources) -> Result<OnNats<PolicySettings>, Mistakes> {
    on_nats(sources, contract::Role::Evaluator, PolicySettings::read)
}

/// `stage0 keystore`.
pub(crate) fn keystore(sources: Sources) -> Result<OnNats<KeystoreConfig>, Mistakes> {
    on_nats(sources, contract::Role::Keystore, |reader| {
        let operator_key_copy = reader.optional(&table::OPERATOR_KEY_COPY, path);
        read_keystore(reader).map(|config| KeystoreConfig { operator_key_copy, ..config })
    })
}

/// `stage0 audit-export`.
pub(crate) fn audit_export(sources: Sources) -> Result<OnNats<ExportSettings>, Mistakes> {
    on_nats(sources, contract::Role::AuditExport, |reader| {
        let (export, log_replicas) = (read_export(reader), reader.required(&table::LOG_REPLICAS, replicas));
        Some(ExportSettings { export: export?, log_replicas: log_replicas? })
    })
}

/// `stage0 nats-admin`.
pub(crate) fn nats_admin(sources: Sources) -> Result<AdminSettings, Mistakes> {
    let mut reader = Reader::new(sources);
    let nats = nats::read_admin(&mut reader);
    let replicas = reader.required(&table::LOG_REPLICAS, replicas);
    let max_store = reader.optional(&table::STREAMS_MAX_STORE, nats::size);
    let max_records = reader.required(&table::STREAMS_MAX_RECORDS, count(MOST_RECORDS));
    let built = nats.zip(replicas.zip(max_records)).map(|((nats, safety), (replicas, max_records))| {
        let sizes = Sizes { replicas, max_store, max_records: max_records.into() };
        AdminSettings { nats, safety, sizes }
    });
    reader.finish(built)
}

/// `stage0 receiver`.
pub(crate) fn receiver(sources: Sources) -> Result<ReceiverSettings, Mistakes> {
    let mut reader = Reader::new(sources);
    let process = read_process(&mut reader);
    let listen = reader.required(&table::LISTEN, address);
    let (cert, key) = (reader.required(&table::TLS_CERT, path), reader.required(&table::TLS_KEY, path));
    let key = reader.private(&table::TLS_KEY, key);
    let secret_file = reader.required(&table::SECRET_FILE, path);
    let secret_file = reader.private(&table::SECRET_FILE, secret_file);
    let page_listen = reader.optional(&table::PAGE_LISTEN, address);
    let built = process.zip(listen.zip(secret_file.zip(cert.zip(key))));
    let built = built.map(|(process, (listen, (secret_file, (cert, key))))| {
        let tls = TlsFiles { cert, key };
        ReceiverSettings { process, listen, tls, secret_file, page_listen }
    });
    reader.finish(built)
}

fn on_nats<T>(
    sources: Sources,
    role: contract::Role,
    service: impl FnOnce(&mut Reader) -> Option<T>,
) -> Result<OnNats<T>, Mistakes> {
    let mut reader = Reader::new(sources);
    let process = read_process(&mut reader);
    let nats = nats::read(&mut reader, role);
    let service = service(&mut reader);
    let built = process.zip(nats.zip(service));
    reader.finish(built.map(|(process, ((nats, safety), service))| OnNats { process, nats, safety, service }))
}

fn read_process(reader: &mut Reader) -> Option<Process> {
    let filter = reader.required(&table::LOG, logs::filter);
    let format = reader.required(&table::LOG_FORMAT, Format::parse);
    let metrics_listen = reader.optional(&table::METRICS_LISTEN, address);
    filter.zip(format).map(|(filter, format)| Process { logs: Logs { filter, format }, metrics_listen })
}

/// Small, and read once: a mistake in it is one of the settings'.
fn plans(file: &str) -> Result<Plans, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?;
    Plans::parse(&text).map_err(|error| error.to_string())
}

fn read_keystore(reader: &mut Reader) -> Option<KeystoreConfig> {
    let data_dir = reader.required(&table::DATA_DIR, path);
    let hash_threads = reader.optional(&table::HASH_THREADS, count(256));
    let hash_queue = reader.required(&table::HASH_QUEUE, count(10_000));
    let secrets_key_file = reader.optional(&table::SECRETS_KEY_FILE, path);
    let secrets_key_file = reader.private(&table::SECRETS_KEY_FILE, secrets_key_file);
    let secrets_key =
        reader.optional(&table::SECRETS_KEY, |text| SecretsKey::parse(text.trim()).map_err(|error| error.to_string()));
    if secrets_key_file.is_some() && secrets_key.is_some() {
        reader.clash(&table::SECRETS_KEY_FILE, "does not go with the variable of `secrets-key`");
    }
    let signing_key_file = reader.optional(&table::SIGNING_KEY_FILE, path);
    let signing_key_file = reader.private(&table::SIGNING_KEY_FILE, signing_key_file);
    let plans = reader.optional(&table::PLANS, plans);
    let accept_restore = reader.required(&table::ACCEPT_RESTORE, boolean);
    Some(KeystoreConfig {
        accept_restore: accept_restore?,
        secrets_key_file,
        secrets_key,
        signing_key_file,
        hash_workers: size(hash_threads),
        hash_queue: size(hash_queue)?,
        plans,
        ..KeystoreConfig::new(data_dir?)
    })
}

fn read_export(reader: &mut Reader) -> Option<ExportConfig> {
    let defaults = ExportConfig::default();
    let checkpoint_every = reader.required(&table::CHECKPOINT_SECONDS, count(86_400));
    let extra_ca = reader.optional(&table::WEBHOOK_CA, path);
    let dangerous_allow_private = reader.required(&table::PRIVATE_WEBHOOKS, boolean)?;
    let name_servers = reader.optional(&table::WEBHOOK_NAME_SERVERS, addresses).unwrap_or_default();
    let egress = EgressConfig { dangerous_allow_private, extra_ca, name_servers, ..defaults.egress };
    Some(ExportConfig { egress, checkpoint_every: Duration::from_secs(checkpoint_every?.into()), ..defaults })
}

fn proxies(text: &str) -> Result<TrustedProxies, String> {
    list(text).and_then(|items| TrustedProxies::parse(&items).map_err(|error| error.to_string()))
}

fn audit_mode(text: &str) -> Result<AuditMode, String> {
    match text {
        "required" => Ok(AuditMode::Required),
        "best-effort" => Ok(AuditMode::BestEffort),
        _ => Err("must be `required` or `best-effort`".to_owned()),
    }
}

fn on_failure(text: &str) -> Result<OnFailure, String> {
    match text {
        "closed" => Ok(OnFailure::Closed),
        "open" => Ok(OnFailure::Open),
        _ => Err("must be `closed` or `open`".to_owned()),
    }
}

fn replicas(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| [1, 3, 5].contains(count)).ok_or_else(|| "must be 1, 3 or 5".to_owned())
}

/// Exactly one of the operator's files and a directory of our own.
fn read_tls(reader: &mut Reader) -> Option<TlsSource> {
    let (cert, key) = (reader.optional(&table::TLS_CERT, path), reader.optional(&table::TLS_KEY, path));
    let key = reader.private(&table::TLS_KEY, key);
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
