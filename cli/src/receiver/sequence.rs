//! Gaps in the sequence numbers of each endpoint, which is known by its path and account: pure.
//!
//! Up to 16 deliveries are in flight at a time, so a gap is reported only by an event that arrives when the gap has
//! been open for a while. Memory is bounded: beyond the limits the oldest gap, or all endpoints, are forgotten.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;

const MAX_ENDPOINTS: usize = 256;
const MAX_GAPS: usize = 256;
/// Deliveries that were sent together arrive within this time. A retry does not: the first one comes after 5 s.
const REPORT_DELAY: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Arrival {
    /// An event with this id has arrived before.
    pub(super) is_repeated: bool,
    /// The number had been reported as missing.
    pub(super) is_late: bool,
    /// Gaps that are to be reported now.
    pub(super) missing: Vec<RangeInclusive<u64>>,
}

/// By path and account.
#[derive(Debug, Default)]
pub(super) struct Sequences(HashMap<(String, String), Sequence>);

#[derive(Debug)]
struct Sequence {
    highest: u64,
    gaps: VecDeque<Gap>,
}

#[derive(Debug, Clone)]
struct Gap {
    numbers: RangeInclusive<u64>,
    since: Timestamp,
    is_reported: bool,
}

impl Sequences {
    pub(super) fn arrived(&mut self, path: &str, account: &str, number: u64, now: Timestamp) -> Arrival {
        let endpoint = (path.to_owned(), account.to_owned());
        if self.0.len() >= MAX_ENDPOINTS && !self.0.contains_key(&endpoint) {
            self.0.clear();
        }
        let sequence = self.0.entry(endpoint).or_insert_with(|| Sequence { highest: number, gaps: VecDeque::new() });
        let is_late = sequence.fill_gap(number);
        sequence.open_gap(number, now);
        Arrival { is_repeated: false, is_late, missing: sequence.report_gaps(now) }
    }

    /// The number of missing events, whether they were reported or not.
    pub(super) fn missing(&self) -> u64 {
        let gaps = self.0.values().flat_map(|sequence| &sequence.gaps).map(|gap| &gap.numbers);
        gaps.fold(0, |sum: u64, gap| sum.saturating_add(gap.end() - gap.start()).saturating_add(1))
    }
}

impl Sequence {
    fn open_gap(&mut self, number: u64, now: Timestamp) {
        let numbers = self.highest.saturating_add(1)..=number.saturating_sub(1);
        self.highest = self.highest.max(number);
        if numbers.is_empty() {
            return;
        }
        if self.gaps.len() >= MAX_GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(Gap { numbers, since: now, is_reported: false });
    }

    /// Removes the number from its gap, which may leave two. Returns whether the gap had been reported.
    fn fill_gap(&mut self, number: u64) -> bool {
        let Some(index) = self.gaps.iter().position(|gap| gap.numbers.contains(&number)) else { return false };
        let Some(gap) = self.gaps.remove(index) else { return false };
        let before = *gap.numbers.start()..=number.saturating_sub(1);
        let after = number.saturating_add(1)..=*gap.numbers.end();
        for numbers in [after, before].into_iter().filter(|rest| !rest.is_empty()) {
            self.gaps.insert(index, Gap { numbers, ..gap });
        }
        gap.is_reported
    }

    fn report_gaps(&mut self, now: Timestamp) -> Vec<RangeInclusive<u64>> {
        let is_due = |gap: &Gap| !gap.is_reported && now.duration_since(gap.since).unsigned_abs() >= REPORT_DELAY;
        let mut due = Vec::new();
        for gap in self.gaps.iter_mut().filter(|gap| is_due(gap)) {
            gap.is_reported = true;
            due.push(gap.numbers.clone());
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn arrive(sequences: &mut Sequences, number: u64, second: i64) -> Arrival {
        sequences.arrived("/", "acc_1", number, at(second))
    }

    #[test]
    fn a_gap_that_stays_open_is_reported_once_and_late_events_close_it() {
        let mut all = Sequences::default();
        assert_eq!(arrive(&mut all, 7, 0), Arrival::default(), "numbers before the first are unknown");
        assert_eq!(arrive(&mut all, 8, 0), Arrival::default());
        assert_eq!(arrive(&mut all, 12, 0), Arrival::default(), "the others may be in flight");
        assert_eq!((arrive(&mut all, 13, 1), all.missing()), (Arrival::default(), 3));
        assert_eq!(arrive(&mut all, 14, 2), Arrival { missing: vec![9..=11], ..Arrival::default() });
        assert_eq!(arrive(&mut all, 15, 9), Arrival::default(), "it was reported before");
        assert_eq!((arrive(&mut all, 10, 9), all.missing()), (Arrival { is_late: true, ..Arrival::default() }, 2));
        assert_eq!((arrive(&mut all, 10, 9), all.missing()), (Arrival::default(), 2), "it came twice");
        assert!(arrive(&mut all, 9, 9).is_late && arrive(&mut all, 11, 9).is_late);
        assert_eq!((arrive(&mut all, 1, 9), all.missing()), (Arrival::default(), 0));
    }

    #[test]
    fn reordered_deliveries_are_not_reported_as_missing() {
        let mut all = Sequences::default();
        for number in [1, 9, 5, 2, 3, 7, 4, 6, 8] {
            assert_eq!(arrive(&mut all, number, 1), Arrival::default(), "{number}");
        }
        assert_eq!((arrive(&mut all, 10, 60), all.missing()), (Arrival::default(), 0));
    }

    #[test]
    fn each_path_and_account_has_its_own_sequence() {
        let mut all = Sequences::default();
        arrive(&mut all, 1, 0);
        all.arrived("/other", "acc_1", 5, at(0));
        all.arrived("/", "acc_2", 9, at(0));
        assert_eq!(all.missing(), 0);
        arrive(&mut all, 3, 0);
        assert_eq!(all.missing(), 1);
        assert_eq!(
            all.arrived("/", "acc_2", 10, at(60)),
            Arrival::default(),
            "another endpoint's gap is not reported here"
        );
    }

    #[test]
    fn memory_is_bounded_and_the_largest_numbers_do_not_overflow() {
        let mut all = Sequences::default();
        (0..2_000).for_each(|n| drop(arrive(&mut all, 1 + n * 2, 0)));
        assert_eq!(all.missing(), 256);
        arrive(&mut all, u64::MAX, 0);
        arrive(&mut all, u64::MAX - 1, 0);
        assert!(all.missing() > u64::MAX / 2);
        (0..1_000).for_each(|n| drop(all.arrived(&format!("/{n}"), "acc_1", 1, at(0))));
        assert!(all.0.len() <= 256);
    }
}
