//! Slots that accounts share: a bound on the whole, a bound for each account, and turns.
//!
//! Owns who is next: of the accounts that wait, each gets one slot in turn, whatever number of requests it has waiting.
//! An account that holds its share waits for itself alone.
//! INVARIANT: while a slot is free, nobody waits whose account is below its share.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stage0_contract::AccountId;
use tokio::sync::oneshot;

/// The slots.
#[derive(Clone)]
pub(crate) struct FairSlots(Arc<Shared>);

struct Shared {
    max_per_account: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: usize,
    held: HashMap<AccountId, usize>,
    waiting: HashMap<AccountId, VecDeque<oneshot::Sender<Slot>>>,
    /// Accounts that wait; the first one has its turn next.
    turns: VecDeque<AccountId>,
}

/// One of them, until it is dropped.
pub(crate) struct Slot {
    of: Arc<Shared>,
    /// None once it was taken back under the lock.
    account: Option<AccountId>,
}

impl FairSlots {
    pub(crate) fn new(max: usize, max_per_account: usize) -> Self {
        let state = Mutex::new(State { free: max, ..State::default() });
        Self(Arc::new(Shared { max_per_account, state }))
    }

    /// A slot for the account, if it can have one now.
    pub(crate) fn try_acquire(&self, account: &AccountId) -> Option<Slot> {
        let mut state = self.0.lock();
        let can = state.free > 0 && state.held(account) < self.0.max_per_account;
        can.then(|| self.0.give(&mut state, account))
    }

    /// A slot for the account, when it is its turn. Whoever stops waiting loses nothing but its place.
    pub(crate) async fn acquire(&self, account: &AccountId) -> Slot {
        loop {
            let waiter = {
                let mut state = self.0.lock();
                if state.free > 0 && state.held(account) < self.0.max_per_account {
                    return self.0.give(&mut state, account);
                }
                let (sender, waiter) = oneshot::channel();
                state.queue(account, sender);
                waiter
            };
            // The sender is kept until it sends.
            if let Ok(slot) = waiter.await {
                return slot;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each use leaves the state whole: a panic elsewhere cannot have left it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(self: &Arc<Self>, state: &mut State, account: &AccountId) -> Slot {
        state.free = state.free.saturating_sub(1);
        *state.held.entry(account.clone()).or_default() += 1;
        Slot { of: Arc::clone(self), account: Some(account.clone()) }
    }

    /// Gives what is free to those whose turn it is.
    fn dispatch(self: &Arc<Self>, state: &mut State) {
        while state.free > 0 {
            let below = |account: &AccountId| state.held(account) < self.max_per_account;
            let Some(turn) = state.turns.iter().position(below) else { return };
            let Some(account) = state.turns.remove(turn) else { return };
            let Some(waiter) = state.next_waiter(&account) else { continue };
            let slot = self.give(state, &account);
            if let Err(mut unwanted) = waiter.send(slot) {
                unwanted.account = None;
                state.take_back(&account);
            }
        }
    }
}

impl State {
    fn held(&self, account: &AccountId) -> usize {
        self.held.get(account).copied().unwrap_or(0)
    }

    fn queue(&mut self, account: &AccountId, waiter: oneshot::Sender<Slot>) {
        let queue = self.waiting.entry(account.clone()).or_default();
        // Those that stopped waiting would pile up behind an account that holds its share for long.
        if queue.len() % 64 == 63 {
            queue.retain(|waiter| !waiter.is_closed());
        }
        if queue.is_empty() && !self.turns.contains(account) {
            self.turns.push_back(account.clone());
        }
        queue.push_back(waiter);
    }

    /// The account's next one that still waits; where more wait behind it, the account has another turn, after all
    /// others.
    fn next_waiter(&mut self, account: &AccountId) -> Option<oneshot::Sender<Slot>> {
        let queue = self.waiting.get_mut(account)?;
        let next = std::iter::from_fn(|| queue.pop_front()).find(|waiter| !waiter.is_closed());
        if queue.is_empty() {
            self.waiting.remove(account);
        } else {
            self.turns.push_back(account.clone());
        }
        next
    }

    fn take_back(&mut self, account: &AccountId) {
        self.free = self.free.saturating_add(1);
        if let Some(held) = self.held.get_mut(account) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.held.remove(account);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(account) = self.account.take() else { return };
        let mut state = self.of.lock();
        state.take_back(&account);
        self.of.dispatch(&mut state);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::sync::mpsc;

    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    /// The order in which requests that all wait for one slot get theirs.
    async fn order(slots: &FairSlots, asking: &[&str]) -> Vec<String> {
        let blocker = slots.acquire(&account("blocker")).await;
        let (told, mut heard) = mpsc::unbounded_channel();
        for name in asking {
            let (slots, name, told) = (slots.clone(), (*name).to_owned(), told.clone());
            tokio::spawn(async move {
                let slot = slots.acquire(&account(&name)).await;
                told.send((name, slot)).unwrap();
            });
            // Each is in the queue before the next one asks.
            tokio::task::yield_now().await;
        }
        drop((blocker, told));
        let mut order = Vec::new();
        while let Some((name, slot)) = heard.recv().await {
            order.push(name);
            drop(slot);
        }
        order
    }

    #[tokio::test]
    async fn accounts_have_turns_however_many_requests_one_of_them_has_waiting() {
        let slots = FairSlots::new(1, 1);
        let order = order(&slots, &["many", "many", "many", "many", "one", "two", "two"]).await;
        assert_eq!(order, ["many", "one", "two", "many", "two", "many", "many"]);
    }

    #[tokio::test]
    async fn an_account_with_its_share_waits_and_another_does_not() {
        let slots = FairSlots::new(4, 2);
        let (greedy, other) = (account("greedy"), account("other"));
        let held = [slots.acquire(&greedy).await, slots.acquire(&greedy).await];
        let mut third = Box::pin(slots.acquire(&greedy));
        assert!(futures_util::poll!(third.as_mut()).is_pending());
        assert!(slots.try_acquire(&greedy).is_none());
        let others = [slots.acquire(&other).await, slots.acquire(&other).await];
        assert!(slots.try_acquire(&other).is_none());
        drop(held);
        assert!(futures_util::poll!(third).is_ready());
        assert!(slots.try_acquire(&greedy).is_some());
        drop(others);
    }

    #[tokio::test]
    async fn whoever_stops_waiting_takes_no_slot_with_it() {
        let slots = FairSlots::new(1, 1);
        let (a, b) = (account("a"), account("b"));
        let held = slots.acquire(&a).await;
        for _ in 0..200 {
            let mut given_up = Box::pin(slots.acquire(&b));
            assert!(futures_util::poll!(given_up.as_mut()).is_pending());
        }
        let mut granted_and_not_read = Box::pin(slots.acquire(&b));
        assert!(futures_util::poll!(granted_and_not_read.as_mut()).is_pending());
        drop(held);
        drop(granted_and_not_read);
        drop(slots.acquire(&a).await);
        let state = slots.0.lock();
        assert_eq!((state.free, state.held.len(), state.waiting.len(), state.turns.len()), (1, 0, 0, 0));
    }

    #[tokio::test]
    async fn no_more_are_held_at_once_than_there_are() {
        let slots = FairSlots::new(8, 3);
        let (now, most) = (Arc::new(Mutex::new(BTreeMap::<String, usize>::new())), Arc::new(Mutex::new((0, 0))));
        let tasks: Vec<_> = (0..300)
            .map(|n| {
                let (slots, now, most) = (slots.clone(), Arc::clone(&now), Arc::clone(&most));
                tokio::spawn(async move {
                    let name = format!("a{}", n % 7);
                    let slot = slots.acquire(&account(&name)).await;
                    *now.lock().unwrap().entry(name.clone()).or_default() += 1;
                    let (all, of_one) = {
                        let now = now.lock().unwrap();
                        (now.values().sum::<usize>(), now[&name])
                    };
                    {
                        let mut most = most.lock().unwrap();
                        *most = (most.0.max(all), most.1.max(of_one));
                    }
                    tokio::task::yield_now().await;
                    *now.lock().unwrap().entry(name).or_default() -= 1;
                    drop(slot);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let (all, of_one) = *most.lock().unwrap();
        assert!(all == 8 && of_one <= 3, "{all} at once, {of_one} of one account");
    }
}
