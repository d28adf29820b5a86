//! The approvals of an account that are not over: for the caps, and for what maintenance must look at.
//!
//! INVARIANT: an approval is in the index before its own record is stored, so the caps hold. One whose record was not
//! stored drops out when its time is over.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{KeyId, MAX_PENDING_OF_ACCOUNT, MAX_PENDING_OF_KEY};

/// Entries of an account, ended ones whose events wait to be recorded included.
const MAX_ENTRIES: usize = 2_000;
/// Approvals that one workload opens in an hour, cancelled ones included.
pub(super) const MAX_OPENED_OF_KEY: u32 = 100;
const HOUR_SECONDS: i64 = 3_600;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Index {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) entries: Vec<IndexEntry>,
    /// When maintenance must look at the account's wider grants.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) grants_due_at: Option<Timestamp>,
    /// What workloads opened this hour.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    openings: Vec<Openings>,
}

/// How many approvals a workload opened in an hour.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Openings {
    workload: KeyId,
    /// Hours since 1970.
    hour: i64,
    count: u32,
}

fn hour_of(time: Timestamp) -> i64 {
    time.as_second().div_euclid(HOUR_SECONDS)
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct IndexEntry {
    pub(super) slot: String,
    pub(super) workload: KeyId,
    pub(super) is_pending: bool,
    /// A pending one counts for the caps until then.
    pub(super) expires_at: Timestamp,
    /// When maintenance must look at it.
    pub(super) due_at: Timestamp,
}

/// Why no approval is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CapError {
    #[error("{MAX_PENDING_OF_KEY} approvals of this workload are pending already: wait for them, or cancel some")]
    OfKey,
    #[error("{MAX_PENDING_OF_ACCOUNT} approvals of the account are pending already")]
    OfAccount,
    #[error("this workload opened {MAX_OPENED_OF_KEY} approvals within the hour: try again in the next one")]
    Opened,
    #[error("too many approvals of the account wait to be recorded")]
    Unrecorded,
}

impl Index {
    /// Whether one more may be pending. One that is pending again in its own slot counts once.
    pub(super) fn admit(&mut self, entry: IndexEntry, now: Timestamp) -> Result<(), CapError> {
        let others = || self.entries.iter().filter(|other| other.slot != entry.slot);
        let pending = || others().filter(|other| other.is_pending && other.expires_at > now);
        if pending().filter(|other| other.workload == entry.workload).count() >= MAX_PENDING_OF_KEY {
            return Err(CapError::OfKey);
        }
        if pending().count() >= MAX_PENDING_OF_ACCOUNT {
            return Err(CapError::OfAccount);
        }
        let is_own = |one: &&Openings| one.workload == entry.workload && one.hour == hour_of(now);
        if self.openings.iter().find(is_own).is_some_and(|one| one.count >= MAX_OPENED_OF_KEY) {
            return Err(CapError::Opened);
        }
        if others().count() >= MAX_ENTRIES {
            return Err(CapError::Unrecorded);
        }
        self.put(entry);
        Ok(())
    }

    /// Counts an approval that was opened. Those of one workload that are opened at once are bounded by how many may be
    /// pending, so it is counted once its record is stored.
    pub(super) fn count_opening(&mut self, workload: &KeyId, now: Timestamp) {
        let hour = hour_of(now);
        self.openings.retain(|one| one.hour == hour);
        match self.openings.iter_mut().find(|one| one.workload == *workload) {
            Some(one) => one.count = one.count.saturating_add(1),
            None => self.openings.push(Openings { workload: workload.clone(), hour, count: 1 }),
        }
    }

    pub(super) fn put(&mut self, entry: IndexEntry) {
        match self.entries.iter_mut().find(|other| other.slot == entry.slot) {
            Some(other) => *other = entry,
            None => self.entries.push(entry),
        }
    }

    pub(super) fn remove(&mut self, slot: &str) {
        self.entries.retain(|entry| entry.slot != slot);
    }

    /// The slots that maintenance must look at.
    pub(super) fn due(&self, now: Timestamp) -> Vec<String> {
        self.entries.iter().filter(|entry| entry.due_at <= now).map(|entry| entry.slot.clone()).collect()
    }

    /// Whether maintenance must look at anything.
    pub(super) fn is_due(&self, now: Timestamp) -> bool {
        self.entries.iter().map(|entry| entry.due_at).chain(self.grants_due_at).any(|at| at <= now)
    }

    #[cfg(test)]
    fn pending(&self, now: Timestamp) -> usize {
        self.entries.iter().filter(|entry| entry.is_pending && entry.expires_at > now).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn entry(number: usize, workload: &str) -> IndexEntry {
        IndexEntry {
            slot: format!("s{number}"),
            workload: KeyId::parse(workload).unwrap(),
            is_pending: true,
            expires_at: at(100),
            due_at: at(50),
        }
    }

    #[test]
    fn a_workload_has_twenty_pending_and_others_are_not_affected() {
        let mut index = Index::default();
        for number in 0..MAX_PENDING_OF_KEY {
            index.admit(entry(number, "a"), at(1)).unwrap();
        }
        assert_eq!(index.admit(entry(99, "a"), at(1)), Err(CapError::OfKey));
        assert_eq!(index.admit(entry(3, "a"), at(1)), Ok(()), "the same action again");
        assert_eq!(index.admit(entry(99, "b"), at(1)), Ok(()));
        assert_eq!(index.pending(at(1)), MAX_PENDING_OF_KEY + 1);
        assert_eq!(index.admit(entry(98, "a"), at(100)), Ok(()), "those past their time count no more");
    }

    #[test]
    fn an_account_has_a_thousand_pending() {
        let mut index = Index::default();
        for number in 0..MAX_PENDING_OF_ACCOUNT {
            index.admit(entry(number, &format!("w{}", number / MAX_PENDING_OF_KEY)), at(1)).unwrap();
        }
        assert_eq!(index.admit(entry(5_000, "other"), at(1)), Err(CapError::OfAccount));
        index.remove("s7");
        assert_eq!(index.admit(entry(5_000, "other"), at(1)), Ok(()));
    }

    #[test]
    fn what_is_due_is_looked_at() {
        let mut index = Index::default();
        index.put(entry(1, "a"));
        index.put(IndexEntry { due_at: at(60), ..entry(2, "a") });
        assert_eq!((index.due(at(49)), index.due(at(50))), (Vec::new(), vec!["s1".to_owned()]));
        index.put(IndexEntry { due_at: at(70), ..entry(1, "a") });
        assert_eq!(index.due(at(65)), ["s2"]);
    }

    #[test]
    fn a_workload_opens_a_hundred_an_hour_and_more_in_the_next() {
        let mut index = Index::default();
        let workload = KeyId::parse("a").unwrap();
        for number in 0..MAX_OPENED_OF_KEY {
            assert_eq!(index.admit(entry(1, "a"), at(1)), Ok(()), "{number}");
            index.count_opening(&workload, at(1));
        }
        assert_eq!(index.admit(entry(2, "a"), at(3_599)), Err(CapError::Opened));
        assert_eq!(index.admit(entry(2, "b"), at(3_599)), Ok(()));
        assert_eq!(index.admit(entry(2, "a"), at(3_600)), Ok(()));
        index.count_opening(&workload, at(3_600));
        assert_eq!(index.openings.len(), 1);
    }
}
