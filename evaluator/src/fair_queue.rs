//! A queue of checks that is fair between accounts: each account with queued checks gets one turn, then the next
//! account, however many the first one sent.
//!
//! Owns the limits on checks and bytes per account and in total.

use std::collections::{HashMap, VecDeque};

use stage0_contract::AccountId;

/// Queued checks and bytes of one account.
const MAX_WAITING: usize = 2_000;
const MAX_WAITING_BYTES: usize = 8 << 20;

pub(crate) trait Queued {
    fn account(&self) -> &AccountId;
    fn bytes(&self) -> usize;
}

pub(crate) struct FairQueue<T> {
    accounts: HashMap<AccountId, Account<T>>,
    /// Accounts with queued items, each once, in the order of their turns.
    turns: VecDeque<AccountId>,
    bytes: usize,
    max_bytes: usize,
}

struct Account<T> {
    items: VecDeque<T>,
    bytes: usize,
}

impl<T: Queued> FairQueue<T> {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { accounts: HashMap::new(), turns: VecDeque::new(), bytes: 0, max_bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Queues an item, or returns it if a limit is reached.
    pub(crate) fn push(&mut self, item: T) -> Result<(), T> {
        let bytes = item.bytes();
        if self.bytes.saturating_add(bytes) > self.max_bytes {
            return Err(item);
        }
        if let Some(account) = self.accounts.get_mut(item.account()) {
            if account.items.len() >= MAX_WAITING || account.bytes.saturating_add(bytes) > MAX_WAITING_BYTES {
                return Err(item);
            }
            account.bytes += bytes;
            account.items.push_back(item);
        } else {
            let name = item.account().clone();
            self.turns.push_back(name.clone());
            self.accounts.insert(name, Account { items: VecDeque::from([item]), bytes });
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The next item, in turns by account.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let name = self.turns.pop_front()?;
        let account = self.accounts.get_mut(&name)?;
        let item = account.items.pop_front()?;
        account.bytes = account.bytes.saturating_sub(item.bytes());
        self.bytes = self.bytes.saturating_sub(item.bytes());
        if account.items.is_empty() {
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

    impl Queued for Item {
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
        let mut fair_queue = FairQueue::new(MAX_BYTES);
        for (account, bytes) in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("c", 6)] {
            fair_queue.push(item(account, bytes)).unwrap();
        }
        let order: Vec<usize> = std::iter::from_fn(|| fair_queue.pop()).map(|item| item.1).collect();
        assert_eq!(order, [1, 4, 5, 2, 6, 3]);
        assert!(fair_queue.is_empty() && fair_queue.accounts.is_empty() && fair_queue.bytes == 0);
    }

    #[test]
    fn one_account_fills_its_own_place_and_no_other() {
        let mut fair_queue = FairQueue::new(MAX_BYTES);
        for _ in 0..MAX_WAITING {
            fair_queue.push(item("a", 1)).unwrap();
        }
        assert_eq!(fair_queue.push(item("a", 1)), Err(item("a", 1)));
        fair_queue.push(item("b", MAX_WAITING_BYTES)).unwrap();
        assert!(fair_queue.push(item("b", 1)).is_err());
        fair_queue.push(item("c", 1)).unwrap();
        fair_queue.pop().unwrap();
        fair_queue.push(item("a", 1)).unwrap();
    }

    #[test]
    fn all_accounts_together_fill_no_more_than_a_thread_can_hold() {
        let mut fair_queue = FairQueue::new(MAX_BYTES);
        let accounts = MAX_BYTES / MAX_WAITING_BYTES;
        for account in 0..accounts {
            fair_queue.push(item(&format!("a{account}"), MAX_WAITING_BYTES)).unwrap();
        }
        assert!(fair_queue.push(item("b", 1)).is_err());
        fair_queue.pop().unwrap();
        fair_queue.push(item("b", 1)).unwrap();
    }
}
