//! The list of all accounts in the state store, because a backup cannot name accounts that were created after it.
//!
//! A restore reads the active keys of these accounts beside those of the backup. Each record `keystore.accounts.<n>`
//! has the accounts that hash to it. They are bounded: accounts that do not fit are not reported after a restore, but
//! their keys are revoked all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stage0_backplane::{Revision, StateStore};
use stage0_contract::{AccountId, KEYSTORE_RECORDS};

use crate::errors::chain;
use crate::lease::tenure::Tenure;
use crate::records;

/// A restore reads all of them.
const BUCKETS: u8 = 64;
/// In one record, which then has about 100 kB.
const MAX_ACCOUNTS: usize = 4_000;

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Listed {
    #[serde(default)]
    term: u64,
    accounts: BTreeSet<AccountId>,
}

#[derive(Debug)]
pub(crate) struct ListedAccounts {
    term: u64,
    tenure: Tenure,
    known: BTreeMap<u8, BTreeSet<AccountId>>,
}

impl ListedAccounts {
    pub(crate) fn new(term: u64, tenure: Tenure) -> Self {
        Self { term, tenure, known: BTreeMap::new() }
    }

    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    pub(crate) async fn note(
        &mut self,
        state_store: &Arc<dyn StateStore>,
        account: &AccountId,
        exists: bool,
    ) -> Result<(), String> {
        let number = number_of(account);
        if self.known.get(&number).is_some_and(|known| is_done(known, account, exists)) {
            return Ok(());
        }
        let (found, revision) = read(state_store, number).await?;
        if found.term > self.term || !self.tenure.is_valid() {
            return Err("the lease is over".to_owned());
        }
        let mut accounts = found.accounts;
        if !is_done(&accounts, account, exists) {
            if exists {
                accounts.insert(account.clone());
            } else {
                accounts.remove(account);
            }
            if accounts.len() >= MAX_ACCOUNTS {
                tracing::warn!(%account, listed = accounts.len(), "no further accounts are told after a restore");
            }
            let listed = Listed { term: self.term, accounts: accounts.clone() };
            records::put(state_store, &key(number), &listed, revision).await.map_err(|error| chain(&error))?;
        }
        self.known.insert(number, accounts);
        Ok(())
    }
}

fn is_done(known: &BTreeSet<AccountId>, account: &AccountId, exists: bool) -> bool {
    known.contains(account) == exists || (exists && known.len() >= MAX_ACCOUNTS)
}

pub(crate) async fn read_all(state_store: &Arc<dyn StateStore>) -> Result<BTreeSet<AccountId>, String> {
    let mut all = BTreeSet::new();
    for number in 0..BUCKETS {
        all.extend(read(state_store, number).await?.0.accounts);
    }
    Ok(all)
}

async fn read(state_store: &Arc<dyn StateStore>, number: u8) -> Result<(Listed, Option<Revision>), String> {
    let found: Option<(Listed, Revision)> = records::get(state_store, &key(number)).await?;
    Ok(found.map_or_else(|| (Listed::default(), None), |(listed, revision)| (listed, Some(revision))))
}

fn number_of(account: &AccountId) -> u8 {
    Sha256::digest(account.as_str().as_bytes()).first().map_or(0, |byte| byte % BUCKETS)
}

fn key(number: u8) -> String {
    format!("{KEYSTORE_RECORDS}.accounts.{number}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_backplane::Backplane;

    fn account(number: usize) -> AccountId {
        AccountId::parse(&format!("acc_{number}")).unwrap()
    }

    #[tokio::test]
    async fn accounts_are_noted_once_and_removed_and_bounded() {
        let state_store = Backplane::embedded().state_store;
        let mut listed = ListedAccounts::new(1, Tenure::unlimited());
        for number in 0..300 {
            listed.note(&state_store, &account(number), true).await.unwrap();
        }
        listed.note(&state_store, &account(7), false).await.unwrap();
        let all = read_all(&state_store).await.unwrap();
        assert!(all.len() == 299 && !all.contains(&account(7)) && all.contains(&account(8)));
        let revision = read(&state_store, number_of(&account(8))).await.unwrap().1;
        ListedAccounts::new(2, Tenure::unlimited()).note(&state_store, &account(8), true).await.unwrap();
        assert_eq!(read(&state_store, number_of(&account(8))).await.unwrap().1, revision, "it is there already");
        let full = (0..MAX_ACCOUNTS).map(account).collect();
        assert!(is_done(&full, &account(MAX_ACCOUNTS), true) && !is_done(&full, &account(1), false));
    }

    #[tokio::test]
    async fn a_keystore_that_was_replaced_notes_nothing() {
        let state_store = Backplane::embedded().state_store;
        ListedAccounts::new(5, Tenure::unlimited()).note(&state_store, &account(1), true).await.unwrap();
        assert!(ListedAccounts::new(4, Tenure::unlimited()).note(&state_store, &account(1), false).await.is_err());
        assert!(ListedAccounts::new(6, Tenure::expired()).note(&state_store, &account(1), false).await.is_err());
        assert_eq!(read_all(&state_store).await.unwrap(), BTreeSet::from([account(1)]));
    }
}
