//! Windows of the clock (in UTC) and what one gateway has leased of them: pure.
//!
//! INVARIANT: of a limited window only what the state store granted is spent, and nothing of a lease that was taken
//! under a higher limit.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use stage0_backplane::Added;
use stage0_contract::{AccountId, USAGE_RECORDS};

/// Checks that one gateway leases at a time.
const MAX_LEASED: u64 = 1_000;
/// Bytes that one gateway leases ahead of what it needs.
const MAX_LEASED_BYTES: u64 = 1_000_000;
/// A used-up window is tried again after this: another gateway may have given back.
const USED_UP_RETRY_DELAY: SignedDuration = SignedDuration::from_secs(1);
/// A clock that is set back by less than this stays in its window: at an edge each step would lose a lease.
const MAX_STEP_BACK: SignedDuration = SignedDuration::from_secs(5);
/// Counters outlive their window by this, for gateways whose clock is behind.
const COUNTER_EXTRA_TTL: SignedDuration = SignedDuration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    Minute,
    Day,
    Month,
    /// A day, counted in bytes of stored input instead of checks.
    StoredBytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) span: Span,
    begins: Timestamp,
}

#[derive(Debug)]
pub(crate) struct WindowLease {
    pub(crate) window: Window,
    left: u64,
    /// The limit under which `left` was leased.
    pub(crate) leased_under: u64,
    /// Leased under a higher limit: to be given back, not spent.
    excess: u64,
    /// Spent without a lease: there is no limit, or the state store failed and the operator lets checks pass.
    uncounted: u64,
    /// The counter's last known value, this gateway's leases included.
    total: u64,
    /// When the window was found used up, and under which limit.
    used_up: Option<(Timestamp, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spend {
    Done,
    NeedsLease,
    UsedUp,
}

impl Window {
    pub(crate) fn at(span: Span, now: Timestamp) -> Self {
        let clock = now.to_zoned(TimeZone::UTC).datetime();
        let begins = match span {
            Span::Minute => clock.with().second(0).subsec_nanosecond(0).build().unwrap_or(clock),
            Span::Day | Span::StoredBytes => clock.date().into(),
            Span::Month => clock.date().first_of_month().into(),
        };
        Self { span, begins: utc(begins).unwrap_or(now) }
    }

    pub(crate) fn ends(self) -> Timestamp {
        let date = self.date();
        let end = match self.span {
            Span::Minute => self.begins.checked_add(SignedDuration::from_secs(60)).ok(),
            Span::Day | Span::StoredBytes => date.checked_add(1.day()).ok().and_then(|next| utc(next.into())),
            Span::Month => date.checked_add(1.month()).ok().and_then(|next| utc(next.into())),
        };
        end.unwrap_or(Timestamp::MAX)
    }

    /// `2026-11` for a month, `2026-11-24` for the others.
    pub(crate) fn name(self) -> String {
        let date = self.date();
        match self.span {
            Span::Minute | Span::Day | Span::StoredBytes => date.to_string(),
            Span::Month => date.strftime("%Y-%m").to_string(),
        }
    }

    pub(crate) fn counter(self, account: &AccountId) -> String {
        let date = self.date();
        match self.span {
            Span::Minute => format!("{USAGE_RECORDS}.{account}.m{}", self.begins.as_second().div_euclid(60)),
            Span::Day => format!("{USAGE_RECORDS}.{account}.d{}", date.strftime("%Y%m%d")),
            Span::Month => format!("{USAGE_RECORDS}.{account}.n{}", date.strftime("%Y%m")),
            Span::StoredBytes => format!("{USAGE_RECORDS}.{account}.b{}", date.strftime("%Y%m%d")),
        }
    }

    pub(crate) fn kept_for(self, now: Timestamp) -> std::time::Duration {
        let left = self.ends().duration_since(now).max(SignedDuration::ZERO);
        left.saturating_add(COUNTER_EXTRA_TTL).unsigned_abs()
    }

    /// Whole seconds until the next window, at least one.
    pub(crate) fn seconds_left(self, now: Timestamp) -> u64 {
        let left = self.ends().duration_since(now);
        u64::try_from(left.as_secs()).unwrap_or(0) + u64::from(left.subsec_nanos() > 0 || left.as_secs() <= 0)
    }

    fn date(self) -> Date {
        self.begins.to_zoned(TimeZone::UTC).date()
    }
}

/// How much one gateway leases at a time: a twentieth of a minute's limit or a hundredth of the others, at least 1.
pub(crate) fn lease_size(span: Span, limit: u64) -> u64 {
    let (parts, most) = match span {
        Span::Minute => (20, MAX_LEASED),
        Span::Day | Span::Month => (100, MAX_LEASED),
        Span::StoredBytes => (100, MAX_LEASED_BYTES),
    };
    (limit / parts).clamp(1, most)
}

impl WindowLease {
    pub(crate) fn new(span: Span, now: Timestamp) -> Self {
        Self {
            window: Window::at(span, now),
            left: 0,
            leased_under: u64::MAX,
            excess: 0,
            uncounted: 0,
            total: 0,
            used_up: None,
        }
    }

    /// Moves to the window of `now`. Returns the old one with its uncounted usage, if there is any.
    pub(crate) fn roll_over(&mut self, now: Timestamp) -> Option<(Window, u64)> {
        let window = Window::at(self.window.span, now);
        let stepped_back = window.begins < self.window.begins && self.window.begins.duration_since(now) < MAX_STEP_BACK;
        if window == self.window || stepped_back {
            return None;
        }
        let old = std::mem::replace(self, Self::new(self.window.span, now));
        (old.uncounted > 0).then_some((old.window, old.uncounted))
    }

    /// Spends the whole amount or nothing.
    pub(crate) fn spend(&mut self, amount: u64, limit: u64, now: Timestamp) -> Spend {
        if limit < self.leased_under {
            self.excess = self.excess.saturating_add(std::mem::take(&mut self.left));
            self.leased_under = limit;
        }
        if let Some(left) = self.left.checked_sub(amount) {
            self.left = left;
            return Spend::Done;
        }
        match self.used_up {
            // A raised limit has more at once.
            Some((since, under)) if limit <= under && now.duration_since(since).abs() < USED_UP_RETRY_DELAY => {
                Spend::UsedUp
            }
            Some(_) | None => Spend::NeedsLease,
        }
    }

    pub(crate) fn spend_uncounted(&mut self, amount: u64) {
        self.uncounted = self.uncounted.saturating_add(amount);
    }

    pub(crate) fn lacking(&self, amount: u64) -> u64 {
        amount.saturating_sub(self.left)
    }

    /// Adds what the state store granted, unless the window is over.
    pub(crate) fn refill(&mut self, window: Window, added: Added, limit: u64, now: Timestamp) {
        if window == self.window {
            self.left = self.left.saturating_add(added.granted);
            self.total = added.total;
            self.leased_under = limit;
            self.used_up = (added.granted == 0).then_some((now, limit));
        }
    }

    /// Undoes spending. `leased_under` is the limit of the lease it was spent from, if any.
    pub(crate) fn release(&mut self, window: Window, amount: u64, leased_under: Option<u64>) {
        if window != self.window {
            return;
        }
        match leased_under {
            // Leased under a higher limit than now: it must not be spent again.
            Some(under) if under > self.leased_under => self.excess = self.excess.saturating_add(amount),
            Some(_) => self.left = self.left.saturating_add(amount),
            None => self.uncounted = self.uncounted.saturating_sub(amount),
        }
    }

    /// What can still be spent, as far as this gateway knows.
    pub(crate) fn remaining(&self, limit: u64) -> u64 {
        self.left.saturating_add(limit.saturating_sub(self.total)).min(limit)
    }

    pub(crate) fn used(&self, total: u64) -> u64 {
        total.saturating_sub(self.left).saturating_sub(self.excess).saturating_add(self.uncounted)
    }

    pub(crate) fn take_uncounted(&mut self) -> u64 {
        std::mem::take(&mut self.uncounted)
    }

    /// Puts back usage that could not be reported, unless the window is over; returns whether it did.
    pub(crate) fn restore_uncounted(&mut self, window: Window, count: u64) -> bool {
        if window == self.window {
            self.uncounted = self.uncounted.saturating_add(count);
        }
        window == self.window
    }

    pub(crate) fn take_excess(&mut self) -> u64 {
        std::mem::take(&mut self.excess)
    }

    pub(crate) fn take_all(&mut self) -> u64 {
        std::mem::take(&mut self.left).saturating_add(self.take_excess())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.left == 0 && self.excess == 0 && self.uncounted == 0
    }
}

fn utc(at: DateTime) -> Option<Timestamp> {
    at.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn account() -> AccountId {
        AccountId::parse("acc_1").unwrap()
    }

    #[test]
    fn windows_follow_the_clock_in_utc() {
        for (now, minute, day, month) in [
            ("2026-11-24T09:20:59.999Z", "2026-11-24T09:21:00Z", "2026-11-25T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("2026-11-24T09:21:00Z", "2026-11-24T09:22:00Z", "2026-11-25T00:00:00Z", "2026-12-01T00:00:00Z"),
            ("2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("2028-02-28T23:59:30Z", "2028-02-29T00:00:00Z", "2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"),
            ("2028-02-29T12:00:00Z", "2028-02-29T12:01:00Z", "2028-03-01T00:00:00Z", "2028-03-01T00:00:00Z"),
        ] {
            for (span, end) in [(Span::Minute, minute), (Span::Day, day), (Span::Month, month)] {
                assert_eq!(Window::at(span, at(now)).ends(), at(end), "{now} {span:?}");
            }
        }
    }

    #[test]
    fn each_window_has_its_own_counter_that_outlives_it() {
        let now = at("2026-11-24T09:20:30.5Z");
        let counters = [Span::Minute, Span::Day, Span::Month].map(|span| Window::at(span, now).counter(&account()));
        assert_eq!(counters, ["usage.acc_1.m29925200", "usage.acc_1.d20261124", "usage.acc_1.n202611"]);
        assert_eq!(Window::at(Span::Minute, now).kept_for(now).as_secs(), 149);
        assert_eq!(Window::at(Span::Month, now).name(), "2026-11");
        assert_eq!(Window::at(Span::Day, now).name(), "2026-11-24");
    }

    #[test]
    fn seconds_left_are_rounded_up_and_at_least_one() {
        let minute = |now: &str| Window::at(Span::Minute, at(now)).seconds_left(at(now));
        assert_eq!(minute("2026-11-24T09:20:00Z"), 60);
        assert_eq!(minute("2026-11-24T09:20:59.999Z"), 1);
        assert_eq!(minute("2026-11-24T09:20:30.5Z"), 30);
        assert_eq!(Window::at(Span::Minute, at("2026-11-24T09:20:00Z")).seconds_left(at("2026-11-24T09:21:00Z")), 1);
    }

    #[test]
    fn a_lease_is_a_small_part_of_the_limit_and_at_least_one() {
        let leases = |span| [1, 19, 100, 600, 50_000, 9_000_000].map(|limit| lease_size(span, limit));
        assert_eq!(leases(Span::Minute), [1, 1, 5, 30, 1_000, 1_000]);
        assert_eq!(leases(Span::Day), [1, 1, 1, 6, 500, 1_000]);
    }

    #[test]
    fn only_leased_amounts_are_spent() {
        let now = at("2026-11-24T09:20:00Z");
        let mut lease = WindowLease::new(Span::Minute, now);
        assert_eq!(lease.spend(1, 5, now), Spend::NeedsLease);
        lease.refill(lease.window, Added { granted: 2, total: 2 }, 5, now);
        assert_eq!([(); 3].map(|()| lease.spend(1, 5, now)), [Spend::Done, Spend::Done, Spend::NeedsLease]);
        assert_eq!((lease.remaining(5), lease.used(2)), (3, 2));
        lease.refill(lease.window, Added { granted: 0, total: 5 }, 5, now);
        assert_eq!(lease.spend(1, 5, now), Spend::UsedUp);
        assert_eq!(lease.spend(1, 5, at("2026-11-24T09:20:01Z")), Spend::NeedsLease, "others may have given back");
        assert_eq!(lease.remaining(5), 0);
        assert_eq!(lease.spend(1, 6, now), Spend::NeedsLease, "the limit was raised");
    }

    #[test]
    fn a_lease_ends_with_its_window() {
        let mut lease = WindowLease::new(Span::Minute, at("2026-11-24T09:20:59.9Z"));
        let old = lease.window;
        lease.refill(old, Added { granted: 5, total: 5 }, 5, at("2026-11-24T09:20:59.9Z"));
        assert_eq!(lease.roll_over(at("2026-11-24T09:21:00Z")), None);
        assert_eq!(lease.spend(1, 5, at("2026-11-24T09:21:00Z")), Spend::NeedsLease);
        lease.refill(old, Added { granted: 5, total: 5 }, 5, at("2026-11-24T09:21:00Z"));
        assert_eq!(lease.spend(1, 5, at("2026-11-24T09:21:00Z")), Spend::NeedsLease, "a late grant is not spent");
        lease.release(old, 1, Some(5));
        assert_eq!(lease.spend(1, 5, at("2026-11-24T09:21:00Z")), Spend::NeedsLease);
    }

    #[test]
    fn a_clock_that_steps_back_stays_in_its_window() {
        let (late, early) = (at("2026-11-24T09:21:00Z"), at("2026-11-24T09:20:59Z"));
        let mut lease = WindowLease::new(Span::Minute, late);
        lease.refill(lease.window, Added { granted: 1, total: 1 }, 5, late);
        assert_eq!(lease.roll_over(early), None);
        assert_eq!([lease.spend(1, 5, early), lease.spend(1, 5, early)], [Spend::Done, Spend::NeedsLease]);
        assert_eq!(lease.window, Window::at(Span::Minute, late));
    }

    #[test]
    fn a_clock_that_is_set_back_far_changes_its_window() {
        let (ahead, right) = (at("2026-11-25T09:20:00Z"), at("2026-11-24T09:20:00Z"));
        let mut lease = WindowLease::new(Span::Day, ahead);
        lease.refill(lease.window, Added { granted: 1, total: 1 }, 5, ahead);
        lease.roll_over(right);
        assert_eq!(lease.window, Window::at(Span::Day, right));
        assert_eq!(lease.spend(1, 5, right), Spend::NeedsLease, "a lease of another day is not spent");
    }

    #[test]
    fn a_lease_under_a_higher_limit_is_not_spent() {
        let now = at("2026-11-24T09:20:00Z");
        let mut lease = WindowLease::new(Span::Day, now);
        lease.refill(lease.window, Added { granted: 100, total: 100 }, 10_000, now);
        assert_eq!(lease.spend(1, 10_000, now), Spend::Done);
        assert_eq!(lease.spend(1, 10, now), Spend::NeedsLease);
        assert_eq!((lease.used(100), lease.is_empty()), (1, false));
        lease.release(lease.window, 1, Some(10_000));
        assert_eq!(lease.spend(1, 10, now), Spend::NeedsLease, "nor what is released of it");
        assert_eq!((lease.take_excess(), lease.is_empty()), (100, true));
    }

    #[test]
    fn uncounted_usage_belongs_to_its_own_window() {
        let now = at("2026-11-24T23:59:59Z");
        let mut lease = WindowLease::new(Span::Day, now);
        lease.spend_uncounted(1);
        lease.spend_uncounted(1);
        let old = lease.window;
        lease.release(old, 1, None);
        assert_eq!(lease.roll_over(at("2026-11-25T00:00:00Z")), Some((old, 1)));
        assert!(!lease.restore_uncounted(old, 1), "not of today");
        lease.spend_uncounted(1);
        assert_eq!((lease.used(7), lease.take_uncounted(), lease.used(8)), (8, 1, 8));
    }
}
