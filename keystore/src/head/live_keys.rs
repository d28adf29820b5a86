//! The lists of active keys in the state store.
//!
//! Owns one record for each account, `keystore.live.<account>`, with the ids of its active keys and when they expire:
//! what a restored directory is compared with. A list is written before the head that includes its change. At each
//! start every account's list is compared once, in the background. Only ids leave the directory, no hash and no name.
//! INVARIANT: a list of a later keystore is never replaced by an earlier one's, whatever was frozen between reading and
//! writing: a list names its term, and the lease is checked after the record's revision was read.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stage0_backplane::{Revision, StateStore};
use stage0_contract::{AccountId, KEYSTORE_RECORDS, KeyId};

use super::listed_accounts::ListedAccounts;
use crate::errors::chain;
use crate::lease::tenure::Tenure;
use crate::records::{self, believable, seconds};
use crate::sources::Clock;
use crate::store::record_store::{RecordStore, StoreError};

/// Keys of one account that are listed; those beyond are revoked by a restore. A record has room for a few times more.
const MAX_LISTED: usize = 50_000;
const ACCOUNTS_PER_READ: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct LiveKeys {
    #[serde(default)]
    pub(crate) term: u64,
    pub(crate) keys: BTreeMap<KeyId, Option<i64>>,
}

/// Writes the lists of accounts whose keys changed, and of all accounts once.
pub(crate) struct Lister {
    store: RecordStore,
    clock: Clock,
    term: u64,
    tenure: Tenure,
    listed: ListedAccounts,
    waiting: Vec<AccountId>,
    last: Option<AccountId>,
    pub(crate) is_done: bool,
}

impl Lister {
    pub(crate) fn new(store: RecordStore, clock: Clock, term: u64, tenure: Tenure) -> Self {
        let listed = ListedAccounts::new(term, tenure.clone());
        Self { store, clock, term, tenure, listed, waiting: Vec::new(), last: None, is_done: false }
    }

    pub(crate) fn start_over(&mut self) {
        self.listed.forget();
        (self.waiting, self.last, self.is_done) = (Vec::new(), None, false);
    }

    pub(crate) async fn list_next(&mut self, state_store: &Arc<dyn StateStore>) -> Result<(), String> {
        if self.waiting.is_empty() {
            let (store, last) = (self.store.clone(), self.last.clone());
            let read = tokio::task::spawn_blocking(move || store.accounts(last.as_ref(), ACCOUNTS_PER_READ)).await;
            let accounts = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
            self.waiting = accounts.into_iter().map(|account| account.id).rev().collect();
        }
        let Some(account) = self.waiting.last().cloned() else {
            self.is_done = true;
            return Ok(());
        };
        self.list(state_store, &account).await?;
        self.waiting.pop();
        self.last = Some(account);
        Ok(())
    }

    /// Notes the account, and writes its list if it differs. An account that is gone has no active key.
    pub(crate) async fn list(&mut self, state_store: &Arc<dyn StateStore>, account: &AccountId) -> Result<(), String> {
        let (store, of, now) = (self.store.clone(), account.clone(), (self.clock)());
        let read = move || Ok::<_, StoreError>((store.account(&of)?.is_some(), store.keys(&of, None, usize::MAX)?));
        let read = tokio::task::spawn_blocking(read).await;
        let (exists, keys) = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        self.listed.note(state_store, account, exists).await?;
        let live = keys.into_iter().filter(|key| key.is_active_at(now));
        let mut live: Vec<_> = live.map(|key| (key.id, key.expires_at.map(jiff::Timestamp::as_second))).collect();
        if live.len() > MAX_LISTED {
            let (keys, listed) = (live.len(), MAX_LISTED);
            tracing::warn!(%account, keys, listed, "account has more live keys than are listed");
            live.truncate(MAX_LISTED);
        }
        let wanted = LiveKeys { term: self.term, keys: live.into_iter().collect() };
        let found = self::read(state_store, account).await?;
        if found.as_ref().is_some_and(|(found, _)| believable(found.term, seconds()) > self.term)
            || !self.tenure.is_valid()
        {
            return Err("the lease is over".to_owned());
        }
        if found.as_ref().is_some_and(|(found, _)| found.keys == wanted.keys) {
            return Ok(());
        }
        let expected = found.map(|(_, revision)| revision);
        records::put(state_store, &key(account), &wanted, expected).await.map(drop).map_err(|error| chain(&error))
    }
}

pub(crate) async fn read(
    state_store: &Arc<dyn StateStore>,
    account: &AccountId,
) -> Result<Option<(LiveKeys, Revision)>, String> {
    records::get(state_store, &key(account)).await
}

fn key(account: &AccountId) -> String {
    format!("{KEYSTORE_RECORDS}.live.{account}")
}
