//! A role's process from start to end: log, threads, signals, the metrics server, then the role itself.
//!
//! The metrics server starts before the role, so that everything the role counts is counted, and stops after it, so
//! that readiness reports the drain.

use std::net::SocketAddr;

use tokio_util::sync::CancellationToken;

use crate::heartbeat::HealthMonitor;
use crate::logs::LogSettings;
use crate::metrics_server::{MetricsError, MetricsServer};
use crate::{BuildInfo, logs, settings, signals};

settings! {
    /// Where metrics are served.
    #[derive(Debug)]
    pub struct MetricsSettings {
        /// Address to serve `/metrics` (Prometheus), `/healthz` and `/readyz` on, over plain HTTP and without a key
        /// (default: not served)
        metrics_listen: Option<SocketAddr> = "metrics-listen" "ADDR" in "Metrics", optional, settings::kinds::address();
    }
}

/// The settings of every role's process.
#[derive(Debug)]
#[expect(missing_docs, reason = "the types say it")]
pub struct ProcessSettings {
    pub logs: LogSettings,
    pub metrics: MetricsSettings,
}

impl ProcessSettings {
    /// Reads both parts before either can fail, so that all mistakes are found.
    pub fn read(reader: &mut settings::Reader) -> Option<Self> {
        let logs = LogSettings::read(reader);
        let metrics = MetricsSettings::read(reader);
        Some(Self { logs: logs?, metrics: metrics? })
    }
}

/// What a role gets from its process.
pub struct ProcessContext {
    /// Cancelled by the first signal.
    pub stop: CancellationToken,
    /// Where the role registers its health probe.
    pub health: HealthMonitor,
}

/// Why the process of a role does not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum StartError {
    #[error("cannot start threads")]
    Threads(#[source] std::io::Error),
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// Runs a role to its end. Version and commit are reported to the gateways, and with the metrics.
pub fn run<E: From<StartError>>(
    settings: ProcessSettings,
    build: BuildInfo,
    role: impl AsyncFnOnce(ProcessContext) -> Result<(), E>,
) -> Result<(), E> {
    logs::start(settings.logs);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(StartError::Threads)?;
    runtime.block_on(async {
        let stop = signals::stop_token().map_err(StartError::Signals)?;
        let health = HealthMonitor::new(build.to_string(), stop.clone());
        let metrics = settings.metrics.metrics_listen.map(|address| MetricsServer::start(address, build, &health));
        let metrics = metrics.transpose().map_err(StartError::Metrics)?;
        let ended = role(ProcessContext { stop, health }).await;
        if let Some(metrics) = metrics {
            metrics.stop().await;
        }
        ended
    })
}

/// Awaits `starting`; returns `None` when a signal comes first.
pub async fn or_stop<T, E>(
    stop: &CancellationToken,
    starting: impl Future<Output = Result<T, E>>,
) -> Result<Option<T>, E> {
    tokio::select! {
        started = starting => started.map(Some),
        () = stop.cancelled() => Ok(None),
    }
}
