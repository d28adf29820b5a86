//! How many additions may be in flight, for one account and for all.
//!
//! Beyond the bound a caller gets `Busy` before a key is hashed, so one account's flood delays the others' changes by
//! no more than a few of its own. Calls that take rights away are not counted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use stage0_contract::AccountId;

use crate::errors::lock;

/// Of all accounts. With a hash for each, one core needs a second for this many.
const MAX_IN_FLIGHT: usize = 32;
/// Beyond [`MAX_IN_FLIGHT`] each account may have one, up to this many in all.
const MAX_WITH_FIRST_CALLS: usize = 64;
const MAX_PER_ACCOUNT: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Admission {
    by_account: Mutex<HashMap<AccountId, usize>>,
}

#[derive(Debug)]
pub(crate) struct Admitted {
    admission: Arc<Admission>,
    account: AccountId,
}

impl Admission {
    pub(crate) fn admit(self: &Arc<Self>, account: &AccountId) -> Option<Admitted> {
        let mut by_account = lock(&self.by_account);
        let all: usize = by_account.values().sum();
        let own = by_account.get(account).copied().unwrap_or_default();
        let most = if own == 0 { MAX_WITH_FIRST_CALLS } else { MAX_IN_FLIGHT };
        if all >= most || own >= MAX_PER_ACCOUNT {
            return None;
        }
        by_account.insert(account.clone(), own + 1);
        Some(Admitted { admission: Arc::clone(self), account: account.clone() })
    }

    pub(crate) fn is_crowded(&self) -> bool {
        lock(&self.by_account).values().sum::<usize>() > 1
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut by_account = lock(&self.admission.by_account);
        if let Some(own) = by_account.get_mut(&self.account) {
            *own -= 1;
            if *own == 0 {
                by_account.remove(&self.account);
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
    fn calls_in_flight_are_bounded_for_one_account_and_for_all() {
        let admission = Arc::new(Admission::default());
        let mut in_flight: Vec<_> = (0..MAX_PER_ACCOUNT).map(|_| admission.admit(&account(0)).unwrap()).collect();
        assert!(admission.admit(&account(0)).is_none());
        for number in 1..MAX_IN_FLIGHT / MAX_PER_ACCOUNT {
            in_flight.extend((0..MAX_PER_ACCOUNT).map(|_| admission.admit(&account(number)).unwrap()));
        }
        // While four accounts flood, every other account still gets its first call.
        for number in MAX_IN_FLIGHT..MAX_WITH_FIRST_CALLS {
            in_flight.push(admission.admit(&account(number)).unwrap());
            assert!(admission.admit(&account(number)).is_none());
        }
        assert!(admission.admit(&account(100)).is_none());
        in_flight.truncate(MAX_IN_FLIGHT - 1);
        assert!(admission.admit(&account(0)).is_none(), "its own share is still used up");
        assert!(admission.admit(&account(3)).is_some());
        drop(in_flight);
        assert!(lock(&admission.by_account).is_empty() && !admission.is_crowded());
    }
}
