//! The roles that run alone on NATS, and what every role's process shares: log, metrics, runtime, signals, exit code.
//!
//! Owns nothing of a service but its start: settings in, `build`, `run_until` a signal. A failure to start is one log line with its
//! whole chain, and exit code 1; being told to stop is 0, also while starting.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use stage0_audit_export::AuditExport;
use stage0_backplane::Backplane;
use stage0_backplane::nats::{ConnectError, Connection, NatsConfig};
use stage0_evaluator::{EvaluatorConfig, PackSet};
use stage0_gateway::{Gateway, TlsFiles, dev_tls};
use stage0_keystore::{Keystore, KeystoreConfig};
use tokio_util::sync::CancellationToken;

use crate::args::VERSION;
use crate::exit::Exit;
use crate::logs;
use crate::metrics::Metrics;
use crate::settings::roles::{ExportSettings, GatewaySettings, OnNats, PolicySettings, Process, TlsSource};
use crate::signals;

/// `stage0 gateway`.
pub(crate) fn gateway(settings: OnNats<GatewaySettings>) -> Exit {
    let OnNats { process, nats, service } = settings;
    serve(process, async move |stop| {
        let tls = match service.tls {
            TlsSource::Files(files) => files,
            TlsSource::Dev(dir) => make_dev_tls(dir).await?.0,
        };
        let Some(()) = unless(&stop, prepare_log(&nats, service.log_replicas)).await? else { return Ok(()) };
        let Some(gateway) = unless(&stop, Gateway::build(service.http.config(tls), workers_connect(nats))).await?
        else {
            return Ok(());
        };
        tracing::info!(version = VERSION, address = %gateway.addr(), "gateway starts");
        Ok(gateway.run_until(stop).await?)
    })
}

/// `stage0 evaluator`.
pub(crate) fn evaluator(settings: OnNats<PolicySettings>) -> Exit {
    let OnNats { process, nats, service } = settings;
    serve(process, async move |stop| {
        let config = load(service).await?;
        let Some(evaluator) = unless(&stop, stage0_evaluator::build(config, shards_connect(nats))).await? else {
            return Ok(());
        };
        tracing::info!(version = VERSION, policy_version = %evaluator.active(), "evaluator starts");
        Ok(evaluator.run_until(stop.cancelled_owned()).await?)
    })
}

/// `stage0 keystore`.
pub(crate) fn keystore(settings: OnNats<KeystoreConfig>) -> Exit {
    let OnNats { process, nats, service } = settings;
    serve(process, async move |stop| {
        let Some(backplane) = unless(&stop, Backplane::connect(&nats)).await? else { return Ok(()) };
        let data_dir = service.data_dir.clone();
        let keystore = Keystore::build(service, backplane.clone()).await?;
        tracing::info!(version = VERSION, data_dir = %data_dir.display(), "keystore starts");
        keystore.run_until(stop.cancelled_owned()).await?;
        backplane.requests.close().await;
        Ok(())
    })
}

/// `stage0 audit-export`.
pub(crate) fn audit_export(settings: OnNats<ExportSettings>) -> Exit {
    let OnNats { process, nats, service } = settings;
    serve(process, async move |stop| {
        let Some(()) = unless(&stop, prepare_log(&nats, service.log_replicas)).await? else { return Ok(()) };
        let Some(backplane) = unless(&stop, Backplane::connect(&nats)).await? else { return Ok(()) };
        let exporter = AuditExport::build(service.export, backplane).await?;
        tracing::info!(version = VERSION, "audit-export starts");
        exporter.run_until(stop).await?;
        Ok(())
    })
}

/// Makes the log's streams where they are missing, and proves how the server syncs, before anything relies on it.
async fn prepare_log(nats: &NatsConfig, replicas: usize) -> anyhow::Result<()> {
    let connection = Connection::open(nats).await?;
    let prepared = connection.prepare_log(replicas).await;
    connection.backplane().requests.close().await;
    Ok(prepared?)
}

/// Runs a role until it ends, with log, metrics and signals; the token is cancelled by the first signal.
pub(crate) fn serve(process: Process, role: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<()>) -> Exit {
    logs::start(process.logs);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime.context("cannot start threads").and_then(|runtime| {
        runtime.block_on(async {
            let stop = signals::stop_token().context("cannot listen for signals")?;
            let metrics = process.metrics_listen.map(Metrics::start).transpose()?;
            let ended = role(stop).await;
            if let Some(metrics) = metrics {
                metrics.stop().await;
            }
            ended
        })
    });
    match ended {
        Ok(()) => Exit::Done,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "cannot go on");
            Exit::Failed
        }
    }
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
    let loading = tokio::task::spawn_blocking(move || -> anyhow::Result<PackSet> {
        let mut packs = PackSet::embedded().context("the built-in policy pack is refused")?;
        if let Some(dir) = dir {
            packs = packs.with_dir(&dir)?;
        }
        if let Some(active) = active {
            packs.activate(&active)?;
        }
        selectable.iter().try_for_each(|version| packs.allow(version))?;
        Ok(packs)
    });
    Ok(EvaluatorConfig { packs: loading.await??, shards, runs })
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
