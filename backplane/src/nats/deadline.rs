//! Deadlines across processes whose clocks may differ.
//!
//! A question carries an absolute deadline and the budget that was left when it was asked. Two rules:
//! it is never worked on for longer than its budget counted from arrival, so a clock that is behind cannot make a server work for
//! nobody; and its age counts, so that what lay in a socket while a process was frozen is dropped on waking. Age needs both
//! clocks. One that is ahead would make every question look old and drop them all, so age is measured against the freshest
//! question seen lately: a constant difference between clocks cancels out, time spent waiting does not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

const DEADLINE: HeaderName = HeaderName::from_static("Stage0-Deadline");
const BUDGET: HeaderName = HeaderName::from_static("Stage0-Budget-Ms");

/// A longer budget is a mistake.
const LONGEST_BUDGET: Duration = Duration::from_secs(600);

/// How long the freshest question counts; a clock that jumped ahead is made up for after at most two of these.
const WINDOW: Duration = Duration::from_secs(30);

/// What a question says about its time, in milliseconds; the deadline since the epoch of the asker's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sent {
    deadline: u64,
    budget: u64,
}

/// How a question stands when it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Somebody waits until then.
    Until(Instant),
    /// Nobody waits any more.
    Late,
}

impl Sent {
    /// At least one millisecond: what is late is not sent.
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

    /// `None` for a question without a deadline, or with one that makes no sense.
    pub(super) fn parse(headers: Option<&HeaderMap>) -> Option<Self> {
        let number = |name| headers?.get(name)?.as_str().parse::<u64>().ok();
        let sent = Self { deadline: number(DEADLINE)?, budget: number(BUDGET)? };
        let sane = sent.budget > 0 && sent.budget <= millis(LONGEST_BUDGET) && sent.budget <= sent.deadline;
        sane.then_some(sent)
    }

    /// When it was asked and until when it waits, in milliseconds since the epoch of the asker's clock.
    pub(super) fn span(self) -> (u64, u64) {
        (self.deadline - self.budget, self.deadline)
    }

    /// As a MAC covers it.
    pub(super) fn bytes(self) -> [u8; 16] {
        let both = (u128::from(self.deadline) << 64) | u128::from(self.budget);
        both.to_be_bytes()
    }

    /// How old it seems, by two clocks: negative when the asker's is ahead.
    fn apparent_age(self, now: SystemTime) -> i64 {
        let asked_at = self.deadline - self.budget;
        let difference = i128::from(epoch(now)) - i128::from(asked_at);
        difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
    }
}

/// The freshest questions of this window and of the one before: how far this process's clock is ahead.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    started: Option<Instant>,
    current: Option<i64>,
    previous: Option<i64>,
}

impl Clocks {
    pub(super) fn judge(&mut self, sent: Sent, arrived: Instant, now: SystemTime) -> Standing {
        let apparent = sent.apparent_age(now);
        let age = apparent.saturating_sub(self.ahead(apparent, arrived));
        let age = u64::try_from(age).unwrap_or(0);
        match sent.budget.checked_sub(age) {
            None | Some(0) => Standing::Late,
            Some(left) => Standing::Until(arrived + Duration::from_millis(left)),
        }
    }

    /// Never negative: one asker whose clock is ahead must not age everybody else's questions.
    fn ahead(&mut self, apparent: i64, arrived: Instant) -> i64 {
        let started = *self.started.get_or_insert(arrived);
        // The window before stays when nothing came since: what waited out a long freeze is not fresh.
        if arrived.saturating_duration_since(started) >= WINDOW {
            self.previous = self.current.take().or(self.previous);
            self.started = Some(arrived);
        }
        let current = self.current.map_or(apparent, |freshest| freshest.min(apparent));
        self.current = Some(current);
        self.previous.map_or(current, |previous| previous.min(current)).max(0)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn epoch(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET_MS: u64 = 2_000;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + millis)
    }

    fn asked(at: SystemTime) -> Sent {
        Sent::new(Duration::from_millis(BUDGET_MS), at)
    }

    fn left(standing: Standing, arrived: Instant) -> Option<u64> {
        match standing {
            Standing::Until(deadline) => Some(millis(deadline - arrived)),
            Standing::Late => None,
        }
    }

    #[test]
    fn a_question_without_a_sensible_deadline_is_refused() {
        assert_eq!(Sent::parse(None), None);
        let good = asked(at(0)).headers();
        assert_eq!(Sent::parse(Some(&good)), Some(asked(at(0))));
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
            assert_eq!(Sent::parse(Some(&headers)), None, "{bad:?}");
        }
    }

    #[test]
    fn a_fresh_question_has_its_whole_budget_and_an_old_one_what_is_left() {
        let (mut clocks, arrived) = (Clocks::default(), Instant::now());
        assert_eq!(left(clocks.judge(asked(at(0)), arrived, at(0)), arrived), Some(2_000));
        assert_eq!(left(clocks.judge(asked(at(0)), arrived, at(500)), arrived), Some(1_500));
        assert_eq!(clocks.judge(asked(at(0)), arrived, at(2_000)), Standing::Late);
    }

    #[test]
    fn a_server_whose_clock_is_behind_never_works_longer_than_the_budget() {
        let (mut clocks, arrived) = (Clocks::default(), Instant::now());
        assert_eq!(left(clocks.judge(asked(at(60_000)), arrived, at(0)), arrived), Some(2_000));
    }

    #[test]
    fn a_server_whose_clock_is_ahead_does_not_drop_everything() {
        let (mut clocks, arrived) = (Clocks::default(), Instant::now());
        for second in 0..100 {
            let arrived = arrived + Duration::from_secs(second);
            let standing = clocks.judge(asked(at(second * 1_000)), arrived, at(second * 1_000 + 60_000));
            assert_eq!(left(standing, arrived), Some(2_000), "second {second}");
        }
    }

    #[test]
    fn an_asker_whose_clock_is_ahead_does_not_age_the_questions_of_others() {
        let (mut clocks, arrived) = (Clocks::default(), Instant::now());
        clocks.judge(asked(at(60_000)), arrived, at(0));
        assert_eq!(left(clocks.judge(asked(at(0)), arrived, at(0)), arrived), Some(2_000));
    }

    #[test]
    fn what_waited_while_the_process_was_frozen_is_late_however_much_of_it_there_is() {
        let (mut clocks, arrived) = (Clocks::default(), Instant::now());
        clocks.judge(asked(at(0)), arrived, at(0));
        let frozen = Duration::from_secs(100);
        for _ in 0..1_000 {
            let standing = clocks.judge(asked(at(1_000)), arrived + frozen, at(100_000));
            assert_eq!(standing, Standing::Late);
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_is_made_up_for_after_two_windows() {
        let (mut clocks, start) = (Clocks::default(), Instant::now());
        clocks.judge(asked(at(0)), start, at(0));
        let judged = |clocks: &mut Clocks, second: u64| {
            clocks.judge(asked(at(second * 1_000)), start + Duration::from_secs(second), at(second * 1_000 + 5_000))
        };
        assert_eq!(judged(&mut clocks, 1), Standing::Late);
        assert_eq!(judged(&mut clocks, 31), Standing::Late);
        assert!(matches!(judged(&mut clocks, 62), Standing::Until(_)));
    }
}
