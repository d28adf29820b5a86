//! The exporter: delivers the decision log to customers' webhooks, and writes checkpoints and applies retention.
//!
//! `endpoints` runs a `delivery_worker` for each endpoint; its durable state is the `cursor` in the state store.
//! `maintenance` writes checkpoints and removes what is past its retention, through `marks`, while `clock_trust`
//! vouches for the time. `admin` answers the gateways. The exporter makes no decisions about actions.
//! INVARIANT: every event is delivered at least once under the same id, or becomes a listed dead letter.

mod address;
mod admin;
mod backoff;
mod classify;
mod clock;
mod clock_trust;
mod config;
mod cursor;
mod delivery_worker;
pub mod egress;
mod endpoints;
mod event;
mod fair;
#[doc(hidden)]
pub mod fuzz_support;
mod lag;
mod maintenance;
mod marks;
mod metrics;
mod reads;
mod replays;
mod send;
mod shared;
mod signature;

use std::error::Error;
use std::sync::Arc;

pub use clock::ClockReader;
pub use config::ExportConfig;
pub use lag::{Lag, LagTracker, Listing};
use stage0_backplane::clock::Clocks;
use stage0_backplane::{Backplane, NotReady, ServeError, WaitReason};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::clock::Clock;
use crate::egress::{Egress, Resolver, TrustError};
use crate::endpoints::{Directory, Endpoints};
use crate::maintenance::Maintenance;
use crate::reads::LogReads;
use crate::shared::Shared;

/// An exporter that is connected.
pub struct AuditExport {
    shared: Arc<Shared>,
    config: ExportConfig,
}

/// The exporter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The connection does not work.
    #[error("the backplane carries no requests")]
    Backplane(#[from] NotReady),
    /// A trusted certificate authority cannot be read or used.
    #[error("the certificates to trust cannot be used")]
    Trust(#[from] TrustError),
    /// The thread that reads the certificates ended early.
    #[error("the certificates to trust were not read")]
    Thread(#[from] tokio::task::JoinError),
}

impl AuditExport {
    /// Reads the trusted certificates and checks that the connection works.
    pub async fn build(config: ExportConfig, backplane: Backplane) -> Result<Self, BuildError> {
        Self::build_with(config, backplane, Resolver::System).await
    }

    /// As [`AuditExport::build`], with another resolver of host names.
    pub async fn build_with(
        config: ExportConfig,
        backplane: Backplane,
        resolver: Resolver,
    ) -> Result<Self, BuildError> {
        metrics::describe();
        backplane.requests.ready().await?;
        let egress = config.egress.clone();
        let egress = tokio::task::spawn_blocking(move || Egress::build(&egress, resolver)).await??;
        if config.egress.dangerous_allow_private {
            tracing::warn!("webhooks may reach private addresses and plain http: for local stacks only");
        }
        stage0_backplane::clock::start();
        let clock = Clock::new(Arc::new(Clocks::now));
        let worker_id = delivery_worker::new_id();
        let (lag, reads) = (LagTracker::default(), LogReads::default());
        let unlisted = WaitReason::default();
        let shared = Shared {
            backplane,
            egress: Arc::new(egress),
            #[cfg(test)]
            receiver: None,
            worker_id,
            lag,
            clock,
            reads,
            unlisted,
        };
        Ok(Self { shared: Arc::new(shared), config })
    }

    /// Replaces the system's clocks, so that tests can set them wrong.
    #[must_use]
    pub fn with_clocks(mut self, clocks: ClockReader) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.clock = Clock::new(clocks);
        }
        self
    }

    /// How far deliveries are behind.
    #[must_use]
    pub fn lag(&self) -> LagTracker {
        self.shared.lag.clone()
    }

    /// Runs until `stop` is cancelled, then completes the attempts in flight and releases the endpoints.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), ServeError> {
        let (directory, tasks) = (Directory::default(), TaskTracker::new());
        let admin = Admin { shared: Arc::clone(&self.shared), directory: directory.clone() };
        let served = admin.serve(&stop, &tasks).await;
        if served.is_ok() {
            // Before anything expires. Without it, retention waits and deliveries go by this host's clock.
            if let Err(error) = self.shared.clock.load(&self.shared.backplane).await {
                tracing::warn!(error = &error as &dyn Error, "the time that was last trusted cannot be read yet");
            }
            let endpoints = Endpoints::new(Arc::clone(&self.shared), directory);
            let maintenance = Maintenance::new(Arc::clone(&self.shared), self.config.clone());
            tasks.spawn(endpoints.run(stop.clone()));
            tasks.spawn(maintenance.run(stop.clone()));
            tasks.spawn(self.lag().report_metrics(stop.clone()));
            tracing::info!("audit-export serves");
            stop.cancelled().await;
        }
        tasks.close();
        tasks.wait().await;
        self.shared.backplane.requests.close().await;
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stopped_exporter_returns() {
        let exporter = AuditExport::build(ExportConfig::default(), Backplane::embedded()).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        exporter.run_until(stop).await.unwrap();
    }

    #[tokio::test]
    async fn build_fails_on_a_closed_backplane() {
        let backplane = Backplane::embedded();
        backplane.requests.close().await;
        assert!(AuditExport::build(ExportConfig::default(), backplane).await.is_err());
    }
}
