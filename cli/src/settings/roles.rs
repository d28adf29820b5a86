//! What each command makes of its settings: the configuration of the crate that it runs, complete, or every mistake.
//! INVARIANT: everything is read before the first `?`, so that all mistakes are found.

use std::net::SocketAddr;
use std::path::PathBuf;

use stage0_audit_export::ExportConfig;
use stage0_audit_export::egress::EgressConfig;
use stage0_backplane::nats::{NatsConfig, Sizes};
use stage0_contract::{ApprovalMode, Role};
use stage0_evaluator::{PolicySettings, RunConfig};
use stage0_gateway::{GatewayConfig, TlsFiles, TlsSettings};
use stage0_keystore::{KeystoreConfig, OperatorKeySettings};
use stage0_runtime::ProcessSettings;
use stage0_runtime::settings;
use stage0_runtime::settings::kinds::{address, boolean, path, secret_file};
use stage0_runtime::settings::{Kind, Mistakes, Reader};

use super::client::ClientSettings;
use super::nats::{LogStreamSettings, NatsSafety, StreamSettings};
use super::{Sources, nats};
use crate::args::accounts::approval_mode;

settings! {
    pub(crate) struct DevOptions {
        /// For one start: goes on with the decision log that is there, though the data directory had another one
        accept_new_log: bool = "accept-new-log" "BOOL" in "Data" as NotInFile, default(false), boolean();
        /// Whose approvals count in the account: `caller`, what a check says as well, or `verified`, only those that
        /// members give here (default: as it is; a new account is `caller`)
        approvals: Option<ApprovalMode> = "approvals" "MODE" in "Approvals", optional, Kind::parsed(approval_mode);
    }
}

settings! {
    pub(crate) struct ReceiverOptions {
        /// File with the endpoint's secret, `whsec_…`, or with several, one a line; read at each delivery, so it may
        /// appear and change later
        secret_file: PathBuf = "secret-file" "FILE" in "Receiver", required, secret_file();
        /// Address to show received deliveries on, over plain HTTP and without a key (default: not shown)
        page_listen: Option<SocketAddr> = "page-listen" "ADDR" in "Receiver", optional, address();
    }
}

pub(crate) struct OnNats<T> {
    pub(crate) process: ProcessSettings,
    pub(crate) nats: NatsConfig,
    pub(crate) safety: NatsSafety,
    /// Copies of each stream of the role, where it is missing and the role may create it.
    pub(crate) log_replicas: usize,
    pub(crate) service: T,
}

/// `stage0 dev`. The certificate is made later.
pub(crate) struct DevSettings {
    pub(crate) process: ProcessSettings,
    pub(crate) options: DevOptions,
    pub(crate) gateway: GatewayConfig,
    pub(crate) keystore: KeystoreConfig,
    pub(crate) evaluator: EvaluatorSettings,
    pub(crate) export: ExportConfig,
}

/// `stage0 gateway`. The files of the certificate may have to be made first.
pub(crate) struct GatewaySettings {
    pub(crate) config: GatewayConfig,
    pub(crate) tls: TlsSource,
}

pub(crate) enum TlsSource {
    Files(TlsFiles),
    /// Made in this directory, for localhost.
    Dev(PathBuf),
}

/// `stage0 evaluator`. Loading the packs takes time, so it happens later.
pub(crate) struct EvaluatorSettings {
    pub(crate) policy: PolicySettings,
    pub(crate) runs: RunConfig,
}

pub(crate) struct AdminSettings {
    pub(crate) nats: NatsConfig,
    pub(crate) safety: NatsSafety,
    pub(crate) sizes: Sizes,
}

pub(crate) struct ReceiverSettings {
    pub(crate) process: ProcessSettings,
    pub(crate) listen: SocketAddr,
    pub(crate) tls: TlsFiles,
    pub(crate) secret_file: PathBuf,
    pub(crate) page_listen: Option<SocketAddr>,
}

pub(crate) fn client(sources: Sources) -> Result<ClientSettings, Mistakes> {
    read(sources, ClientSettings::with_data_dir)
}

pub(crate) fn health(sources: Sources) -> Result<SocketAddr, Mistakes> {
    read(sources, |reader| reader.required("metrics-listen", &address()))
}

pub(crate) fn dev(sources: Sources) -> Result<DevSettings, Mistakes> {
    read(sources, |reader| {
        let process = ProcessSettings::read(reader);
        let options = DevOptions::read(reader);
        let gateway = GatewayConfig::read(reader);
        let keystore = read_keystore(reader);
        let evaluator = EvaluatorSettings::read(reader);
        let export = read_export(reader);
        // The certificate names localhost, so no other machine's address can be served; 0.0.0.0 is for containers.
        if gateway.as_ref().is_some_and(|http| !http.listen.ip().is_loopback() && !http.listen.ip().is_unspecified()) {
            let why = "must be a loopback address (or 0.0.0.0): the certificate names localhost only";
            reader.clash("listen", why);
        }
        let export = export?;
        let dangerous_allow_private_webhooks = export.egress.dangerous_allow_private;
        Some(DevSettings {
            process: process?,
            options: options?,
            gateway: GatewayConfig { dangerous_allow_private_webhooks, ..gateway? },
            keystore: keystore?,
            evaluator: evaluator?,
            export,
        })
    })
}

pub(crate) fn gateway(sources: Sources) -> Result<OnNats<GatewaySettings>, Mistakes> {
    on_nats(sources, Role::Gateway, |reader| {
        let config = GatewayConfig::read(reader);
        let private = reader.required("dangerous-allow-private-webhooks", &boolean());
        let tls = read_tls(reader);
        let config = GatewayConfig { dangerous_allow_private_webhooks: private?, ..config? };
        Some(GatewaySettings { config, tls: tls? })
    })
}

pub(crate) fn evaluator(sources: Sources) -> Result<OnNats<EvaluatorSettings>, Mistakes> {
    on_nats(sources, Role::Evaluator, EvaluatorSettings::read)
}

pub(crate) fn keystore(sources: Sources) -> Result<OnNats<KeystoreConfig>, Mistakes> {
    on_nats(sources, Role::Keystore, |reader| {
        let operator_key = OperatorKeySettings::read(reader);
        let config = read_keystore(reader);
        Some(KeystoreConfig { operator_key_copy: operator_key?.copy, ..config? })
    })
}

pub(crate) fn audit_export(sources: Sources) -> Result<OnNats<ExportConfig>, Mistakes> {
    on_nats(sources, Role::AuditExport, read_export)
}

pub(crate) fn nats_admin(sources: Sources) -> Result<AdminSettings, Mistakes> {
    read(sources, |reader| {
        let connection = nats::read_admin(reader);
        let log = LogStreamSettings::read(reader);
        let StreamSettings { max_store, max_records } = StreamSettings::read(reader)?;
        let (nats, safety) = connection?;
        Some(AdminSettings { nats, safety, sizes: Sizes { replicas: log?.replicas, max_store, max_records } })
    })
}

pub(crate) fn receiver(sources: Sources) -> Result<ReceiverSettings, Mistakes> {
    read(sources, |reader| {
        let process = ProcessSettings::read(reader);
        let listen = reader.required("listen", &address());
        let cert = reader.required("tls-cert", &path());
        let key = reader.required("tls-key", &secret_file());
        let ReceiverOptions { secret_file, page_listen } = ReceiverOptions::read(reader)?;
        let tls = TlsFiles { cert: cert?, key: key? };
        Some(ReceiverSettings { process: process?, listen: listen?, tls, secret_file, page_listen })
    })
}

fn read<T>(sources: Sources, built: impl FnOnce(&mut Reader) -> Option<T>) -> Result<T, Mistakes> {
    let mut reader = sources.into_reader();
    let built = built(&mut reader);
    reader.finish(built)
}

fn on_nats<T>(
    sources: Sources,
    role: Role,
    service: impl FnOnce(&mut Reader) -> Option<T>,
) -> Result<OnNats<T>, Mistakes> {
    read(sources, |reader| {
        let process = ProcessSettings::read(reader);
        let connection = nats::read(reader, role);
        let service = service(reader);
        let streams = LogStreamSettings::read(reader);
        let (nats, safety) = connection?;
        Some(OnNats { process: process?, nats, safety, log_replicas: streams?.replicas, service: service? })
    })
}

impl EvaluatorSettings {
    fn read(reader: &mut Reader) -> Option<Self> {
        let policy = PolicySettings::read(reader);
        let runs = RunConfig::read(reader);
        Some(Self { policy: policy?, runs: runs? })
    }
}

fn read_keystore(reader: &mut Reader) -> Option<KeystoreConfig> {
    if reader.is_given("secrets-key-file") && reader.is_given("secrets-key") {
        reader.clash("secrets-key-file", "does not go with the variable of `secrets-key`");
    }
    KeystoreConfig::read(reader)
}

fn read_export(reader: &mut Reader) -> Option<ExportConfig> {
    let egress = EgressConfig::read(reader);
    let config = ExportConfig::read(reader);
    Some(ExportConfig { egress: egress?, ..config? })
}

/// Exactly one of the operator's files and a directory of our own.
fn read_tls(reader: &mut Reader) -> Option<TlsSource> {
    let TlsSettings { cert, key, dev_dir } = TlsSettings::read(reader)?;
    let has_files = reader.is_given("tls-cert") || reader.is_given("tls-key");
    match (has_files, reader.is_given("tls-dev-dir")) {
        (true, true) => {
            reader.clash("tls-dev-dir", "does not go with `tls-cert` and `tls-key`");
            None
        }
        (true, false) => {
            reader.both("tls-cert", "tls-key")?;
            Some(TlsSource::Files(TlsFiles { cert: cert?, key: key? }))
        }
        (false, true) => dev_dir.map(TlsSource::Dev),
        (false, false) => {
            reader.miss("tls-cert", "is required with `tls-key`, or else `tls-dev-dir` on a developer's machine");
            None
        }
    }
}
