//! Management calls, carried out one after the other on the writer's thread.
//!
//! Owns the step from a judged call to a durable change: read, judge by [`rules`], make, commit; endpoints are in
//! [`webhooks`].
//! INVARIANT: nobody else changes the store, so what was read when a call was judged still holds when it is committed.
//! Blocks for the two fsyncs of a change; new keys are hashed before they come here ([`crate::new_key`]).

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::clock;
use stage0_contract::{
    Account, AccountId, ApiKey, ApiKeyError, Caller, Caps, Change, CreateAccount, CreateKey, IdError, KEY_ALPHABET,
    KeyChanged, KeyCreated, KeyId, KeySummary, Limits, ListAccounts, ListKeys, ListRetentions, ManageReply, Page,
    PermitDeletion, Refusal, RetentionsPage, RevokeKey, Revoked, RotateKey, Scopes, UpdateAccount, VouchedTime,
};

use crate::announce::Changed;
use crate::hash::HashError;
use crate::metrics;
use crate::new_key::HashedKey;
use crate::plans::Plans;
use crate::population::Population;
use crate::record::{KeyRecord, Record};
use crate::rules::{self, Granter, Revocation, whole_seconds};
use crate::seal::{SealError, Sealer};
use crate::signer::SignError;
use crate::store::{Store, StoreError};
use crate::vault::{CommitError, OpenError, Vault, chain};
use crate::writer::NoAnswer;

pub(crate) mod marks;
pub(crate) mod webhooks;

/// A repeated revocation is told again for so long: it is as long as a gateway trusts what it was told before the first
/// one.
const REPEAT_TTL: SignedDuration = SignedDuration::from_secs(60);
/// Accounts in one page of the exporter's.
const RETENTIONS: usize = 1_000;

/// What a caller is told whose change has no room.
const DISK_FULL: &str = "the keystore's disk is nearly full: keys can be revoked and endpoints deleted, and nothing can be \
    added or changed until there is room in its data directory";

/// Where the time comes from.
pub(crate) type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The one place that changes anything.
pub(crate) struct Desk {
    vault: Vault,
    sealer: Arc<Sealer>,
    clock: Clock,
    plans: Plans,
    /// Changed here alone; others look whether there is room before they do what costs.
    population: Arc<Mutex<Population>>,
    alarm: marks::Alarm,
    /// Whether the log holds a mark that this directory has forgotten.
    rolled_back: Arc<AtomicBool>,
}

/// What a call is judged by before it comes to the desk.
#[derive(Clone)]
pub(crate) struct Judge {
    pub(crate) store: Store,
    pub(crate) plans: Plans,
    pub(crate) population: Arc<Mutex<Population>>,
}

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Undone {
    #[error("refused")]
    Refused(Refusal),
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
    #[error("the change cannot be stored")]
    Commit(#[from] CommitError),
    #[error("a key cannot be hashed")]
    Hash(#[from] HashError),
    #[error("there is no randomness")]
    Random(#[from] getrandom::Error),
    #[error("a new id is malformed")]
    Id(#[from] IdError),
    #[error("a new key is malformed")]
    Key(#[from] ApiKeyError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the writer could not be asked")]
    NoAnswer(#[source] NoAnswer),
    #[error("the store was not read to the end")]
    Read(#[source] tokio::task::JoinError),
    #[error("there is no thread to hash on")]
    Thread(#[source] std::io::Error),
    #[error("the change is stored, and it is not sure that every process was told; it is told again")]
    Untold,
    #[error("the call does not hold its caller's key")]
    Unproven,
    #[error("the caller's key cannot be judged")]
    Unjudged,
    #[error("the mark of a deletion came without the permit for it")]
    NoPermit,
}

impl From<Refusal> for Undone {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The reply to a call; a failure of ours is logged here, once.
pub(crate) fn reply<T>(call: &'static str, done: Result<T, Undone>) -> ManageReply<T> {
    match done {
        Ok(done) => ManageReply::Done(done),
        Err(Undone::Refused(refusal)) => ManageReply::Refused(refusal),
        Err(Undone::Commit(CommitError::DiskFull)) => {
            tracing::warn!(call, "management call was refused: the disk is nearly full");
            ManageReply::Refused(Refusal::Conflict(DISK_FULL.to_owned()))
        }
        Err(Undone::NoAnswer(NoAnswer::Full)) => {
            // Whoever floods must not fill the log: the metric says how often.
            metrics::busy();
            tracing::debug!(call, "too many management calls wait, one was told to come again");
            ManageReply::Busy
        }
        // It was told where it was found.
        Err(Undone::Unproven) => ManageReply::Failed,
        Err(error) => {
            tracing::error!(call, error = %chain(&error), "management call failed");
            ManageReply::Failed
        }
    }
}

impl Judge {
    /// Whether this key may be made, before it is hashed.
    pub(crate) fn new_key(&self, call: &CreateKey, now: Timestamp) -> Result<NewKey, Undone> {
        let granter = granter(&self.store, &call.caller, now)?;
        rules::may_manage_keys(&granter.caller)?;
        let account = rules::account_meant(&granter.caller, call.account.as_ref())?;
        let expires_at = rules::valid_key(&granter, call, now)?;
        let caps = self.caps(&account)?;
        rules::room_for_key(self.population().living_keys(&account, now), &caps)?;
        Ok(NewKey { account, name: call.name.clone(), scopes: call.scopes.clone(), expires_at })
    }

    /// The old key as it will be, and its successor, before that is hashed.
    pub(crate) fn successor(&self, call: &RotateKey, now: Timestamp) -> Result<(KeyRecord, NewKey), Undone> {
        let granter = granter(&self.store, &call.caller, now)?;
        rules::may_manage_keys(&granter.caller)?;
        let found = self.store.key(&call.id)?;
        let expires_at = found.as_ref().and_then(|key| key.expires_at);
        let old = rules::rotated(&granter, call, found, now)?;
        if old.lives_at(now) {
            // Both live for the overlap; one that ends at once makes room for its successor.
            rules::room_for_key(self.population().living_keys(&old.account, now), &self.caps(&old.account)?)?;
        }
        let (account, name, scopes) = (old.account.clone(), old.name.clone(), old.scopes.clone());
        Ok((old, NewKey { account, name, scopes, expires_at }))
    }

    pub(crate) fn caps(&self, account: &AccountId) -> Result<Caps, Undone> {
        Ok(self.plans.caps(&self.store.account(account)?.ok_or(Refusal::NotFound)?))
    }

    pub(crate) fn population(&self) -> MutexGuard<'_, Population> {
        // Each use is one step: a panic elsewhere cannot leave it half done.
        self.population.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// Counts what the store holds.
    pub(crate) fn new(vault: Vault, sealer: Arc<Sealer>, clock: Clock, plans: Plans) -> Result<Self, StoreError> {
        let population = Arc::new(Mutex::new(Population::of(vault.store())?));
        let (alarm, rolled_back) = (marks::Alarm::default(), Arc::default());
        Ok(Self { vault, sealer, clock, plans, population, alarm, rolled_back })
    }

    pub(crate) fn rolled_back(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.rolled_back)
    }

    pub(crate) fn store(&self) -> &Store {
        self.vault.store()
    }

    /// The state store has a head: see [`Vault::say_head`].
    pub(crate) fn say_head(&mut self) -> Result<(), OpenError> {
        self.vault.say_head()
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    pub(crate) fn tend_reserve(&mut self) {
        self.vault.tend_reserve();
    }

    pub(crate) fn judge(&self) -> Judge {
        let (store, population) = (self.vault.store().clone(), Arc::clone(&self.population));
        Judge { store, plans: self.plans, population }
    }

    /// Stores one change.
    pub(crate) fn commit(&mut self, records: &[Record]) -> Result<(), CommitError> {
        self.vault.commit(records)?;
        let mut population = self.population.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().for_each(|record| population.put(record));
        Ok(())
    }

    pub(crate) fn create_account(&mut self, call: CreateAccount) -> Result<Account, Undone> {
        let now = self.now();
        let caller = standing(self.vault.store(), &call.caller, now)?;
        rules::may_manage_accounts(&caller)?;
        rules::valid_account(&call)?;
        let id = account_id(random()?)?;
        let plan = call.plan.unwrap_or_default();
        let account = Account {
            id,
            name: call.name,
            plan,
            created_at: now,
            retention_days: None,
            limits: Limits::NONE,
            require_run_id: false,
            caps: Caps::NONE,
        };
        self.commit(&[Record::Account(account.clone())])?;
        tracing::info!(account = %account.id, by = %caller.key_id, "account created");
        Ok(account)
    }

    /// Judged once more: the hash took its time. What ended long ago is forgotten in the same change.
    pub(crate) fn create_key(&mut self, call: &CreateKey, hashed: HashedKey) -> Result<KeyCreated, Undone> {
        let now = self.now();
        let judge = self.judge();
        let (key, record) = judge.new_key(call, now)?.with(hashed, now);
        let mut change = vec![Record::Key(record.clone())];
        change.extend(judge.population().surplus_keys(&record.account, now));
        self.commit(&change)?;
        let forgotten = change.len() - 1;
        tracing::info!(account = %record.account, key_id = %record.id, by = %call.caller.key_id, forgotten, "key created");
        Ok(created(key, record))
    }

    /// The old key's end is one change with the new key: there is never none, and never two that live on.
    pub(crate) fn rotate_key(&mut self, call: &RotateKey, hashed: HashedKey) -> Result<(KeyCreated, Changed), Undone> {
        let now = self.now();
        let judge = self.judge();
        let (old, new) = judge.successor(call, now)?;
        let (key, record) = new.with(hashed, now);
        let mut change = vec![Record::Key(record.clone()), Record::Key(old.clone())];
        // Not the old key: it ended last.
        change.extend(judge.population().surplus_keys(&record.account, now));
        self.commit(&change)?;
        tracing::info!(account = %old.account, key_id = %old.id, successor = %record.id, by = %call.caller.key_id, "key rotated");
        let created = KeyCreated { old_key_expires_at: old.ends(), ..created(key, record) };
        Ok((created, changed(&old)))
    }

    /// A repeated revocation is told again while its first notice, if nobody heard it, may matter. Each notice costs
    /// the account's other keys a question, so later nobody is told.
    pub(crate) fn revoke_key(&mut self, call: &RevokeKey) -> Result<(Revoked, Option<Changed>), Undone> {
        let now = self.now();
        let caller = standing(self.vault.store(), &call.caller, now)?;
        rules::may_manage_keys(&caller)?;
        match rules::revoked(&caller, self.vault.store().key(&call.id)?, now)? {
            Revocation::Already(key) => {
                let fresh = key.revoked_at.is_some_and(|at| now.duration_since(at) <= REPEAT_TTL);
                Ok((Revoked {}, fresh.then(|| changed(&key))))
            }
            Revocation::New(key) => {
                self.commit(&[Record::Key(key.clone())])?;
                tracing::info!(account = %key.account, key_id = %key.id, by = %caller.key_id, "key revoked");
                Ok((Revoked {}, Some(changed(&key))))
            }
        }
    }

    pub(crate) fn update_account(&mut self, call: &UpdateAccount) -> Result<(Account, Changed), Undone> {
        let caller = standing(self.vault.store(), &call.caller, self.now())?;
        rules::may_manage_accounts(&caller)?;
        rules::valid_account_changes(call)?;
        let mut account = self.vault.store().account(&call.account)?.ok_or(Refusal::NotFound)?;
        account.plan = call.plan.unwrap_or(account.plan);
        account.retention_days = call.retention_days.map_or(account.retention_days, Change::own);
        account.limits.per_minute = call.per_minute.map_or(account.limits.per_minute, Change::own);
        account.limits.daily = call.daily.map_or(account.limits.daily, Change::own);
        account.limits.monthly = call.monthly.map_or(account.limits.monthly, Change::own);
        account.require_run_id = call.require_run_id.unwrap_or(account.require_run_id);
        account.caps = call.caps.of(account.caps);
        self.commit(&[Record::Account(account.clone())])?;
        tracing::info!(account = %account.id, plan = account.plan.as_str(), days = account.retention(), by = %caller.key_id, "account changed");
        // Gateways know an account by its keys. A notice doubts all keys of the account that it names (ADR 0003),
        // whichever key it names, so that one is enough.
        let changed = KeyChanged::One { account: account.id.clone(), key_id: caller.key_id };
        Ok((account, Changed::Key(changed)))
    }

    pub(crate) fn now(&self) -> Timestamp {
        whole_seconds((self.clock)())
    }
}

/// One page of all accounts.
pub(crate) fn list_accounts(store: &Store, call: &ListAccounts, now: Timestamp) -> Result<Page<Account>, Undone> {
    rules::may_manage_accounts(&standing(store, &call.caller, now)?)?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, AccountId::parse)?;
    let items = store.accounts(after.as_ref(), limit + 1)?;
    Ok(page(items, limit, |account| account.id.as_str()))
}

/// Whether the caller may delete its account's decisions of before a time: the account, and who it is.
pub(crate) fn may_delete(store: &Store, call: &PermitDeletion, now: Timestamp) -> Result<Caller, Undone> {
    let caller = standing(store, &call.caller, now)?;
    rules::may_delete_decisions(&caller)?;
    rules::valid_deletion(call.before, now)?;
    Ok(caller)
}

/// One page of an account's keys.
pub(crate) fn list_keys(store: &Store, call: &ListKeys, now: Timestamp) -> Result<Page<KeySummary>, Undone> {
    let caller = standing(store, &call.caller, now)?;
    rules::may_manage_keys(&caller)?;
    let account = rules::account_meant(&caller, call.account.as_ref())?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, KeyId::parse)?;
    store.account(&account)?.ok_or(Refusal::NotFound)?;
    let keys = store.keys(&account, after.as_ref(), limit + 1)?;
    Ok(page(keys.into_iter().map(KeyRecord::summary).collect(), limit, |key| key.id.as_str()))
}

/// One page of how long each account keeps decisions, for the exporter.
pub(crate) fn list_retentions(store: &Store, call: &ListRetentions) -> Result<RetentionsPage, Undone> {
    let mut accounts = store.accounts(call.cursor.as_ref(), RETENTIONS + 1)?;
    let more = accounts.len() > RETENTIONS;
    accounts.truncate(RETENTIONS);
    let next_cursor = accounts.last().filter(|_| more).map(|last| last.id.clone());
    let items = accounts.into_iter().map(|account| (account.id.clone(), account.retention())).collect();
    let clock = Some(VouchedTime { process: clock::process().to_owned(), at: clock::vouched() });
    Ok(RetentionsPage { items, next_cursor, clock })
}

/// `items` holds one more than fits when there is a next page.
fn page<T>(mut items: Vec<T>, limit: usize, id: impl Fn(&T) -> &str) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|last| id(last).to_owned());
    Page { items, next_cursor }
}

/// The caller as its record says, not as it says: a gateway may not have heard yet that the key ended, and then it holds nothing.
/// That the caller has this key was proven before (`callers`).
fn standing(store: &Store, caller: &Caller, now: Timestamp) -> Result<Caller, StoreError> {
    granter(store, caller, now).map(|granter| granter.caller)
}

/// As [`standing`], with its end.
fn granter(store: &Store, caller: &Caller, now: Timestamp) -> Result<Granter, StoreError> {
    let key = store.key(&caller.key_id)?.filter(|key| key.lives_at(now) && key.account == caller.account);
    let (scopes, ends) = key.map(|key| (key.scopes, key.expires_at)).unwrap_or_default();
    let scopes = scopes.intersection(&caller.scopes).copied().collect();
    let (account, key_id) = (caller.account.clone(), caller.key_id.clone());
    Ok(Granter { caller: Caller { account, key_id, scopes, key: None }, ends })
}

/// What the maker of a key decides; the rest is drawn.
pub(crate) struct NewKey {
    pub(crate) account: AccountId,
    pub(crate) name: String,
    pub(crate) scopes: Scopes,
    pub(crate) expires_at: Option<Timestamp>,
}

impl NewKey {
    /// With what was drawn for it. Nothing is stored yet.
    pub(crate) fn with(self, HashedKey { key, hash }: HashedKey, now: Timestamp) -> (ApiKey, KeyRecord) {
        let Self { account, name, scopes, expires_at } = self;
        let expires_at = expires_at.map(whole_seconds);
        let id = key.id().clone();
        (key, KeyRecord { id, account, name, scopes, hash, created_at: now, expires_at, revoked_at: None })
    }
}

pub(crate) fn account_id(random: [u8; 16]) -> Result<AccountId, IdError> {
    new_id("acc", random, AccountId::parse)
}

/// What it is, `_` and sixteen characters, five random bits each.
fn new_id<Id>(what: &str, random: [u8; 16], parse: impl FnOnce(&str) -> Result<Id, IdError>) -> Result<Id, IdError> {
    let letters = random.iter().filter_map(|byte| KEY_ALPHABET.get(usize::from(byte & 31)).copied().map(char::from));
    parse(&format!("{what}_{}", letters.collect::<String>()))
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn created(key: ApiKey, record: KeyRecord) -> KeyCreated {
    let KeyRecord { id, account, name, scopes, created_at, expires_at, .. } = record;
    KeyCreated { id, key, account, name, scopes, created_at, expires_at, old_key_expires_at: None }
}

fn changed(key: &KeyRecord) -> Changed {
    Changed::Key(KeyChanged::One { account: key.account.clone(), key_id: key.id.clone() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    use stage0_contract::Scope;

    use crate::image::{Image, Lineage};
    use crate::record::tests::{account, at, key};
    use crate::seal::tests::sealer_of;

    /// A store with these records.
    pub(crate) fn kept(records: Vec<Record>) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        store.fill(&Image::of(Lineage::from_random([1; 16]), 1, records).unwrap()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_repeated_revocation_is_told_again_for_a_minute_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let time = Arc::new(AtomicI64::new(10));
        let clock = Arc::clone(&time);
        let vault = Vault::open(dir.path(), Lineage::from_random([1; 16]), at(1)).unwrap();
        let clock: Clock = Arc::new(move || at(clock.load(Ordering::Relaxed)));
        let mut desk = Desk::new(vault, Arc::new(sealer_of(1)), clock, Plans::built_in().unwrap()).unwrap();
        let (manager, leaked) = (key("manager", "a", &[Scope::KeysManage]), key("leaked", "a", &[]));
        let (account_id, key_id, scopes) = (manager.account.clone(), manager.id.clone(), manager.scopes.clone());
        let id = leaked.id.clone();
        let told = changed(&leaked);
        desk.commit(&[Record::Account(account("a")), Record::Key(manager), Record::Key(leaked)]).unwrap();
        let call = RevokeKey { caller: Caller { account: account_id, key_id, scopes, key: None }, id };
        let mut revoke_at = |second| {
            time.store(second, Ordering::Relaxed);
            desk.revoke_key(&call).unwrap().1
        };
        for second in [10, 10, 70] {
            assert_eq!(revoke_at(second).as_ref(), Some(&told), "at {second}");
        }
        assert_eq!([71, 10_000].map(&mut revoke_at), [None, None], "and it is done all the same");
    }

    #[test]
    fn retentions_come_in_pages_of_a_thousand_accounts_and_none_is_left_out() {
        for count in [1_000, 1_001] {
            let accounts = (0..count).map(|number| account(&format!("acc_{number:04}")));
            let (_dir, store) = kept(accounts.map(Record::Account).collect());
            let first = list_retentions(&store, &ListRetentions { cursor: None }).unwrap();
            assert_eq!((first.items.len(), first.next_cursor.is_some()), (1_000, count > 1_000));
            if first.next_cursor.is_some() {
                let second = list_retentions(&store, &ListRetentions { cursor: first.next_cursor }).unwrap();
                let ids: Vec<_> = second.items.iter().map(|(id, _)| id.as_str()).collect();
                assert_eq!((ids, second.next_cursor), (vec!["acc_1000"], None));
            }
        }
    }
}
