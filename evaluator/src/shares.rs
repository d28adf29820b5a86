//! What is kept for accounts within bounds: so many items, so much of them in all, and so much for one account.
//!
//! Items have a cost. An account that goes beyond its share loses what was used least recently of its own, and nothing
//! of others. Where all together are too many, the account that has most loses first; the deployment loses last, and
//! what several accounts use leaves when the last of them loses it.
//! INVARIANT: the bounds hold, except for the two items that were used last: what is being decided now.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use stage0_contract::AccountId;

/// Items that never leave: the ones used last.
const MAX_IN_USE: usize = 2;
/// Accounts that an item is counted for; one that more use is the deployment's.
const MAX_OWNERS: usize = 1_000;

/// How much is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) items: usize,
    pub(crate) cost: usize,
    /// The cost of the items of one account.
    pub(crate) share: usize,
}

#[derive(Debug)]
pub(crate) struct Shares<K, V> {
    bounds: Bounds,
    items: HashMap<K, Item<V>>,
    uses: u64,
}

#[derive(Debug)]
struct Item<V> {
    value: V,
    cost: usize,
    /// When it was used last, in uses of all items.
    used: u64,
    owners: Owners,
}

#[derive(Debug)]
enum Owners {
    Deployment,
    Accounts(HashSet<AccountId>),
}

impl Owners {
    /// Returns whether this owner is new.
    fn add(&mut self, owner: Option<&AccountId>) -> bool {
        match (&mut *self, owner) {
            (Self::Deployment, _) => false,
            (Self::Accounts(accounts), Some(account)) if accounts.contains(account) => false,
            (Self::Accounts(accounts), Some(account)) if accounts.len() < MAX_OWNERS => {
                accounts.insert(account.clone())
            }
            (Self::Accounts(_), _) => {
                *self = Self::Deployment;
                true
            }
        }
    }

    fn has(&self, account: &AccountId) -> bool {
        matches!(self, Self::Accounts(accounts) if accounts.contains(account))
    }
}

impl<K: Clone + Eq + Hash, V> Shares<K, V> {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, items: HashMap::new(), uses: 0 }
    }

    /// An item that is kept, used by this owner now; none: the deployment.
    pub(crate) fn find(&mut self, key: &K, owner: Option<&AccountId>) -> Option<&V> {
        let item = self.items.get_mut(key)?;
        self.uses += 1;
        item.used = self.uses;
        if item.owners.add(owner) {
            self.trim(owner);
        }
        // What was used last never leaves.
        self.items.get(key).map(|item| &item.value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V, cost: usize, owner: Option<&AccountId>) {
        self.uses += 1;
        let owners = match owner {
            Some(account) => Owners::Accounts(HashSet::from([account.clone()])),
            None => Owners::Deployment,
        };
        self.items.insert(key, Item { value, cost, used: self.uses, owners });
        self.trim(owner);
    }

    /// Drops what only this owner has and for which that holds.
    pub(crate) fn drop_own(&mut self, owner: Option<&AccountId>, is_meant: impl Fn(&V) -> bool) {
        let is_own = |owners: &Owners| match (owners, owner) {
            (Owners::Deployment, None) => true,
            (Owners::Accounts(accounts), Some(account)) => accounts.len() == 1 && accounts.contains(account),
            (Owners::Deployment, Some(_)) | (Owners::Accounts(_), None) => false,
        };
        self.items.retain(|_, item| !(is_own(&item.owners) && is_meant(&item.value)));
    }

    /// The most recently used one first.
    pub(crate) fn values(&self) -> Vec<&V> {
        let mut items: Vec<&Item<V>> = self.items.values().collect();
        items.sort_unstable_by_key(|item| std::cmp::Reverse(item.used));
        items.into_iter().map(|item| &item.value).collect()
    }

    /// Brings everything within the bounds after this owner has one more item.
    fn trim(&mut self, owner: Option<&AccountId>) {
        let in_use = self.in_use();
        if let Some(account) = owner {
            while self.taken_by(account) > self.bounds.share {
                let least = self.least_used(in_use, |owners| owners.has(account));
                let Some(key) = least else { break };
                self.take_from(&key, account);
            }
        }
        while self.items.len() > self.bounds.items && self.drop_one(in_use, |_| 1) {}
        while self.cost() > self.bounds.cost && self.drop_one(in_use, |cost| cost) {}
    }

    /// Takes an item from the account that has most by this measure, or else from the deployment. Returns whether there
    /// was one.
    fn drop_one(&mut self, in_use: u64, measure: fn(usize) -> usize) -> bool {
        let mut taken: HashMap<&AccountId, usize> = HashMap::new();
        for item in self.items.values().filter(|item| item.used < in_use) {
            if let Owners::Accounts(accounts) = &item.owners {
                accounts.iter().for_each(|account| *taken.entry(account).or_default() += measure(item.cost));
            }
        }
        // The name settles a tie.
        let most = taken.into_iter().max_by_key(|(account, taken)| (*taken, account.as_str()));
        match most.map(|(account, _)| account.clone()) {
            Some(account) => {
                let least = self.least_used(in_use, |owners| owners.has(&account));
                least.is_some_and(|key| {
                    self.take_from(&key, &account);
                    true
                })
            }
            None => {
                let least = self.least_used(in_use, |_| true);
                least.is_some_and(|key| self.items.remove(&key).is_some())
            }
        }
    }

    fn take_from(&mut self, key: &K, account: &AccountId) {
        let Some(Item { owners: Owners::Accounts(accounts), .. }) = self.items.get_mut(key) else { return };
        accounts.remove(account);
        if accounts.is_empty() {
            self.items.remove(key);
        }
    }

    /// The use from which on items do not leave.
    fn in_use(&self) -> u64 {
        let mut used: Vec<u64> = self.items.values().map(|item| item.used).collect();
        used.sort_unstable_by_key(|used| std::cmp::Reverse(*used));
        used.get(MAX_IN_USE - 1).copied().unwrap_or_default()
    }

    fn least_used(&self, in_use: u64, is_meant: impl Fn(&Owners) -> bool) -> Option<K> {
        let meant = self.items.iter().filter(|(_, item)| item.used < in_use && is_meant(&item.owners));
        meant.min_by_key(|(_, item)| item.used).map(|(key, _)| key.clone())
    }

    fn taken_by(&self, account: &AccountId) -> usize {
        self.items.values().filter(|item| item.owners.has(account)).map(|item| item.cost).sum()
    }

    fn cost(&self) -> usize {
        self.items.values().map(|item| item.cost).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { items: 8, cost: 100, share: 40 };

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    fn shares() -> Shares<&'static str, &'static str> {
        Shares::new(BOUNDS)
    }

    fn insert(shares: &mut Shares<&'static str, &'static str>, key: &'static str, cost: usize, owner: Option<&str>) {
        shares.insert(key, key, cost, owner.map(account).as_ref());
    }

    fn kept(shares: &Shares<&'static str, &'static str>) -> Vec<&'static str> {
        let mut kept: Vec<_> = shares.values().into_iter().copied().collect();
        kept.sort_unstable();
        kept
    }

    #[test]
    fn an_account_beyond_its_share_loses_what_it_used_least_recently_and_no_other_account_loses_anything() {
        let mut shares = shares();
        insert(&mut shares, "quiet", 1, Some("quiet"));
        for key in ["a1", "a2", "a3", "a4"] {
            insert(&mut shares, key, 10, Some("a"));
        }
        assert_eq!(kept(&shares), ["a1", "a2", "a3", "a4", "quiet"]);
        assert!(shares.find(&"a1", Some(&account("a"))).is_some(), "used again");
        insert(&mut shares, "a5", 10, Some("a"));
        assert_eq!(kept(&shares), ["a1", "a3", "a4", "a5", "quiet"]);
    }

    #[test]
    fn heavy_accounts_together_take_nothing_of_a_quiet_one() {
        let mut shares = shares();
        insert(&mut shares, "quiet", 1, Some("quiet"));
        for (key, owner) in [("a", "a"), ("b", "b"), ("c", "c"), ("d", "d"), ("e", "e"), ("f", "f")] {
            insert(&mut shares, key, 40, Some(owner));
            assert!(shares.cost() <= BOUNDS.cost, "{key}");
            assert!(kept(&shares).contains(&"quiet"), "{key}");
        }
    }

    #[test]
    fn many_small_items_of_one_account_take_no_place_of_others() {
        let mut shares = shares();
        insert(&mut shares, "quiet", 1, Some("quiet"));
        insert(&mut shares, "floor", 1, None);
        for key in ["a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9"] {
            insert(&mut shares, key, 1, Some("a"));
        }
        assert_eq!(kept(&shares), ["a4", "a5", "a6", "a7", "a8", "a9", "floor", "quiet"]);
    }

    #[test]
    fn the_deployment_loses_last() {
        let mut shares = shares();
        insert(&mut shares, "floor", 30, None);
        for (key, owner) in [("a", "a"), ("b", "b"), ("c", "c")] {
            insert(&mut shares, key, 35, Some(owner));
        }
        assert_eq!(kept(&shares), ["b", "c", "floor"]);
        let mut shares = self::shares();
        for key in ["d1", "d2", "d3", "d4"] {
            insert(&mut shares, key, 30, None);
        }
        assert_eq!(kept(&shares), ["d2", "d3", "d4"], "it has no share, and leaves where nothing else can");
    }

    #[test]
    fn what_several_accounts_use_leaves_when_the_last_of_them_loses_it() {
        let mut shares = shares();
        insert(&mut shares, "shared", 10, Some("a"));
        assert!(shares.find(&"shared", Some(&account("b"))).is_some());
        for key in ["a1", "a2", "a3", "a4"] {
            insert(&mut shares, key, 10, Some("a"));
        }
        assert_eq!((shares.taken_by(&account("a")), shares.taken_by(&account("b"))), (40, 10));
        assert!(kept(&shares).contains(&"shared"));
        for key in ["b1", "b2", "b3", "b4"] {
            insert(&mut shares, key, 10, Some("b"));
        }
        assert!(!kept(&shares).contains(&"shared"));
    }

    #[test]
    fn an_account_drops_its_own_and_nothing_that_others_use() {
        let mut shares = shares();
        insert(&mut shares, "own", 1, Some("a"));
        insert(&mut shares, "shared", 1, Some("a"));
        insert(&mut shares, "floor", 1, None);
        assert!(shares.find(&"shared", Some(&account("b"))).is_some());
        shares.drop_own(Some(&account("a")), |_| true);
        assert_eq!(kept(&shares), ["floor", "shared"]);
        shares.drop_own(None, |key| *key != "floor");
        assert_eq!(kept(&shares), ["floor", "shared"]);
        shares.drop_own(None, |_| true);
        assert_eq!(kept(&shares), ["shared"]);
    }

    #[test]
    fn what_is_being_decided_stays_however_much_it_is() {
        let mut shares = shares();
        insert(&mut shares, "floor", 90, None);
        insert(&mut shares, "own", 90, Some("a"));
        assert_eq!(kept(&shares), ["floor", "own"]);
        insert(&mut shares, "other", 1, Some("b"));
        assert_eq!(kept(&shares), ["other", "own"]);
    }
}
