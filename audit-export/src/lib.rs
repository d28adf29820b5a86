//! The exporter: from the decision log to the customers' webhooks, and what happens to the log by the clock.
//!
//! `endpoints` starts a `courier` for each endpoint; what it delivers and where it stands is the `cursor`, kept in the
//! ledger. `event` makes bodies of lines, `signature` and `egress` send them, each account in its turn (`fair`),
//! `backoff` and `verdict` judge what came of it. `keeper` writes checkpoints and ends what is past its time, through
//! `marks`, while `clock` and `trust` believe the time; `desk` answers what gateways ask, `lag` how far behind
//! deliveries are. Refuses to decide anything about actions.
//! INVARIANT: an event is delivered at least once, with the same id, or parked by name.

pub mod address;
pub mod backoff;
mod clock;
mod config;
mod courier;
mod cursor;
mod desk;
pub mod egress;
mod endpoints;
mod event;
mod fair;
mod keeper;
mod lag;
mod marks;
mod metrics;
mod post;
mod replays;
mod shared;
pub mod signature;
mod trust;
pub mod verdict;

use std::sync::Arc;

pub use clock::ClockReader;
pub use config::ExportConfig;
pub use lag::{Lag, LagWatch, Listing};
use stage0_backplane::clock::Clocks;
use stage0_backplane::{Backplane, NotReady, ServeError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::desk::Desk;
use crate::egress::{Egress, Resolver, TrustError};
use crate::endpoints::{Directory, Endpoints};
use crate::keeper::Keeper;
use crate::shared::Shared;

/// An exporter that is connected.
pub struct AuditExport {
    shared: Arc<Shared>,
    config: ExportConfig,
}

/// The exporter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No connection.
    #[error("the backplane carries no questions")]
    Backplane(#[from] NotReady),
    /// A certificate of those to trust.
    #[error("the certificates to trust cannot be used")]
    Trust(#[from] TrustError),
    /// The thread that reads them ended.
    #[error("the certificates to trust were not read")]
    Thread(#[from] tokio::task::JoinError),
}

impl AuditExport {
    /// Reads the certificates to trust and proves that the connection works.
    pub async fn build(config: ExportConfig, backplane: Backplane) -> Result<Self, BuildError> {
        Self::build_with(config, backplane, Resolver::System).await
    }

    /// As [`AuditExport::build`], with a way to look up names.
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
        let shared = Shared { backplane, egress, worker: courier::new_id(), lag: LagWatch::default(), clock };
        Ok(Self { shared: Arc::new(shared), config })
    }

    /// The same by other clocks: for a test of clocks that are wrong.
    #[must_use]
    pub fn by(mut self, clocks: ClockReader) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.clock = Clock::new(clocks);
        }
        self
    }

    /// Where one can look how far deliveries are behind.
    #[must_use]
    pub fn lag(&self) -> LagWatch {
        self.shared.lag.clone()
    }

    /// Delivers until `stop` is cancelled, then lands what is on its way, hands its endpoints back and closes the connection.
    pub async fn run_until(self, stop: CancellationToken) -> Result<(), ServeError> {
        let (directory, tasks) = (Directory::default(), TaskTracker::new());
        let desk = Arc::new(Desk { shared: Arc::clone(&self.shared), directory: directory.clone() });
        let served = desk::serve_all(&self.shared.backplane, &desk, &stop, &tasks).await;
        let couriers = Endpoints::new(Arc::clone(&self.shared), directory);
        let keeper = Keeper::new(Arc::clone(&self.shared), self.config.clone());
        if served.is_ok() {
            // Before anything ends by the clock. Where it cannot be known yet, removal waits for it, and deliveries go
            // by this host's.
            if let Err(error) = self.shared.clock.load(&self.shared.backplane).await {
                tracing::warn!(%error, "it is not known yet which time it was");
            }
            tasks.spawn(couriers.run(stop.clone()));
            tasks.spawn(keeper.run(stop.clone()));
            tasks.spawn(self.lag().tell(stop.clone()));
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
    async fn it_ends_when_told_to() {
        let exporter = AuditExport::build(ExportConfig::default(), Backplane::embedded()).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        exporter.run_until(stop).await.unwrap();
    }

    #[tokio::test]
    async fn it_does_not_start_on_a_closed_backplane() {
        let backplane = Backplane::embedded();
        backplane.requests.close().await;
        assert!(AuditExport::build(ExportConfig::default(), backplane).await.is_err());
    }
}
