//! Windows of the clock and what one gateway holds of them: pure.
//!
//! Owns where a minute, a day and a month begin and end (UTC), how much is leased at a time, and the counting within a lease.
//! INVARIANT: of a limited window only what the ledger granted is spent, and nothing of a lease that was taken under a higher limit.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use stage0_backplane::Added;
use stage0_contract::{AccountId, USAGE_RECORDS};

/// The most that one gateway leases at a time.
const MOST_LEASED: u64 = 1_000;
/// The most bytes that one gateway leases ahead of what it needs.
const MAX_LEASED_BYTES: u64 = 1_000_000;
/// A window that was empty is asked again after this: another gateway may have given back.
const ASK_AGAIN_AFTER: SignedDuration = SignedDuration::from_secs(1);
/// A clock that is set back by less than this stays in its window.
const WAVERS: SignedDuration = SignedDuration::from_secs(5);
/// Counters outlive their window by this, for gateways whose clock is behind.
const OUTLIVES: SignedDuration = SignedDuration::from_secs(120);

/// How long a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Span {
    Minute,
    Day,
    Month,
    /// A day too: not of checks, but of bytes of input that are kept.
    StoredBytes,
}

/// One window: its span and when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) span: Span,
    begins: Timestamp,
}

/// What a gateway holds of an account's current window of one span.
#[derive(Debug)]
pub(crate) struct Purse {
    window: Window,
    /// Granted and not spent.
    left: u64,
    /// Below which limit.
    leased_below: u64,
    /// Granted, and no longer ours to spend.
    surplus: u64,
    /// Spent without a grant: where there is no limit, or the ledger failed and the operator lets pass.
    uncounted: u64,
    /// What the ledger said last, this gateway's leases included.
    total: u64,
    /// When the ledger had no more, and below which limit.
    empty: Option<(Timestamp, u64)>,
}

/// Whether one could be spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spent {
    /// It was.
    Yes,
    /// The ledger must be asked for more.
    AskFirst,
    /// The ledger has no more.
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

    /// The first moment of the next one.
    pub(crate) fn ends(self) -> Timestamp {
        let date = self.date();
        let end = match self.span {
            Span::Minute => self.begins.checked_add(SignedDuration::from_secs(60)).ok(),
            Span::Day | Span::StoredBytes => date.checked_add(1.day()).ok().and_then(|next| utc(next.into())),
            Span::Month => date.checked_add(1.month()).ok().and_then(|next| utc(next.into())),
        };
        end.unwrap_or(Timestamp::MAX)
    }

    /// `2026-11-24` or `2026-11`; of a minute, its day.
    pub(crate) fn name(self) -> String {
        let date = self.date();
        match self.span {
            Span::Minute | Span::Day | Span::StoredBytes => date.to_string(),
            Span::Month => date.strftime("%Y-%m").to_string(),
        }
    }

    /// Where what the account uses in this window is counted.
    pub(crate) fn counter(self, account: &AccountId) -> String {
        let date = self.date();
        match self.span {
            Span::Minute => format!("{USAGE_RECORDS}.{account}.m{}", self.begins.as_second().div_euclid(60)),
            Span::Day => format!("{USAGE_RECORDS}.{account}.d{}", date.strftime("%Y%m%d")),
            Span::Month => format!("{USAGE_RECORDS}.{account}.n{}", date.strftime("%Y%m")),
            Span::StoredBytes => format!("{USAGE_RECORDS}.{account}.b{}", date.strftime("%Y%m%d")),
        }
    }

    /// How long the counter is kept.
    pub(crate) fn kept_for(self, now: Timestamp) -> std::time::Duration {
        let left = self.ends().duration_since(now).max(SignedDuration::ZERO);
        left.saturating_add(OUTLIVES).unsigned_abs()
    }

    /// Whole seconds until the next one, at least one.
    pub(crate) fn seconds_left(self, now: Timestamp) -> u64 {
        let left = self.ends().duration_since(now);
        u64::try_from(left.as_secs()).unwrap_or(0) + u64::from(left.subsec_nanos() > 0 || left.as_secs() <= 0)
    }

    fn date(self) -> Date {
        self.begins.to_zoned(TimeZone::UTC).date()
    }
}

/// How much one gateway takes at a time: a twentieth of a minute's limit, a hundredth of the others', 1 to 1,000, or to
/// 1,000,000 bytes.
pub(crate) fn lease(span: Span, limit: u64) -> u64 {
    let (parts, most) = match span {
        Span::Minute => (20, MOST_LEASED),
        Span::Day | Span::Month => (100, MOST_LEASED),
        Span::StoredBytes => (100, MAX_LEASED_BYTES),
    };
    (limit / parts).clamp(1, most)
}

impl Purse {
    pub(crate) fn new(span: Span, now: Timestamp) -> Self {
        Self {
            window: Window::at(span, now),
            left: 0,
            leased_below: u64::MAX,
            surplus: 0,
            uncounted: 0,
            total: 0,
            empty: None,
        }
    }

    /// Turns to the window of `now`. What of the old one is still to be counted comes back.
    pub(crate) fn turn(&mut self, now: Timestamp) -> Option<(Window, u64)> {
        let window = Window::at(self.window.span, now);
        // A clock that is set back a little stays in its window: at an edge it would lose a lease with each step.
        let wavers = window.begins < self.window.begins && self.window.begins.duration_since(now) < WAVERS;
        if window == self.window || wavers {
            return None;
        }
        let old = std::mem::replace(self, Self::new(self.window.span, now));
        (old.uncounted > 0).then_some((old.window, old.uncounted))
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// Spends so many of the lease, or nothing.
    pub(crate) fn spend(&mut self, amount: u64, limit: u64, now: Timestamp) -> Spent {
        if limit < self.leased_below {
            self.surplus = self.surplus.saturating_add(std::mem::take(&mut self.left));
            self.leased_below = limit;
        }
        if let Some(left) = self.left.checked_sub(amount) {
            self.left = left;
            return Spent::Yes;
        }
        match self.empty {
            // A limit that was raised has more at once.
            Some((since, below)) if limit <= below && now.duration_since(since).abs() < ASK_AGAIN_AFTER => {
                Spent::UsedUp
            }
            Some(_) | None => Spent::AskFirst,
        }
    }

    /// Spends what nobody granted.
    pub(crate) fn spend_uncounted(&mut self, amount: u64) {
        self.uncounted = self.uncounted.saturating_add(amount);
    }

    /// How much more must be granted before so much can be spent.
    pub(crate) fn lacking(&self, amount: u64) -> u64 {
        amount.saturating_sub(self.left)
    }

    /// Takes a grant for this window.
    pub(crate) fn refill(&mut self, window: Window, added: Added, limit: u64, now: Timestamp) {
        if window == self.window {
            self.left = self.left.saturating_add(added.granted);
            self.total = added.total;
            self.leased_below = limit;
            self.empty = (added.granted == 0).then_some((now, limit));
        }
    }

    /// Below which limit what is left was granted.
    pub(crate) fn leased_below(&self) -> u64 {
        self.leased_below
    }

    /// Unspends what was spent in this window, granted below a limit or by nobody.
    pub(crate) fn unspend(&mut self, window: Window, amount: u64, granted: Option<u64>) {
        if window != self.window {
            return;
        }
        match granted {
            // Of a higher limit than now: it was granted, but no more is to pass for it.
            Some(below) if below > self.leased_below => self.surplus = self.surplus.saturating_add(amount),
            Some(_) => self.left = self.left.saturating_add(amount),
            None => self.uncounted = self.uncounted.saturating_sub(amount),
        }
    }

    /// What can still be spent in this window, as far as this gateway knows.
    pub(crate) fn remaining(&self, limit: u64) -> u64 {
        self.left.saturating_add(limit.saturating_sub(self.total)).min(limit)
    }

    /// What the window has used, given what the ledger says.
    pub(crate) fn used(&self, total: u64) -> u64 {
        total.saturating_sub(self.left).saturating_sub(self.surplus).saturating_add(self.uncounted)
    }

    /// What the ledger does not know yet; from now on it is somebody else's to tell.
    pub(crate) fn take_uncounted(&mut self) -> u64 {
        std::mem::take(&mut self.uncounted)
    }

    /// It could not be told.
    pub(crate) fn put_uncounted(&mut self, window: Window, count: u64) -> bool {
        let same = window == self.window;
        if same {
            self.uncounted = self.uncounted.saturating_add(count);
        }
        same
    }

    /// What is to be given back and is not ours to spend.
    pub(crate) fn take_surplus(&mut self) -> u64 {
        std::mem::take(&mut self.surplus)
    }

    /// All that is to be given back when nobody asks any more.
    pub(crate) fn take_left(&mut self) -> u64 {
        std::mem::take(&mut self.left).saturating_add(self.take_surplus())
    }

    /// Neither leased nor still to be told.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.left == 0 && self.surplus == 0 && self.uncounted == 0
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
    fn windows_are_those_of_the_clock_in_utc() {
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
    fn each_window_has_a_counter_of_its_own_that_outlives_it() {
        let now = at("2026-11-24T09:20:30.5Z");
        let counters = [Span::Minute, Span::Day, Span::Month].map(|span| Window::at(span, now).counter(&account()));
        assert_eq!(counters, ["usage.acc_1.m29925200", "usage.acc_1.d20261124", "usage.acc_1.n202611"]);
        assert_eq!(Window::at(Span::Minute, now).kept_for(now).as_secs(), 149);
        assert_eq!(Window::at(Span::Month, now).name(), "2026-11");
        assert_eq!(Window::at(Span::Day, now).name(), "2026-11-24");
    }

    #[test]
    fn seconds_left_are_rounded_up_and_never_none() {
        let minute = |now: &str| Window::at(Span::Minute, at(now)).seconds_left(at(now));
        assert_eq!(minute("2026-11-24T09:20:00Z"), 60);
        assert_eq!(minute("2026-11-24T09:20:59.999Z"), 1);
        assert_eq!(minute("2026-11-24T09:20:30.5Z"), 30);
        assert_eq!(Window::at(Span::Minute, at("2026-11-24T09:20:00Z")).seconds_left(at("2026-11-24T09:21:00Z")), 1);
    }

    #[test]
    fn a_lease_is_a_small_part_of_the_limit_and_at_least_one() {
        let leases = |span| [1, 19, 100, 600, 50_000, 9_000_000].map(|limit| lease(span, limit));
        assert_eq!(leases(Span::Minute), [1, 1, 5, 30, 1_000, 1_000]);
        assert_eq!(leases(Span::Day), [1, 1, 1, 6, 500, 1_000]);
    }

    #[test]
    fn only_what_was_granted_is_spent() {
        let now = at("2026-11-24T09:20:00Z");
        let mut purse = Purse::new(Span::Minute, now);
        assert_eq!(purse.spend(1, 5, now), Spent::AskFirst);
        purse.refill(purse.window(), Added { granted: 2, total: 2 }, 5, now);
        assert_eq!([(); 3].map(|()| purse.spend(1, 5, now)), [Spent::Yes, Spent::Yes, Spent::AskFirst]);
        assert_eq!((purse.remaining(5), purse.used(2)), (3, 2));
        purse.refill(purse.window(), Added { granted: 0, total: 5 }, 5, now);
        assert_eq!(purse.spend(1, 5, now), Spent::UsedUp);
        assert_eq!(purse.spend(1, 5, at("2026-11-24T09:20:01Z")), Spent::AskFirst, "others may have given back");
        assert_eq!(purse.remaining(5), 0);
        assert_eq!(purse.spend(1, 6, now), Spent::AskFirst, "the limit was raised");
    }

    #[test]
    fn a_lease_ends_with_its_window() {
        let mut purse = Purse::new(Span::Minute, at("2026-11-24T09:20:59.9Z"));
        let old = purse.window();
        purse.refill(old, Added { granted: 5, total: 5 }, 5, at("2026-11-24T09:20:59.9Z"));
        assert_eq!(purse.turn(at("2026-11-24T09:21:00Z")), None);
        assert_eq!(purse.spend(1, 5, at("2026-11-24T09:21:00Z")), Spent::AskFirst);
        purse.refill(old, Added { granted: 5, total: 5 }, 5, at("2026-11-24T09:21:00Z"));
        assert_eq!(
            purse.spend(1, 5, at("2026-11-24T09:21:00Z")),
            Spent::AskFirst,
            "a grant that comes late is of no use"
        );
        purse.unspend(old, 1, Some(5));
        assert_eq!(purse.spend(1, 5, at("2026-11-24T09:21:00Z")), Spent::AskFirst);
    }

    #[test]
    fn a_clock_that_steps_back_stays_in_its_window() {
        let (late, early) = (at("2026-11-24T09:21:00Z"), at("2026-11-24T09:20:59Z"));
        let mut purse = Purse::new(Span::Minute, late);
        purse.refill(purse.window(), Added { granted: 1, total: 1 }, 5, late);
        assert_eq!(purse.turn(early), None);
        assert_eq!([purse.spend(1, 5, early), purse.spend(1, 5, early)], [Spent::Yes, Spent::AskFirst]);
        assert_eq!(purse.window(), Window::at(Span::Minute, late));
    }

    #[test]
    fn a_clock_that_was_far_ahead_comes_back() {
        let (ahead, right) = (at("2026-11-25T09:20:00Z"), at("2026-11-24T09:20:00Z"));
        let mut purse = Purse::new(Span::Day, ahead);
        purse.refill(purse.window(), Added { granted: 1, total: 1 }, 5, ahead);
        purse.turn(right);
        assert_eq!(purse.window(), Window::at(Span::Day, right));
        assert_eq!(purse.spend(1, 5, right), Spent::AskFirst, "what was leased of another day is of no use");
    }

    #[test]
    fn of_a_lease_under_a_higher_limit_nothing_more_is_spent() {
        let now = at("2026-11-24T09:20:00Z");
        let mut purse = Purse::new(Span::Day, now);
        purse.refill(purse.window(), Added { granted: 100, total: 100 }, 10_000, now);
        assert_eq!(purse.spend(1, 10_000, now), Spent::Yes);
        assert_eq!(purse.spend(1, 10, now), Spent::AskFirst);
        assert_eq!((purse.used(100), purse.holds_nothing()), (1, false));
        purse.unspend(purse.window(), 1, Some(10_000));
        assert_eq!(purse.spend(1, 10, now), Spent::AskFirst, "nor what is given back of it");
        assert_eq!((purse.take_surplus(), purse.holds_nothing()), (100, true));
    }

    #[test]
    fn what_nobody_counted_is_told_of_its_own_window() {
        let now = at("2026-11-24T23:59:59Z");
        let mut purse = Purse::new(Span::Day, now);
        purse.spend_uncounted(1);
        purse.spend_uncounted(1);
        let old = purse.window();
        purse.unspend(old, 1, None);
        assert_eq!(purse.turn(at("2026-11-25T00:00:00Z")), Some((old, 1)));
        assert!(!purse.put_uncounted(old, 1), "not of today");
        purse.spend_uncounted(1);
        assert_eq!((purse.used(7), purse.take_uncounted(), purse.used(8)), (8, 1, 8));
    }
}
