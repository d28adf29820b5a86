//! Whether the clock may destroy: pure.
//!
//! What is removed by the clock is gone, so more than one clock must say that its time has come. The host's wall clock
//! is believed while it is at most an hour ahead of one that somebody else tells: another process, as of its answer;
//! what this host's own kernel counted since the clock was last believed; or, where neither is known, the newest record
//! of the log. A clock that nobody confirms is believed once it has stood as it stands for a day by the kernel's clock:
//! by then somebody has read the alarm.
//! INVARIANT: while the clock is not believed, the time that it is for everything else never runs ahead of the best
//! that is known.

use std::time::Duration;

use jiff::Timestamp;
use stage0_backplane::clock::Clocks;

/// So far ahead a clock may be: what is kept for days is removed an hour early at most.
pub(crate) const MAX_AHEAD: Duration = Duration::from_secs(3_600);
/// After which a clock that nobody confirms is believed.
pub(crate) const UNCONFIRMED_TTL: Duration = Duration::from_secs(24 * 3_600);

/// What is known of the time. All times are offsets: how far a wall clock is ahead of this host's kernel clock, in
/// microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// The wall clock as it was last believed.
    anchor: Option<i64>,
    /// Another process's, as of its last answer.
    witness: Option<i64>,
    /// Of the newest record that was there at the start; where there is an anchor, a record may be of a wrong clock.
    record: Option<i64>,
    judged_at: Option<Duration>,
    /// Since when, by the kernel's clock, the wall clock stands where nobody confirms it.
    unconfirmed: Option<(Duration, i64)>,
}

/// What a look at the clocks says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// What is past its time may go.
    Believed,
    /// Nothing goes: the clock is so far ahead of all others.
    Ahead(Duration),
}

impl Trust {
    /// With what was believed on this boot of this host before, or else with the newest record.
    pub(crate) fn new(now: Clocks, anchor: Option<i64>, newest_record: Option<Timestamp>) -> Self {
        let record = newest_record.filter(|_| anchor.is_none());
        let record = record.map(|wall| Clocks { wall, ..now }.offset());
        Self { anchor, record, ..Self::default() }
    }

    /// Another process answered just now, and said that it is this time.
    pub(crate) fn hear(&mut self, now: Clocks, said: Timestamp) {
        self.witness = Some(Clocks { wall: said, ..now }.offset());
    }

    /// Compares the clocks.
    pub(crate) fn judge(&mut self, now: Clocks) -> Verdict {
        let own = now.offset();
        let went_by = self.judged_at.map_or(0, |at| micros(now.boot.saturating_sub(at)));
        self.judged_at = Some(now.boot);
        let Some(known) = self.known() else {
            // Nothing was ever recorded here, and nobody else is there.
            self.anchor = Some(own);
            return Verdict::Believed;
        };
        let ahead = own.saturating_sub(known);
        if ahead <= micros(MAX_AHEAD) {
            self.unconfirmed = None;
            self.follow(own, went_by);
            return Verdict::Believed;
        }
        let (since, stood) = *self.unconfirmed.get_or_insert((now.boot, own));
        if own.abs_diff(stood) > micros(MAX_AHEAD).unsigned_abs() {
            self.unconfirmed = Some((now.boot, own));
        } else if now.boot.saturating_sub(since) >= UNCONFIRMED_TTL {
            (self.anchor, self.unconfirmed) = (Some(own), None);
            return Verdict::Believed;
        }
        Verdict::Ahead(Duration::from_micros(ahead.unsigned_abs()))
    }

    /// The time, as far as it is known.
    pub(crate) fn time(&self, now: Clocks) -> Timestamp {
        match self.known() {
            Some(known) if now.offset().saturating_sub(known) > micros(MAX_AHEAD) => now.at_offset(known),
            Some(_) | None => now.wall,
        }
    }

    /// What a later start on this boot may compare with.
    pub(crate) fn anchor(&self) -> Option<i64> {
        self.anchor
    }

    fn known(&self) -> Option<i64> {
        self.anchor.max(self.witness).max(self.record)
    }

    /// The anchor follows a clock that somebody else confirms. Alone it follows a second a minute upwards, more than
    /// any clock drifts, so that many small steps are no way around; and ten minutes a minute downwards, so that a
    /// clock which is wrong for a moment leaves none behind.
    fn follow(&mut self, own: i64, went_by: i64) {
        let confirmed =
            self.witness.max(self.record).is_some_and(|other| own.saturating_sub(other) <= micros(MAX_AHEAD));
        self.anchor = Some(match self.anchor {
            Some(anchor) if own > anchor && !confirmed => own.min(anchor.saturating_add(went_by / 60)),
            Some(anchor) if own < anchor => own.max(anchor.saturating_sub(went_by.saturating_mul(10))),
            Some(_) | None => own,
        });
    }
}

/// How much of an account's log may be removed now: an hour of it for each minute that went by, an hour at most.
pub(crate) fn removable(since_last: Option<Duration>) -> Duration {
    const A_MINUTE: Duration = Duration::from_secs(3_600);
    since_last.map_or(A_MINUTE, |went_by| went_by.saturating_mul(60).min(A_MINUTE))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// In words for people.
pub(crate) fn in_words(ahead: Duration) -> String {
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

    fn days(days: i64) -> Verdict {
        Verdict::Ahead(Duration::from_secs(u64::try_from(days * DAY).unwrap()))
    }

    #[test]
    fn a_clock_that_is_set_ahead_while_the_process_runs_is_not_believed_and_after_it_is_set_back_it_is() {
        let mut trust = Trust::new(at(NOW, 100), None, Some(second(NOW - 60)));
        assert_eq!(trust.judge(at(NOW, 100)), Verdict::Believed);
        let ahead = at(NOW + 40 * DAY + 60, 160);
        assert_eq!(trust.judge(ahead), days(40));
        assert_eq!(trust.time(ahead), second(NOW + 60), "for everything else it is the time that it was");
        assert_eq!(trust.judge(at(NOW + 120, 220)), Verdict::Believed);
        assert_eq!(trust.time(at(NOW + 120, 220)), second(NOW + 120));
    }

    #[test]
    fn a_process_that_starts_while_the_clock_is_ahead_does_not_believe_it() {
        // By the newest record; by this boot's memory, although a record was made by the wrong clock; by another
        // process.
        let start = at(NOW + 40 * DAY, 500);
        assert_eq!(Trust::new(start, None, Some(second(NOW))).judge(start), days(40));
        let mut trust = Trust::new(start, Some(at(NOW - 400, 100).offset()), Some(second(NOW + 40 * DAY)));
        assert_eq!(trust.judge(start), days(40));
        trust.hear(start, second(NOW));
        assert_eq!(trust.judge(start), days(40));
    }

    #[test]
    fn an_hour_is_the_bound() {
        for (ahead, believed) in [(0, true), (3_600, true), (3_601, false), (-40 * DAY, true)] {
            let start = at(NOW + ahead, 500);
            let verdict = Trust::new(start, None, Some(second(NOW))).judge(start);
            assert_eq!(verdict == Verdict::Believed, believed, "{ahead}");
        }
    }

    #[test]
    fn a_deployment_that_was_idle_for_weeks_still_removes() {
        // The newest record is old, and another process has the same time.
        let start = at(NOW, 500);
        let mut trust = Trust::new(start, None, Some(second(NOW - 60 * DAY)));
        trust.hear(start, second(NOW));
        assert_eq!(trust.judge(start), Verdict::Believed);
        // A process alone that ran all the while; and one that was started again on the same boot.
        let mut alone = Trust::new(at(NOW, 500), None, Some(second(NOW)));
        for week in 0..10 {
            assert_eq!(alone.judge(at(NOW + week * 7 * DAY, 500 + week * 7 * DAY)), Verdict::Believed, "{week}");
        }
        let later = at(NOW + 70 * DAY, 500 + 70 * DAY);
        assert_eq!(Trust::new(later, alone.anchor(), Some(second(NOW))).judge(later), Verdict::Believed);
        // One that was started on a fresh log, with nobody to ask.
        assert_eq!(Trust::new(start, None, None).judge(start), Verdict::Believed);
    }

    #[test]
    fn a_clock_that_nobody_confirms_is_believed_after_a_day_on_which_it_was_not_set_again() {
        let start = |boot| at(NOW + 40 * DAY + boot, boot);
        let mut trust = Trust::new(start(0), None, Some(second(NOW)));
        for boot in [0, 3_600, DAY - 1] {
            assert_eq!(trust.judge(start(boot)), days(40), "{boot}");
        }
        assert_eq!(trust.judge(start(DAY)), Verdict::Believed);
        assert_eq!(trust.judge(start(2 * DAY)), Verdict::Believed);
        // Set again in between, the day begins again.
        let mut trust = Trust::new(start(0), None, Some(second(NOW)));
        trust.judge(start(0));
        trust.judge(at(NOW + 80 * DAY, DAY / 2));
        assert_ne!(trust.judge(at(NOW + 80 * DAY + DAY / 2, DAY)), Verdict::Believed);
    }

    #[test]
    fn many_small_steps_are_no_way_around() {
        let mut trust = Trust::new(at(NOW, 0), Some(at(NOW, 0).offset()), None);
        let (mut wall, mut stopped) = (NOW, false);
        for minute in 0..100 {
            stopped |= trust.judge(at(wall, minute * 60)) != Verdict::Believed;
            wall += 60 + 3_000;
        }
        assert!(stopped);
    }

    #[test]
    fn a_clock_that_was_behind_for_a_minute_leaves_no_alarm_behind() {
        let mut trust = Trust::new(at(NOW, 0), None, Some(second(NOW)));
        assert_eq!(trust.judge(at(NOW, 0)), Verdict::Believed);
        assert_eq!(trust.judge(at(NOW - 40 * DAY, 60)), Verdict::Believed);
        assert_eq!(trust.judge(at(NOW + 120, 120)), Verdict::Believed);
    }

    #[test]
    fn people_are_told_the_nearest_day() {
        let told = |hours: u64| in_words(Duration::from_secs(hours * 3_600 - 1));
        assert_eq!((told(2), told(47), told(40 * 24)), ("2 h".to_owned(), "47 h".to_owned(), "40 days".to_owned()));
    }

    #[test]
    fn an_hour_of_the_log_goes_a_minute_and_never_more_at_once() {
        let hour = Duration::from_secs(3_600);
        assert_eq!(removable(None), hour);
        assert_eq!(removable(Some(Duration::from_secs(30))), hour / 2);
        assert_eq!(removable(Some(Duration::ZERO)), Duration::ZERO);
        assert_eq!(removable(Some(Duration::from_secs(86_400))), hour);
    }
}
