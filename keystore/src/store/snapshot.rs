//! All records at one moment, and a digest by which two copies are compared.
//!
//! The digest is the exclusive-or of SHA-256 over every entry, so it follows a change without reading the rest. It
//! finds damage and mix-ups, and is no defence against a person who can write both files.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use stage0_contract::AccountId;

use crate::store::record::{Record, RecordKind};
use crate::store::trail::Trail;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Digest(#[serde(serialize_with = "write_hex", deserialize_with = "read_hex")] [u8; 32]);

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

/// A random id that a data directory gets when it is created. It tells its files from those of another directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreId(#[serde(serialize_with = "write_hex", deserialize_with = "read_hex")] [u8; 16]);

impl StoreId {
    pub(crate) fn from_random(random: [u8; 16]) -> Self {
        Self(random)
    }

    pub(crate) fn to_hex(self) -> String {
        HEXLOWER.encode(&self.0)
    }
}

pub(crate) fn write_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&HEXLOWER.encode(bytes))
}

pub(crate) fn read_hex<'de, D: Deserializer<'de>, const N: usize>(deserializer: D) -> Result<[u8; N], D::Error> {
    let bytes = HEXLOWER.decode(String::deserialize(deserializer)?.as_bytes());
    let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| D::Error::custom("must be lower-case hex"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    #[serde(rename = "lineage")]
    pub(crate) store_id: StoreId,
    /// The number of changes since the directory was created.
    pub(crate) sequence: u64,
    pub(crate) digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) position: Position,
    /// The position before the last change, or the same position if there was none.
    pub(crate) before: Position,
    /// Positions that the state store may know as the newest. Empty if it never had a head.
    pub(crate) trail: Trail,
    records: BTreeMap<(RecordKind, String), Record>,
}

impl Snapshot {
    pub(crate) fn of(store_id: StoreId, sequence: u64, records: Vec<Record>) -> Result<Self, serde_json::Error> {
        let position = Position { store_id, sequence, digest: Digest::default() };
        let mut snapshot = Self { position, before: position, trail: Trail::default(), records: BTreeMap::new() };
        for record in records {
            snapshot.put(record)?;
        }
        snapshot.before = snapshot.position;
        Ok(snapshot)
    }

    pub(crate) fn with_trail(self, trail: Trail) -> Self {
        Self { trail, ..self }
    }

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
        self.records.is_empty()
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = &AccountId> {
        self.records.values().filter_map(|record| if let Record::Account(of) = record { Some(&of.id) } else { None })
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.records.values().cloned().collect()
    }

    fn put(&mut self, record: Record) -> Result<(), serde_json::Error> {
        let slot = record.slot();
        let mut entries = record.entries()?;
        let old = match record {
            Record::Forgotten(_) => self.records.remove(&slot),
            record => self.records.insert(slot, record),
        };
        if let Some(old) = old {
            entries.extend(old.entries()?);
        }
        for (key, value) in entries {
            if let Some(value) = value {
                self.position.digest.toggle(&key, &value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::policies::tests::{activation, owner, policy, version};
    use crate::store::record::proposals::tests::proposal;
    use crate::store::record::tests::{account, at, key, member, stop, stop_of_all, webhook};
    use crate::store::record::{ActiveRecord, DeletedPolicy, Forgotten, ForgottenPolicy, SignedMark};
    use stage0_contract::PublicKey;

    fn deleted(pack: &str) -> DeletedPolicy {
        DeletedPolicy { account: owner(Some("a")), version: version(pack), content: String::new(), deleted_at: at(1) }
    }

    #[test]
    fn every_kind_of_record_is_in_the_snapshot_and_its_digest() {
        let store_id = StoreId::from_random([1; 16]);
        let records = vec![
            Record::Account(account("a")),
            Record::Key(key("k", "a", &[])),
            Record::Webhook(webhook("we_1", "a")),
            Record::SigningKey(PublicKey::new(&[7; 32], at(1))),
            Record::Mark(SignedMark { account: account("a").id, line: "{}".to_owned() }),
            Record::Member(member("mem_1", "a")),
            Record::Stop(stop("stop_1", "a")),
            Record::Stop(stop_of_all("stop_2", "a")),
            // In the order of their keys: the deployment's stand before those of accounts.
            Record::Policy(policy("p", None)),
            Record::Policy(policy("p", Some("a"))),
            Record::DeletedPolicy(deleted("p")),
            Record::ActivePolicies(ActiveRecord { account: owner(Some("a")), ..ActiveRecord::default() }),
            Record::Activation(activation(None, 1)),
            Record::Activation(activation(Some("a"), 1)),
            Record::Proposal(proposal("prop_1", "a")),
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
        let (gone, stop) = (member("mem_1", "a").tombstone(at(1)), stop_of_all("stop_1", "a"));
        let proposed = proposal("prop_1", "a");
        let forgotten = vec![
            Record::Forgotten(Forgotten::Key { id: key.id.clone(), account: key.account.clone() }),
            Record::Forgotten(Forgotten::Webhook { id: hook.webhook.id.clone(), account: key.account.clone() }),
            Record::Forgotten(Forgotten::Member { id: gone.member.id.clone(), account: key.account.clone() }),
            Record::Forgotten(Forgotten::Stop { id: stop.stop.id.clone(), account: key.account.clone() }),
            Record::Forgotten(Forgotten::Policy(ForgottenPolicy { account: owner(Some("a")), version: version("p") })),
            Record::Forgotten(Forgotten::DeletedPolicy(deleted("p"))),
            Record::Forgotten(Forgotten::Activation { account: None, sequence: 1 }),
            Record::Forgotten(Forgotten::Proposal { id: proposed.proposal.id.clone(), account: key.account.clone() }),
        ];
        let mut snapshot = before.clone();
        let mut records = vec![Record::Key(key), Record::Webhook(hook), Record::Member(gone), Record::Stop(stop)];
        records.push(Record::Policy(policy("p", Some("a"))));
        records.push(Record::DeletedPolicy(deleted("p")));
        records.push(Record::Activation(activation(None, 1)));
        records.push(Record::Proposal(proposed));
        snapshot.apply(records).unwrap();
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
