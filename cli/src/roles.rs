//! The roles that run alone on NATS, and what every role's process shares: log, operator's listener, runtime, signals, exit code.
//!
//! Owns nothing of a service but its start: settings in, `build`, `run_until` a signal. A failure is told to people as text, with its
//! causes and what to do, and to programs that read the log as one event; exit code 1. Being told to stop is 0, also while starting.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use stage0_audit_export::{AuditExport, Lag, LagWatch, Listing};
use stage0_backplane::Backplane;
use stage0_backplane::nats::{ConnectError, Connection, NatsConfig};
use stage0_contract::{AuditMode, DeliveryLag, PolicyVersion, RUN_RECORDS, Role};
use stage0_evaluator::{EvaluatorConfig, PackSet};
use stage0_gateway::{Found, Gateway, TlsFiles, dev_tls};
use stage0_keystore::{Health, Keystore, KeystoreConfig, LeaseTimes};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::args::VERSION;
use crate::exit::Exit;
use crate::failure;
use crate::logs::{self, Format};
use crate::nats_safety::{Guard, Memory};
use crate::ops::Ops;
use crate::out;
use crate::settings::NatsSafety;
use crate::settings::roles::{ExportSettings, GatewaySettings, OnNats, PolicySettings, Process, TlsSource};
use crate::signals;
use crate::vitals::{Look, Seen, Vitals};

/// A record of the ledger, read to see that it can be.
const LEDGER_WITHIN: Duration = Duration::from_millis(800);

/// `stage0 gateway`.
pub(crate) fn gateway(settings: OnNats<GatewaySettings>) -> Exit {
    let OnNats { process, nats, safety, service } = settings;
    serve(process, async move |Life { stop, vitals }| {
        let tls = match service.tls {
            TlsSource::Files(files) => files,
            TlsSource::Dev(dir) => make_dev_tls(dir).await?.0,
        };
        let started = unless(&stop, prepare(Role::Gateway, &nats, &safety, service.log_replicas)).await?;
        let Some((own, _guard)) = started else { return Ok(()) };
        let config = service.http.config(tls);
        let look = gateway_look(own.clone(), config.audit, None);
        let Some(gateway) = unless(&stop, Gateway::build(config, workers_connect(nats))).await? else { return Ok(()) };
        tracing::info!(version = VERSION, address = %gateway.addr(), "gateway starts");
        let telling = Telling::start(&vitals, &[Role::Gateway], own.clone(), look, &stop);
        let served = gateway.run_until(stop).await;
        telling.end().await;
        own.requests.close().await;
        Ok(served?)
    })
}

/// `stage0 evaluator`.
pub(crate) fn evaluator(settings: OnNats<PolicySettings>) -> Exit {
    let OnNats { process, nats, safety, service } = settings;
    serve(process, async move |Life { stop, vitals }| {
        let config = load(service).await?;
        let started = unless(&stop, prepare(Role::Evaluator, &nats, &safety, 1)).await?;
        let Some((own, _guard)) = started else { return Ok(()) };
        let Some(evaluator) = unless(&stop, stage0_evaluator::build(config, shards_connect(nats))).await? else {
            return Ok(());
        };
        tracing::info!(version = VERSION, policy_version = %evaluator.active(), "evaluator starts");
        let look = evaluator_look(own.clone(), evaluator.active().clone());
        let telling = Telling::start(&vitals, &[Role::Evaluator], own.clone(), look, &stop);
        let served = evaluator.run_until(stop.cancelled_owned()).await;
        telling.end().await;
        own.requests.close().await;
        Ok(served?)
    })
}

/// `stage0 keystore`.
pub(crate) fn keystore(settings: OnNats<KeystoreConfig>) -> Exit {
    let OnNats { process, nats, safety, service } = settings;
    serve(process, async move |Life { stop, vitals }| {
        let data_dir = service.data_dir.clone();
        let memory = Memory::Directory(data_dir.clone());
        let connected = unless(&stop, connect(&nats, &safety, memory)).await?;
        let Some((backplane, _guard)) = connected else { return Ok(()) };
        let health = Health::default();
        let look = keystore_look(backplane.clone(), health.clone());
        // It may wait long for its turn, and says so meanwhile.
        let telling = Telling::start(&vitals, &[Role::Keystore], backplane.clone(), look, &stop);
        let service = KeystoreConfig { lease: Some(LeaseTimes::default()), ..service };
        let served = async {
            let building = Keystore::build(service, backplane.clone(), health);
            let Some(keystore) = unless(&stop, building).await? else { return Ok(()) };
            tracing::info!(version = VERSION, data_dir = %data_dir.display(), "keystore starts");
            say_restored(&keystore)?;
            Ok(keystore.run_until(stop.clone().cancelled_owned()).await?)
        };
        let served: anyhow::Result<()> = served.await;
        telling.end().await;
        backplane.requests.close().await;
        served
    })
}

/// What was done to a restored directory, for whoever asked for it.
pub(crate) fn say_restored(keystore: &Keystore) -> anyhow::Result<()> {
    keystore.restored().map_or(Ok(()), |restored| out::line(restored).context("cannot write to standard output"))
}

/// `stage0 audit-export`.
pub(crate) fn audit_export(settings: OnNats<ExportSettings>) -> Exit {
    let OnNats { process, nats, safety, service } = settings;
    serve(process, async move |Life { stop, vitals }| {
        let started = unless(&stop, prepare(Role::AuditExport, &nats, &safety, service.log_replicas)).await?;
        let Some((own, _guard)) = started else { return Ok(()) };
        let Some(backplane) = unless(&stop, Backplane::connect(&nats)).await? else { return Ok(()) };
        let exporter = AuditExport::build(service.export, backplane).await?;
        tracing::info!(version = VERSION, "audit-export starts");
        let look = export_look(own.clone(), exporter.lag());
        let telling = Telling::start(&vitals, &[Role::AuditExport], own.clone(), look, &stop);
        let served = exporter.run_until(stop).await;
        telling.end().await;
        own.requests.close().await;
        Ok(served?)
    })
}

/// Connects, checks the role's streams and how the server syncs, before anything relies on it.
async fn prepare(
    role: Role,
    nats: &NatsConfig,
    safety: &NatsSafety,
    replicas: usize,
) -> anyhow::Result<(Backplane, Guard)> {
    let connection = Connection::open(nats).await?;
    safety.examine(nats).await?;
    connection.prepare(role, replicas).await?;
    let guard = safety.keep(nats, Memory::Ledger(connection.clone())).await?;
    Ok((connection.backplane(), guard))
}

/// As [`prepare`], for the keystore, which remembers in its own directory.
async fn connect(nats: &NatsConfig, safety: &NatsSafety, memory: Memory) -> anyhow::Result<(Backplane, Guard)> {
    let connection = Connection::open(nats).await?;
    safety.examine(nats).await?;
    connection.prepare(Role::Keystore, 1).await?;
    let guard = safety.keep(nats, memory).await?;
    Ok((connection.backplane(), guard))
}

/// What a role's process is given.
pub(crate) struct Life {
    /// Cancelled by the first signal.
    pub(crate) stop: CancellationToken,
    /// Where it says how it is.
    pub(crate) vitals: Vitals,
}

/// Runs a role until it ends, with log, operator's listener and signals.
pub(crate) fn serve(process: Process, role: impl AsyncFnOnce(Life) -> anyhow::Result<()>) -> Exit {
    // A person who starts a role at a terminal gets the text alone.
    let is_logged = process.logs.format == Format::Json && !out::stderr_is_terminal();
    logs::start(process.logs);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.context("cannot start threads").and_then(|runtime| {
        runtime.block_on(async {
            let stop = signals::stop_token().context("cannot listen for signals")?;
            let vitals = Vitals::new(stop.clone());
            let ops = process.metrics_listen.map(|address| Ops::start(address, &vitals)).transpose()?;
            let ended = role(Life { stop, vitals }).await;
            if let Some(ops) = ops {
                ops.stop().await;
            }
            ended
        })
    });
    match ended {
        Ok(()) => Exit::Done,
        Err(error) => {
            if is_logged {
                tracing::error!(error = failure::in_one_line(&error), "cannot go on");
            }
            out::complain(format!("error: {}", failure::told(&error)));
            Exit::Failed
        }
    }
}

/// The task that tells gateways how a process is.
pub(crate) struct Telling {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Telling {
    /// From now on the process is looked at this way. It says that it stops once `stop` is cancelled.
    pub(crate) fn start(
        vitals: &Vitals,
        roles: &'static [Role],
        backplane: Backplane,
        look: Look,
        stop: &CancellationToken,
    ) -> Self {
        vitals.set(look);
        let stop = stop.child_token();
        Self { task: tokio::spawn(vitals.clone().tell(roles, backplane, stop.clone())), stop }
    }

    /// Also where the role ended by itself.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "telling of this process ended early");
        }
    }
}

/// As `/readyz` of the gateway itself; in a process of all roles also how far deliveries are behind.
pub(crate) fn gateway_look(own: Backplane, audit: AuditMode, lag: Option<LagWatch>) -> Look {
    Box::new(move || {
        let (own, delivery) = (own.clone(), lag.as_ref().map(delivery));
        let stopped = lag.as_ref().and_then(LagWatch::retention_stopped);
        Box::pin(async move {
            let Found { faults, mut remarks, policy_version } = stage0_gateway::look(&own, audit).await;
            remarks.extend(stopped);
            Seen { faults, remarks, policy_version, delivery }
        })
    })
}

fn evaluator_look(own: Backplane, active: PolicyVersion) -> Look {
    Box::new(move || {
        let (own, active) = (own.clone(), active.clone());
        Box::pin(async move {
            let mut seen = Seen { policy_version: Some(active), ..carried(&own).await };
            if let Err(error) = own.ledger.ready().await {
                seen.faults.push(format!("ledger: {error}"));
            }
            // Checks without a run are decided all the same.
            let record = own.ledger.get(&format!("{RUN_RECORDS}.ready"), Instant::now() + LEDGER_WITHIN).await;
            if let Err(error) = record {
                seen.remarks.push(format!("ledger: {error}: checks of runs cannot be decided"));
            }
            seen
        })
    })
}

fn keystore_look(own: Backplane, health: Health) -> Look {
    Box::new(move || {
        let (own, health) = (own.clone(), health.clone());
        Box::pin(async move {
            let mut seen = carried(&own).await;
            if let Err(error) = own.ledger.ready().await {
                seen.faults.push(format!("ledger: {error}"));
            }
            seen.faults.extend(health.fault());
            seen.remarks.extend(health.remark());
            if !health.writable() {
                seen.remarks.push("cannot store changes: keys can be verified but not managed".to_owned());
            }
            if health.disk_low() {
                seen.remarks.push("disk is nearly full: keys can be revoked but not created".to_owned());
            }
            if health.rolled_back() {
                seen.remarks.push(
                    "the decision log holds marks that are newer than the data directory: unless it was restored with \
                     --accept-restore, revoked keys may live again (docs/OPERATIONS.md)"
                        .to_owned(),
                );
            }
            seen
        })
    })
}

fn export_look(own: Backplane, lag: LagWatch) -> Look {
    Box::new(move || {
        let (own, delivery, listing) = (own.clone(), delivery(&lag), lag.listing());
        let stopped = lag.retention_stopped();
        Box::pin(async move {
            let mut seen = Seen { delivery: Some(delivery), ..carried(&own).await };
            match listing {
                Listing::Never => {
                    seen.faults.push("endpoints could not be listed yet: the keystore does not answer".to_owned());
                }
                Listing::Failed => {
                    seen.remarks.push("endpoints cannot be listed: those that are known are served".to_owned());
                }
                Listing::Current => {}
            }
            seen.remarks.extend(stopped);
            match own.log.ready().await {
                Ok(remarks) => seen.remarks.extend(remarks),
                Err(error) => seen.faults.push(format!("log: {error}")),
            }
            seen
        })
    })
}

/// How far deliveries are behind.
pub(crate) fn delivery(lag: &LagWatch) -> DeliveryLag {
    let Lag { held, behind, oldest_seconds, .. } = lag.snapshot();
    DeliveryLag { endpoints: held, behind, oldest_seconds }
}

/// Whether the backplane carries questions.
async fn carried(own: &Backplane) -> Seen {
    let faults = own.requests.ready().await.err().map(|error| format!("backplane: {error}"));
    Seen { faults: faults.into_iter().collect(), ..Seen::default() }
}

/// What was started, or `None` when a signal came first.
pub(crate) async fn unless<T, E>(
    stop: &CancellationToken,
    starting: impl Future<Output = Result<T, E>>,
) -> Result<Option<T>, E> {
    tokio::select! {
        started = starting => started.map(Some),
        () = stop.cancelled() => Ok(None),
    }
}

/// The development certificate's files and its CA's.
pub(crate) async fn make_dev_tls(dir: PathBuf) -> anyhow::Result<(TlsFiles, PathBuf)> {
    Ok(tokio::task::spawn_blocking(move || dev_tls(&dir)).await??)
}

/// Loads every pack, as one piece of blocking work: a fault in any of them refuses the start.
pub(crate) async fn load(settings: PolicySettings) -> anyhow::Result<EvaluatorConfig> {
    let PolicySettings { dir, active, selectable, shards, runs } = settings;
    let loading = tokio::task::spawn_blocking(move || load_packs(dir, active, &selectable));
    Ok(EvaluatorConfig { packs: loading.await??, shards, runs })
}

/// The packs that decide, and may be asked for.
pub(crate) fn load_packs(
    dir: Option<PathBuf>,
    active: Option<String>,
    selectable: &[String],
) -> anyhow::Result<PackSet> {
    let mut packs = PackSet::embedded().context("the built-in policy pack is refused")?;
    if let Some(dir) = dir {
        packs = packs.with_dir(&dir)?;
    }
    if let Some(active) = active {
        packs.activate(&active)?;
    }
    selectable.iter().try_for_each(|version| packs.allow(version))?;
    Ok(packs)
}

/// Each of the evaluator's threads has a connection of its own.
fn shards_connect(nats: NatsConfig) -> stage0_evaluator::Connect {
    Arc::new(move || {
        let nats = nats.clone();
        Box::pin(async move { Ok(Backplane::connect(&nats).await?) })
    })
}

/// So has each of the gateway's.
fn workers_connect(nats: NatsConfig) -> stage0_gateway::Connect<ConnectError> {
    Box::new(move || {
        let nats = nats.clone();
        Box::pin(async move { Backplane::connect(&nats).await })
    })
}
