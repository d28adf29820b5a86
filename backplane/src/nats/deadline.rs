//! Deadlines across processes whose clocks may differ.
//!
//! A request carries an absolute deadline and the budget that was left when it was sent. No request is worked on for
//! longer than its budget counted from arrival, and its age counts: requests that lay in a socket while a process was
//! frozen are dropped on waking. Age is measured against the freshest recent request: a constant difference between
//! clocks cancels out, time spent waiting does not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

const DEADLINE: HeaderName = HeaderName::from_static("Stage0-Deadline");
const BUDGET: HeaderName = HeaderName::from_static("Stage0-Budget-Ms");

const MAX_BUDGET: Duration = Duration::from_secs(600);

/// How long the freshest request counts. A clock that jumped ahead is compensated after at most two windows.
const FRESHEST_REQUEST_TTL: Duration = Duration::from_secs(30);

/// The timing headers of a request, in milliseconds; the deadline is since the epoch by the requester's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    deadline: u64,
    budget: u64,
}

impl Timing {
    /// At least one millisecond: a request that is late is not sent.
    pub(super) fn new(budget: Duration, now: SystemTime) -> Self {
        let budget = millis(budget).max(1);
        Self { deadline: epoch(now).saturating_add(budget), budget }
    }

    pub(super) fn headers(self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        // From numbers: from text, the client panics on a line break.
        headers.insert(DEADLINE, HeaderValue::from(self.deadline));
        headers.insert(BUDGET, HeaderValue::from(self.budget));
        headers
    }

    pub(super) fn parse(headers: Option<&HeaderMap>) -> Option<Self> {
        let number = |name| headers?.get(name)?.as_str().parse::<u64>().ok();
        let sent = Self { deadline: number(DEADLINE)?, budget: number(BUDGET)? };
        let sane = sent.budget > 0 && sent.budget <= millis(MAX_BUDGET) && sent.budget <= sent.deadline;
        sane.then_some(sent)
    }

    /// When it was sent and its deadline, in milliseconds since the epoch by the requester's clock.
    pub(super) fn span(self) -> (u64, u64) {
        (self.deadline - self.budget, self.deadline)
    }

    pub(super) fn bytes(self) -> [u8; 16] {
        let both = (u128::from(self.deadline) << 64) | u128::from(self.budget);
        both.to_be_bytes()
    }

    /// How old it seems by the two clocks: negative when the requester's is ahead.
    fn apparent_age(self, now: SystemTime) -> i64 {
        let sent_at = self.deadline - self.budget;
        let difference = i128::from(epoch(now)) - i128::from(sent_at);
        difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }
}

/// The freshest requests of this window and of the one before: by how much this process's clock is ahead.
#[derive(Debug, Default)]
pub(super) struct ClockOffset {
    started: Option<Instant>,
    current: Option<i64>,
    previous: Option<i64>,
}

impl ClockOffset {
    /// The request's deadline by this process's clock; none if it is late.
    pub(super) fn local_deadline(&mut self, sent: Timing, arrived: Instant, now: SystemTime) -> Option<Instant> {
        let apparent = sent.apparent_age(now);
        let age = u64::try_from(apparent.saturating_sub(self.ahead(apparent, arrived))).unwrap_or(0);
        let left = sent.budget.checked_sub(age).filter(|left| *left > 0)?;
        Some(arrived + Duration::from_millis(left))
    }

    /// Never negative: one requester whose clock is ahead must not age the requests of all others.
    fn ahead(&mut self, apparent: i64, arrived: Instant) -> i64 {
        let started = *self.started.get_or_insert(arrived);
        // The previous window stays if no request came since: requests that waited out a long freeze are not fresh.
        if arrived.saturating_duration_since(started) >= FRESHEST_REQUEST_TTL {
            self.previous = self.current.take().or(self.previous);
            self.started = Some(arrived);
        }
        let current = self.current.map_or(apparent, |freshest| freshest.min(apparent));
        self.current = Some(current);
        self.previous.map_or(current, |previous| previous.min(current)).max(0)
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn epoch(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET_MS: u64 = 2_000;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + millis)
    }

    fn asked(at: SystemTime) -> Timing {
        Timing::new(Duration::from_millis(BUDGET_MS), at)
    }

    fn left(deadline: Option<Instant>, arrived: Instant) -> Option<u64> {
        deadline.map(|deadline| millis(deadline - arrived))
    }

    #[test]
    fn a_request_without_a_sensible_deadline_is_refused() {
        assert_eq!(Timing::parse(None), None);
        let good = asked(at(0)).headers();
        assert_eq!(Timing::parse(Some(&good)), Some(asked(at(0))));
        for (name, bad) in [
            (DEADLINE, "soon"),
            (DEADLINE, "-1"),
            (DEADLINE, "1"),
            (DEADLINE, "99999999999999999999999"),
            (BUDGET, ""),
            (BUDGET, "0"),
            (BUDGET, "600001"),
            (BUDGET, "18446744073709551615"),
        ] {
            let mut headers = good.clone();
            headers.insert(name, bad.parse::<HeaderValue>().unwrap());
            assert_eq!(Timing::parse(Some(&headers)), None, "{bad:?}");
        }
    }

    #[test]
    fn a_fresh_request_has_its_whole_budget_and_an_old_one_what_is_left() {
        let (mut clock_offset, arrived) = (ClockOffset::default(), Instant::now());
        assert_eq!(left(clock_offset.local_deadline(asked(at(0)), arrived, at(0)), arrived), Some(2_000));
        assert_eq!(left(clock_offset.local_deadline(asked(at(0)), arrived, at(500)), arrived), Some(1_500));
        assert_eq!(clock_offset.local_deadline(asked(at(0)), arrived, at(2_000)), None);
    }

    #[test]
    fn a_server_whose_clock_is_behind_never_works_longer_than_the_budget() {
        let (mut clock_offset, arrived) = (ClockOffset::default(), Instant::now());
        assert_eq!(left(clock_offset.local_deadline(asked(at(60_000)), arrived, at(0)), arrived), Some(2_000));
    }

    #[test]
    fn a_server_whose_clock_is_ahead_does_not_drop_everything() {
        let (mut clock_offset, arrived) = (ClockOffset::default(), Instant::now());
        for second in 0..100 {
            let arrived = arrived + Duration::from_secs(second);
            let deadline = clock_offset.local_deadline(asked(at(second * 1_000)), arrived, at(second * 1_000 + 60_000));
            assert_eq!(left(deadline, arrived), Some(2_000), "second {second}");
        }
    }

    #[test]
    fn a_requester_whose_clock_is_ahead_does_not_age_the_requests_of_others() {
        let (mut clock_offset, arrived) = (ClockOffset::default(), Instant::now());
        clock_offset.local_deadline(asked(at(60_000)), arrived, at(0));
        assert_eq!(left(clock_offset.local_deadline(asked(at(0)), arrived, at(0)), arrived), Some(2_000));
    }

    #[test]
    fn requests_that_waited_while_the_process_was_frozen_are_late_however_many() {
        let (mut clock_offset, arrived) = (ClockOffset::default(), Instant::now());
        clock_offset.local_deadline(asked(at(0)), arrived, at(0));
        let frozen = Duration::from_secs(100);
        for _ in 0..1_000 {
            let deadline = clock_offset.local_deadline(asked(at(1_000)), arrived + frozen, at(100_000));
            assert_eq!(deadline, None);
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_compensated_after_two_windows() {
        let (mut clock_offset, start) = (ClockOffset::default(), Instant::now());
        clock_offset.local_deadline(asked(at(0)), start, at(0));
        let deadline = |clock_offset: &mut ClockOffset, second: u64| {
            clock_offset.local_deadline(
                asked(at(second * 1_000)),
                start + Duration::from_secs(second),
                at(second * 1_000 + 5_000),
            )
        };
        assert_eq!(deadline(&mut clock_offset, 1), None);
        assert_eq!(deadline(&mut clock_offset, 31), None);
        assert!(deadline(&mut clock_offset, 62).is_some());
    }
}
