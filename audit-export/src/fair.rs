//! Slots that accounts share fairly: a limit in all and a limit for each account.
//!
//! Accounts take turns, one slot at a time, and one at its limit waits only for its own slots.
//! INVARIANT: while a slot is free, no account below its limit waits.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use stage0_contract::AccountId;
use tokio::sync::oneshot;

use crate::shared::lock;

pub(crate) struct FairSlots {
    max_per_account: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    free: usize,
    held: HashMap<AccountId, usize>,
    waiting: HashMap<AccountId, VecDeque<oneshot::Sender<Slot>>>,
    /// The accounts with waiters, in the order of their turns.
    turns: VecDeque<AccountId>,
}

pub(crate) struct Slot {
    pool: Arc<FairSlots>,
    /// None once the slot was taken back under the lock.
    account: Option<AccountId>,
}

impl FairSlots {
    pub(crate) fn new(max: usize, max_per_account: usize) -> Arc<Self> {
        let state = Mutex::new(State { free: max, ..State::default() });
        Arc::new(Self { max_per_account, state })
    }

    pub(crate) fn try_acquire(self: &Arc<Self>, account: &AccountId) -> Option<Slot> {
        let mut state = lock(&self.state);
        let can = state.free > 0 && state.held(account) < self.max_per_account;
        can.then(|| self.give(&mut state, account))
    }

    /// Waits for a slot for the account. Cancelling only gives up the place in the queue.
    pub(crate) async fn acquire(self: &Arc<Self>, account: &AccountId) -> Slot {
        loop {
            let waiter = {
                let mut state = lock(&self.state);
                if state.free > 0 && state.held(account) < self.max_per_account {
                    return self.give(&mut state, account);
                }
                let (sender, waiter) = oneshot::channel();
                state.queue(account, sender);
                waiter
            };
            if let Ok(slot) = waiter.await {
                return slot;
            }
        }
    }

    fn give(self: &Arc<Self>, state: &mut State, account: &AccountId) -> Slot {
        state.free = state.free.saturating_sub(1);
        *state.held.entry(account.clone()).or_default() += 1;
        Slot { pool: Arc::clone(self), account: Some(account.clone()) }
    }

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
        // Cancelled waiters would pile up behind an account that stays at its limit.
        if queue.len() % 64 == 63 {
            queue.retain(|waiter| !waiter.is_closed());
        }
        if queue.is_empty() && !self.turns.contains(account) {
            self.turns.push_back(account.clone());
        }
        queue.push_back(waiter);
    }

    /// If more wait behind the next one, the account gets another turn after all others.
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
        let mut state = lock(&self.pool.state);
        state.take_back(&account);
        self.pool.dispatch(&mut state);
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

    /// The order in which requests that all wait for one slot get it.
    async fn order(slots: &Arc<FairSlots>, requests: &[&str]) -> Vec<String> {
        let blocker = slots.acquire(&account("blocker")).await;
        let (granted, mut grants) = mpsc::unbounded_channel();
        for name in requests {
            let (slots, name, granted) = (slots.clone(), (*name).to_owned(), granted.clone());
            tokio::spawn(async move {
                let slot = slots.acquire(&account(&name)).await;
                granted.send((name, slot)).unwrap();
            });
            // Each is in the queue before the next one starts.
            tokio::task::yield_now().await;
        }
        drop((blocker, granted));
        let mut order = Vec::new();
        while let Some((name, slot)) = grants.recv().await {
            order.push(name);
            drop(slot);
        }
        order
    }

    #[tokio::test]
    async fn accounts_take_turns_however_many_requests_one_of_them_has_waiting() {
        let slots = FairSlots::new(1, 1);
        let order = order(&slots, &["many", "many", "many", "many", "one", "two", "two"]).await;
        assert_eq!(order, ["many", "one", "two", "many", "two", "many", "many"]);
    }

    #[tokio::test]
    async fn an_account_at_its_limit_waits_and_another_does_not() {
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
    async fn a_cancelled_waiter_keeps_no_slot() {
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
        let state = lock(&slots.state);
        assert_eq!((state.free, state.held.len(), state.waiting.len(), state.turns.len()), (1, 0, 0, 0));
    }

    #[tokio::test]
    async fn no_more_slots_are_held_than_the_limits_allow() {
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
