//! The records in sled, from which all reads come.
//!
//! The records and the position that they add up to are written in one atomic batch. sled's `flush` does not survive a
//! power cut, so its file is fsynced afterwards; sled can panic on damaged files, so it is opened and written inside
//! `catch_unwind`. A store whose entries do not match its position is an error, not a snapshot.

use std::collections::HashSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stage0_contract::{Account, AccountId, KeyId, MemberId, PublicKey, Stop, StopId, WebhookId};

use crate::store::disk;
use crate::store::record::{self, KeyRecord, MemberRecord, Record, SignedMark, StopRecord, TreeEntry, WebhookRecord};
use crate::store::snapshot::{Digest, Position, Snapshot};
use crate::store::trail::Trail;

mod policies;

pub(crate) const DIR: &str = "store";

const POSITION: &[u8] = b"position";

/// Limit of sled's page cache, which holds the records of a hundred thousand keys.
const CACHE_BYTES: u64 = 64 << 20;

#[derive(Serialize, Deserialize)]
struct StoredPosition {
    #[serde(flatten)]
    position: Position,
    #[serde(default, skip_serializing_if = "Trail::is_empty")]
    trail: Trail,
}

/// The open database. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct RecordStore {
    dir: PathBuf,
    db: sled::Db,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("sled failed")]
    Sled(#[from] sled::Error),
    #[error("sled panicked")]
    Panicked,
    /// Another process has it open, which says nothing about its content.
    #[error("the store is in use by another process")]
    InUse,
    #[error("the store's file cannot be fsynced")]
    Sync(#[source] std::io::Error),
    #[error("a record of the store cannot be read or written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the store's entries do not add up to what it says they do")]
    Inconsistent,
}

impl RecordStore {
    /// Opens or creates the files, without checking their content.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        disk::private_dir(dir).map_err(StoreError::Sync)?;
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| StoreError::Panicked)?;
        let db = opened.map_err(|error| if is_locked(&error) { StoreError::InUse } else { error.into() })?;
        disk::sync_dir(dir).map_err(StoreError::Sync)?;
        Ok(Self { dir: dir.to_owned(), db })
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        catch_unwind(AssertUnwindSafe(|| self.read_snapshot())).map_err(|_| StoreError::Panicked)?
    }

    fn read_snapshot(&self) -> Result<Snapshot, StoreError> {
        let (mut records, mut digest) = (Vec::new(), Digest::default());
        for entry in self.db.iter() {
            let (key, value) = entry?;
            if key == POSITION {
                continue;
            }
            digest.toggle(&key, &value);
            if key.starts_with(record::ACCOUNTS) {
                records.push(Record::Account(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::KEYS) {
                records.push(Record::Key(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::WEBHOOKS) {
                records.push(Record::Webhook(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::SIGNING_KEYS) {
                records.push(Record::SigningKey(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::MARKS) {
                records.push(Record::Mark(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::MEMBERS) {
                records.push(Record::Member(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::STOPS) {
                records.push(Record::Stop(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::POLICIES) {
                records.push(Record::Policy(self.policy_record(&key, &value)?));
            } else if key.starts_with(record::DELETED_POLICIES) {
                records.push(Record::DeletedPolicy(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::ACTIVE_POLICIES) {
                records.push(Record::ActivePolicies(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::ACTIVATIONS) {
                records.push(Record::Activation(serde_json::from_slice(&value)?));
            } else if key.starts_with(record::PROPOSALS) {
                records.push(Record::Proposal(serde_json::from_slice(&value)?));
            }
        }
        let StoredPosition { position, trail } = self.read(POSITION)?.ok_or(StoreError::Inconsistent)?;
        let snapshot = Snapshot::of(position.store_id, position.sequence, records)?.with_trail(trail);
        if digest != position.digest || snapshot.position != position {
            return Err(StoreError::Inconsistent);
        }
        Ok(snapshot)
    }

    pub(crate) fn all_keys(&self) -> impl Iterator<Item = Result<KeyRecord, StoreError>> + use<> {
        self.values(record::KEYS, None)
    }

    /// The records that belong to accounts and are counted.
    pub(crate) fn counted_records(&self) -> impl Iterator<Item = Result<Record, StoreError>> + use<> {
        let keys = self.all_keys().map(|key| key.map(Record::Key));
        let webhooks = self.values(record::WEBHOOKS, None).map(|webhook| webhook.map(Record::Webhook));
        let members = self.values(record::MEMBERS, None).map(|member| member.map(Record::Member));
        let stops = self.values(record::STOPS, None).map(|stop| stop.map(Record::Stop));
        keys.chain(webhooks).chain(members).chain(stops)
    }

    pub(crate) fn fill(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        let mut entries = entries_of(&snapshot.records())?;
        let kept: HashSet<&[u8]> = entries.iter().map(|(key, _)| key.as_slice()).collect();
        let mut removed = Vec::new();
        for key in self.db.iter().keys() {
            let key = key?;
            if key != POSITION && !kept.contains(&*key) {
                removed.push((key.to_vec(), None));
            }
        }
        entries.append(&mut removed);
        self.write(snapshot.position, &snapshot.trail, entries)
    }

    pub(crate) fn position_after(&self, position: Position, records: &[Record]) -> Result<Position, StoreError> {
        let mut next = Position { sequence: position.sequence.saturating_add(1), ..position };
        for (key, value) in entries_of(records)? {
            if let Some(old) = self.db.get(&key)? {
                next.digest.toggle(&key, &old);
            }
            if let Some(value) = value {
                next.digest.toggle(&key, &value);
            }
        }
        Ok(next)
    }

    /// Puts the records of one change, durably, and the earlier positions that the state store may know.
    pub(crate) fn put(&self, position: Position, trail: &Trail, records: &[Record]) -> Result<(), StoreError> {
        self.write(position, trail, entries_of(records)?)
    }

    fn write(&self, position: Position, trail: &Trail, entries: Vec<TreeEntry>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in entries {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(POSITION, serde_json::to_vec(&StoredPosition { position, trail: trail.clone() })?);
        catch_unwind(AssertUnwindSafe(|| self.db.apply_batch(batch).and_then(|()| self.db.flush())))
            .map_err(|_| StoreError::Panicked)??;
        // sled #1452: flush asks for `sync_file_range`, which does not reach the disk's cache.
        File::open(self.dir.join("db")).and_then(|file| file.sync_all()).map_err(StoreError::Sync)
    }

    pub(crate) fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        self.read(&record::entry(record::ACCOUNTS, id.as_str()))
    }

    pub(crate) fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.read(&record::entry(record::KEYS, id.as_str()))
    }

    pub(crate) fn accounts(&self, after: Option<&AccountId>, limit: usize) -> Result<Vec<Account>, StoreError> {
        self.values(record::ACCOUNTS, after.map(AccountId::as_str)).take(limit).collect()
    }

    pub(crate) fn keys(
        &self,
        account: &AccountId,
        after: Option<&KeyId>,
        limit: usize,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let listed = self.listed(&record::listed(account), record::KEYS, after.map(KeyId::as_str));
        listed.take(limit).collect()
    }

    /// An endpoint, or the record of a deleted one.
    pub(crate) fn webhook(&self, id: &WebhookId) -> Result<Option<WebhookRecord>, StoreError> {
        self.read(&record::entry(record::WEBHOOKS, id.as_str()))
    }

    pub(crate) fn all_webhooks(
        &self,
        after: Option<&WebhookId>,
    ) -> impl Iterator<Item = Result<WebhookRecord, StoreError>> + use<> {
        self.values(record::WEBHOOKS, after.map(WebhookId::as_str)).filter(exists)
    }

    pub(crate) fn webhooks(
        &self,
        account: &AccountId,
        after: Option<&WebhookId>,
    ) -> impl Iterator<Item = Result<WebhookRecord, StoreError>> + '_ {
        let listed = self.listed(&record::listed_webhooks(account), record::WEBHOOKS, after.map(WebhookId::as_str));
        // Checked again, because an endpoint may be deleted between the reads of list and record.
        listed.filter(exists)
    }

    pub(crate) fn signing_keys(&self) -> Result<Vec<PublicKey>, StoreError> {
        self.values(record::SIGNING_KEYS, None).collect()
    }

    pub(crate) fn mark(&self, account: &AccountId) -> Result<Option<SignedMark>, StoreError> {
        self.read(&record::entry(record::MARKS, account.as_str()))
    }

    /// A member, or what a removed one left.
    pub(crate) fn member(&self, id: &MemberId) -> Result<Option<MemberRecord>, StoreError> {
        self.read(&record::entry(record::MEMBERS, id.as_str()))
    }

    pub(crate) fn members(
        &self,
        account: &AccountId,
        after: Option<&MemberId>,
    ) -> impl Iterator<Item = Result<MemberRecord, StoreError>> + '_ {
        let listed = self.listed(&record::listed_members(account), record::MEMBERS, after.map(MemberId::as_str));
        // Checked again, because a member may be removed between the reads of list and record.
        listed.filter(|record: &Result<MemberRecord, _>| record.as_ref().map_or(true, MemberRecord::exists))
    }

    pub(crate) fn members_and_removed(&self, account: &AccountId) -> Result<Vec<MemberRecord>, StoreError> {
        let list = record::listed_members(account);
        let named = self.after(&list, None);
        self.records_of(list.len(), record::MEMBERS, named).collect()
    }

    pub(crate) fn stop(&self, id: &StopId) -> Result<Option<StopRecord>, StoreError> {
        self.read(&record::entry(record::STOPS, id.as_str()))
    }

    /// The stops that an account lists and that were not resumed. The time of some may be over.
    pub(crate) fn stops(
        &self,
        account: &AccountId,
        after: Option<&StopId>,
    ) -> impl Iterator<Item = Result<StopRecord, StoreError>> + '_ {
        self.listed(&record::listed_stops(account), record::STOPS, after.map(StopId::as_str))
    }

    /// The stops that hold for an account's checks: its own, and those of all accounts.
    pub(crate) fn stops_for(&self, account: &AccountId, now: Timestamp) -> Result<Vec<Stop>, StoreError> {
        let own = self.stops(account, None);
        let of_all = self.listed(record::STOPS_OF_ALL, record::STOPS, None);
        let mut holding = Vec::new();
        // The operator's account lists those of all accounts among its own.
        let own = own.filter(|record| record.as_ref().map_or(true, |record| record.stop.account.is_some()));
        for record in own.chain(of_all) {
            let record: StopRecord = record?;
            if record.holds_at(now) {
                holding.push(record.stop);
            }
        }
        Ok(holding)
    }

    /// The records that an account's list names after a cursor, except deleted ones.
    fn listed<T: DeserializeOwned>(
        &self,
        list: &[u8],
        records: &'static [u8],
        after: Option<&str>,
    ) -> impl Iterator<Item = Result<T, StoreError>> + use<'_, T> {
        let named = self.after(list, after);
        let existing = named.filter(|entry| entry.as_ref().map_or(true, |(_, state)| state != record::DELETED));
        self.records_of(list.len(), records, existing)
    }

    /// The records whose ids follow the first bytes of these entries.
    fn records_of<T: DeserializeOwned>(
        &self,
        list_bytes: usize,
        records: &'static [u8],
        entries: impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>>,
    ) -> impl Iterator<Item = Result<T, StoreError>> {
        entries.map(move |entry| {
            let (entry, _) = entry?;
            let id = entry.get(list_bytes..).ok_or(StoreError::Inconsistent)?;
            self.read(&[records, id].concat())?.ok_or(StoreError::Inconsistent)
        })
    }

    fn values<T: DeserializeOwned>(
        &self,
        prefix: &[u8],
        after: Option<&str>,
    ) -> impl Iterator<Item = Result<T, StoreError>> + use<T> {
        self.after(prefix, after).map(|entry| Ok(serde_json::from_slice(&entry?.1)?))
    }

    fn after(
        &self,
        prefix: &[u8],
        after: Option<&str>,
    ) -> impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>> + use<> {
        let prefix = prefix.to_vec();
        // No id contains a zero byte, so `after` + NUL is the first key greater than `after`.
        let start = after.map_or_else(|| prefix.clone(), |id| [&prefix, id.as_bytes(), &[0]].concat());
        let inside = move |entry: &sled::Result<(sled::IVec, sled::IVec)>| {
            entry.as_ref().map_or(true, |(key, _)| key.starts_with(&prefix))
        };
        self.db.range(start..).take_while(inside)
    }

    fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.db.get(key)?.map(|value| serde_json::from_slice(&value)).transpose().map_err(StoreError::Json)
    }
}

fn entries_of(records: &[Record]) -> Result<Vec<TreeEntry>, serde_json::Error> {
    let mut entries = Vec::new();
    for record in records {
        entries.extend(record.entries()?);
    }
    Ok(entries)
}

/// sled has no error of its own for a lock that another process holds.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error)
        if error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock"))
}

/// Filters out deleted endpoints, and keeps errors.
fn exists(record: &Result<WebhookRecord, StoreError>) -> bool {
    record.as_ref().map_or(true, WebhookRecord::exists)
}
