//! How far this process's deliveries are behind.
//!
//! The totals cover the endpoints whose lease a worker here holds; an endpoint that no worker holds shows only as a too
//! low number of endpoints held. Replayed events do not count as behind: they were due once before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::clock_trust::describe_duration;
use crate::metrics;
use crate::shared::lock;

/// Longer than a delivery to a healthy receiver takes, its first two retries included.
const BEHIND_AFTER_SECONDS: u64 = 60;
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How far this process is behind, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Endpoints whose lease it holds.
    pub held: u32,
    /// Of those, the ones with an event that was not delivered within a minute.
    pub behind: u32,
    /// Age of the oldest event that is not delivered, in seconds; 0 when all are.
    pub oldest_seconds: u64,
    /// Age of the oldest event that was not even tried, in seconds.
    pub untried_seconds: u64,
}

/// Whether the keystore's list of endpoints is known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Listing {
    /// It was never received: nothing is delivered.
    #[default]
    Never,
    /// It was received once, but the last request failed.
    Failed,
    /// The last request received it.
    Current,
}

/// Collects the lag of all endpoints, for metrics and health checks.
#[derive(Clone, Default)]
pub struct LagTracker(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    last_handle: u64,
    listing: Listing,
    clock_ahead: Option<Duration>,
    endpoints: HashMap<u64, EndpointLag>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EndpointLag {
    pub(crate) oldest: Option<Timestamp>,
    pub(crate) untried: Option<Timestamp>,
}

pub(crate) struct LagHandle {
    tracker: LagTracker,
    number: u64,
}

impl LagTracker {
    /// The totals now.
    #[must_use]
    pub fn snapshot(&self) -> Lag {
        self.at(Timestamp::now())
    }

    /// Whether the keystore's list of endpoints is known.
    #[must_use]
    pub fn listing(&self) -> Listing {
        lock(&self.0).listing
    }

    /// Why retention removes nothing from the log; none while it does.
    #[must_use]
    pub fn retention_stopped(&self) -> Option<String> {
        let ahead = describe_duration(lock(&self.0).clock_ahead?);
        Some(format!(
            "retention: this host's clock is {ahead} ahead of all others: nothing is removed from the log until it is \
             set right, or has stood so for a day"
        ))
    }

    pub(crate) fn set_clock_ahead(&self, ahead: Option<Duration>) -> bool {
        let before = std::mem::replace(&mut lock(&self.0).clock_ahead, ahead);
        before.is_some() != ahead.is_some()
    }

    pub(crate) fn set_listed(&self, succeeded: bool) {
        let mut state = lock(&self.0);
        state.listing = match (succeeded, state.listing) {
            (true, _) => Listing::Current,
            (false, Listing::Never) => Listing::Never,
            (false, Listing::Failed | Listing::Current) => Listing::Failed,
        };
    }

    pub(crate) fn register(&self) -> LagHandle {
        let mut state = lock(&self.0);
        state.last_handle += 1;
        let number = state.last_handle;
        state.endpoints.insert(number, EndpointLag::default());
        LagHandle { tracker: self.clone(), number }
    }

    pub(crate) async fn report_metrics(self, stop: CancellationToken) {
        let mut ticks = interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            metrics::lag(self.snapshot());
        }
    }

    fn at(&self, now: Timestamp) -> Lag {
        let mut lag = Lag::default();
        for endpoint in lock(&self.0).endpoints.values() {
            let oldest = age_seconds(endpoint.oldest, now);
            lag.held = lag.held.saturating_add(1);
            lag.behind = lag.behind.saturating_add(u32::from(oldest >= BEHIND_AFTER_SECONDS));
            lag.oldest_seconds = lag.oldest_seconds.max(oldest);
            lag.untried_seconds = lag.untried_seconds.max(age_seconds(endpoint.untried, now));
        }
        lag
    }
}

impl LagHandle {
    pub(crate) fn update(&self, lag: EndpointLag) {
        if let Some(endpoint) = lock(&self.tracker.0).endpoints.get_mut(&self.number) {
            *endpoint = lag;
        }
    }
}

impl Drop for LagHandle {
    fn drop(&mut self) {
        lock(&self.tracker.0).endpoints.remove(&self.number);
    }
}

/// Zero for a time in the future: the clock of the process that recorded the event may be ahead of ours.
fn age_seconds(since: Option<Timestamp>, now: Timestamp) -> u64 {
    since.map_or(0, |since| u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn lag(oldest: i64, untried: i64) -> EndpointLag {
        EndpointLag { oldest: Some(at(oldest)), untried: Some(at(untried)) }
    }

    #[test]
    fn the_lag_is_that_of_the_oldest_event_and_an_endpoint_is_behind_after_a_minute() {
        let tracker = LagTracker::default();
        assert_eq!(tracker.at(at(1_000)), Lag::default());
        let (a, b, _idle) = (tracker.register(), tracker.register(), tracker.register());
        a.update(lag(940, 990));
        b.update(lag(941, 950));
        assert_eq!(tracker.at(at(1_000)), Lag { held: 3, behind: 1, oldest_seconds: 60, untried_seconds: 50 });
        a.update(EndpointLag::default());
        assert_eq!(tracker.at(at(1_000)), Lag { held: 3, behind: 0, oldest_seconds: 59, untried_seconds: 50 });
    }

    #[test]
    fn a_released_endpoint_leaves_the_totals() {
        let tracker = LagTracker::default();
        let (old, new) = (tracker.register(), tracker.register());
        old.update(lag(0, 0));
        drop(old);
        assert_eq!(tracker.at(at(100)), Lag { held: 1, ..Lag::default() });
        drop(new);
        assert_eq!(tracker.at(at(100)).held, 0);
    }

    #[test]
    fn an_event_from_a_clock_that_is_ahead_is_not_behind() {
        let tracker = LagTracker::default();
        let handle = tracker.register();
        handle.update(lag(200, 200));
        assert_eq!(tracker.at(at(100)), Lag { held: 1, ..Lag::default() });
    }

    #[test]
    fn a_failed_listing_is_told_apart_from_one_that_never_succeeded() {
        let tracker = LagTracker::default();
        let after = |worked| {
            tracker.set_listed(worked);
            tracker.listing()
        };
        assert_eq!(tracker.listing(), Listing::Never);
        assert_eq!(
            [after(false), after(true), after(false), after(true)],
            [Listing::Never, Listing::Current, Listing::Failed, Listing::Current]
        );
    }
}
