//! How far deliveries are behind.
//!
//! Owns what each courier said last of the endpoint that it holds, and the numbers over all of them. Who gives an endpoint up is no
//! longer heard here: whoever holds it next says how far it is behind. One that nobody holds shows only in the sum of those held.
//! Events that are replayed are not behind: they were due once before.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::metrics;
use crate::trust::in_words;

/// Longer than any delivery takes whose receiver is well, its first two retries included.
const BEHIND_AFTER: u64 = 60;
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How far this worker is behind, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// Endpoints that it holds.
    pub held: u32,
    /// Of those, the ones with an event that is not delivered after a minute.
    pub behind: u32,
    /// Age of the oldest event that is not delivered, in seconds; 0 when all are.
    pub oldest_seconds: u64,
    /// Age of the oldest event that was not even tried, in seconds.
    pub untried_seconds: u64,
}

/// Whether it is known which endpoints there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Listing {
    /// The keystore has not told yet: nothing is delivered.
    #[default]
    Never,
    /// It told once, and not when it was last asked.
    Failed,
    /// It told when it was last asked.
    Current,
}

/// Where one can look.
#[derive(Clone, Default)]
pub struct LagWatch(Arc<Mutex<Board>>);

#[derive(Default)]
struct Board {
    last: u64,
    listing: Listing,
    /// How far the clock is ahead of all others, while it is not believed.
    clock_ahead: Option<Duration>,
    seats: HashMap<u64, Standing>,
}

/// What one endpoint lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// When the oldest event was recorded that is not delivered.
    pub(crate) oldest: Option<Timestamp>,
    /// When the oldest one was that was not tried.
    pub(crate) untried: Option<Timestamp>,
}

/// A courier's place while it holds its endpoint.
pub(crate) struct Seat {
    watch: LagWatch,
    number: u64,
}

impl LagWatch {
    /// The numbers now.
    #[must_use]
    pub fn snapshot(&self) -> Lag {
        self.at(Timestamp::now())
    }

    /// Whether it is known which endpoints there are.
    #[must_use]
    pub fn listing(&self) -> Listing {
        self.board().listing
    }

    /// Why nothing is removed from the log by the clock; none while it is.
    #[must_use]
    pub fn retention_stopped(&self) -> Option<String> {
        let ahead = in_words(self.board().clock_ahead?);
        Some(format!(
            "retention: this host's clock is {ahead} ahead of all others: nothing is removed from the log until it is set right, or has stood so for a day"
        ))
    }

    /// How far the clock was ahead at the last look; whether that is another state.
    pub(crate) fn clock_is(&self, ahead: Option<Duration>) -> bool {
        let mut board = self.board();
        let before = std::mem::replace(&mut board.clock_ahead, ahead);
        before.is_some() != ahead.is_some()
    }

    pub(crate) fn listed(&self, worked: bool) {
        let mut board = self.board();
        board.listing = match (worked, board.listing) {
            (true, _) => Listing::Current,
            (false, Listing::Never) => Listing::Never,
            (false, Listing::Failed | Listing::Current) => Listing::Failed,
        };
    }

    pub(crate) fn sit(&self) -> Seat {
        let mut board = self.board();
        board.last += 1;
        let number = board.last;
        board.seats.insert(number, Standing::default());
        Seat { watch: self.clone(), number }
    }

    /// Keeps the metrics true until stopped.
    pub(crate) async fn tell(self, stop: CancellationToken) {
        let mut ticks = interval(TELL_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            metrics::lag(self.snapshot());
        }
    }

    fn at(&self, now: Timestamp) -> Lag {
        let mut lag = Lag::default();
        for standing in self.board().seats.values() {
            let oldest = age(standing.oldest, now);
            lag.held = lag.held.saturating_add(1);
            lag.behind = lag.behind.saturating_add(u32::from(oldest >= BEHIND_AFTER));
            lag.oldest_seconds = lag.oldest_seconds.max(oldest);
            lag.untried_seconds = lag.untried_seconds.max(age(standing.untried, now));
        }
        lag
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        // Each use is one step on the map: a panic elsewhere cannot leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    pub(crate) fn say(&self, standing: Standing) {
        if let Some(seat) = self.watch.board().seats.get_mut(&self.number) {
            *seat = standing;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.watch.board().seats.remove(&self.number);
    }
}

/// The clock that recorded may be ahead of ours.
fn age(since: Option<Timestamp>, now: Timestamp) -> u64 {
    since.map_or(0, |since| u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn standing(oldest: i64, untried: i64) -> Standing {
        Standing { oldest: Some(at(oldest)), untried: Some(at(untried)) }
    }

    #[test]
    fn the_oldest_of_all_endpoints_counts_and_one_is_behind_after_a_minute() {
        let watch = LagWatch::default();
        assert_eq!(watch.at(at(1_000)), Lag::default());
        let (a, b, _idle) = (watch.sit(), watch.sit(), watch.sit());
        a.say(standing(940, 990));
        b.say(standing(941, 950));
        assert_eq!(watch.at(at(1_000)), Lag { held: 3, behind: 1, oldest_seconds: 60, untried_seconds: 50 });
        a.say(Standing::default());
        assert_eq!(watch.at(at(1_000)), Lag { held: 3, behind: 0, oldest_seconds: 59, untried_seconds: 50 });
    }

    #[test]
    fn an_endpoint_that_is_given_up_is_no_longer_heard() {
        let watch = LagWatch::default();
        let (old, new) = (watch.sit(), watch.sit());
        old.say(standing(0, 0));
        drop(old);
        assert_eq!(watch.at(at(100)), Lag { held: 1, ..Lag::default() });
        drop(new);
        assert_eq!(watch.at(at(100)).held, 0);
    }

    #[test]
    fn an_event_from_a_clock_that_is_ahead_is_not_behind() {
        let watch = LagWatch::default();
        let seat = watch.sit();
        seat.say(standing(200, 200));
        assert_eq!(watch.at(at(100)), Lag { held: 1, ..Lag::default() });
    }

    #[test]
    fn endpoints_that_were_never_listed_are_not_those_that_were_listed_once() {
        let watch = LagWatch::default();
        let after = |worked| {
            watch.listed(worked);
            watch.listing()
        };
        assert_eq!(watch.listing(), Listing::Never);
        assert_eq!(
            [after(false), after(true), after(false), after(true)],
            [Listing::Never, Listing::Current, Listing::Failed, Listing::Current]
        );
    }
}
