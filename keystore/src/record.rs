//! What is kept: accounts, keys, webhook endpoints, public signing keys and last marks, and how one change writes them.
//!
//! Owns the records, their layout in the store and the pure questions whether a key lives and a secret signs. A change
//! puts records and forgets what ended long ago: replaying it twice gives the same state. A deleted endpoint leaves a
//! small record until it is forgotten. No record holds a key's text or an open secret, and `Debug` shows neither hash
//! nor sealed secret.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{
    Account, AccountId, ApiKey, KeyId, KeyIdentity, KeySummary, PublicKey, Scopes, SigningKeyId, Webhook,
    WebhookFilters, WebhookId,
};

use crate::plans::Plans;
use crate::seal::Sealed;

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

    /// From this second on it is dead; none while nothing ends it.
    pub(crate) fn ends(&self) -> Option<Timestamp> {
        self.revoked_at.into_iter().chain(self.expires_at).min()
    }

    /// Without its last use, which the record does not have.
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

/// A webhook endpoint as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WebhookRecord {
    pub(crate) webhook: Webhook,
    /// The newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) secrets: Vec<SealedSecret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deleted_at: Option<Timestamp>,
}

/// A secret of an endpoint, sealed for that endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedSecret {
    pub(crate) sealed: Sealed,
    pub(crate) created_at: Timestamp,
    /// Set by a rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ends_at: Option<Timestamp>,
}

impl SealedSecret {
    /// A secret signs no more from its end on, that second included.
    pub(crate) fn signs_at(&self, now: Timestamp) -> bool {
        self.ends_at.is_none_or(|end| end > now)
    }
}

impl WebhookRecord {
    pub(crate) fn lives(&self) -> bool {
        self.deleted_at.is_none()
    }

    /// What a deleted endpoint leaves: that it was there, and nothing that anybody gave.
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

/// A dead key or a deleted endpoint of which nothing is kept any more.
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
    /// As it was given away; what did not reach the log is given again.
    pub(crate) line: String,
}

/// One thing put or forgotten by a change.
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

/// What one record is in the store: a key with its value; none where the entry is removed.
pub(crate) type Entry = (Vec<u8>, Option<Vec<u8>>);

impl Record {
    /// Whether it only ends what somebody could do: such a change is stored on a full disk too.
    pub(crate) fn takes_away(&self) -> bool {
        match self {
            Self::Key(key) => key.revoked_at.is_some(),
            Self::Webhook(record) => !record.lives() || !record.webhook.enabled,
            Self::Forgotten(_) => true,
            Self::Account(_) | Self::SigningKey(_) | Self::Mark(_) => false,
        }
    }

    /// A key and an endpoint have two: itself, and its place in its account's list.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, serde_json::Error> {
        Ok(match self {
            Self::Account(account) => vec![(account_entry(&account.id), Some(serde_json::to_vec(account)?))],
            Self::Key(key) => vec![
                (key_entry(&key.id), Some(serde_json::to_vec(key)?)),
                (listed_entry(&key.account, &key.id), Some(Vec::new())),
            ],
            Self::Webhook(record) => {
                let Webhook { id, account, .. } = &record.webhook;
                // The list says who is gone: whoever makes and deletes endpoints for ever makes nobody read what they leave.
                let place = if record.lives() { Vec::new() } else { DELETED.to_vec() };
                let listed = listed_webhook_entry(account, id);
                vec![(webhook_entry(id), Some(serde_json::to_vec(record)?)), (listed, Some(place))]
            }
            Self::SigningKey(key) => vec![(signing_key_entry(&key.id), Some(serde_json::to_vec(key)?))],
            Self::Mark(mark) => vec![(mark_entry(&mark.account), Some(serde_json::to_vec(mark)?))],
            Self::Forgotten(Forgotten::Key { id, account }) => {
                vec![(key_entry(id), None), (listed_entry(account, id), None)]
            }
            Self::Forgotten(Forgotten::Webhook { id, account }) => {
                vec![(webhook_entry(id), None), (listed_webhook_entry(account, id), None)]
            }
        })
    }
}

pub(crate) const ACCOUNTS: &[u8] = b"account/";
pub(crate) const KEYS: &[u8] = b"key/";
pub(crate) const WEBHOOKS: &[u8] = b"webhook/";
pub(crate) const SIGNING_KEYS: &[u8] = b"signing/";
pub(crate) const MARKS: &[u8] = b"mark/";

/// Stands in its account's list behind an endpoint that is gone.
pub(crate) const DELETED: &[u8] = b"deleted";

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

pub(crate) fn webhook_entry(id: &WebhookId) -> Vec<u8> {
    [WEBHOOKS, id.as_str().as_bytes()].concat()
}

/// All entries that list an account's endpoints begin with this.
pub(crate) fn listed_webhooks(account: &AccountId) -> Vec<u8> {
    [b"webhooks-of/".as_slice(), account.as_str().as_bytes(), b"/"].concat()
}

fn listed_webhook_entry(account: &AccountId, id: &WebhookId) -> Vec<u8> {
    [listed_webhooks(account).as_slice(), id.as_str().as_bytes()].concat()
}

pub(crate) fn mark_entry(account: &AccountId) -> Vec<u8> {
    [MARKS, account.as_str().as_bytes()].concat()
}

fn signing_key_entry(id: &SigningKeyId) -> Vec<u8> {
    [SIGNING_KEYS, id.as_str().as_bytes()].concat()
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
        SealedSecret { sealed: Sealed::from_base64(sealed), created_at: at(1), ends_at: ends_at.map(at) }
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
    fn a_secret_signs_no_more_in_the_second_of_its_end() {
        assert!(secret("s", None).signs_at(at(10)));
        assert!(secret("s", Some(11)).signs_at(at(10)));
        assert!(!secret("s", Some(10)).signs_at(at(10)));
        assert!(!secret("s", Some(9)).signs_at(at(10)));
    }

    #[test]
    fn a_tombstone_keeps_nothing_that_anybody_gave() {
        let gone = webhook("we_1", "a").tombstone(at(9));
        assert!(!gone.lives());
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
    fn a_key_says_how_long_its_account_keeps_decisions_and_what_it_may_use() {
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
