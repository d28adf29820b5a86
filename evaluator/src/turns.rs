//! Checks that wait for a thread, taken in turns by account.
//!
//! Owns the order: each account that has something waiting gets one turn, then the next account, however much the first
//! one sent. And the bounds: how many checks and bytes wait for one account and for all. What is beyond is given back,
//! to be refused at once.

use std::collections::{HashMap, VecDeque};

use stage0_contract::AccountId;

/// Checks of one account that wait at one thread.
const MAX_WAITING: usize = 2_000;
/// Bytes of one account that wait at one thread.
const MAX_WAITING_BYTES: usize = 8 << 20;

/// Something that waits: its account and its size.
pub(crate) trait Waiting {
    fn account(&self) -> &AccountId;
    fn bytes(&self) -> usize;
}

/// What waits, by account.
pub(crate) struct Turns<T> {
    accounts: HashMap<AccountId, Account<T>>,
    /// Accounts that have something waiting, each once, in the order of their turns.
    turns: VecDeque<AccountId>,
    bytes: usize,
    /// Of all accounts.
    max_bytes: usize,
}

struct Account<T> {
    waiting: VecDeque<T>,
    bytes: usize,
}

impl<T: Waiting> Turns<T> {
    /// Nothing waits yet; so many bytes of all accounts may.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { accounts: HashMap::new(), turns: VecDeque::new(), bytes: 0, max_bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Lets it wait, or gives it back where too much does.
    pub(crate) fn push(&mut self, item: T) -> Result<(), T> {
        let bytes = item.bytes();
        if self.bytes.saturating_add(bytes) > self.max_bytes {
            return Err(item);
        }
        if let Some(account) = self.accounts.get_mut(item.account()) {
            if account.waiting.len() >= MAX_WAITING || account.bytes.saturating_add(bytes) > MAX_WAITING_BYTES {
                return Err(item);
            }
            account.bytes += bytes;
            account.waiting.push_back(item);
        } else {
            let name = item.account().clone();
            self.turns.push_back(name.clone());
            self.accounts.insert(name, Account { waiting: VecDeque::from([item]), bytes });
        }
        self.bytes += bytes;
        Ok(())
    }

    /// What has its turn.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let name = self.turns.pop_front()?;
        let account = self.accounts.get_mut(&name)?;
        let item = account.waiting.pop_front()?;
        account.bytes = account.bytes.saturating_sub(item.bytes());
        self.bytes = self.bytes.saturating_sub(item.bytes());
        if account.waiting.is_empty() {
            self.accounts.remove(&name);
        } else {
            self.turns.push_back(name);
        }
        Some(item)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const MAX_BYTES: usize = 4 * MAX_WAITING_BYTES;

    /// A check of an account, with so many bytes.
    #[derive(Debug, PartialEq, Eq)]
    pub(crate) struct Item(AccountId, usize);

    impl Waiting for Item {
        fn account(&self) -> &AccountId {
            &self.0
        }
        fn bytes(&self) -> usize {
            self.1
        }
    }

    pub(crate) fn item(account: &str, bytes: usize) -> Item {
        Item(AccountId::parse(account).unwrap(), bytes)
    }

    #[test]
    fn an_account_with_one_check_waits_for_one_of_each_other_account() {
        let mut turns = Turns::new(MAX_BYTES);
        for (account, bytes) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("c", 6)] {
            turns.push(item(account, bytes)).unwrap();
        }
        let order: Vec<usize> = std::iter::from_fn(|| turns.pop()).map(|item| item.1).collect();
        assert_eq!(order, [1, 4, 5, 2, 6, 3]);
        assert!(turns.is_empty() && turns.accounts.is_empty() && turns.bytes == 0);
    }

    #[test]
    fn one_account_fills_its_own_place_and_no_other() {
        let mut turns = Turns::new(MAX_BYTES);
        for _ in 0..MAX_WAITING {
            turns.push(item("a", 1)).unwrap();
        }
        assert_eq!(turns.push(item("a", 1)), Err(item("a", 1)));
        turns.push(item("b", MAX_WAITING_BYTES)).unwrap();
        assert!(turns.push(item("b", 1)).is_err());
        turns.push(item("c", 1)).unwrap();
        turns.pop().unwrap();
        turns.push(item("a", 1)).unwrap();
    }

    #[test]
    fn all_accounts_together_fill_no_more_than_a_thread_can_hold() {
        let mut turns = Turns::new(MAX_BYTES);
        let accounts = MAX_BYTES / MAX_WAITING_BYTES;
        for account in 0..accounts {
            turns.push(item(&format!("a{account}"), MAX_WAITING_BYTES)).unwrap();
        }
        assert!(turns.push(item("b", 1)).is_err());
        turns.pop().unwrap();
        turns.push(item("b", 1)).unwrap();
    }
}
