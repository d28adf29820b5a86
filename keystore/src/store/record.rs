//! The records: accounts, keys, webhook endpoints, public signing keys and last marks, and how a change writes them.
//!
//! A change puts records and forgets those that ended long ago, so applying it twice gives the same state. A deleted
//! endpoint leaves a small record until it is forgotten. No record has a key's text or a secret in plain text, and
//! `Debug` shows neither hashes nor encrypted secrets.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{
    Account, AccountId, ApiKey, KeyId, KeyIdentity, KeySummary, PublicKey, Scopes, Webhook, WebhookFilters, WebhookId,
};

use crate::plans::Plans;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct KeyHash(pub(crate) String);

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

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
    /// Whether it is neither revoked nor expired. A key expires at the beginning of its last second.
    pub(crate) fn is_active_at(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }

    pub(crate) fn identity(&self, account: &Account, plans: &Plans) -> KeyIdentity {
        KeyIdentity {
            key_id: self.id.clone(),
            account: self.account.clone(),
            scopes: self.scopes.clone(),
            plan: account.plan,
            expires_at: self.expires_at,
            retention_days: account.retention(),
            limits: plans.limits(account),
            require_run_id: account.require_run_id,
            caps: plans.caps(account),
        }
    }

    pub(crate) fn ends(&self) -> Option<Timestamp> {
        self.revoked_at.into_iter().chain(self.expires_at).min()
    }

    /// Without the last use, which is stored elsewhere.
    pub(crate) fn summary(self) -> KeySummary {
        KeySummary {
            prefix: ApiKey::prefix(&self.id),
            id: self.id,
            name: self.name,
            scopes: self.scopes,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            last_used_at: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WebhookRecord {
    pub(crate) webhook: Webhook,
    /// Newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<SealedSecret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deleted_at: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedSecret {
    pub(crate) sealed: Sealed,
    pub(crate) created_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ends_at: Option<Timestamp>,
}

/// An encrypted secret, in base64; see [`crate::seal`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Sealed(pub(crate) String);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(…)")
    }
}

impl SealedSecret {
    /// Whether it signs. A secret ends at the beginning of its last second.
    pub(crate) fn signs_at(&self, now: Timestamp) -> bool {
        self.ends_at.is_none_or(|end| end > now)
    }
}

impl WebhookRecord {
    pub(crate) fn exists(&self) -> bool {
        self.deleted_at.is_none()
    }

    /// What a deleted endpoint leaves: that it existed, and nothing that its owner entered.
    pub(crate) fn tombstone(self, deleted_at: Timestamp) -> Self {
        let webhook = Webhook {
            url: String::new(),
            filters: WebhookFilters::default(),
            description: String::new(),
            rate_limit: None,
            enabled: false,
            disabled_reason: None,
            ..self.webhook
        };
        Self { webhook, secrets: Vec::new(), deleted_at: Some(deleted_at) }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Forgotten {
    Key { id: KeyId, account: AccountId },
    Webhook { id: WebhookId, account: AccountId },
}

/// The last mark that was signed for an account: no number is signed twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignedMark {
    pub(crate) account: AccountId,
    /// As it was returned to the exporter. If it did not reach the log, it is returned again.
    pub(crate) line: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    Account(Account),
    Key(KeyRecord),
    Webhook(WebhookRecord),
    SigningKey(PublicKey),
    Mark(SignedMark),
    Forgotten(Forgotten),
}

/// A key of the store with its value, `None` to remove it.
pub(crate) type TreeEntry = (Vec<u8>, Option<Vec<u8>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RecordKind {
    Account,
    Key,
    Webhook,
    SigningKey,
    Mark,
}

impl Record {
    /// Whether it only takes rights away. Such a change is stored on a full disk too.
    pub(crate) fn takes_away(&self) -> bool {
        match self {
            Self::Key(key) => key.revoked_at.is_some(),
            Self::Webhook(record) => !record.exists() || !record.webhook.enabled,
            Self::Forgotten(_) => true,
            Self::Account(_) | Self::SigningKey(_) | Self::Mark(_) => false,
        }
    }

    /// Its kind and id. A snapshot has one record for each, in this order.
    pub(crate) fn slot(&self) -> (RecordKind, String) {
        let (kind, id) = match self {
            Self::Account(account) => (RecordKind::Account, account.id.as_str()),
            Self::Key(KeyRecord { id, .. }) | Self::Forgotten(Forgotten::Key { id, .. }) => {
                (RecordKind::Key, id.as_str())
            }
            Self::Webhook(record) => (RecordKind::Webhook, record.webhook.id.as_str()),
            Self::Forgotten(Forgotten::Webhook { id, .. }) => (RecordKind::Webhook, id.as_str()),
            Self::SigningKey(key) => (RecordKind::SigningKey, key.id.as_str()),
            Self::Mark(mark) => (RecordKind::Mark, mark.account.as_str()),
        };
        (kind, id.to_owned())
    }

    /// Keys and endpoints have two entries: the record, and one in their account's list.
    pub(crate) fn entries(&self) -> Result<Vec<TreeEntry>, serde_json::Error> {
        Ok(match self {
            Self::Account(account) => vec![(entry(ACCOUNTS, account.id.as_str()), Some(serde_json::to_vec(account)?))],
            Self::Key(key) => vec![
                (entry(KEYS, key.id.as_str()), Some(serde_json::to_vec(key)?)),
                (entry(&listed(&key.account), key.id.as_str()), Some(Vec::new())),
            ],
            Self::Webhook(record) => {
                let Webhook { id, account, .. } = &record.webhook;
                // The list marks deleted endpoints, so that listing an account does not read all that it ever deleted.
                let state = if record.exists() { Vec::new() } else { DELETED.to_vec() };
                let listed = entry(&listed_webhooks(account), id.as_str());
                vec![(entry(WEBHOOKS, id.as_str()), Some(serde_json::to_vec(record)?)), (listed, Some(state))]
            }
            Self::SigningKey(key) => vec![(entry(SIGNING_KEYS, key.id.as_str()), Some(serde_json::to_vec(key)?))],
            Self::Mark(mark) => vec![(entry(MARKS, mark.account.as_str()), Some(serde_json::to_vec(mark)?))],
            Self::Forgotten(Forgotten::Key { id, account }) => {
                vec![(entry(KEYS, id.as_str()), None), (entry(&listed(account), id.as_str()), None)]
            }
            Self::Forgotten(Forgotten::Webhook { id, account }) => {
                vec![(entry(WEBHOOKS, id.as_str()), None), (entry(&listed_webhooks(account), id.as_str()), None)]
            }
        })
    }
}

pub(crate) const ACCOUNTS: &[u8] = b"account/";
pub(crate) const KEYS: &[u8] = b"key/";
pub(crate) const WEBHOOKS: &[u8] = b"webhook/";
pub(crate) const SIGNING_KEYS: &[u8] = b"signing/";
pub(crate) const MARKS: &[u8] = b"mark/";

pub(crate) const DELETED: &[u8] = b"deleted";

/// The key of an entry. Ids contain no `/`, so no two records share one.
pub(crate) fn entry(prefix: &[u8], id: &str) -> Vec<u8> {
    [prefix, id.as_bytes()].concat()
}

/// The common prefix of the entries that list an account's keys.
pub(crate) fn listed(account: &AccountId) -> Vec<u8> {
    format!("of/{account}/").into_bytes()
}

pub(crate) fn listed_webhooks(account: &AccountId) -> Vec<u8> {
    format!("webhooks-of/{account}/").into_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    pub(crate) fn account(id: &str) -> Account {
        Account {
            id: AccountId::parse(id).unwrap(),
            name: id.to_owned(),
            plan: stage0_contract::Plan::Free,
            created_at: at(1),
            retention_days: None,
            limits: stage0_contract::Limits::NONE,
            require_run_id: false,
            caps: stage0_contract::Caps::NONE,
        }
    }

    pub(crate) fn webhook(id: &str, account: &str) -> WebhookRecord {
        let webhook = Webhook {
            id: WebhookId::parse(id).unwrap(),
            account: AccountId::parse(account).unwrap(),
            url: "https://hooks.example/in".to_owned(),
            filters: WebhookFilters { verdicts: None, environments: Some(vec!["prod".to_owned()]) },
            description: "d".to_owned(),
            rate_limit: Some(5),
            enabled: true,
            disabled_reason: None,
            created_at: at(1),
        };
        WebhookRecord { webhook, secrets: vec![secret("sealed", None)], deleted_at: None }
    }

    pub(crate) fn secret(sealed: &str, ends_at: Option<i64>) -> SealedSecret {
        SealedSecret { sealed: Sealed(sealed.to_owned()), created_at: at(1), ends_at: ends_at.map(at) }
    }

    pub(crate) fn key(id: &str, account: &str, scopes: &[stage0_contract::Scope]) -> KeyRecord {
        KeyRecord {
            id: KeyId::parse(id).unwrap(),
            account: AccountId::parse(account).unwrap(),
            name: "n".to_owned(),
            scopes: scopes.iter().copied().collect(),
            hash: KeyHash("$argon2id$secret".to_owned()),
            created_at: at(1),
            expires_at: None,
            revoked_at: None,
        }
    }

    #[test]
    fn a_key_expires_at_the_beginning_of_its_last_second() {
        let mut key = key("k", "a", &[]);
        key.expires_at = Some(at(10));
        assert!(key.is_active_at(at(9)));
        assert!(!key.is_active_at(at(10)));
        assert!(!key.is_active_at(at(11)));
    }

    #[test]
    fn a_revoked_key_is_not_active_whatever_its_expiry() {
        let mut key = key("k", "a", &[]);
        key.revoked_at = Some(at(5));
        key.expires_at = Some(at(100));
        assert!(!key.is_active_at(at(6)));
    }

    #[test]
    fn a_secret_ends_at_the_beginning_of_its_last_second() {
        assert!(secret("s", None).signs_at(at(10)));
        assert!(secret("s", Some(11)).signs_at(at(10)));
        assert!(!secret("s", Some(10)).signs_at(at(10)));
        assert!(!secret("s", Some(9)).signs_at(at(10)));
    }

    #[test]
    fn a_deleted_endpoint_keeps_nothing_that_its_owner_entered() {
        let gone = webhook("we_1", "a").tombstone(at(9));
        assert!(!gone.exists());
        let text = serde_json::to_string(&gone).unwrap();
        assert!(["hooks.example", "prod", "sealed", "\"d\""].iter().all(|given| !text.contains(given)), "{text}");
        assert_eq!((gone.webhook.id.as_str(), gone.webhook.account.as_str()), ("we_1", "a"));
    }

    #[test]
    fn debug_shows_no_hash_and_no_sealed_secret() {
        assert!(!format!("{:?}", key("k", "a", &[])).contains("secret"));
        assert!(!format!("{:?}", webhook("we_1", "a").secrets).contains("\"sealed\""));
    }

    #[test]
    fn a_keys_identity_has_the_retention_limits_and_caps_of_its_account() {
        let (mut of, plans) = (account("a"), Plans::built_in().unwrap());
        let identity = |of: &Account| key("k", "a", &[]).identity(of, &plans);
        assert_eq!((identity(&of).retention_days, identity(&of).limits.daily), (of.plan.retention_days(), Some(1_000)));
        of.retention_days = Some(7);
        of.limits.daily = Some(5);
        of.limits.monthly = Some(stage0_contract::UNLIMITED);
        let limits = identity(&of).limits;
        assert_eq!((limits.per_minute, limits.daily, limits.monthly), (Some(60), Some(5), None));
        assert_eq!(identity(&of).retention_days, 7);
        assert_eq!(identity(&of).caps, plans.caps(&of));
        of.plan = stage0_contract::Plan::Unlimited;
        of.limits = stage0_contract::Limits::NONE;
        assert!(identity(&of).limits.is_none());
    }

    #[test]
    fn a_summary_holds_nothing_of_the_hash() {
        let text = serde_json::to_string(&key("k", "a", &[]).summary()).unwrap();
        assert!(!text.contains("argon2") && !text.contains("hash"), "{text}");
    }
}
