//! The records: accounts, keys, webhook endpoints, public signing keys, last marks, members, stops and policies, and
//! how a change writes them.
//!
//! A change puts records and forgets those that ended long ago, so applying it twice gives the same state. A deleted
//! endpoint and a removed member leave a small record until it is forgotten. No record has a key's text or a secret in
//! plain text, and `Debug` shows neither hashes nor encrypted secrets.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{
    Account, AccountId, AccountRules, Activation, ApiKey, Holder, KeyId, KeyIdentity, KeySummary, MemberId, ProposalId,
    PublicKey, Scopes, StopId, Webhook, WebhookFilters, WebhookId,
};

use crate::plans::Plans;

mod deleted;
mod people;
pub(crate) mod policies;
pub(crate) mod proposals;

pub(crate) use deleted::{DeletedPolicy, deleted_slot, number};
pub(crate) use people::{CodeHash, Invitation, MemberRecord, StopRecord};
pub(crate) use policies::{ActiveRecord, ForgottenPolicy, Owner, PolicyRecord, Slot};
pub(crate) use proposals::{ProposalRecord, listed_proposals};

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
    /// None in records of versions that did not know of members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) holder: Option<Holder>,
}

impl KeyRecord {
    pub(crate) fn holder(&self) -> Holder {
        self.holder.clone().unwrap_or_else(|| Holder::of_workload(self.id.clone()))
    }

    /// Whether it is neither revoked nor expired. A key expires at the beginning of its last second.
    pub(crate) fn is_active_at(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| end > now)
    }

    /// The member whose groups count where this key asks: its own, otherwise the one who answers for the workload.
    pub(crate) fn member_behind(&self) -> Option<MemberId> {
        let Holder { member, owner, .. } = self.holder();
        member.or(owner)
    }

    /// `rules` are those of the account, `groups` those of the member behind the key.
    pub(crate) fn identity(
        &self,
        account: &Account,
        plans: &Plans,
        rules: AccountRules,
        groups: Vec<String>,
    ) -> KeyIdentity {
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
            holder: Some(self.holder()),
            key_name: Some(self.name.clone()),
            groups: Some(groups),
            rules,
        }
    }

    pub(crate) fn ends(&self) -> Option<Timestamp> {
        self.revoked_at.into_iter().chain(self.expires_at).min()
    }

    /// Without the last use, which is stored elsewhere.
    pub(crate) fn summary(self) -> KeySummary {
        let Holder { member, owner, .. } = self.holder();
        KeySummary {
            prefix: ApiKey::prefix(&self.id),
            id: self.id,
            name: self.name,
            scopes: self.scopes,
            created_at: self.created_at,
            expires_at: self.expires_at,
            revoked_at: self.revoked_at,
            last_used_at: None,
            member,
            owner,
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
    Member { id: MemberId, account: AccountId },
    Stop { id: StopId, account: AccountId },
    Policy(ForgottenPolicy),
    DeletedPolicy(DeletedPolicy),
    Activation { account: Option<AccountId>, sequence: u64 },
    Proposal { id: ProposalId, account: AccountId },
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
    Member(MemberRecord),
    Stop(StopRecord),
    Policy(PolicyRecord),
    DeletedPolicy(DeletedPolicy),
    ActivePolicies(ActiveRecord),
    Activation(Activation),
    Proposal(ProposalRecord),
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
    Member,
    Stop,
    Policy,
    DeletedPolicy,
    ActivePolicies,
    Activation,
    Proposal,
}

impl Record {
    /// Whether it only takes rights away. Such a change is stored on a full disk too.
    pub(crate) fn takes_away(&self) -> bool {
        match self {
            Self::Key(key) => key.revoked_at.is_some(),
            Self::Webhook(record) => !record.exists() || !record.webhook.enabled,
            Self::Member(record) => !record.exists(),
            Self::Stop(record) => record.takes_away(),
            Self::Proposal(record) => record.takes_away(),
            // What a deletion leaves.
            Self::Forgotten(_) | Self::DeletedPolicy(_) => true,
            Self::Account(_)
            | Self::SigningKey(_)
            | Self::Mark(_)
            | Self::Policy(_)
            | Self::ActivePolicies(_)
            | Self::Activation(_) => false,
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
            Self::Member(record) => (RecordKind::Member, record.member.id.as_str()),
            Self::Forgotten(Forgotten::Member { id, .. }) => (RecordKind::Member, id.as_str()),
            Self::Stop(record) => (RecordKind::Stop, record.stop.id.as_str()),
            Self::Forgotten(Forgotten::Stop { id, .. }) => (RecordKind::Stop, id.as_str()),
            Self::Proposal(record) => (RecordKind::Proposal, record.proposal.id.as_str()),
            Self::Forgotten(Forgotten::Proposal { id, .. }) => (RecordKind::Proposal, id.as_str()),
            Self::Policy(record) => return (RecordKind::Policy, record.slot()),
            Self::Forgotten(Forgotten::Policy(forgotten)) => return (RecordKind::Policy, forgotten.slot()),
            Self::DeletedPolicy(deleted) | Self::Forgotten(Forgotten::DeletedPolicy(deleted)) => {
                return (RecordKind::DeletedPolicy, deleted.slot());
            }
            Self::ActivePolicies(record) => {
                return (RecordKind::ActivePolicies, policies::owner_word(record.account.as_ref()).to_owned());
            }
            Self::Activation(Activation { account, sequence, .. })
            | Self::Forgotten(Forgotten::Activation { account, sequence }) => {
                return (RecordKind::Activation, policies::activation_slot(account.as_ref(), *sequence));
            }
        };
        (kind, id.to_owned())
    }

    /// Keys, endpoints, members, stops and proposals have two entries: the record, and one in their account's list. A
    /// stop of all accounts stands in a list of its own too. A policy has one entry for what is listed and one for its
    /// files.
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
                let listed = entry(&listed_webhooks(account), id.as_str());
                let state = list_state(record.exists());
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
            Self::Member(record) => {
                let (id, account) = (record.member.id.as_str(), &record.member.account);
                let listed = (entry(&listed_members(account), id), Some(list_state(record.exists())));
                vec![(entry(MEMBERS, id), Some(serde_json::to_vec(record)?)), listed]
            }
            Self::Forgotten(Forgotten::Member { id, account }) => {
                vec![(entry(MEMBERS, id.as_str()), None), (entry(&listed_members(account), id.as_str()), None)]
            }
            Self::Stop(record) => {
                let (id, state) = (record.stop.id.as_str(), list_state(record.ended_at.is_none()));
                let mut entries = vec![
                    (entry(STOPS, id), Some(serde_json::to_vec(record)?)),
                    (entry(&listed_stops(&record.account), id), Some(state.clone())),
                ];
                if record.stop.account.is_none() {
                    entries.push((entry(STOPS_OF_ALL, id), Some(state)));
                }
                entries
            }
            Self::Forgotten(Forgotten::Stop { id, account }) => vec![
                (entry(STOPS, id.as_str()), None),
                (entry(&listed_stops(account), id.as_str()), None),
                (entry(STOPS_OF_ALL, id.as_str()), None),
            ],
            Self::Policy(record) => record.entries()?,
            Self::Forgotten(Forgotten::Policy(forgotten)) => forgotten.entries(),
            Self::DeletedPolicy(deleted) => deleted.entries()?,
            Self::Forgotten(Forgotten::DeletedPolicy(deleted)) => {
                vec![(entry(DELETED_POLICIES, &deleted.slot()), None)]
            }
            Self::ActivePolicies(record) => {
                let owner = policies::owner_word(record.account.as_ref());
                vec![(entry(ACTIVE_POLICIES, owner), Some(serde_json::to_vec(record)?))]
            }
            Self::Activation(activation) => {
                let slot = policies::activation_slot(activation.account.as_ref(), activation.sequence);
                vec![(entry(ACTIVATIONS, &slot), Some(serde_json::to_vec(activation)?))]
            }
            Self::Forgotten(Forgotten::Activation { account, sequence }) => {
                vec![(entry(ACTIVATIONS, &policies::activation_slot(account.as_ref(), *sequence)), None)]
            }
            Self::Proposal(record) => record.entries()?,
            Self::Forgotten(Forgotten::Proposal { id, account }) => proposals::forgotten(id, account),
        })
    }
}

pub(crate) const ACCOUNTS: &[u8] = b"account/";
pub(crate) const KEYS: &[u8] = b"key/";
pub(crate) const WEBHOOKS: &[u8] = b"webhook/";
pub(crate) const SIGNING_KEYS: &[u8] = b"signing/";
pub(crate) const MARKS: &[u8] = b"mark/";
pub(crate) const MEMBERS: &[u8] = b"member/";
pub(crate) const STOPS: &[u8] = b"stop/";
/// The list of the stops that cover every account. `*` is no account's id.
pub(crate) const STOPS_OF_ALL: &[u8] = b"stops-of/*/";
pub(crate) const POLICIES: &[u8] = b"policy/";
pub(crate) const POLICY_FILES: &[u8] = b"policy-files/";
pub(crate) const DELETED_POLICIES: &[u8] = b"policy-deleted/";
pub(crate) const ACTIVE_POLICIES: &[u8] = b"active-policies/";
pub(crate) const ACTIVATIONS: &[u8] = b"activation/";
pub(crate) const PROPOSALS: &[u8] = b"policy-proposal/";

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

pub(crate) fn listed_members(account: &AccountId) -> Vec<u8> {
    format!("members-of/{account}/").into_bytes()
}

pub(crate) fn listed_stops(account: &AccountId) -> Vec<u8> {
    format!("stops-of/{account}/").into_bytes()
}

fn list_state(exists: bool) -> Vec<u8> {
    if exists { Vec::new() } else { DELETED.to_vec() }
}

#[cfg(test)]
pub(crate) mod tests;
