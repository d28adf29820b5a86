//! What all of one exporter's tasks share, and the timeouts of requests to the log, the state store and the keystore.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use stage0_backplane::{Backplane, Event, Subscription, WaitReason};
use stage0_contract::Notice;
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Clock;
use crate::egress::{Egress, Response, SendError};
use crate::lag::LagTracker;
use crate::reads::LogReads;
use crate::send::{DeliveryEndpoint, send};

pub(crate) struct Shared {
    pub(crate) backplane: Backplane,
    pub(crate) egress: Arc<Egress>,
    /// Receives what would leave through the egress.
    #[cfg(test)]
    pub(crate) receiver: Option<crate::delivery_worker::simulated::Receiver>,
    /// Names this process in the leases that it holds.
    pub(crate) worker_id: Uuid,
    pub(crate) lag: LagTracker,
    pub(crate) clock: Clock,
    pub(crate) reads: LogReads,
    /// Why the keystore's endpoints are not listed.
    pub(crate) unlisted: WaitReason,
}

impl Shared {
    /// For one request to the log, the state store or the keystore.
    pub(crate) const STORE_TIMEOUT: Duration = Duration::from_secs(3);

    /// One request to an endpoint.
    pub(crate) async fn send(
        &self,
        endpoint: &DeliveryEndpoint,
        event: &str,
        at: Timestamp,
        body: Bytes,
    ) -> Result<Response, SendError> {
        #[cfg(test)]
        if let Some(receiver) = &self.receiver {
            return receiver.receive(event, &body).await;
        }
        send(&self.egress, endpoint, event, at, body).await
    }

    pub(crate) fn store_deadline() -> Instant {
        Instant::now() + Self::STORE_TIMEOUT
    }
}

/// Every use of a lock is one step, so a panic elsewhere leaves nothing half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The subscription's next event; none once it has ended. Pending while there is no subscription.
pub(crate) async fn next_event<N: Notice>(subscription: &mut Option<Subscription<N>>) -> Option<Event<N>> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}
