//! The exporter of recorded decisions. This version records none, so there is nothing to export, and the service says so.
//!
//! Owns its place in a deployment: a process that starts, proves its connection, stops like the others and can be replaced by one
//! that delivers. Refuses to pretend: it serves no subject, and answers carry `meta.audit: none`.

use stage0_backplane::{Backplane, NotReady};
use tokio_util::sync::CancellationToken;

/// An exporter that is connected.
pub struct AuditExport {
    backplane: Backplane,
}

/// The exporter cannot start.
#[derive(Debug, thiserror::Error)]
#[error("the backplane carries no questions")]
pub struct BuildError(#[from] NotReady);

impl AuditExport {
    /// Proves that the connection works.
    pub async fn build(backplane: Backplane) -> Result<Self, BuildError> {
        backplane.requests.ready().await?;
        Ok(Self { backplane })
    }

    /// Waits until `stop` is cancelled, then closes the connection.
    pub async fn run_until(self, stop: CancellationToken) {
        tracing::warn!("nothing is recorded in this version, so nothing is exported");
        stop.cancelled().await;
        self.backplane.requests.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_ends_when_told_to() {
        let exporter = AuditExport::build(Backplane::embedded()).await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        exporter.run_until(stop).await;
    }

    #[tokio::test]
    async fn it_does_not_start_on_a_closed_backplane() {
        let backplane = Backplane::embedded();
        backplane.requests.close().await;
        assert!(AuditExport::build(backplane).await.is_err());
    }
}
