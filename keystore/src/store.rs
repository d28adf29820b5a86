//! The store: sled, and nothing else touches it.
//!
//! Owns the layout in one tree: entries of [`record`](crate::record), plus the position that they add up to, written in one
//! atomic batch. sled's `flush` does not survive a power cut, so its file is fsynced after it; sled may panic on damaged files, so
//! it is opened and written inside `catch_unwind`. A store whose entries do not add up to its position is not opened at all.

use std::collections::HashSet;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stage0_contract::{Account, AccountId, KeyId, PublicKey, WebhookId};

use crate::disk;
use crate::image::{Digest, Image, Position};
use crate::record::{self, Entry, KeyRecord, Record, SignedMark, WebhookRecord};
use crate::trail::Trail;

pub(crate) const DIR: &str = "store";

const POSITION: &[u8] = b"position";

/// sled keeps pages in memory up to this; the records of a hundred thousand keys.
const CACHE_BYTES: u64 = 64 << 20;

/// What stands under [`POSITION`].
#[derive(Serialize, Deserialize)]
struct Stands {
    #[serde(flatten)]
    position: Position,
    #[serde(default, skip_serializing_if = "Trail::is_empty")]
    trail: Trail,
}

/// The open store. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
    db: sled::Db,
}

/// The store could not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("sled failed")]
    Sled(#[from] sled::Error),
    #[error("sled panicked")]
    Panicked,
    /// Somebody else has it open, which says nothing of what is in it.
    #[error("the store is in use by another process")]
    InUse,
    #[error("the store's file cannot be fsynced")]
    Sync(#[source] std::io::Error),
    #[error("a record of the store cannot be read or written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the store's entries do not add up to what it says they do")]
    Untrue,
}

impl Store {
    /// Opens or makes the files; says nothing about what is in them.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        disk::private_dir(dir).map_err(StoreError::Sync)?;
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| StoreError::Panicked)?;
        let db = opened.map_err(|error| if is_locked(&error) { StoreError::InUse } else { error.into() })?;
        disk::sync_dir(dir).map_err(StoreError::Sync)?;
        Ok(Self { dir: dir.to_owned(), db })
    }

    /// Everything, when it adds up.
    pub(crate) fn image(&self) -> Result<Image, StoreError> {
        catch_unwind(AssertUnwindSafe(|| self.read_image())).map_err(|_| StoreError::Panicked)?
    }

    fn read_image(&self) -> Result<Image, StoreError> {
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
            }
        }
        let Stands { position, trail } = self.read(POSITION)?.ok_or(StoreError::Untrue)?;
        let image = Image::of(position.lineage, position.sequence, records)?.with_trail(trail);
        if digest != position.digest || image.position != position {
            return Err(StoreError::Untrue);
        }
        Ok(image)
    }

    /// Every key and endpoint, the dead and deleted among them.
    pub(crate) fn members(&self) -> impl Iterator<Item = Result<Record, StoreError>> + use<> {
        let read = |entry: sled::Result<(sled::IVec, sled::IVec)>| Ok::<_, StoreError>(entry?.1);
        let keys = self
            .behind(record::KEYS, None)
            .map(move |entry| read(entry).and_then(|value| Ok(Record::Key(serde_json::from_slice(&value)?))));
        let webhooks = self
            .behind(record::WEBHOOKS, None)
            .map(move |entry| read(entry).and_then(|value| Ok(Record::Webhook(serde_json::from_slice(&value)?))));
        keys.chain(webhooks)
    }

    /// Makes the store hold what the image holds, and nothing else.
    pub(crate) fn fill(&self, image: &Image) -> Result<(), StoreError> {
        let mut entries = Vec::new();
        for record in image.records() {
            entries.extend(record.entries()?);
        }
        let kept: HashSet<&[u8]> = entries.iter().map(|(key, _)| key.as_slice()).collect();
        let mut removed = Vec::new();
        for key in self.db.iter().keys() {
            let key = key?;
            if key != POSITION && !kept.contains(&*key) {
                removed.push((key.to_vec(), None));
            }
        }
        entries.append(&mut removed);
        self.write(image.position, &image.trail, entries)
    }

    /// Where the store will stand once these records are put.
    pub(crate) fn position_after(&self, position: Position, records: &[Record]) -> Result<Position, StoreError> {
        let mut next = Position { sequence: position.sequence.saturating_add(1), ..position };
        for record in records {
            for (key, value) in record.entries()? {
                if let Some(old) = self.db.get(&key)? {
                    next.digest.toggle(&key, &old);
                }
                if let Some(value) = value {
                    next.digest.toggle(&key, &value);
                }
            }
        }
        Ok(next)
    }

    /// Puts the records of one change. `Ok` means on disk.
    pub(crate) fn put(&self, position: Position, trail: &Trail, records: &[Record]) -> Result<(), StoreError> {
        let mut entries = Vec::new();
        for record in records {
            entries.extend(record.entries()?);
        }
        self.write(position, trail, entries)
    }

    /// Says which earlier positions the state store may know; no record changes.
    pub(crate) fn keep_trail(&self, position: Position, trail: &Trail) -> Result<(), StoreError> {
        self.write(position, trail, Vec::new())
    }

    fn write(&self, position: Position, trail: &Trail, entries: Vec<Entry>) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in entries {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        batch.insert(POSITION, serde_json::to_vec(&Stands { position, trail: trail.clone() })?);
        catch_unwind(AssertUnwindSafe(|| self.db.apply_batch(batch).and_then(|()| self.db.flush())))
            .map_err(|_| StoreError::Panicked)??;
        // sled #1452: flush asks for `sync_file_range`, which does not reach the disk's cache.
        File::open(self.dir.join("db")).and_then(|file| file.sync_all()).map_err(StoreError::Sync)
    }

    pub(crate) fn account(&self, id: &AccountId) -> Result<Option<Account>, StoreError> {
        self.read(&record::account_entry(id))
    }

    pub(crate) fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.read(&record::key_entry(id))
    }

    /// At most `most` accounts behind a cursor, in the order of their ids.
    pub(crate) fn accounts(&self, after: Option<&AccountId>, most: usize) -> Result<Vec<Account>, StoreError> {
        let values = self.behind(record::ACCOUNTS, after.map(AccountId::as_str)).take(most);
        values.map(|entry| Ok(serde_json::from_slice(&entry?.1)?)).collect()
    }

    /// At most `most` keys of an account behind a cursor, in the order of their ids.
    pub(crate) fn keys(
        &self,
        account: &AccountId,
        after: Option<&KeyId>,
        most: usize,
    ) -> Result<Vec<KeyRecord>, StoreError> {
        let listed = record::listed(account);
        let mut keys = Vec::new();
        for entry in self.behind(&listed, after.map(KeyId::as_str)).take(most) {
            let (entry, _) = entry?;
            let id = entry.get(listed.len()..).ok_or(StoreError::Untrue)?;
            keys.push(self.read(&[record::KEYS, id].concat())?.ok_or(StoreError::Untrue)?);
        }
        Ok(keys)
    }

    /// An endpoint, or what it left when it was deleted.
    pub(crate) fn webhook(&self, id: &WebhookId) -> Result<Option<WebhookRecord>, StoreError> {
        self.read(&record::webhook_entry(id))
    }

    /// Every endpoint that lives behind a cursor, in the order of their ids.
    pub(crate) fn all_webhooks(
        &self,
        after: Option<&WebhookId>,
    ) -> impl Iterator<Item = Result<WebhookRecord, StoreError>> + use<> {
        let values = self.behind(record::WEBHOOKS, after.map(WebhookId::as_str));
        let read = |entry: sled::Result<(sled::IVec, sled::IVec)>| Ok(serde_json::from_slice(&entry?.1)?);
        values.map(read).filter(lives)
    }

    /// The endpoints of an account that live behind a cursor, in the order of their ids.
    pub(crate) fn webhooks(
        &self,
        account: &AccountId,
        after: Option<&WebhookId>,
    ) -> impl Iterator<Item = Result<WebhookRecord, StoreError>> + '_ {
        let listed = record::listed_webhooks(account);
        let living = self.behind(&listed, after.map(WebhookId::as_str));
        let living = living.filter(|entry| entry.as_ref().map_or(true, |(_, place)| place != record::DELETED));
        let read = move |entry: sled::Result<(sled::IVec, sled::IVec)>| {
            let (entry, _) = entry?;
            let id = entry.get(listed.len()..).ok_or(StoreError::Untrue)?;
            self.read(&[record::WEBHOOKS, id].concat())?.ok_or(StoreError::Untrue)
        };
        // Once more: an endpoint may be deleted between the two reads.
        living.map(read).filter(lives)
    }

    /// Every key that signs or signed marks, in the order of their ids.
    pub(crate) fn signing_keys(&self) -> Result<Vec<PublicKey>, StoreError> {
        self.behind(record::SIGNING_KEYS, None).map(|entry| Ok(serde_json::from_slice(&entry?.1)?)).collect()
    }

    /// The last mark that was signed for an account.
    pub(crate) fn mark(&self, account: &AccountId) -> Result<Option<SignedMark>, StoreError> {
        self.read(&record::mark_entry(account))
    }

    fn behind(
        &self,
        prefix: &[u8],
        after: Option<&str>,
    ) -> impl Iterator<Item = sled::Result<(sled::IVec, sled::IVec)>> + use<> {
        let prefix = prefix.to_vec();
        // No id begins with a zero byte: from `after` + NUL on stands what is greater than `after`.
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

/// sled has no error of its own for a lock that somebody else holds.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error)
        if error.kind() == std::io::ErrorKind::WouldBlock || error.to_string().contains("could not acquire lock"))
}

/// An error is not filtered out.
fn lives(record: &Result<WebhookRecord, StoreError>) -> bool {
    record.as_ref().map_or(true, WebhookRecord::lives)
}
