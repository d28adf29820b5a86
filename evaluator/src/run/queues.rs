//! The runs that a shard has in flight, and the checks queued for them.
//!
//! Owns the limits. One account may use a quarter of each, so that checks of other accounts are still served while the
//! state store hangs for its runs.
//! INVARIANT: an account without runs in flight takes no memory here.

use std::collections::HashMap;

use stage0_contract::AccountId;

use crate::fair_queue::Queued;

/// Checks of one run that are decided and written as one batch.
const MAX_CONCURRENT: usize = 64;
/// Queued checks of one run.
const MAX_WAITING: usize = 1_000;
/// Queued bytes of all runs, and of one account's. A parsed check takes many times the size of its message.
const MAX_WAITING_BYTES: usize = 4 << 20;
const MAX_WAITING_BYTES_PER_ACCOUNT: usize = MAX_WAITING_BYTES / 4;
/// Runs in flight per shard, and per account.
const MAX_RUNS: usize = 1_000;
const MAX_RUNS_PER_ACCOUNT: usize = MAX_RUNS / 4;

pub(super) struct RunQueues<T> {
    runs: HashMap<String, Run<T>>,
    all: Usage,
    accounts: HashMap<AccountId, Usage>,
}

struct Run<T> {
    account: AccountId,
    queued: Vec<T>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    runs: usize,
    bytes: usize,
}

/// Which limit is reached; holds the check.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full<T> {
    OfAccount(T),
    OfAll(T),
}

impl<T: Queued> RunQueues<T> {
    pub(super) fn new() -> Self {
        Self { runs: HashMap::new(), all: Usage::default(), accounts: HashMap::new() }
    }

    /// Queues a check for its run. If the run was not in flight, the check is returned and the caller owns the run.
    pub(super) fn join(&mut self, key: &str, check: T) -> Result<Option<T>, Full<T>> {
        let (account, bytes) = (check.account().clone(), check.bytes());
        let each = self.accounts.get(&account).copied().unwrap_or_default();
        let Some(run) = self.runs.get_mut(key) else {
            if each.runs >= MAX_RUNS_PER_ACCOUNT {
                return Err(Full::OfAccount(check));
            }
            if self.all.runs >= MAX_RUNS {
                return Err(Full::OfAll(check));
            }
            self.runs.insert(key.to_owned(), Run { account: account.clone(), queued: Vec::new() });
            self.change(&account, |held| held.runs += 1);
            return Ok(Some(check));
        };
        if run.queued.len() >= MAX_WAITING || each.bytes.saturating_add(bytes) > MAX_WAITING_BYTES_PER_ACCOUNT {
            return Err(Full::OfAccount(check));
        }
        if self.all.bytes.saturating_add(bytes) > MAX_WAITING_BYTES {
            return Err(Full::OfAll(check));
        }
        run.queued.push(check);
        self.change(&account, |held| held.bytes += bytes);
        Ok(None)
    }

    /// The next batch of queued checks. If there is none, the run is released.
    pub(super) fn next_batch(&mut self, key: &str) -> Vec<T> {
        let Some(run) = self.runs.get_mut(key) else { return Vec::new() };
        let account = run.account.clone();
        if run.queued.is_empty() {
            self.runs.remove(key);
            self.change(&account, |held| held.runs = held.runs.saturating_sub(1));
            return Vec::new();
        }
        let rest = run.queued.split_off(run.queued.len().min(MAX_CONCURRENT));
        let batch = std::mem::replace(&mut run.queued, rest);
        let bytes = total_bytes(&batch);
        self.change(&account, |held| held.bytes = held.bytes.saturating_sub(bytes));
        batch
    }

    /// Puts the later half of a batch back to the front of the queue: after a conflict, a smaller batch makes the retry
    /// shorter.
    pub(super) fn requeue_half(&mut self, key: &str, batch: &mut Vec<T>) {
        let Some(run) = self.runs.get_mut(key) else { return };
        let rest = batch.split_off(batch.len().div_ceil(2));
        let (account, bytes) = (run.account.clone(), total_bytes(&rest));
        run.queued.splice(0..0, rest);
        self.change(&account, |held| held.bytes += bytes);
    }

    fn change(&mut self, account: &AccountId, change: impl Fn(&mut Usage)) {
        change(&mut self.all);
        let each = self.accounts.entry(account.clone()).or_default();
        change(each);
        if *each == Usage::default() {
            self.accounts.remove(account);
        }
    }
}

fn total_bytes<T: Queued>(checks: &[T]) -> usize {
    checks.iter().map(Queued::bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fair_queue::tests::{Item, item};

    /// Opens so many runs of an account.
    fn open(runs: &mut RunQueues<Item>, account: &str, count: usize) {
        for run in 0..count {
            assert_eq!(runs.join(&format!("{account}.{run}"), item(account, 1)), Ok(Some(item(account, 1))));
        }
    }

    #[test]
    fn one_account_has_a_quarter_of_the_runs_in_hand_and_leaves_the_rest_to_others() {
        let mut runs = RunQueues::new();
        open(&mut runs, "a", MAX_RUNS_PER_ACCOUNT);
        assert_eq!(runs.join("a.more", item("a", 1)), Err(Full::OfAccount(item("a", 1))));
        assert_eq!(runs.join("a.0", item("a", 1)), Ok(None), "a run that is in hand takes more");
        for account in ["b", "c", "d"] {
            open(&mut runs, account, MAX_RUNS_PER_ACCOUNT);
        }
        assert_eq!(runs.join("e.0", item("e", 1)), Err(Full::OfAll(item("e", 1))));
        assert!(runs.next_batch("b.0").is_empty());
        assert_eq!(runs.join("e.0", item("e", 1)), Ok(Some(item("e", 1))));
    }

    #[test]
    fn one_account_has_a_quarter_of_the_bytes_that_wait_and_leaves_the_rest_to_others() {
        let mut runs = RunQueues::new();
        for account in ["a", "b", "c", "d", "e"] {
            open(&mut runs, account, 2);
        }
        let half = MAX_WAITING_BYTES_PER_ACCOUNT / 2;
        for account in ["a", "b", "c", "d"] {
            // The bound is the account's, not the run's.
            assert_eq!(runs.join(&format!("{account}.0"), item(account, half)), Ok(None));
            assert_eq!(runs.join(&format!("{account}.1"), item(account, half)), Ok(None));
            let one = item(account, 1);
            assert_eq!(runs.join(&format!("{account}.0"), one), Err(Full::OfAccount(item(account, 1))));
        }
        assert_eq!(runs.join("e.0", item("e", 1)), Err(Full::OfAll(item("e", 1))));
        assert_eq!(runs.next_batch("a.0"), [item("a", half)]);
        assert_eq!(runs.join("e.0", item("e", 1)), Ok(None));
    }

    #[test]
    fn what_is_put_back_waits_first_and_counts_again_and_nothing_counts_in_the_end() {
        let mut runs = RunQueues::new();
        open(&mut runs, "a", 1);
        for bytes in 1..=MAX_CONCURRENT + 1 {
            assert_eq!(runs.join("a.0", item("a", bytes)), Ok(None));
        }
        let bytes = runs.all.bytes;
        let mut batch = runs.next_batch("a.0");
        assert_eq!((batch.len(), runs.all.bytes), (MAX_CONCURRENT, MAX_CONCURRENT + 1));
        runs.requeue_half("a.0", &mut batch);
        assert_eq!(batch.len(), MAX_CONCURRENT / 2);
        assert_eq!(runs.all.bytes, bytes - total_bytes(&batch));
        let order: Vec<usize> = runs.next_batch("a.0").iter().map(Queued::bytes).collect();
        assert!(order.into_iter().eq(MAX_CONCURRENT / 2 + 1..=MAX_CONCURRENT + 1));
        assert!(runs.next_batch("a.0").is_empty());
        assert!(runs.runs.is_empty() && runs.accounts.is_empty() && runs.all == Usage::default());
    }

    #[test]
    fn no_more_checks_wait_for_one_run_than_may() {
        let mut runs = RunQueues::new();
        open(&mut runs, "a", 2);
        for _ in 0..MAX_WAITING {
            assert_eq!(runs.join("a.0", item("a", 1)), Ok(None));
        }
        assert_eq!(runs.join("a.0", item("a", 1)), Err(Full::OfAccount(item("a", 1))));
        assert_eq!(runs.join("a.1", item("a", 1)), Ok(None));
    }
}
