//! Whether this host's clock is trusted enough to remove decisions by it. Pure.
//!
//! Removal cannot be undone, so a second clock must agree. The wall clock is trusted while it is at most an hour ahead
//! of the latest of another process's time, the kernel's count since it was last trusted, or else the newest record of
//! the log; and once it was not set for a day: by then an operator has seen the alarm.
//! INVARIANT: while the clock is not trusted, `time` never runs ahead of the best time that is known.

use std::time::Duration;

use jiff::Timestamp;
use stage0_backplane::clock::Clocks;

/// How far ahead a trusted clock may be: decisions are removed at most an hour early.
pub(crate) const MAX_AHEAD: Duration = Duration::from_secs(3_600);
/// How long an unconfirmed clock must run without being set before it is trusted.
pub(crate) const UNCONFIRMED_TRUST_DELAY: Duration = Duration::from_secs(24 * 3_600);

/// Each clock is an offset: how far a wall clock is ahead of this host's kernel clock, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClockTrust {
    pub(crate) anchor: Option<i64>,
    witness: Option<i64>,
    /// The newest record at the start. Not used where there is an anchor, as a wrong clock may have written the record.
    record: Option<i64>,
    checked_at: Option<Duration>,
    /// Since when, by the kernel's clock, the wall clock has this unconfirmed offset.
    unconfirmed: Option<(Duration, i64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClockStatus {
    Trusted,
    Ahead(Duration),
}

impl ClockTrust {
    pub(crate) fn new(now: Clocks, anchor: Option<i64>, newest_record: Option<Timestamp>) -> Self {
        let record = newest_record.filter(|_| anchor.is_none());
        let record = record.map(|wall| Clocks { wall, ..now }.offset());
        Self { anchor, record, ..Self::default() }
    }

    pub(crate) fn observe(&mut self, now: Clocks, reported: Timestamp) {
        self.witness = Some(Clocks { wall: reported, ..now }.offset());
    }

    pub(crate) fn check(&mut self, now: Clocks) -> ClockStatus {
        let own = now.offset();
        let elapsed = self.checked_at.map_or(0, |at| micros(now.boot.saturating_sub(at)));
        self.checked_at = Some(now.boot);
        let Some(known) = self.known() else {
            // Nothing was ever recorded here, and no other process has reported its time.
            self.anchor = Some(own);
            return ClockStatus::Trusted;
        };
        let ahead = own.saturating_sub(known);
        if ahead <= micros(MAX_AHEAD) {
            self.unconfirmed = None;
            self.follow(own, elapsed);
            return ClockStatus::Trusted;
        }
        let (since, stood) = *self.unconfirmed.get_or_insert((now.boot, own));
        if own.abs_diff(stood) > micros(MAX_AHEAD).unsigned_abs() {
            self.unconfirmed = Some((now.boot, own));
        } else if now.boot.saturating_sub(since) >= UNCONFIRMED_TRUST_DELAY {
            (self.anchor, self.unconfirmed) = (Some(own), None);
            return ClockStatus::Trusted;
        }
        ClockStatus::Ahead(Duration::from_micros(ahead.unsigned_abs()))
    }

    pub(crate) fn time(&self, now: Clocks) -> Timestamp {
        match self.known() {
            Some(known) if now.offset().saturating_sub(known) > micros(MAX_AHEAD) => now.at_offset(known),
            Some(_) | None => now.wall,
        }
    }

    fn known(&self) -> Option<i64> {
        self.anchor.max(self.witness).max(self.record)
    }

    /// An unconfirmed anchor moves up by at most a second per minute, more than any clock drifts, so that many small
    /// steps cannot evade the check; and down by ten minutes per minute, so that a wrong clock is forgotten soon.
    fn follow(&mut self, own: i64, elapsed: i64) {
        let confirmed =
            self.witness.max(self.record).is_some_and(|other| own.saturating_sub(other) <= micros(MAX_AHEAD));
        self.anchor = Some(match self.anchor {
            Some(anchor) if own > anchor && !confirmed => own.min(anchor.saturating_add(elapsed / 60)),
            Some(anchor) if own < anchor => own.max(anchor.saturating_sub(elapsed.saturating_mul(10))),
            Some(_) | None => own,
        });
    }
}

/// How much of an account's log may be removed now: an hour of it per minute since the last removal, at most an hour.
pub(crate) fn removable_span(since_last: Option<Duration>) -> Duration {
    const MAX_SPAN: Duration = Duration::from_secs(3_600);
    since_last.map_or(MAX_SPAN, |elapsed| elapsed.saturating_mul(60).min(MAX_SPAN))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Rounds to hours, or to days from two days on.
pub(crate) fn describe_duration(ahead: Duration) -> String {
    let hours = ahead.as_secs().saturating_add(1_800) / 3_600;
    if hours < 48 { format!("{hours} h") } else { format!("{} days", hours.saturating_add(12) / 24) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const NOW: i64 = 1_800_000_000;

    fn at(wall: i64, boot: i64) -> Clocks {
        let boot = Duration::from_secs(u64::try_from(boot).unwrap());
        Clocks { wall: Timestamp::from_second(wall).unwrap(), boot }
    }

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn days(days: i64) -> ClockStatus {
        ClockStatus::Ahead(Duration::from_secs(u64::try_from(days * DAY).unwrap()))
    }

    #[test]
    fn a_clock_that_is_set_ahead_is_not_trusted_until_it_is_set_back() {
        let mut trust = ClockTrust::new(at(NOW, 100), None, Some(second(NOW - 60)));
        assert_eq!(trust.check(at(NOW, 100)), ClockStatus::Trusted);
        let ahead = at(NOW + 40 * DAY + 60, 160);
        assert_eq!(trust.check(ahead), days(40));
        assert_eq!(trust.time(ahead), second(NOW + 60), "for everything else the time continues");
        assert_eq!(trust.check(at(NOW + 120, 220)), ClockStatus::Trusted);
        assert_eq!(trust.time(at(NOW + 120, 220)), second(NOW + 120));
    }

    #[test]
    fn a_process_that_starts_while_the_clock_is_ahead_does_not_trust_it() {
        // Compared with the newest record; with this boot's offset, although the wrong clock made a record; with
        // another process.
        let start = at(NOW + 40 * DAY, 500);
        assert_eq!(ClockTrust::new(start, None, Some(second(NOW))).check(start), days(40));
        let mut trust = ClockTrust::new(start, Some(at(NOW - 400, 100).offset()), Some(second(NOW + 40 * DAY)));
        assert_eq!(trust.check(start), days(40));
        trust.observe(start, second(NOW));
        assert_eq!(trust.check(start), days(40));
    }

    #[test]
    fn a_clock_is_trusted_up_to_an_hour_ahead() {
        for (ahead, trusted) in [(0, true), (3_600, true), (3_601, false), (-40 * DAY, true)] {
            let start = at(NOW + ahead, 500);
            let status = ClockTrust::new(start, None, Some(second(NOW))).check(start);
            assert_eq!(status == ClockStatus::Trusted, trusted, "{ahead}");
        }
    }

    #[test]
    fn an_idle_deployment_still_trusts_its_clock_after_weeks() {
        // The newest record is old, and another process has the same time.
        let start = at(NOW, 500);
        let mut trust = ClockTrust::new(start, None, Some(second(NOW - 60 * DAY)));
        trust.observe(start, second(NOW));
        assert_eq!(trust.check(start), ClockStatus::Trusted);
        // A single process that ran all the time, and one that was restarted on the same boot.
        let mut alone = ClockTrust::new(at(NOW, 500), None, Some(second(NOW)));
        for week in 0..10 {
            assert_eq!(alone.check(at(NOW + week * 7 * DAY, 500 + week * 7 * DAY)), ClockStatus::Trusted, "{week}");
        }
        let later = at(NOW + 70 * DAY, 500 + 70 * DAY);
        assert_eq!(ClockTrust::new(later, alone.anchor, Some(second(NOW))).check(later), ClockStatus::Trusted);
        // A process that starts on an empty log, with no other process.
        assert_eq!(ClockTrust::new(start, None, None).check(start), ClockStatus::Trusted);
    }

    #[test]
    fn an_unconfirmed_clock_is_trusted_after_a_day_without_being_set() {
        let start = |boot| at(NOW + 40 * DAY + boot, boot);
        let mut trust = ClockTrust::new(start(0), None, Some(second(NOW)));
        for boot in [0, 3_600, DAY - 1] {
            assert_eq!(trust.check(start(boot)), days(40), "{boot}");
        }
        assert_eq!(trust.check(start(DAY)), ClockStatus::Trusted);
        assert_eq!(trust.check(start(2 * DAY)), ClockStatus::Trusted);
        // If the clock is set again in between, the day starts over.
        let mut trust = ClockTrust::new(start(0), None, Some(second(NOW)));
        trust.check(start(0));
        trust.check(at(NOW + 80 * DAY, DAY / 2));
        assert_ne!(trust.check(at(NOW + 80 * DAY + DAY / 2, DAY)), ClockStatus::Trusted);
    }

    #[test]
    fn many_small_steps_ahead_stop_the_trust() {
        let mut trust = ClockTrust::new(at(NOW, 0), Some(at(NOW, 0).offset()), None);
        let (mut wall, mut stopped) = (NOW, false);
        for minute in 0..100 {
            stopped |= trust.check(at(wall, minute * 60)) != ClockStatus::Trusted;
            wall += 60 + 3_000;
        }
        assert!(stopped);
    }

    #[test]
    fn a_clock_that_was_behind_for_a_minute_is_trusted_afterwards() {
        let mut trust = ClockTrust::new(at(NOW, 0), None, Some(second(NOW)));
        assert_eq!(trust.check(at(NOW, 0)), ClockStatus::Trusted);
        assert_eq!(trust.check(at(NOW - 40 * DAY, 60)), ClockStatus::Trusted);
        assert_eq!(trust.check(at(NOW + 120, 120)), ClockStatus::Trusted);
    }

    #[test]
    fn a_duration_is_described_in_hours_or_days() {
        let described = |hours: u64| describe_duration(Duration::from_secs(hours * 3_600 - 1));
        assert_eq!(
            (described(2), described(47), described(40 * 24)),
            ("2 h".to_owned(), "47 h".to_owned(), "40 days".to_owned())
        );
    }

    #[test]
    fn an_hour_of_the_log_is_removable_per_minute_and_never_more_at_once() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(removable_span(None), hour);
        assert_eq!(removable_span(Some(Duration::from_secs(30))), hour / 2);
        assert_eq!(removable_span(Some(Duration::ZERO)), Duration::ZERO);
        assert_eq!(removable_span(Some(Duration::from_secs(86_400))), hour);
    }
}
