//! Which keys live, as the state store lists them.
//!
//! Owns one record for each account, `keystore.live.<account>`, with the ids and ends of its keys that live: what a
//! restored directory is compared with. A list is written before the head that counts its change, and at each start
//! every account's list is compared once, in the background. Ids only: no hash and no name leaves the directory.
//! INVARIANT: no list of a later keystore is replaced by an earlier one's, whatever was frozen between reading and
//! writing: a list names its term, and the holder's lease is looked at after the record's revision was read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stage0_backplane::{Ledger, Revision};
use stage0_contract::{AccountId, KEYSTORE_RECORDS, KeyId};
use tokio::time::Instant;

use crate::lease::{STORE_TIMEOUT, Tenure, believable, seconds};
use crate::listed_accounts::ListedAccounts;
use crate::manage::Clock;
use crate::store::{Store, StoreError};

/// Of one account; those beyond are dead after a restore. A record holds a few times as many.
const MAX_LISTED: usize = 50_000;
/// Accounts that are read from the store at a time.
const PAGE: usize = 100;

/// What the record says: each key that lives, and when it ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct LiveKeys {
    /// Of the keystore that wrote it.
    #[serde(default)]
    pub(crate) term: u64,
    pub(crate) keys: BTreeMap<KeyId, Option<i64>>,
}

/// Lists accounts: those that changed, and all of them once.
pub(crate) struct Lister {
    store: Store,
    clock: Clock,
    term: u64,
    tenure: Tenure,
    listed: ListedAccounts,
    /// Accounts that were read and wait to be compared.
    waiting: Vec<AccountId>,
    last: Option<AccountId>,
    is_done: bool,
}

impl Lister {
    pub(crate) fn new(store: Store, clock: Clock, term: u64, tenure: Tenure) -> Self {
        let listed = ListedAccounts::new(term, tenure.clone());
        Self { store, clock, term, tenure, listed, waiting: Vec::new(), last: None, is_done: false }
    }

    /// All accounts are compared again: the state store has lost what it had.
    pub(crate) fn start_over(&mut self) {
        self.listed.forget();
        (self.waiting, self.last, self.is_done) = (Vec::new(), None, false);
    }

    /// Every account was compared once.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Compares the next account's list.
    pub(crate) async fn list_next(&mut self, ledger: &Arc<dyn Ledger>) -> Result<(), String> {
        if self.waiting.is_empty() {
            let (store, last) = (self.store.clone(), self.last.clone());
            let read = tokio::task::spawn_blocking(move || store.accounts(last.as_ref(), PAGE)).await;
            let accounts = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            self.waiting = accounts.into_iter().map(|account| account.id).rev().collect();
        }
        let Some(account) = self.waiting.last().cloned() else {
            self.is_done = true;
            return Ok(());
        };
        self.list(ledger, &account).await?;
        self.waiting.pop();
        self.last = Some(account);
        Ok(())
    }

    /// Notes the account, and puts its list where it is not what it should be. One that is gone has no live key.
    pub(crate) async fn list(&mut self, ledger: &Arc<dyn Ledger>, account: &AccountId) -> Result<(), String> {
        let (store, of, now) = (self.store.clone(), account.clone(), (self.clock)());
        let read = move || Ok::<_, StoreError>((store.account(&of)?.is_some(), store.keys(&of, None, usize::MAX)?));
        let read = tokio::task::spawn_blocking(read).await;
        let (exists, keys) = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.listed.note(ledger, account, exists).await?;
        let live = keys.into_iter().filter(|key| key.lives_at(now));
        let mut live: Vec<_> = live.map(|key| (key.id, key.expires_at.map(jiff::Timestamp::as_second))).collect();
        if live.len() > MAX_LISTED {
            tracing::warn!(%account, keys = live.len(), listed = MAX_LISTED, "account has more live keys than are listed");
            live.truncate(MAX_LISTED);
        }
        let wanted = LiveKeys { term: self.term, keys: live.into_iter().collect() };
        let found = read_with_revision(ledger, account).await?;
        if found.as_ref().is_some_and(|(found, _)| believable(found.term, seconds()) > self.term)
            || !self.tenure.holds()
        {
            return Err("the lease is over".to_owned());
        }
        if found.as_ref().is_some_and(|(found, _)| found.keys == wanted.keys) {
            return Ok(());
        }
        let value = serde_json::to_vec(&wanted).map_err(|error| error.to_string())?;
        let (expected, deadline) = (found.map(|(_, revision)| revision), Instant::now() + STORE_TIMEOUT);
        let put = ledger.put(&key(account), value.into(), expected, None, deadline).await;
        put.map(drop).map_err(|error| error.to_string())
    }
}

/// An account's list; none: there is none.
pub(crate) async fn read(ledger: &Arc<dyn Ledger>, account: &AccountId) -> Result<Option<LiveKeys>, String> {
    Ok(read_with_revision(ledger, account).await?.map(|(list, _)| list))
}

async fn read_with_revision(
    ledger: &Arc<dyn Ledger>,
    account: &AccountId,
) -> Result<Option<(LiveKeys, Revision)>, String> {
    let found = ledger.get(&key(account), Instant::now() + STORE_TIMEOUT).await.map_err(|error| error.to_string())?;
    let Some(record) = found else { return Ok(None) };
    let list = serde_json::from_slice(&record.value).map_err(|_| format!("the list of `{account}` cannot be read"))?;
    Ok(Some((list, record.revision)))
}

fn key(account: &AccountId) -> String {
    format!("{KEYSTORE_RECORDS}.live.{account}")
}
