//! The lease of an endpoint: the right to deliver its events, which is part of its stored cursor.
//!
//! Each change of the lease is one compare-and-swap of the cursor, so two workers never both hold it. What the last
//! stored cursor holds is sent while the next one is stored.
//! INVARIANT: one store runs at a time, and a number counts as stored, and the lease as renewed, once it has succeeded.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use stage0_backplane::{BoxFuture, PutError, Revision, random_fraction};
use stage0_contract::WebhookId;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::complete::FinishedAttempt;
use super::read::Reading;
use super::{DeliveryWorker, ERROR_RETRY_DELAY, Ended, POLL_INTERVAL, jittered};
use crate::cursor::{Cursor, LeaseHolder};
use crate::lag::{EndpointLag, LagHandle};
use crate::shared::Shared;

/// How long a lease lasts unless it is renewed; after that another worker may take the endpoint over.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// Sending stops this long after the last renewal: another worker's clock may be ahead.
const LEASE_TRUSTED_FOR: Duration = Duration::from_secs(7);
/// A lease that ends later than this was written by a worker whose clock is ahead.
const MAX_LEASE_LEFT: Duration = Duration::from_secs(60);
pub(super) const LEASE_RENEW_INTERVAL: Duration = Duration::from_secs(3);
/// How often the cursor is stored while deliveries complete. What completed since is sent again after a crash.
pub(super) const STORE_INTERVAL: Duration = Duration::from_millis(250);
/// Between two stores that a few new numbers cause, for each 64 KiB of the cursor.
pub(super) const MIN_NUMBERING_INTERVAL: Duration = Duration::from_millis(25);
/// This many new numbers are stored at once: a backlog never waits.
const MAX_UNSTORED_NUMBERS: u64 = 64;
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// Cursors of removed endpoints outlive the last of their events.
const CURSOR_TTL: Duration = Duration::from_secs(400 * 86_400);

const _: () = assert!(LEASE_RENEW_INTERVAL.as_secs() < LEASE_TRUSTED_FOR.as_secs());
const _: () = assert!(LEASE_TRUSTED_FOR.as_secs() < LEASE_TTL.as_secs());

/// The endpoint's cursor while this worker holds its lease, and the deliveries in progress.
pub(super) struct Lease {
    pub(super) cursor: Cursor,
    pub(super) revision: Option<Revision>,
    pub(super) bodies: HashMap<u64, Body>,
    /// The first number that the stored cursor does not have: no event with this number or a higher one is sent.
    pub(super) unstored_from: u64,
    pub(super) stored_bytes: usize,
    pub(super) attempts: JoinSet<FinishedAttempt>,
    pub(super) in_flight: HashSet<u64>,
    pub(super) reading: Reading,
    /// Changed since the last store began.
    pub(super) changed: bool,
    /// When the last store that succeeded began.
    pub(super) stored_at: Instant,
    pub(super) storing: Option<Storing>,
    pub(super) polled_at: Instant,
    pub(super) paced_until: Instant,
    pub(super) held_back: bool,
    /// Since when the log that answers ends before a line that is read again.
    pub(super) behind_since: Option<Instant>,
    pub(super) lag: LagHandle,
}

/// The cursor on its way to the state store.
pub(super) struct Storing {
    put: BoxFuture<'static, Result<Revision, PutError>>,
    began: Instant,
    unstored_from: u64,
    bytes: usize,
}

pub(super) struct Body {
    pub(super) bytes: Bytes,
    pub(super) read_at: Instant,
}

impl DeliveryWorker {
    /// Takes the endpoint's lease, or returns the delay after which to try again.
    pub(super) async fn acquire_lease(&mut self) -> Result<Lease, Duration> {
        let endpoint = self.endpoint.borrow().clone();
        let key = cursor_key(&endpoint.webhook.id);
        let found = self.shared.backplane.state_store.get(&key, Shared::store_deadline()).await;
        let found = found.map_err(|error| self.log_failure("cursor cannot be read", &error))?;
        let (revision, mut cursor) = match found {
            None => (None, Cursor::default()),
            Some(record) => {
                let cursor = serde_json::from_slice(&record.value);
                let cursor = cursor.map_err(|error| self.log_failure("cursor cannot be parsed", &error))?;
                (Some(record.revision), cursor)
            }
        };
        let now = self.shared.clock.clocks().wall;
        let worker_id = self.shared.worker_id;
        if let Some(holder) = cursor.holder.filter(|holder| holder.worker != worker_id && holder.until > now) {
            let left = Duration::try_from(holder.until.duration_since(now)).unwrap_or(ERROR_RETRY_DELAY);
            if left <= MAX_LEASE_LEFT || !self.is_abandoned(revision) {
                return Err(left.min(LEASE_TTL) + ERROR_RETRY_DELAY.mul_f64(random_fraction()));
            }
        }
        self.overlong_lease = None;
        cursor.resume_if_disabled();
        cursor.reset_failures_after_pause(self.shared.clock.now());
        let mut lease = Lease::new(cursor, revision, self.shared.lag.register());
        match self.renew(&mut lease).await {
            Ok(()) => {
                let webhook = &endpoint.webhook;
                tracing::info!(webhook = %webhook.id, account = %webhook.account, "endpoint is served by this worker");
                Ok(lease)
            }
            Err(_) => Err(jittered(ERROR_RETRY_DELAY)),
        }
    }

    /// A lease that a wrong clock wrote is abandoned if its cursor did not change for as long as a lease lasts.
    fn is_abandoned(&mut self, revision: Option<Revision>) -> bool {
        let Some(revision) = revision else { return true };
        match self.overlong_lease {
            Some((seen, since)) if seen == revision => since.elapsed() >= LEASE_TTL,
            Some(_) | None => {
                self.overlong_lease = Some((revision, Instant::now()));
                false
            }
        }
    }

    /// Stores the cursor, with everything that is in it now.
    pub(super) async fn renew(&self, lease: &mut Lease) -> Result<(), Ended> {
        self.finish_storing(lease).await?;
        self.begin_renewal(lease)?;
        self.finish_storing(lease).await
    }

    /// Begins to store the cursor. No other store may run.
    pub(super) fn begin_renewal(&self, lease: &mut Lease) -> Result<(), Ended> {
        let now = self.shared.clock.clocks().wall;
        let until = now.checked_add(SignedDuration::try_from(LEASE_TTL).unwrap_or_default());
        lease.cursor.holder = until.ok().map(|until| LeaseHolder { worker: self.shared.worker_id, until });
        self.begin_storing(lease)
    }

    fn begin_storing(&self, lease: &mut Lease) -> Result<(), Ended> {
        let id = self.endpoint.borrow().webhook.id.clone();
        let began = Instant::now();
        let value = serde_json::to_vec(&lease.cursor).map_err(|error| {
            tracing::error!(webhook = %id, error = &error as &dyn Error, "cursor cannot be written");
            Ended::LeaseLost
        })?;
        let (unstored_from, bytes) = (lease.cursor.next_sequence(), value.len());
        let (shared, revision, deadline) = (Arc::clone(&self.shared), lease.revision, Shared::store_deadline());
        let put = Box::pin(async move {
            let state_store = &shared.backplane.state_store;
            state_store.put(&cursor_key(&id), value.into(), revision, Some(CURSOR_TTL), deadline).await
        });
        lease.changed = false;
        lease.storing = Some(Storing { put, began, unstored_from, bytes });
        Ok(())
    }

    /// Waits for the store that runs, if there is one.
    async fn finish_storing(&self, lease: &mut Lease) -> Result<(), Ended> {
        if lease.storing.is_none() {
            return Ok(());
        }
        let stored = store_result(&mut lease.storing).await;
        self.note_stored(lease, stored).await
    }

    /// Takes the result of the store that ran.
    pub(super) async fn note_stored(&self, lease: &mut Lease, stored: Result<Revision, PutError>) -> Result<(), Ended> {
        let Some(Storing { put: _, began, unstored_from, bytes }) = lease.storing.take() else { return Ok(()) };
        let webhook = || self.endpoint.borrow().webhook.id.clone();
        match stored {
            Ok(revision) => {
                lease.revision = Some(revision);
                lease.stored_at = began;
                lease.unstored_from = unstored_from;
                lease.stored_bytes = bytes;
                Ok(())
            }
            Err(PutError::Conflict) => {
                tracing::info!(webhook = %webhook(), "another worker took the endpoint over");
                Err(Ended::LeaseLost)
            }
            Err(error @ PutError::Failed(_)) => {
                // It may have been stored under a revision that is not known here: the cursor must be read again.
                tracing::warn!(webhook = %webhook(), error = &error as &dyn Error, "cursor could not be stored");
                tokio::time::sleep(ERROR_RETRY_DELAY).await;
                Err(Ended::LeaseLost)
            }
        }
    }

    /// Ends what a lost lease had running. A store is not cut off.
    pub(super) async fn abandon(&self, mut lease: Lease) {
        lease.attempts.abort_all();
        if lease.storing.is_some() {
            // Whatever its outcome, the cursor is read again.
            let _ = store_result(&mut lease.storing).await;
        }
    }

    /// Completes the attempts in flight, then stores the cursor without a lease holder.
    pub(super) async fn release(mut self, mut lease: Lease) {
        if self.finish_storing(&mut lease).await.is_err() {
            return;
        }
        let completed = async {
            while let Some(finished) = lease.attempts.join_next().await {
                if let Ok(attempt) = finished {
                    let endpoint = self.endpoint.borrow().clone();
                    // The worker ends, whether or not this attempt disables the endpoint.
                    let _ = self.complete(&mut lease, &endpoint, attempt).await;
                }
            }
        };
        if timeout(FINISH_TIMEOUT, completed).await.is_err() {
            tracing::info!("attempts are given up and made again by the next worker that serves the endpoint");
        }
        lease.cursor.holder = None;
        // A lease that cannot be released expires.
        if self.begin_storing(&mut lease).is_ok() && self.finish_storing(&mut lease).await.is_ok() {
            tracing::info!(webhook = %self.endpoint.borrow().webhook.id, "endpoint is free for another worker");
        }
    }
}

impl Lease {
    fn new(cursor: Cursor, revision: Option<Revision>, lag: LagHandle) -> Self {
        let now = Instant::now();
        Self {
            cursor,
            revision,
            bodies: HashMap::new(),
            unstored_from: 0,
            stored_bytes: 0,
            attempts: JoinSet::new(),
            in_flight: HashSet::new(),
            reading: Reading::default(),
            changed: true,
            stored_at: now,
            storing: None,
            polled_at: now.checked_sub(POLL_INTERVAL).unwrap_or(now),
            paced_until: now,
            held_back: false,
            behind_since: None,
            lag,
        }
    }

    pub(super) fn is_trusted(&self) -> bool {
        self.stored_at.elapsed() < LEASE_TRUSTED_FOR
    }

    pub(super) fn wants_to_read(&self) -> bool {
        !self.reading.caught_up && self.cursor.wants_more()
    }

    pub(super) fn is_store_due(&self) -> bool {
        if self.storing.is_some() {
            return false;
        }
        let elapsed = self.stored_at.elapsed();
        elapsed >= LEASE_RENEW_INTERVAL
            || (self.changed && elapsed >= STORE_INTERVAL)
            || self.numbering_due_in() == Some(Duration::ZERO)
    }

    /// When new sequence numbers must be stored; none when all are.
    pub(super) fn numbering_due_in(&self) -> Option<Duration> {
        let unstored = self.cursor.next_sequence().saturating_sub(self.unstored_from);
        (unstored > 0).then(|| numbering_delay(unstored, self.stored_bytes, self.stored_at.elapsed()))
    }

    pub(super) fn endpoint_lag(&self) -> EndpointLag {
        let known = self.cursor.endpoint_lag();
        let earliest = |at: Option<Timestamp>| at.into_iter().chain(self.reading.unread_since).min();
        EndpointLag { oldest: earliest(known.oldest), untried: earliest(known.untried) }
    }
}

/// The result of the store that runs; pending while none does.
pub(super) async fn store_result(storing: &mut Option<Storing>) -> Result<Revision, PutError> {
    match storing {
        Some(storing) => storing.put.as_mut().await,
        None => pending().await,
    }
}

pub(crate) fn cursor_key(id: &WebhookId) -> String {
    format!("cursor.{id}")
}

/// How long new numbers wait before they are stored. Many do not wait; for a few, a large cursor is stored less often.
fn numbering_delay(unstored: u64, stored_bytes: usize, since_stored: Duration) -> Duration {
    if unstored >= MAX_UNSTORED_NUMBERS {
        return Duration::ZERO;
    }
    let chunks = u32::try_from(stored_bytes >> 16).unwrap_or(u32::MAX).saturating_add(1);
    MIN_NUMBERING_INTERVAL.saturating_mul(chunks).min(STORE_INTERVAL).saturating_sub(since_stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_of_numbers_is_stored_at_once_and_a_trickle_in_groups() {
        let ms = Duration::from_millis;
        assert_eq!(numbering_delay(MAX_UNSTORED_NUMBERS, 1 << 20, ms(0)), ms(0), "a backlog");
        assert_eq!(numbering_delay(1, 4_000, ms(300)), ms(0), "the first after a quiet time");
        assert_eq!(numbering_delay(1, 4_000, ms(5)), ms(20));
        assert_eq!(numbering_delay(1, 130_000, ms(5)), ms(45), "a cursor of two chunks");
        assert_eq!(numbering_delay(MAX_UNSTORED_NUMBERS - 1, usize::MAX, ms(5)), STORE_INTERVAL - ms(5));
    }
}
