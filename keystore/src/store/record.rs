//! The records: accounts, keys, webhook endpoints, public signing keys, last marks, members and stops, and how a change
//! writes them.
//!
//! A change puts records and forgets those that ended long ago, so applying it twice gives the same state. A deleted
//! endpoint and a removed member leave a small record until it is forgotten. No record has a key's text or a secret in
//! plain text, and `Debug` shows neither hashes nor encrypted secrets.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::{
    Account, AccountId, AccountRules, ApiKey, Holder, KeyId, KeyIdentity, KeySummary, MemberId, PublicKey, Scopes,
    Stop, StopId, Webhook, WebhookFilters, WebhookId,
};

use crate::plans::Plans;

mod people;

pub(crate) use people::{CodeHash, Invitation, MemberRecord, StopRecord};

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

    /// `stops` are those that hold for the account, `groups` those of the member behind the key.
    pub(crate) fn identity(
        &self,
        account: &Account,
        plans: &Plans,
        stops: Vec<Stop>,
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
            rules: AccountRules { approvals: account.approvals, four_eyes: account.four_eyes, stops },
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
}

impl Record {
    /// Whether it only takes rights away. Such a change is stored on a full disk too.
    pub(crate) fn takes_away(&self) -> bool {
        match self {
            Self::Key(key) => key.revoked_at.is_some(),
            Self::Webhook(record) => !record.exists() || !record.webhook.enabled,
            Self::Member(record) => !record.exists(),
            Self::Stop(record) => record.takes_away(),
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
            Self::Member(record) => (RecordKind::Member, record.member.id.as_str()),
            Self::Forgotten(Forgotten::Member { id, .. }) => (RecordKind::Member, id.as_str()),
            Self::Stop(record) => (RecordKind::Stop, record.stop.id.as_str()),
            Self::Forgotten(Forgotten::Stop { id, .. }) => (RecordKind::Stop, id.as_str()),
        };
        (kind, id.to_owned())
    }

    /// All but accounts, signing keys and marks have two entries: the record, and one in their account's list. A stop
    /// of all accounts stands in a list of its own too.
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
pub(crate) mod tests {
    use super::*;
    use stage0_contract::{ApprovalMode, Member, MemberStatus, Person, StopScope};

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
            approvals: ApprovalMode::Caller,
            four_eyes: true,
        }
    }

    pub(crate) fn webhook(id: &str, account: &str) -> WebhookRecord {
        let webhook = Webhook {
            id: WebhookId::parse(id).unwrap(),
            account: AccountId::parse(account).unwrap(),
            url: "https://hooks.example/in".to_owned(),
            filters: WebhookFilters { events: None, verdicts: None, environments: Some(vec!["prod".to_owned()]) },
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
            holder: None,
        }
    }

    pub(crate) fn member(id: &str, account: &str) -> MemberRecord {
        let member = Member {
            id: MemberId::parse(id).unwrap(),
            account: AccountId::parse(account).unwrap(),
            name: "Ada".to_owned(),
            mail: Some("ada@example.org".to_owned()),
            groups: vec!["release-managers".to_owned()],
            status: MemberStatus::Active,
            scopes: [stage0_contract::Scope::ApprovalsDecide].into(),
            created_at: at(1),
            delegate: None,
        };
        MemberRecord { member, made_by: Vec::new(), invitation: None, removed_at: None }
    }

    pub(crate) fn stop(id: &str, account: &str) -> StopRecord {
        let stop = Stop {
            id: StopId::parse(id).unwrap(),
            account: Some(AccountId::parse(account).unwrap()),
            scope: StopScope::Account,
            value: None,
            reason: "incident".to_owned(),
            created_at: at(1),
            until: None,
            key_id: KeyId::parse("k").unwrap(),
            member_id: None,
        };
        StopRecord { stop, account: AccountId::parse(account).unwrap(), ended_at: None }
    }

    /// A stop of every account, kept under the operator's.
    pub(crate) fn stop_of_all(id: &str, operator: &str) -> StopRecord {
        let mut record = stop(id, operator);
        (record.stop.account, record.stop.scope) = (None, StopScope::All);
        record
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
        let identity = |of: &Account| key("k", "a", &[]).identity(of, &plans, Vec::new(), Vec::new());
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

    #[test]
    fn an_identity_has_the_holder_and_the_rules_of_its_account() {
        let (mut of, plans) = (account("a"), Plans::built_in().unwrap());
        (of.approvals, of.four_eyes) = (ApprovalMode::Verified, false);
        let mut record = key("k2", "a", &[]);
        let stops = vec![stop("stop_1", "a").stop];
        let identity = record.identity(&of, &plans, stops.clone(), Vec::new());
        assert_eq!(identity.rules, AccountRules { approvals: ApprovalMode::Verified, four_eyes: false, stops });
        assert_eq!(identity.holder, Some(Holder::of_workload(record.id.clone())), "of an older version");
        let holder = Holder { owner: Some(member("m", "a").member.id), ..Holder::of_workload(key("k1", "a", &[]).id) };
        record.holder = Some(holder.clone());
        let identity = record.identity(&of, &plans, Vec::new(), vec!["finance".to_owned()]);
        assert_eq!(identity.holder, Some(holder.clone()));
        assert_eq!((identity.key_name.as_deref(), identity.groups), (Some("n"), Some(vec!["finance".to_owned()])));
        assert_eq!((record.summary().owner, holder.member), (holder.owner, None));
    }

    #[test]
    fn a_record_from_before_members_is_read_and_written_as_it_was() {
        let text = concat!(
            r#"{"key":{"id":"k","account":"a","name":"n","scopes":["check"],"hash":"h","#,
            r#""created_at":"1970-01-01T00:00:01Z"}}"#
        );
        let record: Record = serde_json::from_str(text).unwrap();
        assert!(matches!(&record, Record::Key(key) if key.holder() == Holder::of_workload(key.id.clone())));
        assert_eq!(serde_json::to_string(&record).unwrap(), text, "or journal and store would disagree");
        let text = serde_json::to_string(&Record::Account(account("a"))).unwrap();
        assert!(!text.contains("approvals") && !text.contains("four_eyes"), "{text}");
    }

    #[test]
    fn a_removed_member_keeps_its_id_and_its_makers_alone() {
        let mut record = member("mem_1", "a");
        record.made_by = vec![Person::Member(member("mem_2", "a").member.id)];
        record.invitation = Some(Invitation { hash: CodeHash("hash".to_owned()), expires_at: at(9) });
        let gone = record.clone().tombstone(at(5));
        assert!(record.exists() && !gone.exists() && gone.made_by == record.made_by);
        let text = serde_json::to_string(&gone).unwrap();
        assert!(["Ada", "example.org", "release", "decide", "\"hash\""].iter().all(|of| !text.contains(of)), "{text}");
    }

    #[test]
    fn only_what_takes_rights_away_is_stored_on_a_full_disk() {
        let mut ended = stop("stop_1", "a");
        assert!(Record::Stop(ended.clone()).takes_away());
        ended.ended_at = Some(at(5));
        assert!(!Record::Stop(ended.clone()).takes_away(), "checks are allowed again");
        ended.stop.until = Some(at(5));
        assert!(Record::Stop(ended).takes_away(), "it had ended by itself");
        assert!(!Record::Member(member("m", "a")).takes_away());
        assert!(Record::Member(member("m", "a").tombstone(at(5))).takes_away());
    }

    #[test]
    fn a_stop_holds_until_the_beginning_of_its_last_second_or_until_it_is_resumed() {
        let mut record = stop("stop_1", "a");
        assert!(record.holds_at(at(100)));
        record.stop.until = Some(at(10));
        assert!(record.holds_at(at(9)) && !record.holds_at(at(10)));
        record.ended_at = Some(at(5));
        assert!(!record.holds_at(at(9)) && record.ends() == Some(at(5)));
    }
}
