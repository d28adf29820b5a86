//! The newest record of each subject that this process read or wrote, so that an older one is refused.
//!
//! Compared by what a record's MAC covers (the revision that it replaced, and its time) and not by the sequence in the
//! answer, which an impostor of the server could choose. Bounded: the records that were unused longest are forgotten.

use std::collections::HashMap;

/// Records in each of two halves; the older half is dropped when the newer one is full.
const MAX_NEWEST: usize = 50_000;

/// What identifies a version of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::nats) struct Newest {
    /// The revision that it replaced; 0: there was none.
    pub(super) replaced: u64,
    /// Milliseconds since the epoch by its writer's clock.
    pub(super) at: u64,
    pub(super) proof: Vec<u8>,
}

/// By subject.
#[derive(Default)]
pub(super) struct NewestRecords {
    newer: HashMap<String, Newest>,
    older: HashMap<String, Newest>,
}

impl Newest {
    /// Whether the other is the same version, a later one, or the first of a record that was created again.
    pub(super) fn may_precede(&self, other: &Self) -> bool {
        let same = other.proof == self.proof;
        same || other.replaced > self.replaced || (other.replaced == 0 && other.at > self.at)
    }
}

impl NewestRecords {
    pub(super) fn get(&self, subject: &str) -> Option<Newest> {
        self.newer.get(subject).or_else(|| self.older.get(subject)).cloned()
    }

    pub(super) fn note(&mut self, subject: &str, found: Newest) {
        if self.get(subject).is_some_and(|known| !known.may_precede(&found)) {
            return;
        }
        if self.newer.len() >= MAX_NEWEST {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(subject.to_owned(), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(replaced: u64, at: u64) -> Newest {
        Newest { replaced, at, proof: format!("{replaced} {at}").into_bytes() }
    }

    #[test]
    fn a_later_record_version_follows_and_an_older_one_does_not_unless_it_was_created_again() {
        let known = record(5, 100);
        for (other, follows) in
            [(record(5, 100), true), (record(6, 99), true), (record(0, 101), true), (record(5, 101), false)]
        {
            assert_eq!(known.may_precede(&other), follows, "{other:?}");
        }
        assert!(!known.may_precede(&record(4, 200)) && !known.may_precede(&record(0, 90)));
    }

    #[test]
    fn the_newest_record_versions_are_kept_and_the_longest_unused_forgotten() {
        let mut all = NewestRecords::default();
        all.note("a", record(5, 100));
        all.note("a", record(4, 100));
        assert_eq!(all.get("a"), Some(record(5, 100)));
        for number in 0..2 * MAX_NEWEST {
            all.note(&number.to_string(), record(1, 1));
        }
        assert!(all.get("a").is_none() && all.newer.len() <= MAX_NEWEST && all.older.len() <= MAX_NEWEST);
    }
}
