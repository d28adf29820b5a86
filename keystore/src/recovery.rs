//! What to do with what was found on disk: pure.
//!
//! Owns the one table that says which of journal and store is believed. INVARIANT: no acknowledged change is given up. A change
//! is acknowledged only when both hold it, so a whole store proves how new the journal must be, and the other way round. Where
//! neither proves anything the answer is to refuse: a person restores files, the program never guesses.

use crate::image::{Image, Position};
use crate::journal::{End, Replay};

/// What is known of the store's files.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one, at start")]
pub(crate) enum StoreFound {
    Missing,
    /// It cannot be opened or does not add up; why is for the log.
    Broken(String),
    Whole(Image),
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing is there: make both.
    Begin,
    /// Both agree.
    Open,
    /// The process ended between the two writes of one change: put it into the store too.
    CatchUp,
    /// The journal is whole, the store is not to be believed.
    RebuildStore { why: Fault },
    /// The store is whole and at least as new as anything in the journal.
    RewriteJournal { why: Fault },
    /// Nobody can be believed.
    Refuse { why: Fault },
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

/// Judges what was found.
pub(crate) fn plan(journal: Option<&Replay>, store: &StoreFound) -> Plan {
    let Some(journal) = journal else {
        return match store {
            StoreFound::Missing => Plan::Begin,
            StoreFound::Broken(why) => Plan::Refuse { why: Fault::JournalMissingStoreBroken(why.clone()) },
            StoreFound::Whole(_) => Plan::RewriteJournal { why: Fault::JournalMissing },
        };
    };
    match (&journal.image, journal.end) {
        // A torn tail is cut off: it was never acknowledged, or else the store is ahead and says so.
        (Some(image), End::Whole | End::Torn) => beside_good_journal(image, store),
        (None, End::Whole | End::Torn) => beside_damaged_journal(None, 0, store),
        (image, End::Damaged { newest }) => beside_damaged_journal(image.as_ref(), newest, store),
    }
}

fn beside_good_journal(journal: &Image, store: &StoreFound) -> Plan {
    let image = match store {
        StoreFound::Missing => return Plan::RebuildStore { why: Fault::StoreMissing },
        StoreFound::Broken(why) => return Plan::RebuildStore { why: Fault::StoreBroken(why.clone()) },
        StoreFound::Whole(image) => image,
    };
    let (ours, theirs): (Position, Position) = (journal.position, image.position);
    if ours.lineage != theirs.lineage {
        return Plan::RebuildStore { why: Fault::StoreForeign };
    }
    if ours == theirs {
        return Plan::Open;
    }
    if theirs == journal.before {
        return Plan::CatchUp;
    }
    match ours.sequence.checked_sub(theirs.sequence) {
        None => Plan::RewriteJournal {
            why: Fault::JournalBehind { missing: theirs.sequence.saturating_sub(ours.sequence) },
        },
        Some(0) => Plan::RebuildStore { why: Fault::StoreDisagrees },
        Some(missing) => Plan::RebuildStore { why: Fault::StoreBehind { missing } },
    }
}

fn beside_damaged_journal(journal: Option<&Image>, newest: u64, store: &StoreFound) -> Plan {
    let image = match store {
        StoreFound::Missing => return Plan::Refuse { why: Fault::JournalDamagedStoreMissing },
        StoreFound::Broken(why) => return Plan::Refuse { why: Fault::BothDamaged(why.clone()) },
        StoreFound::Whole(image) => image,
    };
    let theirs = image.position;
    if journal.is_some_and(|journal| journal.position.lineage != theirs.lineage) {
        return Plan::Refuse { why: Fault::JournalDamagedStoreForeign };
    }
    let seen = journal.map_or(newest, |journal| journal.position.sequence.max(newest));
    if theirs.sequence < seen {
        return Plan::Refuse { why: Fault::JournalDamagedStoreOld };
    }
    Plan::RewriteJournal { why: Fault::JournalDamaged }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Lineage;
    use crate::record::Record;
    use crate::record::tests::{account, key};

    fn image(lineage: u8, changes: u64) -> Image {
        let mut image = Image::of(Lineage::from_random([lineage; 16]), 0, vec![Record::Account(account("a"))]).unwrap();
        for change in 0..changes {
            image.apply(vec![Record::Key(key(&format!("k{change}"), "a", &[]))]).unwrap();
        }
        image
    }

    fn journal(image: Option<Image>, end: End) -> Replay {
        Replay { image, good: 1, snapshot: 1, end, trail: Vec::new() }
    }

    fn broken() -> StoreFound {
        StoreFound::Broken("panicked".to_owned())
    }

    #[test]
    fn nothing_can_be_believed_when_both_are_damaged() {
        let damaged = journal(Some(image(1, 3)), End::Damaged { newest: 5 });
        for (found, store) in [
            (Some(&damaged), broken()),
            (Some(&damaged), StoreFound::Missing),
            (Some(&damaged), StoreFound::Whole(image(1, 4))),
            (Some(&damaged), StoreFound::Whole(image(2, 9))),
            (None, broken()),
        ] {
            assert!(matches!(plan(found, &store), Plan::Refuse { .. }), "{store:?}");
        }
        let headless = journal(None, End::Damaged { newest: 0 });
        assert!(matches!(plan(Some(&headless), &broken()), Plan::Refuse { .. }));
    }

    #[test]
    fn a_whole_store_that_is_as_new_replaces_a_damaged_journal() {
        for damaged in
            [journal(Some(image(1, 3)), End::Damaged { newest: 5 }), journal(None, End::Damaged { newest: 5 })]
        {
            let why = Fault::JournalDamaged;
            assert_eq!(plan(Some(&damaged), &StoreFound::Whole(image(1, 5))), Plan::RewriteJournal { why });
        }
        let why = Fault::JournalMissing;
        assert_eq!(plan(None, &StoreFound::Whole(image(1, 5))), Plan::RewriteJournal { why });
    }

    #[test]
    fn a_whole_store_that_is_newer_replaces_a_journal_that_lost_its_end() {
        for end in [End::Whole, End::Torn] {
            let why = Fault::JournalBehind { missing: 2 };
            let found = journal(Some(image(1, 3)), end);
            assert_eq!(plan(Some(&found), &StoreFound::Whole(image(1, 5))), Plan::RewriteJournal { why });
        }
    }

    #[test]
    fn the_journal_outranks_a_store_that_is_missing_damaged_foreign_old_or_different() {
        let mut different = image(1, 4);
        different.apply(vec![Record::Account(account("b"))]).unwrap();
        for end in [End::Whole, End::Torn] {
            let found = journal(Some(image(1, 5)), end);
            for (store, why) in [
                (StoreFound::Missing, Fault::StoreMissing),
                (broken(), Fault::StoreBroken("panicked".to_owned())),
                (StoreFound::Whole(image(2, 5)), Fault::StoreForeign),
                (StoreFound::Whole(image(1, 3)), Fault::StoreBehind { missing: 2 }),
                (StoreFound::Whole(different.clone()), Fault::StoreDisagrees),
            ] {
                assert_eq!(plan(Some(&found), &store), Plan::RebuildStore { why });
            }
        }
    }

    #[test]
    fn the_one_change_that_a_crash_interrupted_is_caught_up_with() {
        let found = journal(Some(image(1, 5)), End::Whole);
        assert_eq!(plan(Some(&found), &StoreFound::Whole(image(1, 4))), Plan::CatchUp);
        assert_eq!(plan(Some(&found), &StoreFound::Whole(image(1, 5))), Plan::Open);
        assert_eq!(plan(None, &StoreFound::Missing), Plan::Begin);
    }
}
