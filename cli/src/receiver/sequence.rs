//! Which numbers of an endpoint have not arrived yet: pure.
//!
//! Owns the numbers of each endpoint, as far as a receiver can tell endpoints apart: by path and account. Up to 16 deliveries are on
//! their way at a time, so a gap says no more than "not here yet". It begins at the first number that arrives, as a receiver does not
//! know what was sent before it started. Bounded: of too many gaps the oldest, of too many endpoints all are forgotten.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;

const MOST_ENDPOINTS: usize = 256;
const MOST_GAPS: usize = 256;

/// What a number says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The next one, or one that was here already.
    InOrder,
    /// These are not here yet.
    After(RangeInclusive<u64>),
    /// It was not here yet, and now is.
    Late,
}

/// Of all endpoints.
#[derive(Debug, Default)]
pub(super) struct Sequences(HashMap<(String, String), Numbers>);

#[derive(Debug)]
struct Numbers {
    highest: u64,
    gaps: VecDeque<RangeInclusive<u64>>,
}

impl Sequences {
    /// A number has arrived.
    pub(super) fn arrived(&mut self, path: &str, account: &str, number: u64) -> Place {
        let endpoint = (path.to_owned(), account.to_owned());
        if self.0.len() >= MOST_ENDPOINTS && !self.0.contains_key(&endpoint) {
            self.0.clear();
        }
        match self.0.get_mut(&endpoint) {
            Some(numbers) => numbers.arrived(number),
            None => {
                self.0.insert(endpoint, Numbers { highest: number, gaps: VecDeque::new() });
                Place::InOrder
            }
        }
    }

    /// How many are not here yet.
    pub(super) fn missing(&self) -> u64 {
        let gaps = self.0.values().flat_map(|numbers| &numbers.gaps);
        gaps.fold(0, |sum, gap| sum.saturating_add((gap.end() - gap.start()).saturating_add(1)))
    }
}

impl Numbers {
    fn arrived(&mut self, number: u64) -> Place {
        if number <= self.highest {
            return self.fill(number);
        }
        let gap = self.highest.saturating_add(1)..=number - 1;
        self.highest = number;
        if gap.is_empty() {
            return Place::InOrder;
        }
        if self.gaps.len() >= MOST_GAPS {
            self.gaps.pop_front();
        }
        self.gaps.push_back(gap.clone());
        Place::After(gap)
    }

    fn fill(&mut self, number: u64) -> Place {
        let Some(place) = self.gaps.iter().position(|gap| gap.contains(&number)) else { return Place::InOrder };
        if let Some(gap) = self.gaps.remove(place) {
            let (before, after) = (*gap.start()..=number.saturating_sub(1), number.saturating_add(1)..=*gap.end());
            // 0 is no number of a gap, so there is one before each.
            [after, before].into_iter().filter(|rest| !rest.is_empty()).for_each(|rest| self.gaps.insert(place, rest));
        }
        Place::Late
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(sequences: &mut Sequences, number: u64) -> Place {
        sequences.arrived("/", "acc_1", number)
    }

    #[test]
    fn a_gap_is_told_once_and_closes_from_anywhere() {
        let mut all = Sequences::default();
        assert_eq!(arrive(&mut all, 7), Place::InOrder, "what was before the start is unknown");
        assert_eq!(arrive(&mut all, 8), Place::InOrder);
        assert_eq!(arrive(&mut all, 12), Place::After(9..=11));
        assert_eq!((arrive(&mut all, 13), all.missing()), (Place::InOrder, 3));
        assert_eq!((arrive(&mut all, 10), all.missing()), (Place::Late, 2));
        assert_eq!((arrive(&mut all, 10), all.missing()), (Place::InOrder, 2), "it came twice");
        assert_eq!((arrive(&mut all, 9), arrive(&mut all, 11), all.missing()), (Place::Late, Place::Late, 0));
        assert_eq!(arrive(&mut all, 1), Place::InOrder);
    }

    #[test]
    fn endpoints_are_counted_apart() {
        let mut all = Sequences::default();
        arrive(&mut all, 1);
        assert_eq!(all.arrived("/other", "acc_1", 5), Place::InOrder);
        assert_eq!(all.arrived("/", "acc_2", 9), Place::InOrder);
        assert_eq!(arrive(&mut all, 3), Place::After(2..=2));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_no_number_is_too_large() {
        let mut all = Sequences::default();
        (0..2_000).for_each(|n| drop(arrive(&mut all, 1 + n * 2)));
        assert_eq!(all.missing(), 256);
        arrive(&mut all, u64::MAX);
        assert_eq!(arrive(&mut all, u64::MAX - 1), Place::Late);
        (0..1_000).for_each(|n| drop(all.arrived(&format!("/{n}"), "acc_1", 1)));
        assert!(all.0.len() <= 256);
    }
}
