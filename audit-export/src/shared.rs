//! What all of one exporter's tasks share, and the timeouts of requests to the log, the state store and the keystore.

use std::time::Duration;

use jiff::SignedDuration;
use stage0_backplane::{Backplane, Event, Subscription};
use stage0_contract::{AccountId, MarkBody, Notice};
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Clock;
use crate::egress::Egress;
use crate::lag::LagTracker;
use crate::marks::{self, MarkFailure, MarkResult};

pub(crate) struct Shared {
    pub(crate) backplane: Backplane,
    pub(crate) egress: Egress,
    /// Names this process in the leases that it holds.
    pub(crate) worker_id: Uuid,
    pub(crate) lag: LagTracker,
    /// The time by which lines expire and retries are due.
    pub(crate) clock: Clock,
}

impl Shared {
    /// For one request to the log, the state store or the keystore.
    pub(crate) const STORE_TIMEOUT: Duration = Duration::from_secs(3);

    /// The deadline of such a request that starts now.
    pub(crate) fn store_deadline() -> Instant {
        Instant::now() + Self::STORE_TIMEOUT
    }

    /// Writes a mark; a checkpoint only if the last mark is at least `min_interval` old.
    pub(crate) async fn mark(
        &self,
        account: &AccountId,
        days: u32,
        body: MarkBody,
        min_interval: SignedDuration,
    ) -> Result<MarkResult, MarkFailure> {
        marks::write(&self.backplane, account, days, body, min_interval, self.clock.now()).await
    }
}

/// The subscription's next event; none once it has ended. Pending while there is no subscription.
pub(crate) async fn next_event<N: Notice>(subscription: &mut Option<Subscription<N>>) -> Option<Event<N>> {
    match subscription {
        Some(subscription) => subscription.next().await,
        None => std::future::pending().await,
    }
}
