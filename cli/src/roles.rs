//! The roles that run alone on NATS: settings in, `build`, `run_until` a signal.
//!
//! A role waits at its start for what other processes or an administrator provide (`roles/connect.rs`). A failure is
//! printed for people with its causes and what to do, and logged as one event for programs; exit code 1. A signal is
//! exit code 0, even during the start.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use stage0_audit_export::{AuditExport, ExportConfig};
use stage0_backplane::Backplane;
use stage0_backplane::nats::{ConnectError, NatsConfig};
use stage0_contract::Role;
use stage0_evaluator::{EvaluatorConfig, PolicySettings};
use stage0_gateway::{Gateway, GatewayConfig, TlsFiles, dev_tls};
use stage0_keystore::{Health, Keystore, KeystoreConfig, LeaseTimes};
use stage0_policy::PackSet;
use stage0_runtime::heartbeat::HeartbeatTask;
use stage0_runtime::logs::{self, Format};
use stage0_runtime::{ProcessContext, ProcessSettings, or_stop};

use crate::args::{VERSION, build_info};
use crate::exit::Exit;
use crate::nats_safety::RequirementStore;
use crate::settings::roles::{EvaluatorSettings, GatewaySettings, OnNats, TlsSource};
use crate::{failure, out};

mod connect;
pub(crate) mod probes;

use connect::{connect, prepare};

pub(crate) fn gateway(settings: OnNats<GatewaySettings>) -> Exit {
    let OnNats { process, nats, safety, log_replicas, service } = settings;
    serve(process, Role::Gateway.as_str(), async move |ProcessContext { stop, health }| {
        health.set_start_waits(nats.waiting.clone());
        let tls = match service.tls {
            TlsSource::Files(files) => files,
            TlsSource::Dev(dir) => make_dev_tls(dir).await?.0,
        };
        let prepared = or_stop(&stop, prepare(Role::Gateway, &nats, &safety, log_replicas)).await?;
        let Some((own, _guard)) = prepared else { return Ok(()) };
        let config = GatewayConfig { tls, ..service.config };
        let probe = probes::gateway(own.clone(), config.audit, None);
        let Some(gateway) = or_stop(&stop, Gateway::build(config, workers_connect(nats))).await? else { return Ok(()) };
        tracing::info!(version = VERSION, address = %gateway.addr(), "gateway starts");
        let heartbeat = HeartbeatTask::start(&health, &[Role::Gateway], own.clone(), probe, &stop);
        let served = gateway.run_until(stop).await;
        heartbeat.stop().await;
        own.requests.close().await;
        Ok(served?)
    })
}

pub(crate) fn evaluator(settings: OnNats<EvaluatorSettings>) -> Exit {
    let OnNats { process, nats, safety, log_replicas, service } = settings;
    serve(process, Role::Evaluator.as_str(), async move |ProcessContext { stop, health }| {
        health.set_start_waits(nats.waiting.clone());
        let config = load(service).await?;
        let prepared = or_stop(&stop, prepare(Role::Evaluator, &nats, &safety, log_replicas)).await?;
        let Some((own, _guard)) = prepared else { return Ok(()) };
        let building = stage0_evaluator::build(config, shards_connect(nats));
        let Some(evaluator) = or_stop(&stop, building).await? else { return Ok(()) };
        tracing::info!(version = VERSION, policy_version = %evaluator.active(), "evaluator starts");
        let probe = probes::evaluator(own.clone(), evaluator.active().clone());
        let probe = probes::with_policies(probe, evaluator.policies());
        let heartbeat = HeartbeatTask::start(&health, &[Role::Evaluator], own.clone(), probe, &stop);
        let served = evaluator.run_until(stop.cancelled_owned()).await;
        heartbeat.stop().await;
        own.requests.close().await;
        Ok(served?)
    })
}

pub(crate) fn keystore(settings: OnNats<KeystoreConfig>) -> Exit {
    let OnNats { process, nats, safety, log_replicas, service } = settings;
    serve(process, Role::Keystore.as_str(), async move |ProcessContext { stop, health }| {
        health.set_start_waits(nats.waiting.clone());
        let data_dir = service.data_dir.clone();
        // The other roles keep in the state store what they require of messages; this one has its own directory.
        let connecting =
            connect(Role::Keystore, &nats, &safety, log_replicas, |_| RequirementStore::Directory(data_dir.clone()));
        let Some((backplane, _guard)) = or_stop(&stop, connecting).await? else { return Ok(()) };
        let own_health = Health::default();
        let probe = probes::keystore(backplane.clone(), own_health.clone());
        // It may wait long for the lease, and reports that meanwhile.
        let heartbeat = HeartbeatTask::start(&health, &[Role::Keystore], backplane.clone(), probe, &stop);
        let service = KeystoreConfig { lease: Some(LeaseTimes::default()), ..service };
        let served = async {
            let building = Keystore::build(service, backplane.clone(), own_health);
            let Some(keystore) = or_stop(&stop, building).await? else { return Ok(()) };
            tracing::info!(version = VERSION, data_dir = %data_dir.display(), "keystore starts");
            print_restored(&keystore)?;
            Ok(keystore.run_until(stop.clone().cancelled_owned()).await?)
        };
        let served: anyhow::Result<()> = served.await;
        heartbeat.stop().await;
        backplane.requests.close().await;
        served
    })
}

pub(crate) fn print_restored(keystore: &Keystore) -> anyhow::Result<()> {
    keystore.restored().map_or(Ok(()), |restored| out::line(restored).context("cannot write to standard output"))
}

pub(crate) fn audit_export(settings: OnNats<ExportConfig>) -> Exit {
    let OnNats { process, nats, safety, log_replicas, service } = settings;
    serve(process, Role::AuditExport.as_str(), async move |ProcessContext { stop, health }| {
        health.set_start_waits(nats.waiting.clone());
        let prepared = or_stop(&stop, prepare(Role::AuditExport, &nats, &safety, log_replicas)).await?;
        let Some((own, _guard)) = prepared else { return Ok(()) };
        let Some(backplane) = or_stop(&stop, Backplane::connect(&nats)).await? else { return Ok(()) };
        let Some(exporter) = or_stop(&stop, AuditExport::build(service, backplane)).await? else { return Ok(()) };
        tracing::info!(version = VERSION, "audit-export starts");
        let probe = probes::audit_export(own.clone(), exporter.lag());
        let heartbeat = HeartbeatTask::start(&health, &[Role::AuditExport], own.clone(), probe, &stop);
        let served = exporter.run_until(stop).await;
        heartbeat.stop().await;
        own.requests.close().await;
        Ok(served?)
    })
}

/// `name` is the role's in metrics.
pub(crate) fn serve(
    process: ProcessSettings,
    name: &'static str,
    role: impl AsyncFnOnce(ProcessContext) -> anyhow::Result<()>,
) -> Exit {
    // A person who starts a role at a terminal gets the text alone.
    let is_logged = process.logs.format == Format::Json && !logs::is_on_terminal();
    match stage0_runtime::run(process, build_info(name), role) {
        Ok(()) => Exit::Done,
        Err(error) => {
            if is_logged {
                tracing::error!(error = failure::describe_in_one_line(&error), "role failed");
            }
            out::stderr_line(format!("error: {}", failure::describe(&error)));
            Exit::Failed
        }
    }
}

pub(crate) async fn make_dev_tls(dir: PathBuf) -> anyhow::Result<(TlsFiles, PathBuf)> {
    Ok(tokio::task::spawn_blocking(move || dev_tls(&dir)).await??)
}

/// Loads every pack; a fault in any of them refuses the start.
pub(crate) async fn load(settings: EvaluatorSettings) -> anyhow::Result<EvaluatorConfig> {
    let EvaluatorSettings { policy, runs } = settings;
    let shards = policy.shards;
    let loading = tokio::task::spawn_blocking(move || load_packs(&policy));
    Ok(EvaluatorConfig { packs: loading.await??, shards, runs })
}

pub(crate) fn load_packs(settings: &PolicySettings) -> anyhow::Result<PackSet> {
    let PolicySettings { dir, active, selectable, .. } = settings;
    let mut packs = PackSet::embedded().context("the built-in policy pack is refused")?;
    if let Some(dir) = dir {
        packs = packs.with_dir(dir)?;
    }
    if let Some(active) = active {
        packs.activate(active)?;
    }
    selectable.iter().try_for_each(|version| packs.allow(version))?;
    Ok(packs)
}

/// Each thread of the evaluator has a connection of its own.
fn shards_connect(nats: NatsConfig) -> stage0_evaluator::Connect {
    Arc::new(move || {
        let nats = nats.clone();
        Box::pin(async move { Ok(Backplane::connect(&nats).await?) })
    })
}

/// Each worker of the gateway has a connection of its own.
fn workers_connect(nats: NatsConfig) -> stage0_gateway::Connect<ConnectError> {
    Box::new(move || {
        let nats = nats.clone();
        Box::pin(async move { Backplane::connect(&nats).await })
    })
}
