//! Services that run together in one process: when one ends, a token tells the caller to stop all of them.

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Running services, as tasks. The first that ends cancels the token.
pub struct ServiceGroup<E> {
    on_end: CancellationToken,
    services: JoinSet<Result<(), E>>,
}

/// A service's task panicked.
#[derive(Debug, thiserror::Error)]
#[error("a service panicked")]
pub struct ServicePanicked(#[from] JoinError);

impl<E: From<ServicePanicked> + Send + 'static> ServiceGroup<E> {
    /// An empty group; `on_end` is cancelled as soon as any of its services ends, for whatever reason.
    pub fn new(on_end: CancellationToken) -> Self {
        Self { on_end, services: JoinSet::new() }
    }

    /// Starts a service.
    pub fn spawn(&mut self, service: impl Future<Output = Result<(), E>> + Send + 'static) {
        let on_end = self.on_end.clone().drop_guard();
        self.services.spawn(async move {
            let ended = service.await;
            drop(on_end);
            ended
        });
    }

    /// Waits until all services have ended; returns the first failure.
    pub async fn join(mut self) -> Result<(), E> {
        let mut result = Ok(());
        while let Some(ended) = self.services.join_next().await {
            result = result.and(ended.unwrap_or_else(|panic| Err(ServicePanicked(panic).into())));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("it failed")]
        Own,
        #[error(transparent)]
        Panicked(#[from] ServicePanicked),
    }

    #[tokio::test]
    async fn a_service_that_ends_cancels_the_token_and_the_first_failure_is_the_result() {
        let (on_end, stop) = (CancellationToken::new(), CancellationToken::new());
        let mut group = ServiceGroup::new(on_end.clone());
        let waits = stop.clone();
        group.spawn(async move {
            waits.cancelled().await;
            Ok(())
        });
        assert!(!on_end.is_cancelled());
        group.spawn(async { Err(Failure::Own) });
        on_end.cancelled().await;
        stop.cancel();
        assert!(matches!(group.join().await, Err(Failure::Own)));
    }

    #[tokio::test]
    async fn a_service_that_panics_is_a_failure() {
        let mut group = ServiceGroup::<Failure>::new(CancellationToken::new());
        group.spawn(async { panic!("x") });
        assert!(matches!(group.join().await, Err(Failure::Panicked(_))));
    }
}
