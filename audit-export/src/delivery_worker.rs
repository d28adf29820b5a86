//! Delivers one endpoint's events: read the log, sign, send, classify the answer, schedule a retry or dead-letter,
//! store the cursor.
//!
//! Every exporter runs a worker for each endpoint; the one that holds the lease in the endpoint's stored cursor
//! delivers. A slow receiver delays only its own events.
//! Reading the log, storing the cursor and sending overlap: none of them waits for another.
//! INVARIANT: only events of the stored cursor are sent, so the next lease holder knows every number a receiver has
//! seen.
//! INVARIANT: nothing is sent on an old lease: a worker that cannot renew it stops sending before it expires.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::{Revision, random_fraction};
use tokio::sync::{Notify, watch};
use tokio::task::JoinError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cursor::OpenEvent;
use crate::metrics;
use crate::send::DeliveryEndpoint;
use crate::shared::Shared;

mod complete;
mod lease;
mod read;

use complete::FinishedAttempt;
pub(crate) use lease::cursor_key;
use lease::{Body, LEASE_RENEW_INTERVAL, Lease, STORE_INTERVAL, store_result};
use read::Line;

const MAX_IN_FLIGHT: usize = 16;
/// A receiver that hangs, or a name that does not resolve, must not use up its account's slots.
const MAX_IN_FLIGHT_FAILING: usize = 2;
/// A line that was read longer ago is read again before it is sent: it may have been deleted since.
const BODY_TTL: Duration = Duration::from_secs(1);
/// How often the log and the replay requests are checked without a notice.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
const ERROR_RETRY_DELAY: Duration = Duration::from_secs(1);

pub(crate) struct DeliveryWorker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) endpoint: watch::Receiver<Arc<DeliveryEndpoint>>,
    pub(crate) wake: Arc<Notify>,
    /// A cursor with a lease that ends implausibly late, and when this revision was first seen.
    pub(crate) overlong_lease: Option<(Revision, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Another worker holds the lease now, or may hold it.
    LeaseLost,
    Disabled,
    Stopped,
}

impl DeliveryWorker {
    /// Storing a cursor is never cut off: its revision would be unknown, and the lease could not be released.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match self.acquire_lease().await {
                Ok(mut lease) => match self.deliver(&mut lease, &stop).await {
                    Ended::LeaseLost => self.abandon(lease).await,
                    Ended::Disabled | Ended::Stopped => return self.release(lease).await,
                },
                Err(retry_delay) => {
                    stop.run_until_cancelled(tokio::time::sleep(retry_delay)).await;
                }
            }
        }
    }

    async fn deliver(&mut self, lease: &mut Lease, stop: &CancellationToken) -> Ended {
        while !stop.is_cancelled() {
            if let Err(ended) = self.step(lease, stop).await {
                return ended;
            }
        }
        Ended::Stopped
    }

    async fn step(&mut self, lease: &mut Lease, stop: &CancellationToken) -> Result<(), Ended> {
        let endpoint = self.endpoint.borrow_and_update().clone();
        if !lease.is_trusted() {
            let webhook = &endpoint.webhook.id;
            tracing::warn!(%webhook, "cursor could not be stored; the endpoint is given up for a moment");
            return Err(Ended::LeaseLost);
        }
        if lease.polled_at.elapsed() >= POLL_INTERVAL {
            lease.reading.drop_stale();
            lease.reading.note_news();
            lease.polled_at = Instant::now();
            self.import_replays(lease).await?;
        }
        self.read_events(lease, &endpoint);
        if lease.is_store_due() {
            self.begin_renewal(lease)?;
        }
        self.send_due(lease, &endpoint).await;
        lease.lag.update(lease.endpoint_lag());
        let (idle, wait) = (lease.attempts.is_empty(), self.time_to_next_step(lease));
        tokio::select! {
            // None of the first ones is ready again at once, so the attempts behind them always have their turn.
            biased;
            () = stop.cancelled() => {}
            stored = store_result(&mut lease.storing) => self.note_stored(lease, stored).await?,
            read = lease.reading.outcome() => self.finish_read(lease, read),
            () = self.wake.notified() => lease.reading.note_news(),
            Some(finished) = lease.attempts.join_next(), if !idle => {
                self.complete_all(lease, &endpoint, finished).await?;
            }
            _ = self.endpoint.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
        Ok(())
    }

    /// Completes an attempt, and those that have ended with it.
    async fn complete_all(
        &mut self,
        lease: &mut Lease,
        endpoint: &DeliveryEndpoint,
        first: Result<FinishedAttempt, JoinError>,
    ) -> Result<(), Ended> {
        let mut next = Some(first);
        while let Some(finished) = next {
            match finished {
                Ok(attempt) => self.complete(lease, endpoint, attempt).await?,
                Err(error) => {
                    // Its event stays open, and the next lease holder sends it again.
                    let error = &error as &dyn Error;
                    tracing::error!(webhook = %endpoint.webhook.id, error, "attempt ended early");
                    return Err(Ended::LeaseLost);
                }
            }
            next = lease.attempts.try_join_next();
        }
        Ok(())
    }

    async fn send_due(&mut self, lease: &mut Lease, endpoint: &Arc<DeliveryEndpoint>) {
        let limit = if lease.cursor.is_failing() { MAX_IN_FLIGHT_FAILING } else { MAX_IN_FLIGHT };
        let free = limit.saturating_sub(lease.in_flight.len());
        let now = self.shared.clock.now();
        let may_send =
            |event: &&OpenEvent| event.sequence < lease.unstored_from && !lease.in_flight.contains(&event.sequence);
        let due: Vec<_> = lease.cursor.due(now).filter(may_send).take(free).cloned().collect();
        lease.held_back = false;
        for event in due {
            if let Some(rate) = endpoint.webhook.rate_limit {
                let now = Instant::now();
                lease.held_back = lease.paced_until > now;
                if lease.held_back {
                    return;
                }
                lease.paced_until = now + Duration::from_secs(1) / rate.max(1);
            }
            if lease.bodies.get(&event.sequence).is_none_or(|body| body.read_at.elapsed() >= BODY_TTL) {
                match self.read_again(lease, endpoint, &event, now).await {
                    Ok(Line::Known) => {}
                    Ok(Line::NotYet) => continue,
                    Err(error) => {
                        self.log_failure("log cannot be read", &error);
                        return;
                    }
                }
            }
            // INVARIANT: there is no wait between this and the attempt. Reading a line again takes time.
            if !lease.is_trusted() {
                return;
            }
            match lease.bodies.remove(&event.sequence) {
                Some(body) => self.start_attempt(lease, endpoint, event, body.bytes),
                None => {
                    metrics::expired();
                    tracing::info!(
                        request_id = event.request_id(), webhook = %endpoint.webhook.id, event = event.event,
                        "event is gone from the log and is not delivered"
                    );
                    lease.cursor.remove(event.sequence);
                    lease.changed = true;
                }
            }
        }
    }

    fn start_attempt(&self, lease: &mut Lease, endpoint: &Arc<DeliveryEndpoint>, event: OpenEvent, body: Bytes) {
        lease.in_flight.insert(event.sequence);
        let (shared, endpoint) = (Arc::clone(&self.shared), Arc::clone(endpoint));
        lease.attempts.spawn(async move {
            let began = Instant::now();
            let result = shared.send(&endpoint, &event.event, shared.clock.clocks().wall, body).await;
            FinishedAttempt { event, at: shared.clock.now(), result, took: began.elapsed() }
        });
    }

    fn time_to_next_step(&self, lease: &Lease) -> Duration {
        let now = self.shared.clock.now();
        let retry = lease.cursor.next_due(now);
        let retry = retry.map_or(POLL_INTERVAL, |at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
        let paced = pacing_delay(lease.held_back, lease.paced_until, Instant::now());
        let read = lease.reading.due_in().filter(|_| lease.wants_to_read()).unwrap_or(POLL_INTERVAL);
        let store = time_to_store(lease);
        retry.min(paced).min(read).min(store).clamp(Duration::from_millis(1), POLL_INTERVAL)
    }

    /// Logs a failure of the log or the state store, and returns the delay before the next try.
    fn log_failure(&self, message: &'static str, error: &(dyn Error + 'static)) -> Duration {
        tracing::warn!(webhook = %self.endpoint.borrow().webhook.id, error, "{message}");
        jittered(ERROR_RETRY_DELAY)
    }
}

/// None begins while one runs.
fn time_to_store(lease: &Lease) -> Duration {
    if lease.storing.is_some() {
        return POLL_INTERVAL;
    }
    let store = if lease.changed { STORE_INTERVAL } else { LEASE_RENEW_INTERVAL };
    let numbering = lease.numbering_due_in().unwrap_or(POLL_INTERVAL);
    store.saturating_sub(lease.stored_at.elapsed()).min(numbering)
}

/// How long the rate limit holds the worker up: not at all when the limit allows the held-back event by now.
fn pacing_delay(held_back: bool, until: Instant, now: Instant) -> Duration {
    if held_back { until.saturating_duration_since(now) } else { POLL_INTERVAL }
}

/// One to two times the delay, so that workers do not retry together.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(1.0 + random_fraction())
}

pub(crate) fn new_id() -> Uuid {
    Uuid::now_v7()
}

#[cfg(test)]
pub(crate) mod simulated;

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen: storing the cursor took longer than the pacing delay, and each event then waited for the next poll.
    #[test]
    fn an_event_held_back_by_the_rate_limit_is_sent_as_soon_as_the_limit_allows() {
        let now = Instant::now();
        let later = now + Duration::from_millis(10);
        assert_eq!(pacing_delay(true, later, now), Duration::from_millis(10));
        assert_eq!(pacing_delay(true, now, later), Duration::ZERO);
        assert_eq!(pacing_delay(false, now, later), POLL_INTERVAL);
    }
}
