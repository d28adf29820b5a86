//! What to do with the files that were found: pure.
//!
//! INVARIANT: no acknowledged change is given up. A change is acknowledged only when both files have it, so a whole
//! store proves how new the journal must be, and the other way round. If neither proves anything, the keystore refuses
//! to start: a person restores files, the program never guesses.

use crate::store::journal::{End, Replay};
use crate::store::snapshot::Snapshot;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreFound {
    Missing,
    /// It cannot be opened, or its entries do not match its position. The text is for the log.
    Broken(String),
    Whole(Snapshot),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RecoveryPlan {
    /// Nothing is there: create both.
    Begin,
    Open,
    /// The process ended between the two writes of one change: apply it to the store too.
    CatchUp,
    /// The journal is whole, and the store cannot be trusted.
    RebuildStore {
        why: Fault,
    },
    /// The store is whole and at least as new as anything in the journal.
    RewriteJournal {
        why: Fault,
    },
}

/// What is wrong, for the log and for the person who repairs it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the store is missing")]
    StoreMissing,
    #[error("the store is damaged: {0}")]
    StoreBroken(String),
    #[error("the store has other content than the journal at the same change")]
    StoreDisagrees,
    #[error("the store is {missing} changes behind the journal")]
    StoreBehind { missing: u64 },
    #[error("the store belongs to another directory")]
    StoreForeign,
    #[error("journal and store are missing, but `operator.key` of an earlier start is there")]
    EverythingMissing,
    #[error("the journal is missing")]
    JournalMissing,
    #[error("the journal is damaged")]
    JournalDamaged,
    #[error("the journal is {missing} changes behind the store")]
    JournalBehind { missing: u64 },
    #[error("the journal is missing and the store is damaged: {0}")]
    JournalMissingStoreBroken(String),
    #[error("the journal is damaged and the store is missing")]
    JournalDamagedStoreMissing,
    #[error("the journal is damaged and so is the store: {0}")]
    BothDamaged(String),
    #[error("the journal is damaged and the store is older than the journal was")]
    JournalDamagedStoreOld,
    #[error("the journal is damaged and the store belongs to another directory")]
    JournalDamagedStoreForeign,
}

/// Decides which of journal and store is believed, and fails if neither can be.
pub(crate) fn plan(journal: Option<&Replay>, store: &StoreFound) -> Result<RecoveryPlan, Fault> {
    let Some(journal) = journal else {
        return match store {
            StoreFound::Missing => Ok(RecoveryPlan::Begin),
            StoreFound::Broken(why) => Err(Fault::JournalMissingStoreBroken(why.clone())),
            StoreFound::Whole(_) => Ok(RecoveryPlan::RewriteJournal { why: Fault::JournalMissing }),
        };
    };
    match (&journal.snapshot, journal.end) {
        // A torn tail is cut off: it was never acknowledged, or else the store has it and is ahead.
        (Some(snapshot), End::Whole | End::Torn) => Ok(beside_good_journal(snapshot, store)),
        (None, End::Whole | End::Torn) => beside_damaged_journal(None, 0, store),
        (snapshot, End::Damaged { newest }) => beside_damaged_journal(snapshot.as_ref(), newest, store),
    }
}

fn beside_good_journal(journal: &Snapshot, store: &StoreFound) -> RecoveryPlan {
    let snapshot = match store {
        StoreFound::Missing => return RecoveryPlan::RebuildStore { why: Fault::StoreMissing },
        StoreFound::Broken(why) => return RecoveryPlan::RebuildStore { why: Fault::StoreBroken(why.clone()) },
        StoreFound::Whole(snapshot) => snapshot,
    };
    let (ours, theirs) = (journal.position, snapshot.position);
    if ours.store_id != theirs.store_id {
        return RecoveryPlan::RebuildStore { why: Fault::StoreForeign };
    }
    if ours == theirs {
        return RecoveryPlan::Open;
    }
    if theirs == journal.before {
        return RecoveryPlan::CatchUp;
    }
    match ours.sequence.checked_sub(theirs.sequence) {
        None => RecoveryPlan::RewriteJournal { why: Fault::JournalBehind { missing: theirs.sequence - ours.sequence } },
        Some(0) => RecoveryPlan::RebuildStore { why: Fault::StoreDisagrees },
        Some(missing) => RecoveryPlan::RebuildStore { why: Fault::StoreBehind { missing } },
    }
}

fn beside_damaged_journal(journal: Option<&Snapshot>, newest: u64, store: &StoreFound) -> Result<RecoveryPlan, Fault> {
    let theirs = match store {
        StoreFound::Missing => return Err(Fault::JournalDamagedStoreMissing),
        StoreFound::Broken(why) => return Err(Fault::BothDamaged(why.clone())),
        StoreFound::Whole(snapshot) => snapshot.position,
    };
    if journal.is_some_and(|journal| journal.position.store_id != theirs.store_id) {
        return Err(Fault::JournalDamagedStoreForeign);
    }
    let seen = journal.map_or(newest, |journal| journal.position.sequence.max(newest));
    if theirs.sequence < seen {
        return Err(Fault::JournalDamagedStoreOld);
    }
    Ok(RecoveryPlan::RewriteJournal { why: Fault::JournalDamaged })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Record;
    use crate::store::record::tests::{account, key};
    use crate::store::snapshot::StoreId;

    fn snapshot(store_id: u8, changes: u64) -> Snapshot {
        let mut snapshot =
            Snapshot::of(StoreId::from_random([store_id; 16]), 0, vec![Record::Account(account("a"))]).unwrap();
        for change in 0..changes {
            snapshot.apply(vec![Record::Key(key(&format!("k{change}"), "a", &[]))]).unwrap();
        }
        snapshot
    }

    fn journal(snapshot: Option<Snapshot>, end: End) -> Replay {
        Replay { snapshot, good: 1, snapshot_bytes: 1, end, trail: Vec::new(), ends: Vec::new() }
    }

    fn broken() -> StoreFound {
        StoreFound::Broken("panicked".to_owned())
    }

    #[test]
    fn the_start_is_refused_when_neither_journal_nor_store_is_whole() {
        let damaged = journal(Some(snapshot(1, 3)), End::Damaged { newest: 5 });
        for (found, store) in [
            (Some(&damaged), broken()),
            (Some(&damaged), StoreFound::Missing),
            (Some(&damaged), StoreFound::Whole(snapshot(1, 4))),
            (Some(&damaged), StoreFound::Whole(snapshot(2, 9))),
            (None, broken()),
        ] {
            assert!(plan(found, &store).is_err(), "{store:?}");
        }
        let headless = journal(None, End::Damaged { newest: 0 });
        assert!(plan(Some(&headless), &broken()).is_err());
    }

    #[test]
    fn a_whole_store_that_is_as_new_replaces_a_damaged_or_missing_journal() {
        for damaged in
            [journal(Some(snapshot(1, 3)), End::Damaged { newest: 5 }), journal(None, End::Damaged { newest: 5 })]
        {
            let why = Fault::JournalDamaged;
            assert_eq!(
                plan(Some(&damaged), &StoreFound::Whole(snapshot(1, 5))),
                Ok(RecoveryPlan::RewriteJournal { why })
            );
        }
        let why = Fault::JournalMissing;
        assert_eq!(plan(None, &StoreFound::Whole(snapshot(1, 5))), Ok(RecoveryPlan::RewriteJournal { why }));
    }

    #[test]
    fn a_whole_store_that_is_newer_replaces_a_journal_that_lost_its_end() {
        for end in [End::Whole, End::Torn] {
            let why = Fault::JournalBehind { missing: 2 };
            let found = journal(Some(snapshot(1, 3)), end);
            assert_eq!(
                plan(Some(&found), &StoreFound::Whole(snapshot(1, 5))),
                Ok(RecoveryPlan::RewriteJournal { why })
            );
        }
    }

    #[test]
    fn a_whole_journal_rebuilds_a_missing_damaged_foreign_old_or_different_store() {
        let mut different = snapshot(1, 4);
        different.apply(vec![Record::Account(account("b"))]).unwrap();
        for end in [End::Whole, End::Torn] {
            let found = journal(Some(snapshot(1, 5)), end);
            for (store, why) in [
                (StoreFound::Missing, Fault::StoreMissing),
                (broken(), Fault::StoreBroken("panicked".to_owned())),
                (StoreFound::Whole(snapshot(2, 5)), Fault::StoreForeign),
                (StoreFound::Whole(snapshot(1, 3)), Fault::StoreBehind { missing: 2 }),
                (StoreFound::Whole(different.clone()), Fault::StoreDisagrees),
            ] {
                assert_eq!(plan(Some(&found), &store), Ok(RecoveryPlan::RebuildStore { why }));
            }
        }
    }

    #[test]
    fn a_store_that_is_one_change_behind_catches_up() {
        let found = journal(Some(snapshot(1, 5)), End::Whole);
        assert_eq!(plan(Some(&found), &StoreFound::Whole(snapshot(1, 4))), Ok(RecoveryPlan::CatchUp));
        assert_eq!(plan(Some(&found), &StoreFound::Whole(snapshot(1, 5))), Ok(RecoveryPlan::Open));
        assert_eq!(plan(None, &StoreFound::Missing), Ok(RecoveryPlan::Begin));
    }
}
