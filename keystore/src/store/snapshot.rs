//! All records at one moment, and a digest by which two copies are compared.
//!
//! Owns the position (which directory, how many changes, what content) that journal and store must share. The digest is
//! the exclusive-or of SHA-256 over every entry, so it follows a change without reading the rest, in any order. It
//! finds damage and mix-ups. It is no defence against a person who can write both files.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stage0_contract::{Account, AccountId, KeyId, PublicKey, SigningKeyId, WebhookId};

use crate::store::record::{Forgotten, KeyRecord, Record, SignedMark, TreeEntry, WebhookRecord};
use crate::store::trail::Trail;

/// Digest of all entries, whatever their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Adds an entry, or removes it if it was included.
    pub(crate) fn toggle(&mut self, key: &[u8], value: &[u8]) {
        let length = (key.len() as u64).to_be_bytes();
        let hash = Sha256::new().chain_update(length).chain_update(key).chain_update(value).finalize();
        for (mine, theirs) in self.0.iter_mut().zip(hash.iter()) {
            *mine ^= theirs;
        }
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        HEXLOWER.encode(&digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        bytes(&text).map(Self)
    }
}

/// A random id that a data directory gets when it is created. It tells its files from those of another directory.
///
/// Stored as `lineage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct StoreId([u8; 16]);

impl StoreId {
    pub(crate) fn from_random(random: [u8; 16]) -> Self {
        Self(random)
    }
}

impl From<StoreId> for String {
    fn from(store_id: StoreId) -> Self {
        HEXLOWER.encode(&store_id.0)
    }
}

impl TryFrom<String> for StoreId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        bytes(&text).map(Self)
    }
}

fn bytes<const N: usize>(text: &str) -> Result<[u8; N], &'static str> {
    HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok()).ok_or("must be lower-case hex")
}

/// The state of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    #[serde(rename = "lineage")]
    pub(crate) store_id: StoreId,
    /// The number of changes since the directory was created.
    pub(crate) sequence: u64,
    pub(crate) digest: Digest,
}

/// All records at one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) position: Position,
    /// The position before the last change, or the same position if there was none.
    pub(crate) before: Position,
    /// Positions that the state store may know as the newest. Empty if it never had a head.
    pub(crate) trail: Trail,
    accounts: BTreeMap<AccountId, Account>,
    keys: BTreeMap<KeyId, KeyRecord>,
    webhooks: BTreeMap<WebhookId, WebhookRecord>,
    signing_keys: BTreeMap<SigningKeyId, PublicKey>,
    marks: BTreeMap<AccountId, SignedMark>,
}

impl Snapshot {
    /// A snapshot with these records.
    pub(crate) fn of(store_id: StoreId, sequence: u64, records: Vec<Record>) -> Result<Self, serde_json::Error> {
        let position = Position { store_id, sequence, digest: Digest::default() };
        let mut snapshot = Self {
            position,
            before: position,
            trail: Trail::default(),
            accounts: BTreeMap::new(),
            keys: BTreeMap::new(),
            webhooks: BTreeMap::new(),
            signing_keys: BTreeMap::new(),
            marks: BTreeMap::new(),
        };
        for record in records {
            snapshot.put(record)?;
        }
        snapshot.before = snapshot.position;
        Ok(snapshot)
    }

    /// Adds the earlier positions that its file lists.
    pub(crate) fn with_trail(self, trail: Trail) -> Self {
        Self { trail, ..self }
    }

    /// Applies the next change.
    pub(crate) fn apply(&mut self, records: Vec<Record>) -> Result<(), serde_json::Error> {
        let before = self.position;
        for record in records {
            self.put(record)?;
        }
        self.position.sequence = before.sequence.saturating_add(1);
        self.before = before;
        self.trail.follow(before);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = &AccountId> {
        self.accounts.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.accounts.len() + self.keys.len() + self.webhooks.len() + self.signing_keys.len() + self.marks.len()
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        let accounts = self.accounts.values().cloned().map(Record::Account);
        let keys = self.keys.values().cloned().map(Record::Key);
        let webhooks = self.webhooks.values().cloned().map(Record::Webhook);
        let signing_keys = self.signing_keys.values().cloned().map(Record::SigningKey);
        let marks = self.marks.values().cloned().map(Record::Mark);
        accounts.chain(keys).chain(webhooks).chain(signing_keys).chain(marks).collect()
    }

    fn put(&mut self, record: Record) -> Result<(), serde_json::Error> {
        let old = match &record {
            Record::Account(account) => self.accounts.get(&account.id).cloned().map(Record::Account),
            Record::Key(key) => self.keys.get(&key.id).cloned().map(Record::Key),
            Record::Webhook(record) => self.webhooks.get(&record.webhook.id).cloned().map(Record::Webhook),
            Record::SigningKey(key) => self.signing_keys.get(&key.id).cloned().map(Record::SigningKey),
            Record::Mark(mark) => self.marks.get(&mark.account).cloned().map(Record::Mark),
            Record::Forgotten(Forgotten::Key { id, .. }) => self.keys.remove(id).map(Record::Key),
            Record::Forgotten(Forgotten::Webhook { id, .. }) => self.webhooks.remove(id).map(Record::Webhook),
        };
        if let Some(old) = old {
            self.toggle(&old.entries()?);
        }
        self.toggle(&record.entries()?);
        match record {
            Record::Account(account) => drop(self.accounts.insert(account.id.clone(), account)),
            Record::Key(key) => drop(self.keys.insert(key.id.clone(), key)),
            Record::Webhook(record) => drop(self.webhooks.insert(record.webhook.id.clone(), record)),
            Record::SigningKey(key) => drop(self.signing_keys.insert(key.id.clone(), key)),
            Record::Mark(mark) => drop(self.marks.insert(mark.account.clone(), mark)),
            Record::Forgotten(_) => {}
        }
        Ok(())
    }

    fn toggle(&mut self, entries: &[TreeEntry]) {
        for (key, value) in entries {
            if let Some(value) = value {
                self.position.digest.toggle(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::{account, at, key, webhook};

    #[test]
    fn every_kind_of_record_is_in_the_snapshot_and_its_digest() {
        let store_id = StoreId::from_random([1; 16]);
        let records = vec![
            Record::Account(account("a")),
            Record::Key(key("k", "a", &[])),
            Record::Webhook(webhook("we_1", "a")),
            Record::SigningKey(PublicKey::new(&[7; 32], at(1))),
            Record::Mark(SignedMark { account: account("a").id, line: "{}".to_owned() }),
        ];
        for left_out in 0..records.len() {
            let mut some = records.clone();
            let record = some.remove(left_out);
            let mut snapshot = Snapshot::of(store_id, 0, some).unwrap();
            let before = snapshot.position.digest;
            snapshot.apply(vec![record]).unwrap();
            assert_ne!(snapshot.position.digest, before);
            assert_eq!((snapshot.records(), snapshot.len()), (records.clone(), records.len()));
        }
    }

    #[test]
    fn forgotten_records_leave_no_trace_in_snapshot_and_digest() {
        let store_id = StoreId::from_random([1; 16]);
        let before = Snapshot::of(store_id, 0, vec![Record::Account(account("a"))]).unwrap();
        let (key, hook) = (key("k", "a", &[]), webhook("we_1", "a").tombstone(at(1)));
        let forgotten = vec![
            Record::Forgotten(Forgotten::Key { id: key.id.clone(), account: key.account.clone() }),
            Record::Forgotten(Forgotten::Webhook { id: hook.webhook.id.clone(), account: key.account.clone() }),
        ];
        let mut snapshot = before.clone();
        snapshot.apply(vec![Record::Key(key), Record::Webhook(hook)]).unwrap();
        assert_ne!(snapshot.position.digest, before.position.digest);
        for _ in 0..2 {
            snapshot.apply(forgotten.clone()).unwrap();
            assert_eq!((snapshot.position.digest, snapshot.records()), (before.position.digest, before.records()));
        }
    }

    #[test]
    fn the_digest_depends_on_content_and_not_on_order() {
        let store_id = StoreId::from_random([1; 16]);
        let (a, k) = (Record::Account(account("a")), Record::Key(key("k", "a", &[])));
        let one = Snapshot::of(store_id, 2, vec![a.clone(), k.clone()]).unwrap();
        let other = Snapshot::of(store_id, 2, vec![k.clone(), a]).unwrap();
        assert_eq!(one.position, other.position);
        let mut revoked = key("k", "a", &[]);
        revoked.revoked_at = Some(at(3));
        let mut changed = one.clone();
        changed.apply(vec![Record::Key(revoked)]).unwrap();
        assert_ne!(changed.position.digest, one.position.digest);
        assert_eq!(changed.before, one.position);
        changed.apply(vec![k]).unwrap();
        assert_eq!(changed.position.digest, one.position.digest);
    }
}
