//! `stage0 dev`: every service in one process on the embedded backplane.
//!
//! The banner comes last, so that everything in it works when it is read. It stops in the order of a cluster: the
//! gateway drains first, then the exporter, then keystore and evaluator, which both use. A service that ends by itself
//! stops all of them, with exit code 1.

pub(crate) mod access;
pub(crate) mod banner;

use std::convert::Infallible;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stage0_audit_export::AuditExport;
use stage0_backplane::embedded::{Bus, LogHistory};
use stage0_backplane::{Backplane, RequestError};
use stage0_contract::{ApprovalMode, KeystoreStatus, PolicyVersion, Role};
use stage0_evaluator::LoadedPolicies;
use stage0_gateway::{Gateway, GatewayConfig};
use stage0_keystore::{Health, JOURNAL_FILE, Keystore};
use stage0_runtime::heartbeat::HeartbeatTask;
use stage0_runtime::{ProcessContext, ServiceGroup};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use access::Access;

use crate::args::VERSION;
use crate::dev_file::{self, DevFile};
use crate::exit::Exit;
use crate::roles::{load, make_dev_tls, print_restored, probes, serve};
use crate::settings::roles::DevSettings;
use crate::{files, out};

/// For services of the same process to answer; a damaged store, whose opening may take long, is open by then.
const READY_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_DELAY: Duration = Duration::from_millis(10);

pub(crate) fn run(settings: DevSettings) -> Exit {
    let DevSettings { process, options, gateway, keystore, evaluator, export } = settings;
    serve(process, "dev", async move |ProcessContext { stop, health }| {
        // Before anything is written: a first start with a broken pack leaves no keys behind.
        let evaluator = load(evaluator).await?;
        let data_dir = keystore.data_dir.clone();
        files::private_dir(&data_dir)?;
        // The log next: it locks the data directory against a second process. A crash may have left it to be repaired.
        let bus = open_log(&data_dir, options.accept_new_log).await?;
        let keystore = Keystore::build(keystore, bus.connect(), Health::default()).await?;
        print_restored(&keystore)?;
        let evaluator = stage0_evaluator::build(evaluator, shards_connect(bus.clone())).await?;
        let (tls, ca) = make_dev_tls(data_dir.join("tls")).await?;
        let config = GatewayConfig { tls, single_process: true, ..gateway };
        let base_path = config.base_path.clone();
        let audit = config.audit;
        let gateway = Gateway::build(config, workers_connect(bus.clone())).await?;
        let exporter = AuditExport::build(export, bus.connect()).await?;
        let probe = probes::gateway(bus.connect(), audit, Some(exporter.lag()));
        let probe = probes::with_policies(probe, evaluator.policies());
        let url = format!("https://{}{base_path}", reachable(gateway.addr()));
        let (policy, policies) = (evaluator.active().clone(), evaluator.policies());

        let gateway_stop = stop.child_token();
        let exporter_stop = CancellationToken::new();
        let exporter_ended = CancellationToken::new();
        let last_stop = CancellationToken::new();
        let mut services = ServiceGroup::<anyhow::Error>::new(gateway_stop.clone());
        let stopped = last_stop.clone().cancelled_owned();
        services.spawn(async move { Ok(keystore.run_until(stopped).await?) });
        let stopped = last_stop.clone().cancelled_owned();
        services.spawn(async move { Ok(evaluator.run_until(stopped).await?) });
        let stopped = exporter_stop.clone();
        let ended = exporter_ended.clone().drop_guard();
        services.spawn(async move {
            let served = exporter.run_until(stopped).await;
            drop(ended);
            Ok(served?)
        });
        let approvals = options.approvals;
        let start = Start { data_dir: &data_dir, ca: &ca, url, policy: &policy, policies, approvals };
        let served = match open(&bus.connect(), start).await {
            Ok(()) => {
                let heartbeat = HeartbeatTask::start(&health, &Role::ALL, bus.connect(), probe, &gateway_stop);
                let served = gateway.run_until(gateway_stop).await.map_err(anyhow::Error::from);
                heartbeat.stop().await;
                served
            }
            Err(error) => Err(error),
        };
        // The exporter's last checkpoints need the keystore's signature.
        exporter_stop.cancel();
        exporter_ended.cancelled().await;
        last_stop.cancel();
        services.join().await?;
        served?;
        anyhow::ensure!(stop.is_cancelled(), "a service ended by itself");
        tracing::info!("stopped");
        Ok(())
    })
}

/// Opens the log. A data directory with a keystore's data has had a log: if there is none, it was lost.
async fn open_log(data_dir: &Path, accept_new: bool) -> anyhow::Result<Bus> {
    let history = LogHistory { expected: data_dir.join(JOURNAL_FILE).try_exists()?, accept_new };
    let directory = data_dir.to_owned();
    Ok(tokio::task::spawn_blocking(move || Bus::open_remembered(&directory, history)).await??)
}

/// What is known once everything is bound.
struct Start<'a> {
    data_dir: &'a Path,
    ca: &'a Path,
    url: String,
    policy: &'a PolicyVersion,
    policies: LoadedPolicies,
    /// The wanted mode; `None` leaves the account's.
    approvals: Option<ApprovalMode>,
}

/// From "bound" to "ready". Files first, then the banner: a program that waits for the banner finds the files.
async fn open(backplane: &Backplane, start: Start<'_>) -> anyhow::Result<()> {
    let Start { data_dir, ca, url, policy, policies, approvals } = start;
    keystore_serves(backplane).await.context("the keystore does not answer")?;
    let Access { account, api_key, operator_key, approvals } = access::secure(backplane, data_dir, approvals).await?;
    let ca_file = ca.canonicalize().context("cannot find the CA file")?;
    let dev = DevFile { url, ca_file, api_key, operator_key, account };
    policies.preloaded().await;
    dev_file::write(&dev, data_dir)?;
    out::line(banner::banner(&dev.url, data_dir, ca, policy, approvals)).context("cannot write to standard output")?;
    tracing::info!(version = VERSION, url = dev.url, policy_version = %policy, "ready");
    backplane.requests.close().await;
    Ok(())
}

/// Retries until it answers: its loops start concurrently with this.
async fn keystore_serves(backplane: &Backplane) -> Result<(), RequestError> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        match backplane.requests.request_until(&KeystoreStatus {}, deadline).await {
            Err(RequestError::NoResponders) if Instant::now() < deadline => tokio::time::sleep(RETRY_DELAY).await,
            answer => return answer.map(|_| ()),
        }
    }
}

/// The address at which clients on this machine reach it.
pub(crate) fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    SocketAddr::new(ip, bound.port())
}

/// Each worker of the gateway has a connection of its own.
fn workers_connect(bus: Bus) -> stage0_gateway::Connect<Infallible> {
    Box::new(move || Box::pin(ready(Ok(bus.connect()))))
}

/// Each thread of the evaluator has a connection of its own.
fn shards_connect(bus: Bus) -> stage0_evaluator::Connect {
    Arc::new(move || Box::pin(ready(Ok(bus.connect()))))
}
