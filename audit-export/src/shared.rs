//! What all of one exporter's work shares, and the times that it may take.

use std::time::Duration;

use jiff::SignedDuration;
use stage0_backplane::Backplane;
use stage0_contract::{AccountId, MarkBody};
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Clock;
use crate::egress::Egress;
use crate::lag::LagWatch;
use crate::marks::{self, MarkFailure, Written};

/// One worker's connections.
pub(crate) struct Shared {
    pub(crate) backplane: Backplane,
    pub(crate) egress: Egress,
    /// Names this worker in cursors that it holds.
    pub(crate) worker: Uuid,
    /// How far its couriers are.
    pub(crate) lag: LagWatch,
    /// By which things end.
    pub(crate) clock: Clock,
}

impl Shared {
    /// One question to log, ledger or keystore.
    pub(crate) const STORE_WITHIN: Duration = Duration::from_secs(3);
    /// Replays that nobody takes: their endpoint is gone.
    pub(crate) const REPLAY_LIVES: Duration = Duration::from_secs(30 * 86_400);

    /// The deadline of one such question.
    pub(crate) fn soon() -> Instant {
        Instant::now() + Self::STORE_WITHIN
    }

    /// Writes a mark; a checkpoint only if the last mark is not younger than `pace`.
    pub(crate) async fn mark(
        &self,
        account: &AccountId,
        days: u32,
        body: MarkBody,
        pace: SignedDuration,
    ) -> Result<Written, MarkFailure> {
        marks::write(&self.backplane, account, days, body, pace, self.clock.now()).await
    }
}
