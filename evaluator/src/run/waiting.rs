//! Runs that a shard has in hand, and the checks that wait for their turn at one of them.
//!
//! Owns the bounds, of which one account has a quarter: the ledger may hang for the runs of one, and those of others
//! must still be taken. What is beyond is given back, to be refused at once.
//! INVARIANT: an account that has nothing here is not counted.

use std::collections::HashMap;

use stage0_contract::AccountId;

use crate::turns::Waiting;

/// Checks of one run that are written together at most.
const MOST_TOGETHER: usize = 64;
/// Checks of one run that wait for their turn.
const MOST_WAITING: usize = 1_000;
/// Bytes of the messages of checks that wait for their turn, of all runs: read, each is many times as large.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// And of those of one account's runs.
const MAX_WAITING_BYTES_EACH: usize = MAX_WAITING_BYTES / 4;
/// Runs that one shard has in hand.
const MOST_RUNS: usize = 1_000;
/// And those of one account.
const MOST_RUNS_EACH: usize = MOST_RUNS / 4;

/// The runs in hand, by place.
pub(super) struct WaitingRuns<T> {
    runs: HashMap<String, Run<T>>,
    all: Held,
    accounts: HashMap<AccountId, Held>,
}

struct Run<T> {
    account: AccountId,
    waiting: Vec<T>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    runs: usize,
    /// Of checks that wait.
    bytes: usize,
}

/// Whose bound is reached; the check comes back.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full<T> {
    OfAccount(T),
    OfAll(T),
}

impl<T: Waiting> WaitingRuns<T> {
    pub(super) fn new() -> Self {
        Self { runs: HashMap::new(), all: Held::default(), accounts: HashMap::new() }
    }

    /// Lets a check wait for its run. It comes back, and its run is in the caller's hand, when nobody had it.
    pub(super) fn join(&mut self, place: &str, check: T) -> Result<Option<T>, Full<T>> {
        let (account, bytes) = (check.account().clone(), check.bytes());
        let each = self.accounts.get(&account).copied().unwrap_or_default();
        let Some(run) = self.runs.get_mut(place) else {
            if each.runs >= MOST_RUNS_EACH {
                return Err(Full::OfAccount(check));
            }
            if self.all.runs >= MOST_RUNS {
                return Err(Full::OfAll(check));
            }
            self.runs.insert(place.to_owned(), Run { account: account.clone(), waiting: Vec::new() });
            self.change(&account, |held| held.runs += 1);
            return Ok(Some(check));
        };
        if run.waiting.len() >= MOST_WAITING || each.bytes.saturating_add(bytes) > MAX_WAITING_BYTES_EACH {
            return Err(Full::OfAccount(check));
        }
        if self.all.bytes.saturating_add(bytes) > MAX_WAITING_BYTES {
            return Err(Full::OfAll(check));
        }
        run.waiting.push(check);
        self.change(&account, |held| held.bytes += bytes);
        Ok(None)
    }

    /// Those who wait and are decided together next; the run leaves the caller's hand when nobody does.
    pub(super) fn next_batch(&mut self, place: &str) -> Vec<T> {
        let Some(run) = self.runs.get_mut(place) else { return Vec::new() };
        let account = run.account.clone();
        if run.waiting.is_empty() {
            self.runs.remove(place);
            self.change(&account, |held| held.runs = held.runs.saturating_sub(1));
            return Vec::new();
        }
        let rest = run.waiting.split_off(run.waiting.len().min(MOST_TOGETHER));
        let batch = std::mem::replace(&mut run.waiting, rest);
        let bytes = total_bytes(&batch);
        self.change(&account, |held| held.bytes = held.bytes.saturating_sub(bytes));
        batch
    }

    /// Lets the later half of a batch wait again, before all others: whoever decides fewer is the faster one next time.
    pub(super) fn put_back_half(&mut self, place: &str, batch: &mut Vec<T>) {
        let Some(run) = self.runs.get_mut(place) else { return };
        let rest = batch.split_off(batch.len().div_ceil(2));
        let (account, bytes) = (run.account.clone(), total_bytes(&rest));
        run.waiting.splice(0..0, rest);
        self.change(&account, |held| held.bytes += bytes);
    }

    fn change(&mut self, account: &AccountId, change: impl Fn(&mut Held)) {
        change(&mut self.all);
        let each = self.accounts.entry(account.clone()).or_default();
        change(each);
        if *each == Held::default() {
            self.accounts.remove(account);
        }
    }
}

fn total_bytes<T: Waiting>(checks: &[T]) -> usize {
    checks.iter().map(Waiting::bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turns::tests::{Item, item};

    /// Opens so many runs of an account.
    fn open(runs: &mut WaitingRuns<Item>, account: &str, count: usize) {
        for run in 0..count {
            assert_eq!(runs.join(&format!("{account}.{run}"), item(account, 1)), Ok(Some(item(account, 1))));
        }
    }

    #[test]
    fn one_account_has_a_quarter_of_the_runs_in_hand_and_leaves_the_rest_to_others() {
        let mut runs = WaitingRuns::new();
        open(&mut runs, "a", MOST_RUNS_EACH);
        assert_eq!(runs.join("a.more", item("a", 1)), Err(Full::OfAccount(item("a", 1))));
        assert_eq!(runs.join("a.0", item("a", 1)), Ok(None), "a run that is in hand takes more");
        for account in ["b", "c", "d"] {
            open(&mut runs, account, MOST_RUNS_EACH);
        }
        assert_eq!(runs.join("e.0", item("e", 1)), Err(Full::OfAll(item("e", 1))));
        assert!(runs.next_batch("b.0").is_empty());
        assert_eq!(runs.join("e.0", item("e", 1)), Ok(Some(item("e", 1))));
    }

    #[test]
    fn one_account_has_a_quarter_of_the_bytes_that_wait_and_leaves_the_rest_to_others() {
        let mut runs = WaitingRuns::new();
        for account in ["a", "b", "c", "d", "e"] {
            open(&mut runs, account, 2);
        }
        let half = MAX_WAITING_BYTES_EACH / 2;
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
        let mut runs = WaitingRuns::new();
        open(&mut runs, "a", 1);
        for bytes in 1..=MOST_TOGETHER + 1 {
            assert_eq!(runs.join("a.0", item("a", bytes)), Ok(None));
        }
        let bytes = runs.all.bytes;
        let mut batch = runs.next_batch("a.0");
        assert_eq!((batch.len(), runs.all.bytes), (MOST_TOGETHER, MOST_TOGETHER + 1));
        runs.put_back_half("a.0", &mut batch);
        assert_eq!(batch.len(), MOST_TOGETHER / 2);
        assert_eq!(runs.all.bytes, bytes - total_bytes(&batch));
        let order: Vec<usize> = runs.next_batch("a.0").iter().map(Waiting::bytes).collect();
        assert!(order.into_iter().eq(MOST_TOGETHER / 2 + 1..=MOST_TOGETHER + 1));
        assert!(runs.next_batch("a.0").is_empty());
        assert!(runs.runs.is_empty() && runs.accounts.is_empty() && runs.all == Held::default());
    }

    #[test]
    fn no_more_checks_wait_for_one_run_than_may() {
        let mut runs = WaitingRuns::new();
        open(&mut runs, "a", 2);
        for _ in 0..MOST_WAITING {
            assert_eq!(runs.join("a.0", item("a", 1)), Ok(None));
        }
        assert_eq!(runs.join("a.0", item("a", 1)), Err(Full::OfAccount(item("a", 1))));
        assert_eq!(runs.join("a.1", item("a", 1)), Ok(None));
    }
}
