//! Management calls: checked by [`rules`], then made one after the other on the writer's thread.
//!
//! A call is read, checked, turned into records and committed, which blocks for two fsyncs. New keys are hashed before
//! they come here ([`new_key`]).
//! INVARIANT: only the writer's thread changes the store, so what a check read still holds when the change is
//! committed.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use jiff::{SignedDuration, Timestamp};
use stage0_backplane::clock;
use stage0_contract::{
    Account, AccountId, ApiKey, ApiKeyError, ApprovalMode, Caller, Caps, Change, CreateAccount, CreateKey, Holder,
    IdError, KEY_ALPHABET, KeyChanged, KeyCreated, KeyId, KeySummary, Limits, ListAccounts, ListKeys, ListRetentions,
    ManageReply, MemberId, Page, PermitDeletion, Person, Plan, PolicyChanges, Refusal, RetentionsPage, RevokeKey,
    Revoked, RotateKey, Scope, Scopes, SecondClock, UpdateAccount,
};

use crate::admin::announce::Changed;
use crate::admin::new_key::HashedKey;
use crate::admin::population::Population;
use crate::admin::writer::WriterError;
use crate::errors::{chain, lock};
use crate::hash::HashError;
use crate::metrics;
use crate::plans::Plans;
use crate::seal::{SealError, Sealer};
use crate::signer::SignError;
use crate::sources::{Clock, random};
use crate::store::record::{KeyRecord, Record};
use crate::store::record_store::{RecordStore, StoreError};
use crate::store::{CommitError, DurableStore};
use rules::{Granter, Revocation, whole_seconds};

pub(crate) mod announce;
pub(crate) mod bootstrap;
pub(crate) mod marks;
pub(crate) mod members;
pub(crate) mod new_key;
mod pages;
pub(crate) mod policies;
pub(crate) mod population;
pub(crate) mod rules;
pub(crate) mod stops;
pub(crate) mod webhooks;
pub(crate) mod writer;

/// For this long after a revocation, a repeated one publishes the notice again: a gateway trusts its cache no longer.
const REPEAT_TTL: SignedDuration = SignedDuration::from_secs(60);
const RETENTIONS_PER_PAGE: usize = 1_000;

const DISK_FULL: &str = "the keystore's disk is nearly full: keys can be revoked and endpoints deleted, members \
    removed and checks stopped, and nothing can be added or changed until there is room in its data directory";

pub(crate) struct AdminService {
    pub(crate) durable: DurableStore,
    sealer: Arc<Sealer>,
    clock: Clock,
    plans: Plans,
    /// Changed only here. Prechecks read it before a key is hashed.
    population: Arc<Mutex<Population>>,
    refusals: marks::RefusalLog,
    claims: policies::Claims,
    /// The decision log holds a mark that this directory does not know.
    pub(crate) rolled_back: Arc<AtomicBool>,
}

/// Checks a new key before it is hashed, without the writer.
#[derive(Clone)]
pub(crate) struct Precheck {
    pub(crate) store: RecordStore,
    pub(crate) plans: Plans,
    pub(crate) population: Arc<Mutex<Population>>,
}

/// The reply to a change, and what to announce.
pub(crate) type ChangeResult<T> = Result<(T, Option<Changed>), ManageError>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ManageError {
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
    Writer(#[source] WriterError),
    #[error("the store was not read to the end")]
    Read(#[source] tokio::task::JoinError),
    #[error("there is no thread to hash on")]
    Thread(#[source] std::io::Error),
    #[error("the change is stored, and it is not sure that every process was told; it is told again")]
    NotAnnounced,
    #[error("the call does not hold its caller's key")]
    CallerUnproven,
    #[error("the caller's key cannot be judged")]
    CallerNotVerified,
    #[error("the mark of a deletion came without the permit for it")]
    NoPermit,
}

impl From<Refusal> for ManageError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The reply to a call; a failure of ours is logged here, once.
pub(crate) fn reply<T>(call: &'static str, done: Result<T, ManageError>) -> ManageReply<T> {
    match done {
        Ok(done) => ManageReply::Done(done),
        Err(ManageError::Refused(refusal)) => ManageReply::Refused(refusal),
        Err(ManageError::Commit(CommitError::DiskFull)) => {
            tracing::warn!(call, "management call was refused: the disk is nearly full");
            ManageReply::Refused(Refusal::Conflict(DISK_FULL.to_owned()))
        }
        Err(ManageError::Writer(WriterError::QueueFull)) => {
            // At debug level, because a flood must not fill the log. The metric counts these.
            metrics::busy();
            tracing::debug!(call, "too many management calls wait, one was told to come again");
            ManageReply::Busy
        }
        // Was logged where it was found.
        Err(ManageError::CallerUnproven) => ManageReply::Failed,
        Err(error) => {
            tracing::error!(call, error = %chain(&error), "management call failed");
            ManageReply::Failed
        }
    }
}

impl Precheck {
    pub(crate) fn new_key(&self, call: &CreateKey, now: Timestamp) -> Result<NewKey, ManageError> {
        let granter = granter(&self.store, &call.caller, Scope::KeysManage, now)?;
        let account = rules::target_account(&granter.caller, call.account.as_ref())?;
        let owner = call.owner.as_ref().map(|owner| self.store.member(owner)).transpose()?.flatten();
        let expires_at = rules::valid_key(&granter, call, (&account, owner.as_ref()), now)?;
        let caps = self.caps(&account)?;
        rules::check_key_cap(self.population().active_keys(&account, now), &caps)?;
        let mut makers = granter.makers().into_iter();
        let holder =
            NewHolder::Workload { owner: call.owner.clone(), made_by: makers.next(), known_to: makers.collect() };
        Ok(NewKey { account, name: call.name.clone(), scopes: call.scopes.clone(), expires_at, holder })
    }

    /// Checks a rotation. Returns the old key as it will be, and its successor.
    pub(crate) fn successor(&self, call: &RotateKey, now: Timestamp) -> Result<(KeyRecord, NewKey), ManageError> {
        let granter = granter(&self.store, &call.caller, Scope::KeysManage, now)?;
        let found = self.store.key(&call.id)?;
        let expires_at = found.as_ref().and_then(|key| key.expires_at);
        let old = rules::rotated(&granter, call, found, now)?;
        if old.is_active_at(now) {
            // Both count during the overlap; a key that ends at once makes room for its successor.
            rules::check_key_cap(self.population().active_keys(&old.account, now), &self.caps(&old.account)?)?;
        }
        let (account, name, scopes) = (old.account.clone(), old.name.clone(), old.scopes.clone());
        let holder = NewHolder::Successor(rules::successors_holder(&granter, &old)?);
        Ok((old, NewKey { account, name, scopes, expires_at, holder }))
    }

    pub(crate) fn caps(&self, account: &AccountId) -> Result<Caps, ManageError> {
        Ok(self.plans.caps(&self.store.account(account)?.ok_or(Refusal::NotFound)?))
    }

    pub(crate) fn population(&self) -> MutexGuard<'_, Population> {
        lock(&self.population)
    }
}

impl AdminService {
    pub(crate) fn new(
        durable: DurableStore,
        sealer: Arc<Sealer>,
        clock: Clock,
        plans: Plans,
    ) -> Result<Self, StoreError> {
        let population = Arc::new(Mutex::new(Population::of(&durable.store)?));
        let (refusals, claims) = (marks::RefusalLog::default(), policies::Claims::default());
        Ok(Self { durable, sealer, clock, plans, population, refusals, claims, rolled_back: Arc::default() })
    }

    pub(crate) fn store(&self) -> &RecordStore {
        &self.durable.store
    }

    pub(crate) fn precheck(&self) -> Precheck {
        let (store, population) = (self.store().clone(), Arc::clone(&self.population));
        Precheck { store, plans: self.plans, population }
    }

    pub(crate) fn commit(&mut self, records: &[Record]) -> Result<(), CommitError> {
        self.durable.commit(records)?;
        let mut population = lock(&self.population);
        records.iter().for_each(|record| population.put(record));
        Ok(())
    }

    pub(crate) fn create_account(&mut self, call: CreateAccount) -> ChangeResult<Account> {
        let now = self.now();
        let caller = authorized(self.store(), &call.caller, Scope::Operator, now)?;
        rules::valid_account(&call)?;
        let account = new_account(call.name, call.plan.unwrap_or_default(), call.approvals.unwrap_or_default(), now)?;
        self.commit(&[Record::Account(account.clone())])?;
        tracing::info!(account = %account.id, by = %caller.key_id, "account created");
        Ok((account, None))
    }

    /// Checks the call again, because hashing took time. The same change forgets keys that ended long ago.
    pub(crate) fn create_key(&mut self, call: &CreateKey, hashed: HashedKey) -> Result<KeyCreated, ManageError> {
        let now = self.now();
        let precheck = self.precheck();
        let (key, record) = precheck.new_key(call, now)?.with(hashed, now);
        let mut change = vec![Record::Key(record.clone())];
        change.extend(precheck.population().surplus_keys(&record.account, now));
        self.commit(&change)?;
        let forgotten = change.len() - 1;
        let (account, by) = (&record.account, &call.caller.key_id);
        tracing::info!(%account, key_id = %record.id, %by, forgotten, "key created");
        Ok(created(key, record))
    }

    /// Ends the old key and stores the new one in one change, so that exactly one of them goes on.
    pub(crate) fn rotate_key(&mut self, call: &RotateKey, hashed: HashedKey) -> ChangeResult<KeyCreated> {
        let now = self.now();
        let precheck = self.precheck();
        let (old, new) = precheck.successor(call, now)?;
        let (key, record) = new.with(hashed, now);
        let mut change = vec![Record::Key(record.clone()), Record::Key(old.clone())];
        // This cannot be the old key, which ended last.
        change.extend(precheck.population().surplus_keys(&record.account, now));
        self.commit(&change)?;
        let (account, by) = (&old.account, &call.caller.key_id);
        tracing::info!(%account, key_id = %old.id, successor = %record.id, %by, "key rotated");
        let created = KeyCreated { old_key_expires_at: old.ends(), ..created(key, record) };
        Ok((created, Some(changed(&old))))
    }

    /// A repeated revocation is announced only for [`REPEAT_TTL`]: each time, gateways look up the account's keys.
    pub(crate) fn revoke_key(&mut self, call: &RevokeKey) -> ChangeResult<Revoked> {
        let now = self.now();
        let caller = authorized(self.store(), &call.caller, Scope::KeysManage, now)?;
        match rules::revoked(&caller, self.store().key(&call.id)?, now)? {
            Revocation::Already(key) => {
                let announce = key.revoked_at.is_some_and(|at| now.duration_since(at) <= REPEAT_TTL);
                Ok((Revoked {}, announce.then(|| changed(&key))))
            }
            Revocation::New(key) => {
                self.commit(&[Record::Key(key.clone())])?;
                tracing::info!(account = %key.account, key_id = %key.id, by = %caller.key_id, "key revoked");
                Ok((Revoked {}, Some(changed(&key))))
            }
        }
    }

    pub(crate) fn update_account(&mut self, call: &UpdateAccount) -> ChangeResult<Account> {
        let caller = authorized(self.store(), &call.caller, Scope::Operator, self.now())?;
        rules::valid_account_changes(call)?;
        let mut account = self.store().account(&call.account)?.ok_or(Refusal::NotFound)?;
        account.plan = call.plan.unwrap_or(account.plan);
        account.retention_days = call.retention_days.map_or(account.retention_days, Change::own);
        account.limits.per_minute = call.per_minute.map_or(account.limits.per_minute, Change::own);
        account.limits.daily = call.daily.map_or(account.limits.daily, Change::own);
        account.limits.monthly = call.monthly.map_or(account.limits.monthly, Change::own);
        account.require_run_id = call.require_run_id.unwrap_or(account.require_run_id);
        account.caps = call.caps.of(account.caps);
        account.approvals = call.approvals.unwrap_or(account.approvals);
        account.four_eyes = call.four_eyes.unwrap_or(account.four_eyes);
        account.policy_changes = call.policy_changes.unwrap_or(account.policy_changes);
        account.record_facts = call.record_facts.unwrap_or(account.record_facts);
        self.commit(&[Record::Account(account.clone())])?;
        let (plan, days) = (account.plan.as_str(), account.retention());
        let (approvals, four_eyes) = (account.approvals.as_str(), account.four_eyes);
        let policy_changes = account.policy_changes.as_str();
        tracing::info!(account = %account.id, plan, days, approvals, four_eyes, policy_changes, by = %caller.key_id,
            "account changed");
        let changed = account_changed(account.id.clone(), &caller);
        Ok((account, Some(changed)))
    }

    pub(crate) fn now(&self) -> Timestamp {
        whole_seconds((self.clock)())
    }
}

pub(crate) fn list_accounts(
    store: &RecordStore,
    call: &ListAccounts,
    now: Timestamp,
) -> Result<Page<Account>, ManageError> {
    authorized(store, &call.caller, Scope::Operator, now)?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, AccountId::parse)?;
    let items = store.accounts(after.as_ref(), limit + 1)?;
    Ok(page(items, limit, |account| account.id.as_str()))
}

pub(crate) fn may_delete(store: &RecordStore, call: &PermitDeletion, now: Timestamp) -> Result<Caller, ManageError> {
    let caller = authorized(store, &call.caller, Scope::DecisionsDelete, now)?;
    rules::valid_deletion(call.before, now)?;
    Ok(caller)
}

pub(crate) fn list_keys(store: &RecordStore, call: &ListKeys, now: Timestamp) -> Result<Page<KeySummary>, ManageError> {
    let caller = authorized(store, &call.caller, Scope::KeysManage, now)?;
    let account = rules::target_account(&caller, call.account.as_ref())?;
    let (after, limit) = rules::page(call.cursor.as_deref(), call.limit, KeyId::parse)?;
    store.account(&account)?.ok_or(Refusal::NotFound)?;
    let keys = store.keys(&account, after.as_ref(), limit + 1)?;
    Ok(page(keys.into_iter().map(KeyRecord::summary).collect(), limit, |key| key.id.as_str()))
}

pub(crate) fn list_retentions(store: &RecordStore, call: &ListRetentions) -> Result<RetentionsPage, ManageError> {
    let mut accounts = store.accounts(call.cursor.as_ref(), RETENTIONS_PER_PAGE + 1)?;
    let more = accounts.len() > RETENTIONS_PER_PAGE;
    accounts.truncate(RETENTIONS_PER_PAGE);
    let next_cursor = accounts.last().filter(|_| more).map(|last| last.id.clone());
    let items = accounts.into_iter().map(|account| (account.id.clone(), account.retention())).collect();
    let clock = Some(SecondClock { process: clock::process().to_owned(), at: clock::steady_now() });
    Ok(RetentionsPage { items, next_cursor, clock })
}

/// `items` has one item more than `limit` if there is a next page.
fn page<T>(mut items: Vec<T>, limit: usize, id: impl Fn(&T) -> &str) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| more).map(|last| id(last).to_owned());
    Page { items, next_cursor }
}

/// The caller with the scopes that its record has now, none if its key has ended, if they include `scope`. That it
/// holds the key was proven before ([`crate::server::callers`]).
fn authorized(store: &RecordStore, caller: &Caller, scope: Scope, now: Timestamp) -> Result<Caller, ManageError> {
    granter(store, caller, scope, now).map(|granter| granter.caller)
}

fn granter(store: &RecordStore, caller: &Caller, scope: Scope, now: Timestamp) -> Result<Granter, ManageError> {
    let granter = as_recorded(store, caller, now)?;
    rules::require(&granter.caller, scope)?;
    Ok(granter)
}

/// The caller as its record has it, with the scopes that it claims and has, whatever the call needs.
fn as_recorded(store: &RecordStore, caller: &Caller, now: Timestamp) -> Result<Granter, ManageError> {
    let key = store.key(&caller.key_id)?.filter(|key| key.is_active_at(now) && key.account == caller.account);
    let holder = key.as_ref().map_or_else(|| Holder::of_workload(caller.key_id.clone()), KeyRecord::holder);
    let (scopes, ends) = key.map(|key| (key.scopes, key.expires_at)).unwrap_or_default();
    let scopes = scopes.intersection(&caller.scopes).copied().collect();
    let (account, key_id) = (caller.account.clone(), caller.key_id.clone());
    Ok(Granter { caller: Caller { account, key_id, scopes, key: None }, ends, holder })
}

pub(crate) struct NewKey {
    pub(crate) account: AccountId,
    pub(crate) name: String,
    pub(crate) scopes: Scopes,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) holder: NewHolder,
}

/// Who will stand behind a new key.
pub(crate) enum NewHolder {
    /// A workload that is named after the new key.
    Workload {
        owner: Option<MemberId>,
        made_by: Option<Person>,
        known_to: Vec<Person>,
    },
    /// The member, by a key that it gets itself.
    Member(MemberId),
    Successor(Holder),
}

impl NewHolder {
    fn of(self, id: &KeyId) -> Holder {
        let named = Holder::of_workload(id.clone());
        match self {
            Self::Workload { owner, made_by, known_to } => Holder { owner, made_by, known_to, ..named },
            Self::Member(member) => Holder { member: Some(member), ..named },
            Self::Successor(holder) => holder,
        }
    }
}

impl NewKey {
    /// Adds the id, the secret and the hash that were drawn. Nothing is stored yet.
    pub(crate) fn with(self, HashedKey { key, hash }: HashedKey, now: Timestamp) -> (ApiKey, KeyRecord) {
        let Self { account, name, scopes, expires_at, holder } = self;
        let expires_at = expires_at.map(whole_seconds);
        let id = key.id().clone();
        let holder = Some(holder.of(&id));
        (key, KeyRecord { id, account, name, scopes, hash, created_at: now, expires_at, revoked_at: None, holder })
    }
}

fn new_account(name: String, plan: Plan, approvals: ApprovalMode, now: Timestamp) -> Result<Account, ManageError> {
    Ok(Account {
        id: new_id("acc", random()?, AccountId::parse)?,
        name,
        plan,
        created_at: now,
        retention_days: None,
        limits: Limits::NONE,
        require_run_id: false,
        caps: Caps::NONE,
        approvals,
        four_eyes: true,
        policy_changes: PolicyChanges::Single,
        record_facts: false,
    })
}

/// A prefix, `_` and sixteen characters with five random bits each.
fn new_id<Id>(prefix: &str, random: [u8; 16], parse: impl FnOnce(&str) -> Result<Id, IdError>) -> Result<Id, IdError> {
    let letters = random.iter().filter_map(|byte| KEY_ALPHABET.get(usize::from(byte & 31)).copied().map(char::from));
    parse(&format!("{prefix}_{}", letters.collect::<String>()))
}

fn created(key: ApiKey, record: KeyRecord) -> KeyCreated {
    let KeyRecord { id, account, name, scopes, created_at, expires_at, .. } = record;
    KeyCreated { id, key, account, name, scopes, created_at, expires_at, old_key_expires_at: None }
}

/// A notice invalidates the cached keys of its whole account (ADR 0003), so naming the caller's key is enough.
fn account_changed(account: AccountId, caller: &Caller) -> Changed {
    Changed::Key(KeyChanged::One { account, key_id: caller.key_id.clone() })
}

fn changed(key: &KeyRecord) -> Changed {
    Changed::Key(KeyChanged::One { account: key.account.clone(), key_id: key.id.clone() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    use crate::seal::tests::sealer_of;
    use crate::store::record::tests::{account, at, key};
    use crate::store::snapshot::{Snapshot, StoreId};

    /// A store with these records.
    pub(crate) fn store_with(records: Vec<Record>) -> (tempfile::TempDir, RecordStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::open(&dir.path().join("store")).unwrap();
        store.fill(&Snapshot::of(StoreId::from_random([1; 16]), 1, records).unwrap()).unwrap();
        (dir, store)
    }

    #[test]
    fn a_repeated_revocation_is_announced_again_for_a_minute_only() {
        let dir = tempfile::tempdir().unwrap();
        let time = Arc::new(AtomicI64::new(10));
        let clock = Arc::clone(&time);
        let durable = DurableStore::open(dir.path(), StoreId::from_random([1; 16]), at(1)).unwrap();
        let clock: Clock = Arc::new(move || at(clock.load(Ordering::Relaxed)));
        let mut admin = AdminService::new(durable, Arc::new(sealer_of(1)), clock, Plans::built_in().unwrap()).unwrap();
        let (manager, leaked) = (key("manager", "a", &[Scope::KeysManage]), key("leaked", "a", &[]));
        let (account_id, key_id, scopes) = (manager.account.clone(), manager.id.clone(), manager.scopes.clone());
        let id = leaked.id.clone();
        let notice = changed(&leaked);
        admin.commit(&[Record::Account(account("a")), Record::Key(manager), Record::Key(leaked)]).unwrap();
        let call = RevokeKey { caller: Caller { account: account_id, key_id, scopes, key: None }, id };
        let mut revoke_at = |second| {
            time.store(second, Ordering::Relaxed);
            admin.revoke_key(&call).unwrap().1
        };
        for second in [10, 10, 70] {
            assert_eq!(revoke_at(second).as_ref(), Some(&notice), "at {second}");
        }
        assert_eq!([71, 10_000].map(&mut revoke_at), [None, None], "and it succeeds all the same");
    }

    #[test]
    fn retentions_are_listed_in_pages_of_a_thousand_accounts() {
        for count in [1_000, 1_001] {
            let accounts = (0..count).map(|number| account(&format!("acc_{number:04}")));
            let (_dir, store) = store_with(accounts.map(Record::Account).collect());
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
