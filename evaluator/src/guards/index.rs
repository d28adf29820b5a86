//! An account's guards together: how many there are, and when maintenance must look at them.
//!
//! Pure. Guards report often, and their number is large: so a report changes the index only where it brings the next
//! look forward. INVARIANT: no guard is due before `look_at`, except one that is being written at this moment, and
//! those are looked for again.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use stage0_contract::MAX_GUARDS;

use crate::records::later;

/// An account's guards are looked at again after this time at the latest, and then they are counted.
const SCAN_INTERVAL: SignedDuration = SignedDuration::from_hours(1);
/// And after this time at the soonest.
const MIN_SCAN_INTERVAL: SignedDuration = SignedDuration::from_secs(10);
/// Longer than a report takes, from its index to its record.
const WRITING_TIMEOUT: SignedDuration = SignedDuration::from_secs(60);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct GuardIndex {
    /// Guards at the last look, and those that came since.
    pub(super) count: usize,
    /// When maintenance must look at the guards; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) look_at: Option<Timestamp>,
    /// When a report last changed it.
    #[serde(default)]
    changed_at: Timestamp,
}

/// What a report changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) is_new: bool,
    /// It must be looked at earlier than before.
    pub(super) is_sooner: bool,
    pub(super) look_at: Option<Timestamp>,
}

/// The account has too many guards.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl GuardIndex {
    /// Notes a guard that is about to be written.
    pub(super) fn admit(&mut self, arrival: Arrival, now: Timestamp) -> Result<(), TooMany> {
        let Arrival { is_new, is_sooner, look_at } = arrival;
        if is_new {
            if self.count >= MAX_GUARDS {
                return Err(TooMany);
            }
            self.count = self.count.saturating_add(1);
        }
        let is_earlier = look_at.is_some_and(|at| self.look_at.is_none_or(|known| at < known));
        if is_earlier {
            self.look_at = look_at;
        }
        if is_new || is_sooner || is_earlier {
            self.changed_at = now;
        }
        Ok(())
    }

    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.look_at.is_some_and(|at| at <= now)
    }

    /// Notes a look at all guards: their number, and when the first of them must be looked at.
    pub(super) fn looked(&mut self, count: usize, first: Option<Timestamp>, now: Timestamp) {
        let soonest = later(now, MIN_SCAN_INTERVAL);
        // A guard whose record was still being written was not seen.
        let is_settled = later(self.changed_at, WRITING_TIMEOUT) <= now;
        let next = later(now, if is_settled { SCAN_INTERVAL } else { MIN_SCAN_INTERVAL });
        self.count = count;
        self.look_at = (count > 0 || !is_settled).then(|| first.map_or(next, |first| first.min(next)).max(soonest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn arrival(is_new: bool, second: i64) -> Arrival {
        Arrival { is_new, is_sooner: is_new, look_at: Some(at(second)) }
    }

    #[test]
    fn an_account_has_ten_thousand_guards_and_those_that_it_has_report_on() {
        let mut index = GuardIndex { count: MAX_GUARDS - 1, ..GuardIndex::default() };
        assert_eq!(index.admit(arrival(true, 70), at(0)), Ok(()));
        assert_eq!(index.admit(arrival(true, 70), at(0)), Err(TooMany));
        assert_eq!(index.admit(arrival(false, 70), at(0)), Ok(()));
        index.looked(MAX_GUARDS - 1, None, at(100));
        assert_eq!(index.admit(arrival(true, 170), at(100)), Ok(()), "one was forgotten");
    }

    #[test]
    fn a_report_changes_the_index_only_where_it_brings_the_next_look_forward() {
        let mut index = GuardIndex::default();
        index.admit(arrival(true, 900), at(0)).unwrap();
        let before = index.clone();
        index.admit(arrival(false, 1_000), at(300)).unwrap();
        index.admit(Arrival { is_new: false, is_sooner: false, look_at: None }, at(310)).unwrap();
        assert_eq!(index, before);
        index.admit(arrival(false, 800), at(300)).unwrap();
        assert_eq!((index.look_at, index.changed_at), (Some(at(800)), at(300)));
        assert!(!index.is_due(at(799)) && index.is_due(at(800)));
    }

    #[test]
    fn a_look_is_followed_by_the_next_when_the_first_guard_is_due_and_within_the_hour() {
        let mut index = GuardIndex::default();
        index.admit(arrival(true, 900), at(0)).unwrap();
        for (first, next) in [(Some(950), 1_450), (Some(1_445), 1_450), (Some(2_000), 2_000), (None, 5_040)] {
            index.looked(1, first.map(at), at(1_440));
            assert_eq!(index.look_at, Some(at(next)), "{first:?}");
        }
        index.looked(0, None, at(1_440));
        assert_eq!(index.look_at, None, "there is nothing to look at");
    }

    #[test]
    fn a_guard_that_was_being_written_during_a_look_is_looked_for_again() {
        let mut index = GuardIndex::default();
        index.admit(arrival(true, 900), at(890)).unwrap();
        index.looked(0, None, at(900));
        assert_eq!(index.look_at, Some(at(910)));
        index.looked(0, None, at(950));
        assert_eq!(index.look_at, None);
    }
}
