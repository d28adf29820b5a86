//! What notices cast doubt on: one account's keys, or everybody's.
//!
//! Owns a counter of notices, the count at which each account last changed, and the count at which everything was last
//! in doubt.
//! INVARIANT: an answer that was asked for at a count stands only while neither its account nor everything changed
//! after that count, so a notice that is heard while the question is under way makes it doubtful. Bounded: accounts
//! that do not fit are forgotten by doubting everything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use stage0_contract::AccountId;

const MAX_ACCOUNTS: usize = 10_000;

/// Which answers are doubtful.
#[derive(Default)]
pub(super) struct Doubts {
    /// Raised only under the lock, together with what it counts.
    count: AtomicU64,
    changes: RwLock<Changes>,
}

#[derive(Default)]
struct Changes {
    everything: u64,
    accounts: HashMap<AccountId, u64>,
}

impl Doubts {
    /// To be read before a question is asked.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// What was asked for about this account until now is doubtful.
    pub(super) fn account(&self, account: &AccountId) {
        self.raise(|changes, count| {
            if changes.accounts.len() >= MAX_ACCOUNTS && !changes.accounts.contains_key(account) {
                changes.accounts.clear();
                changes.everything = count;
            } else {
                changes.accounts.insert(account.clone(), count);
            }
        });
    }

    /// Whatever was asked for until now is doubtful.
    pub(super) fn everything(&self) {
        self.raise(|changes, count| {
            changes.accounts.clear();
            changes.everything = count;
        });
    }

    /// Whether an answer about this account that was asked for at `asked` is not doubtful.
    pub(super) fn stands(&self, account: &AccountId, asked: u64) -> bool {
        // Most often nothing changed at all, and then there is no lock to take.
        if asked == self.count() {
            return true;
        }
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        changes.everything <= asked && changes.accounts.get(account).is_none_or(|changed| *changed <= asked)
    }

    fn raise(&self, change: impl FnOnce(&mut Changes, u64)) {
        let mut changes = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let count = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        change(&mut changes, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    #[test]
    fn a_change_casts_doubt_on_what_was_asked_before_of_its_account_alone() {
        let (doubts, a, b) = (Doubts::default(), account("a"), account("b"));
        let before = doubts.count();
        assert!(doubts.stands(&a, before));
        doubts.account(&a);
        assert!(!doubts.stands(&a, before) && doubts.stands(&b, before));
        let after = doubts.count();
        assert!(doubts.stands(&a, after), "what is asked after the change holds");
        doubts.account(&b);
        assert!(doubts.stands(&a, after) && !doubts.stands(&b, after));
        doubts.account(&a);
        assert!(!doubts.stands(&a, after));
    }

    #[test]
    fn a_doubt_of_everything_spares_no_account_and_nothing_asked_after_it() {
        let (doubts, a, b) = (Doubts::default(), account("a"), account("b"));
        doubts.account(&a);
        let before = doubts.count();
        doubts.everything();
        assert!(!doubts.stands(&a, before) && !doubts.stands(&b, before));
        let after = doubts.count();
        doubts.account(&b);
        assert!(doubts.stands(&a, after));
    }

    #[test]
    fn accounts_that_do_not_fit_are_forgotten_by_doubting_everything() {
        let doubts = Doubts::default();
        let before = doubts.count();
        (0..MAX_ACCOUNTS).for_each(|number| doubts.account(&account(&format!("a{number}"))));
        assert!(doubts.stands(&account("other"), before));
        doubts.account(&account("a0"));
        assert!(doubts.stands(&account("other"), before), "one that is in the table already needs no room");
        doubts.account(&account("one_more"));
        for name in ["a0", "a1", "one_more", "other"] {
            assert!(!doubts.stands(&account(name), before), "{name}");
        }
        assert!(doubts.changes.read().unwrap().accounts.len() <= MAX_ACCOUNTS);
    }
}
