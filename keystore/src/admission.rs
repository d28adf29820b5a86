//! How many calls that add something may be in hand, of one account and of all.
//!
//! Owns the bound before new keys are hashed and before changes wait for the writer: who finds it reached is told to
//! come again at once, so that one account's flood delays the others' changes by a few of its own and no more. What
//! takes rights away is not counted here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stage0_contract::AccountId;

/// Calls in hand, of all accounts: with a hash each, what one core does in a second.
const MAX_IN_HAND: usize = 32;
/// Beyond that an account has one at a time, up to so many in all.
const MAX_WITH_FIRSTS: usize = 64;
/// Of one account.
const MAX_OF_ACCOUNT: usize = 8;

/// The calls in hand.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    of_accounts: Mutex<HashMap<AccountId, usize>>,
}

/// One call in hand; it no longer is when this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    account: AccountId,
}

impl Admission {
    /// None: there are too many.
    pub(crate) fn admit(self: &Arc<Self>, account: &AccountId) -> Option<Admitted> {
        let mut of_accounts = self.of_accounts();
        let all: usize = of_accounts.values().sum();
        let own = of_accounts.get(account).copied().unwrap_or_default();
        let most = if own == 0 { MAX_WITH_FIRSTS } else { MAX_IN_HAND };
        if all >= most || own >= MAX_OF_ACCOUNT {
            return None;
        }
        of_accounts.insert(account.clone(), own + 1);
        Some(Admitted { admission: Arc::clone(self), account: account.clone() })
    }

    /// Whether more than one is in hand.
    pub(crate) fn is_crowded(&self) -> bool {
        self.of_accounts().values().sum::<usize>() > 1
    }

    fn of_accounts(&self) -> MutexGuard<'_, HashMap<AccountId, usize>> {
        // Each use is one step on the map: a panic elsewhere cannot leave it half done.
        self.of_accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut of_accounts = self.admission.of_accounts();
        if let Some(own) = of_accounts.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                of_accounts.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(number: usize) -> AccountId {
        AccountId::parse(&format!("acc_{number}")).unwrap()
    }

    #[test]
    fn one_account_takes_no_more_than_its_part_and_all_together_no_more_than_the_whole() {
        let admission = Arc::new(Admission::default());
        let mut in_hand: Vec<_> = (0..MAX_OF_ACCOUNT).map(|_| admission.admit(&account(0)).unwrap()).collect();
        assert!(admission.admit(&account(0)).is_none());
        for number in 1..MAX_IN_HAND / MAX_OF_ACCOUNT {
            in_hand.extend((0..MAX_OF_ACCOUNT).map(|_| admission.admit(&account(number)).unwrap()));
        }
        // Four that flood leave each other one its first.
        for number in MAX_IN_HAND..MAX_WITH_FIRSTS {
            in_hand.push(admission.admit(&account(number)).unwrap());
            assert!(admission.admit(&account(number)).is_none());
        }
        assert!(admission.admit(&account(100)).is_none());
        in_hand.truncate(MAX_IN_HAND - 1);
        assert!(admission.admit(&account(0)).is_none(), "its own part is still full");
        assert!(admission.admit(&account(3)).is_some());
        drop(in_hand);
        assert!(admission.of_accounts().is_empty() && !admission.is_crowded());
    }
}
