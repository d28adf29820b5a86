//! The hour in which each key was last used, as gateways report it.
//!
//! The sled database beside the store is no part of the journal, the position or a backup, and decides nothing. A
//! damaged one is deleted; gateways report uses that could not be written again in a later hour.
//! INVARIANT: the hour of a key only rises, and is neither before the key was created nor in the future nor after the
//! key's end, whatever a gateway reports.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use stage0_contract::{KeyId, NoteKeyUses};

use crate::errors::chain;
use crate::store::disk;
use crate::store::record::KeyRecord;
use crate::store::record_store::RecordStore;

const DIR: &str = "last-used";
const CACHE_BYTES: u64 = 4 << 20;

pub(crate) struct LastUsed {
    db: Option<sled::Db>,
    /// One writer at a time, so that a flood of reports blocks one thread only.
    writing: Mutex<()>,
    failure_logged: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
enum LastUsedError {
    #[error("the directory cannot be used")]
    Directory(#[from] std::io::Error),
    #[error("sled failed")]
    Sled(#[from] sled::Error),
    #[error("sled panicked")]
    Panicked,
}

impl LastUsed {
    /// A database that cannot be read is created again; a failure never refuses the start.
    pub(crate) fn open(data_dir: &Path, store: &RecordStore) -> Self {
        let dir = data_dir.join(DIR);
        let opened = open(&dir, store).or_else(|error| {
            tracing::warn!(error = %chain(&error), "last uses of keys cannot be read and are reset");
            std::fs::remove_dir_all(&dir)?;
            open(&dir, store)
        });
        let db = opened.inspect_err(|error| {
            tracing::warn!(error = %chain(error), "last uses of keys are not kept");
        });
        Self { db: db.ok(), writing: Mutex::default(), failure_logged: AtomicBool::new(false) }
    }

    pub(crate) fn note(&self, store: &RecordStore, call: &NoteKeyUses, now: Timestamp) -> bool {
        let Some(db) = &self.db else { return false };
        // A panic elsewhere leaves nothing half done.
        let Ok(_writing) = self.writing.try_lock() else { return false };
        if call.keys.len() > NoteKeyUses::MAX_KEYS {
            return false;
        }
        let noted = guarded(|| {
            let mut batch = sled::Batch::default();
            for id in &call.keys {
                // A use of a key that cannot be read is dropped, like that of an unknown key.
                let Ok(Some(key)) = store.key(id) else { continue };
                let known = db.get(id.as_str())?.and_then(|value| hour_in(&value));
                if let Some(hour) =
                    believed(&key, call.hour, now).filter(|hour| known.is_none_or(|known| known < *hour))
                {
                    batch.insert(id.as_str(), &hour.as_second().to_be_bytes());
                }
            }
            db.apply_batch(batch)?;
            db.flush()?;
            Ok(())
        });
        if let Err(error) = &noted
            && !self.failure_logged.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(error = %chain(error), "last uses of keys cannot be written");
        }
        noted.is_ok()
    }

    pub(crate) fn of(&self, id: &KeyId) -> Option<Timestamp> {
        let db = self.db.as_ref()?;
        guarded(|| Ok(db.get(id.as_str())?)).ok()?.and_then(|value| hour_in(&value))
    }
}

/// The hour to store for a key. `None` if the key cannot have been used then.
fn believed(key: &KeyRecord, hour: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let hour_of = NoteKeyUses::hour_of;
    let hour = hour_of(hour).min(hour_of(now));
    let ended = key.ends().is_some_and(|end| hour > hour_of(end));
    (hour >= hour_of(key.created_at) && !ended).then_some(hour)
}

fn hour_in(value: &[u8]) -> Option<Timestamp> {
    Timestamp::from_second(i64::from_be_bytes(value.try_into().ok()?)).ok()
}

fn open(dir: &Path, store: &RecordStore) -> Result<sled::Db, LastUsedError> {
    disk::private_dir(dir)?;
    guarded(|| {
        let db = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None).open()?;
        for id in db.iter().keys() {
            let id = id?;
            let text = std::str::from_utf8(&id).ok().and_then(|text| KeyId::parse(text).ok());
            // A key that cannot be read may exist.
            let is_gone = text.is_none_or(|id| matches!(store.key(&id), Ok(None)));
            if is_gone {
                db.remove(&id)?;
            }
        }
        Ok(db)
    })
}

/// sled may panic on damaged files.
fn guarded<T>(work: impl FnOnce() -> Result<T, LastUsedError>) -> Result<T, LastUsedError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| LastUsedError::Panicked)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::tests::store_with;
    use crate::store::record::Record;
    use crate::store::record::tests::{account, at, key};

    const HOUR: i64 = 3_600;

    /// A store with one key, made within an hour.
    fn with_key(end: impl FnOnce(&mut KeyRecord)) -> (tempfile::TempDir, RecordStore, KeyId) {
        let mut record = key("used", "a", &[]);
        record.created_at = at(10 * HOUR + 1_800);
        end(&mut record);
        let id = record.id.clone();
        let (dir, store) = store_with(vec![Record::Account(account("a")), Record::Key(record)]);
        (dir, store, id)
    }

    fn of(hour: i64, id: &KeyId) -> NoteKeyUses {
        NoteKeyUses { hour: at(hour * HOUR), keys: vec![id.clone()] }
    }

    #[test]
    fn the_last_use_survives_a_restart_and_never_goes_back() {
        let (dir, store, id) = with_key(|_| {});
        let last_used = LastUsed::open(dir.path(), &store);
        assert_eq!(last_used.of(&id), None);
        for (told, shown) in [(10, 10), (12, 12), (11, 12), (13, 13)] {
            assert!(last_used.note(&store, &of(told, &id), at(14 * HOUR)));
            assert_eq!(last_used.of(&id), Some(at(shown * HOUR)), "{told} was reported");
        }
        drop(last_used);
        assert_eq!(LastUsed::open(dir.path(), &store).of(&id), Some(at(13 * HOUR)));
    }

    #[test]
    fn an_impossible_last_use_is_not_shown() {
        let (dir, store, id) = with_key(|key| key.revoked_at = Some(at(12 * HOUR + 5)));
        let last_used = LastUsed::open(dir.path(), &store);
        let unknown = KeyId::parse("unknown").unwrap();
        assert!(last_used.note(&store, &of(11, &unknown), at(14 * HOUR)));
        assert_eq!(last_used.of(&unknown), None);
        for (hour, why) in [(9, "before it was made"), (13, "after it was revoked")] {
            assert!(last_used.note(&store, &of(hour, &id), at(14 * HOUR)));
            assert_eq!(last_used.of(&id), None, "{why}");
        }
        // A gateway whose clock is ahead: the key was used, and now is the latest that this can have been.
        assert!(last_used.note(&store, &of(40, &id), at(11 * HOUR + 1_000)));
        assert_eq!(last_used.of(&id), Some(at(11 * HOUR)));
        assert!(last_used.note(&store, &of(12, &id), at(14 * HOUR)));
        assert_eq!(last_used.of(&id), Some(at(12 * HOUR)), "the hour of its end is not after its end");
    }

    #[test]
    fn a_report_with_too_many_keys_is_refused() {
        let (dir, store, id) = with_key(|_| {});
        let last_used = LastUsed::open(dir.path(), &store);
        let call = NoteKeyUses { hour: at(11 * HOUR), keys: vec![id.clone(); NoteKeyUses::MAX_KEYS + 1] };
        assert!(!last_used.note(&store, &call, at(11 * HOUR)));
        assert_eq!(last_used.of(&id), None);
        let call = NoteKeyUses { keys: vec![id.clone(); NoteKeyUses::MAX_KEYS], ..call };
        assert!(last_used.note(&store, &call, at(11 * HOUR)));
        assert_eq!(last_used.of(&id), Some(at(11 * HOUR)));
    }

    #[test]
    fn a_damaged_database_is_reset_and_keys_that_are_gone_are_removed() {
        let (dir, store, id) = with_key(|_| {});
        let last_used = LastUsed::open(dir.path(), &store);
        assert!(last_used.note(&store, &of(11, &id), at(11 * HOUR)));
        drop(last_used);
        let (_other, without) = store_with(vec![Record::Account(account("a"))]);
        drop(LastUsed::open(dir.path(), &without));
        let last_used = LastUsed::open(dir.path(), &store);
        assert_eq!(last_used.of(&id), None, "the store did not have it");
        assert!(last_used.note(&store, &of(11, &id), at(11 * HOUR)));
        drop(last_used);
        std::fs::write(dir.path().join(DIR).join("conf"), b"no configuration of sled's").unwrap();
        let last_used = LastUsed::open(dir.path(), &store);
        assert_eq!(last_used.of(&id), None);
        assert!(last_used.note(&store, &of(11, &id), at(11 * HOUR)), "and it goes on");
    }
}
