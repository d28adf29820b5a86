//! Which cached identities notices have invalidated: one account's, or all.
//!
//! INVARIANT: an answer that was requested at a generation is valid only while neither its account nor everything was
//! invalidated after it, so a notice that arrives while the request is in flight invalidates its answer. Memory is
//! bounded: when an account does not fit, everything is invalidated instead.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use stage0_contract::AccountId;

const MAX_ACCOUNTS: usize = 10_000;

#[derive(Default)]
pub(super) struct Invalidations {
    /// Raised only under the lock, together with what is invalidated.
    generation: AtomicU64,
    changes: RwLock<Changes>,
}

#[derive(Default)]
struct Changes {
    all: u64,
    accounts: HashMap<AccountId, u64>,
}

impl Invalidations {
    /// To be read before an answer is requested.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Invalidates every answer about this account that was requested until now.
    pub(super) fn invalidate(&self, account: &AccountId) {
        self.raise(|changes, generation| {
            if changes.accounts.len() >= MAX_ACCOUNTS && !changes.accounts.contains_key(account) {
                changes.accounts.clear();
                changes.all = generation;
            } else {
                changes.accounts.insert(account.clone(), generation);
            }
        });
    }

    pub(super) fn invalidate_all(&self) {
        self.raise(|changes, generation| {
            changes.accounts.clear();
            changes.all = generation;
        });
    }

    /// Whether an answer about this account is valid that was requested at this generation.
    pub(super) fn is_valid(&self, account: &AccountId, requested_at: u64) -> bool {
        // Usually nothing changed at all, and no lock is needed.
        if requested_at == self.generation() {
            return true;
        }
        let changes = self.changes.read().unwrap_or_else(PoisonError::into_inner);
        changes.all <= requested_at && changes.accounts.get(account).is_none_or(|changed| *changed <= requested_at)
    }

    fn raise(&self, change: impl FnOnce(&mut Changes, u64)) {
        let mut changes = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        let generation = self.generation.fetch_add(1, Ordering::SeqCst) + 1;
        change(&mut changes, generation);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    #[test]
    fn a_changed_key_invalidates_earlier_answers_of_its_account_only() {
        let (invalidations, a, b) = (Invalidations::default(), account("a"), account("b"));
        let before = invalidations.generation();
        assert!(invalidations.is_valid(&a, before));
        invalidations.invalidate(&a);
        assert!(!invalidations.is_valid(&a, before) && invalidations.is_valid(&b, before));
        let after = invalidations.generation();
        assert!(invalidations.is_valid(&a, after), "an answer requested after the change is valid");
        invalidations.invalidate(&b);
        assert!(invalidations.is_valid(&a, after) && !invalidations.is_valid(&b, after));
        invalidations.invalidate(&a);
        assert!(!invalidations.is_valid(&a, after));
    }

    #[test]
    fn invalidating_all_invalidates_every_earlier_answer_and_no_later_one() {
        let (invalidations, a, b) = (Invalidations::default(), account("a"), account("b"));
        invalidations.invalidate(&a);
        let before = invalidations.generation();
        invalidations.invalidate_all();
        assert!(!invalidations.is_valid(&a, before) && !invalidations.is_valid(&b, before));
        let after = invalidations.generation();
        invalidations.invalidate(&b);
        assert!(invalidations.is_valid(&a, after));
    }

    #[test]
    fn everything_is_invalidated_when_accounts_do_not_fit() {
        let invalidations = Invalidations::default();
        let before = invalidations.generation();
        (0..MAX_ACCOUNTS).for_each(|number| invalidations.invalidate(&account(&format!("a{number}"))));
        assert!(invalidations.is_valid(&account("other"), before));
        invalidations.invalidate(&account("a0"));
        assert!(invalidations.is_valid(&account("other"), before), "one that is in the table already needs no room");
        invalidations.invalidate(&account("one_more"));
        for name in ["a0", "a1", "one_more", "other"] {
            assert!(!invalidations.is_valid(&account(name), before), "{name}");
        }
        assert!(invalidations.changes.read().unwrap().accounts.len() <= MAX_ACCOUNTS);
    }
}
