//! Which numbers of an endpoint have not arrived yet: pure.
//!
//! Owns the numbers of each endpoint, as far as a receiver can tell endpoints apart: by path and account. Up to 16 deliveries are on
//! their way at a time, so a gap is told only when the next event finds it open after a while. It begins at the first number that
//! arrives, as a receiver does not know what was sent before it started. Bounded: of too many gaps the oldest, of too many endpoints
//! all are forgotten.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;

const MOST_ENDPOINTS: usize = 256;
const MOST_GAPS: usize = 256;
/// What was sent together arrives within it; what must be sent again does not, as the second attempt comes after 5 s.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a number says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// It had been told as missing.
    pub(super) late: bool,
    /// These are told as missing now.
    pub(super) missing: Vec<RangeInclusive<u64>>,
}

/// Of all endpoints.
#[derive(Debug, Default)]
pub(super) struct Sequences(HashMap<(String, String), Numbers>);

#[derive(Debug)]
struct Numbers {
    highest: u64,
    gaps: VecDeque<Gap>,
}

#[derive(Debug, Clone)]
struct Gap {
    numbers: RangeInclusive<u64>,
    since: Timestamp,
    told: bool,
}

impl Sequences {
    /// A number has arrived.
    pub(super) fn arrived(&mut self, path: &str, account: &str, number: u64, now: Timestamp) -> Place {
        let endpoint = (path.to_owned(), account.to_owned());
        if self.0.len() >= MOST_ENDPOINTS && !self.0.contains_key(&endpoint) {
            self.0.clear();
        }
        let numbers = self.0.entry(endpoint).or_insert_with(|| Numbers { highest: number, gaps: VecDeque::new() });
        let late = numbers.fill(number);
        numbers.open(number, now);
        Place { late, missing: numbers.tell(now) }
    }

    /// How many are not here yet, told or not.
    pub(super) fn missing(&self) -> u64 {
        let gaps = self.0.values().flat_map(|numbers| &numbers.gaps).map(|gap| &gap.numbers);
        gaps.fold(0, |sum, gap| sum.saturating_add((gap.end() - gap.start()).saturating_add(1)))
    }
}

impl Numbers {
    fn open(&mut self, number: u64, now: Timestamp) {
        let numbers = self.highest.saturating_add(1)..=number.saturating_sub(1);
        self.highest = self.highest.max(number);
        if numbers.is_empty() {
            return;
        }
        if self.gaps.len() >= MOST_GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(Gap { numbers, since: now, told: false });
    }

    /// Whether it was missing, and people know.
    fn fill(&mut self, number: u64) -> bool {
        let found = self.gaps.iter().position(|gap| gap.numbers.contains(&number));
        let Some((place, gap)) = found.and_then(|place| Some((place, self.gaps.remove(place)?))) else { return false };
        let before = *gap.numbers.start()..=number.saturating_sub(1);
        let after = number.saturating_add(1)..=*gap.numbers.end();
        for numbers in [after, before].into_iter().filter(|rest| !rest.is_empty()) {
            self.gaps.insert(place, Gap { numbers, ..gap });
        }
        gap.told
    }

    fn tell(&mut self, now: Timestamp) -> Vec<RangeInclusive<u64>> {
        let lasts = |gap: &Gap| now.duration_since(gap.since).unsigned_abs() >= PATIENCE;
        let due = self.gaps.iter_mut().filter(|gap| !gap.told && lasts(gap));
        due.map(|gap| {
            gap.told = true;
            gap.numbers.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn arrive(sequences: &mut Sequences, number: u64, second: i64) -> Place {
        sequences.arrived("/", "acc_1", number, at(second))
    }

    #[test]
    fn a_gap_that_stays_open_is_told_once_by_the_next_event_and_then_closed_from_anywhere() {
        let mut all = Sequences::default();
        assert_eq!(arrive(&mut all, 7, 0), Place::default(), "what was before the start is unknown");
        assert_eq!(arrive(&mut all, 8, 0), Place::default());
        assert_eq!(arrive(&mut all, 12, 0), Place::default(), "the others may be on their way");
        assert_eq!((arrive(&mut all, 13, 1), all.missing()), (Place::default(), 3));
        assert_eq!(arrive(&mut all, 14, 2), Place { late: false, missing: vec![9..=11] });
        assert_eq!(arrive(&mut all, 15, 9), Place::default(), "it is known");
        assert_eq!((arrive(&mut all, 10, 9), all.missing()), (Place { late: true, missing: vec![] }, 2));
        assert_eq!((arrive(&mut all, 10, 9), all.missing()), (Place::default(), 2), "it came twice");
        assert!(arrive(&mut all, 9, 9).late && arrive(&mut all, 11, 9).late);
        assert_eq!((arrive(&mut all, 1, 9), all.missing()), (Place::default(), 0));
    }

    #[test]
    fn what_was_only_out_of_order_is_told_by_nobody() {
        let mut all = Sequences::default();
        for number in [1, 9, 5, 2, 3, 7, 4, 6, 8] {
            assert_eq!(arrive(&mut all, number, 1), Place::default(), "{number}");
        }
        assert_eq!((arrive(&mut all, 10, 60), all.missing()), (Place::default(), 0));
    }

    #[test]
    fn endpoints_are_counted_apart() {
        let mut all = Sequences::default();
        arrive(&mut all, 1, 0);
        all.arrived("/other", "acc_1", 5, at(0));
        all.arrived("/", "acc_2", 9, at(0));
        assert_eq!(all.missing(), 0);
        arrive(&mut all, 3, 0);
        assert_eq!(all.missing(), 1);
        assert_eq!(all.arrived("/", "acc_2", 10, at(60)), Place::default(), "it is not its gap");
    }

    #[test]
    fn what_is_remembered_is_bounded_and_no_number_is_too_large() {
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
