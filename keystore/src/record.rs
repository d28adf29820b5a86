//! What is kept: accounts and keys, and how one change writes them.
//!
//! Owns the records, their layout in the store and the pure question whether a key lives. Records are only ever put, never
//! deleted: replaying a change twice gives the same state. No record holds a key's text, and `Debug` shows no hash.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{Account, AccountId, ApiKey, KeyId, KeyIdentity, KeySummary, Plan, Scopes};

/// The Argon2id PHC string of a key's text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct KeyHash(String);

impl KeyHash {
    pub(crate) fn new(phc: String) -> Self {
        Self(phc)
    }

    pub(crate) fn as_phc(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// A key as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub(crate) id: KeyId,
    pub(crate) account: AccountId,
    pub(crate) name: String,
    pub(crate) scopes: Scopes,
    pub(crate) hash: KeyHash,
    pub(crate) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revoked_at: Option<Timestamp>,
}

impl KeyRecord {
    /// A key is dead from its end on, that second included.
    pub(crate) fn lives_at(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }

    pub(crate) fn identity(&self, plan: Plan) -> KeyIdentity {
        KeyIdentity {
            key_id: self.id.clone(),
            account: self.account.clone(),
            scopes: self.scopes.clone(),
            plan,
            expires_at: self.expires_at,
        }
    }

    pub(crate) fn summary(self) -> KeySummary {
        KeySummary {
            prefix: ApiKey::prefix(&self.id),
            id: self.id,
            name: self.name,
            scopes: self.scopes,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
        }
    }
}

/// One thing put by a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    Account(Account),
    Key(KeyRecord),
}

/// What one record is in the store: a key with its value.
pub(crate) type Entry = (Vec<u8>, Vec<u8>);

impl Record {
    /// A key has two: itself, and its place in its account's list.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, serde_json::Error> {
        Ok(match self {
            Self::Account(account) => vec![(account_entry(&account.id), serde_json::to_vec(account)?)],
            Self::Key(key) => {
                vec![(key_entry(&key.id), serde_json::to_vec(key)?), (listed_entry(&key.account, &key.id), Vec::new())]
            }
        })
    }
}

pub(crate) const ACCOUNTS: &[u8] = b"account/";
pub(crate) const KEYS: &[u8] = b"key/";

/// Ids hold no `/`, so that no entry can stand for another.
pub(crate) fn account_entry(id: &AccountId) -> Vec<u8> {
    [ACCOUNTS, id.as_str().as_bytes()].concat()
}

pub(crate) fn key_entry(id: &KeyId) -> Vec<u8> {
    [KEYS, id.as_str().as_bytes()].concat()
}

/// All entries that list an account's keys begin with this.
pub(crate) fn listed(account: &AccountId) -> Vec<u8> {
    [b"of/".as_slice(), account.as_str().as_bytes(), b"/"].concat()
}

fn listed_entry(account: &AccountId, id: &KeyId) -> Vec<u8> {
    [listed(account).as_slice(), id.as_str().as_bytes()].concat()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    pub(crate) fn account(id: &str) -> Account {
        Account { id: AccountId::parse(id).unwrap(), name: id.to_owned(), plan: Plan::Free, created_at: at(1) }
    }

    pub(crate) fn key(id: &str, account: &str, scopes: &[stage0_contract::Scope]) -> KeyRecord {
        KeyRecord {
            id: KeyId::parse(id).unwrap(),
            account: AccountId::parse(account).unwrap(),
            name: "n".to_owned(),
            scopes: scopes.iter().copied().collect(),
            hash: KeyHash::new("$argon2id$secret".to_owned()),
            created_at: at(1),
            expires_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_key_dies_in_the_second_of_its_end() {
        let mut key = key("k", "a", &[]);
        key.expires_at = Some(at(10));
        assert!(key.lives_at(at(9)));
        assert!(!key.lives_at(at(10)));
        assert!(!key.lives_at(at(11)));
    }

    #[test]
    fn a_revoked_key_is_dead_whatever_its_end() {
        let mut key = key("k", "a", &[]);
        key.revoked_at = Some(at(5));
        key.expires_at = Some(at(100));
        assert!(!key.lives_at(at(6)));
    }

    #[test]
    fn debug_shows_no_hash() {
        assert!(!format!("{:?}", key("k", "a", &[])).contains("secret"));
    }

    #[test]
    fn a_summary_holds_nothing_of_the_hash() {
        let text = serde_json::to_string(&key("k", "a", &[]).summary()).unwrap();
        assert!(!text.contains("argon2") && !text.contains("hash"), "{text}");
    }
}
