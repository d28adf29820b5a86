//! Which accounts there are, as the state store knows them: a backup from before an account cannot name it.
//!
//! Owns the records `keystore.accounts.<n>`, each with the ids of the accounts whose hash leads to it: what a restore
//! reads lists of live keys for beside the accounts of the backup. An account is noted before its list is written, and
//! taken out when it is gone. Bounded: of more accounts than fit, those beyond are not told after a restore; their keys
//! are dead all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stage0_backplane::{Ledger, Revision};
use stage0_contract::{AccountId, KEYSTORE_RECORDS};
use tokio::time::Instant;

use crate::lease::{STORE_TIMEOUT, Tenure};

/// A restore reads all of them.
const RECORDS: u8 = 64;
/// In one record: some 100 kB.
const MAX_ACCOUNTS: usize = 4_000;

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Listed {
    /// Of the keystore that wrote it.
    #[serde(default)]
    term: u64,
    accounts: BTreeSet<AccountId>,
}

/// What this keystore knows to be noted.
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

    /// The state store has lost what it had.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// Notes an account, or takes out one that is not there any more.
    pub(crate) async fn note(
        &mut self,
        ledger: &Arc<dyn Ledger>,
        account: &AccountId,
        exists: bool,
    ) -> Result<(), String> {
        let number = number_of(account);
        if self.known.get(&number).is_some_and(|known| is_done(known, account, exists)) {
            return Ok(());
        }
        let (found, revision) = read(ledger, number).await?;
        if found.term > self.term || !self.tenure.holds() {
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
            let value = serde_json::to_vec(&Listed { term: self.term, accounts: accounts.clone() });
            let value = value.map_err(|error| error.to_string())?;
            let deadline = Instant::now() + STORE_TIMEOUT;
            let put = ledger.put(&key(number), value.into(), revision, None, deadline).await;
            put.map_err(|error| error.to_string())?;
        }
        self.known.insert(number, accounts);
        Ok(())
    }
}

/// Whether nothing is to be written.
fn is_done(known: &BTreeSet<AccountId>, account: &AccountId, exists: bool) -> bool {
    known.contains(account) == exists || (exists && known.len() >= MAX_ACCOUNTS)
}

/// All that are noted.
pub(crate) async fn read_all(ledger: &Arc<dyn Ledger>) -> Result<BTreeSet<AccountId>, String> {
    let mut all = BTreeSet::new();
    for number in 0..RECORDS {
        all.extend(read(ledger, number).await?.0.accounts);
    }
    Ok(all)
}

async fn read(ledger: &Arc<dyn Ledger>, number: u8) -> Result<(Listed, Option<Revision>), String> {
    let found = ledger.get(&key(number), Instant::now() + STORE_TIMEOUT).await.map_err(|error| error.to_string())?;
    let Some(record) = found else { return Ok((Listed::default(), None)) };
    let listed = serde_json::from_slice(&record.value).map_err(|_| "the accounts cannot be read".to_owned())?;
    Ok((listed, Some(record.revision)))
}

fn number_of(account: &AccountId) -> u8 {
    Sha256::digest(account.as_str().as_bytes()).first().map_or(0, |byte| byte % RECORDS)
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
    async fn accounts_are_noted_once_taken_out_again_and_bounded() {
        let ledger = Backplane::embedded().ledger;
        let mut listed = ListedAccounts::new(1, Tenure::for_life());
        for number in 0..300 {
            listed.note(&ledger, &account(number), true).await.unwrap();
        }
        listed.note(&ledger, &account(7), false).await.unwrap();
        let all = read_all(&ledger).await.unwrap();
        assert!(all.len() == 299 && !all.contains(&account(7)) && all.contains(&account(8)));
        let revision = read(&ledger, number_of(&account(8))).await.unwrap().1;
        ListedAccounts::new(2, Tenure::for_life()).note(&ledger, &account(8), true).await.unwrap();
        assert_eq!(read(&ledger, number_of(&account(8))).await.unwrap().1, revision, "it is there already");
        let full = (0..MAX_ACCOUNTS).map(account).collect();
        assert!(is_done(&full, &account(MAX_ACCOUNTS), true) && !is_done(&full, &account(1), false));
    }

    #[tokio::test]
    async fn a_keystore_that_was_followed_notes_nothing() {
        let ledger = Backplane::embedded().ledger;
        ListedAccounts::new(5, Tenure::for_life()).note(&ledger, &account(1), true).await.unwrap();
        assert!(ListedAccounts::new(4, Tenure::for_life()).note(&ledger, &account(1), false).await.is_err());
        assert!(ListedAccounts::new(6, Tenure::of_nobody()).note(&ledger, &account(1), false).await.is_err());
        assert_eq!(read_all(&ledger).await.unwrap(), BTreeSet::from([account(1)]));
    }
}
