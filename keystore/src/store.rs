//! The durable store: a journal and a sled database, either of which can be rebuilt from the other.
//!
//! `Ok` from [`DurableStore::commit`] means that the change survives a power cut. sled alone does not promise that (ADR
//! 0026): the journal is what is acknowledged by, sled is what is read from. After a write that cannot be taken back,
//! the store stays readable and takes no more changes.
//!
//! # Layout
//!
//! In the data directory, all for the owner alone:
//!
//! - `journal`: a frame with a snapshot of all records, then one frame for each change since ([`journal::frame`] has
//!   the bytes). Appended to and fsynced. Replaced as a whole (`journal.new`, fsync, rename, fsync of the directory).
//! - `store/`: sled's files. One entry for each record and one for a policy's files, entries that list an account's
//!   keys, endpoints, members and stops, and the position: which directory this is, the number of changes, and a digest
//!   of all entries ([`record`]).
//! - `reserve`: disk space that is freed for revocations when the disk is full ([`reserve`]).
//! - `lock`: locked for as long as a keystore has the directory; so is `journal` ([`lock`]).
//! - `state-store.json`: notes that the state store has a head for this directory ([`crate::head`]).
//! - `journal.damaged-…`, `store.damaged-…`: files that were replaced because they could not be trusted.
//!
//! Beside them, and not part of what the position proves: `operator.key`, `secrets.key`, `signing.key`, `last-used/`.
//!
//! # Committing
//!
//! 1. Check that the disk has room and that the lease still holds.
//! 2. Append the change to the journal; fsync it.
//! 3. Apply it to sled in one batch together with the new position; flush; fsync sled's file.
//! 4. Acknowledge.
//!
//! A crash during 2 leaves a torn last frame, which the next start cuts off; one before 3 is complete leaves sled one
//! change behind, which the next start applies. If 2 or 3 fails, the append is cut off again; if 3 fails, no more
//! changes are taken until a restart, because what sled holds is unknown.
//!
//! # Recovery
//!
//! At start both are read completely and compared; [`recovery`] has the table. A whole journal rebuilds a store that is
//! missing, damaged or behind. A whole store that is at least as new rewrites a damaged or missing journal. If neither
//! proves what was acknowledged, the keystore refuses to start and changes nothing. A journal that has grown to four
//! times its snapshot, and to at least 1 MiB, is replaced by a snapshot of the store.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stage0_contract::AccountId;

use crate::errors::chain;
use crate::lease::tenure::Tenure;
use crate::metrics;

pub(crate) mod changes;
pub(crate) mod disk;
pub(crate) mod journal;
pub(crate) mod lock;
mod open;
pub(crate) mod record;
pub(crate) mod record_store;
mod recovery;
mod reserve;
pub(crate) mod snapshot;
pub(crate) mod trail;

pub use journal::FILE as JOURNAL_FILE;
pub(crate) use open::{InspectedDirectory, OpenError};

use changes::Changes;
use journal::{AppendError, Journal};
use record::{Forgotten, Record};
use record_store::{RecordStore, StoreError};
use reserve::Reserve;
use snapshot::{Position, Snapshot};

#[derive(Debug)]
pub(crate) struct DurableStore {
    journal: Journal,
    pub(crate) store: RecordStore,
    position: Position,
    pub(crate) writable: Arc<AtomicBool>,
    pub(crate) changes: Changes,
    /// Journal and store both record that the state store keeps a head for them.
    records_head: bool,
    tenure: Tenure,
    pub(crate) reserve: Reserve,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error("the keystore takes no more changes since a failed write")]
    ReadOnly,
    #[error("the keystore's lease is over: another keystore may serve")]
    LeaseOver,
    #[error("the disk of the keystore is nearly full; only revocations and deletions are stored")]
    DiskFull,
    #[error("the change cannot be written to the journal")]
    Journal(#[source] AppendError),
    #[error("the change cannot be written to the store")]
    Store(#[source] StoreError),
}

impl DurableStore {
    pub(crate) fn commit(&mut self, records: &[Record]) -> Result<(), CommitError> {
        let done = self.write(records);
        metrics::changed(done.is_ok());
        done
    }

    fn write(&mut self, records: &[Record]) -> Result<(), CommitError> {
        if !self.writable.load(Ordering::Acquire) {
            return Err(CommitError::ReadOnly);
        }
        let takes_away = records.iter().all(Record::takes_away);
        // Checked before anything is written: a store that runs out of space half way takes no more revocations either.
        if !self.reserve.make_room(takes_away) {
            return Err(CommitError::DiskFull);
        }
        let next = self.store.position_after(self.position, records).map_err(CommitError::Store)?;
        let (end_before, frame) = loop {
            // Checked last: a process that was frozen must not add to files that another keystore serves by now.
            if !self.tenure.is_valid() {
                return Err(CommitError::LeaseOver);
            }
            match self.journal.append(next.sequence, records.to_vec()) {
                Ok(appended) => break appended,
                // A quota can be used up while the disk still has room.
                Err(AppendError::RolledBack(error)) if reserve::is_full(&error) => {
                    if !takes_away || !self.reserve.release_step() {
                        return Err(CommitError::DiskFull);
                    }
                }
                Err(error) => {
                    if let AppendError::Stuck(_) = error {
                        self.stop_writing();
                    }
                    return Err(CommitError::Journal(error));
                }
            }
        };
        if let Err(error) = self.store.put(next, &self.changes.trail(), records) {
            // Whether sled has the change is unknown until it is opened again, so the journal must not have it.
            self.stop_writing();
            if let Err(error) = self.journal.undo(end_before) {
                tracing::error!(error = %chain(&error), "journal cannot be cut back after a failed change");
            }
            return Err(CommitError::Store(error));
        }
        self.position = next;
        let accounts = records.iter().filter_map(account_to_list).cloned().collect();
        self.changes.advance(next, accounts, frame);
        self.shorten_journal();
        Ok(())
    }

    /// Replaces everything by a snapshot. The journal is written first, so that after a crash it rebuilds the store.
    pub(crate) fn replace(&mut self, snapshot: &Snapshot) -> Result<(), OpenError> {
        let dir = self.journal.dir.clone();
        self.journal = Journal::rewrite(&dir, snapshot)
            .map_err(|error| OpenError::repair(&dir, "a journal of what was restored", error))?;
        self.store.fill(snapshot).map_err(|error| OpenError::repair(&dir, "a store of what was restored", error))?;
        self.tenure.set_journal_id(self.journal_id());
        self.position = snapshot.position;
        self.records_head = !snapshot.trail.is_empty();
        self.changes.replaced(snapshot.position, snapshot.trail.clone());
        Ok(())
    }

    /// Records in journal and store that the state store has a head, so that a backup carries this with it.
    pub(crate) fn record_head_kept(&mut self) -> Result<(), OpenError> {
        if self.records_head {
            return Ok(());
        }
        let dir = self.journal.dir.clone();
        let what = "they cannot say that the state store knows of them";
        let recorded = self.store.put(self.position, &self.changes.trail(), &[]);
        let snapshot =
            recorded.and_then(|()| self.store.snapshot()).map_err(|error| OpenError::repair(&dir, what, error))?;
        if !self.reserve.has_room_for(self.journal.end) {
            tracing::warn!("the disk is nearly full: the journal does not say yet that the state store knows of it");
            return Ok(());
        }
        self.journal = Journal::rewrite(&dir, &snapshot).map_err(|error| OpenError::repair(&dir, what, error))?;
        self.tenure.set_journal_id(self.journal_id());
        self.records_head = true;
        Ok(())
    }

    fn journal_id(&self) -> Option<String> {
        lock::journal_id_of(&self.journal.file.metadata().ok()?)
    }

    /// If a rewrite fails, only disk space is lost, unless it is unknown whether the new file is in place.
    fn shorten_journal(&mut self) {
        // Positions that the state store may know must not be cut off.
        if self.changes.trail().is_full() {
            return;
        }
        // A rewrite that runs out of space would stop all changes.
        if !self.journal.has_outgrown_its_snapshot() || !self.reserve.has_room_for(self.journal.end) {
            return;
        }
        let snapshot = match self.store.snapshot() {
            Ok(snapshot) if snapshot.position == self.position => snapshot,
            Ok(_) => return self.distrust_store("it stands elsewhere"),
            Err(error) => return self.distrust_store(&chain(&error)),
        };
        match Journal::rewrite(&self.journal.dir, &snapshot) {
            Ok(journal) => {
                self.journal = journal;
                self.tenure.set_journal_id(self.journal_id());
                tracing::info!(sequence = self.position.sequence, records = snapshot.len(), "journal was shortened");
            }
            Err(error) => {
                // The open handle may belong to the file that was replaced: an append to it would be lost.
                self.stop_writing();
                tracing::error!(error = %chain(&error), "journal cannot be shortened");
            }
        }
    }

    fn distrust_store(&self, reason: &str) {
        self.stop_writing();
        tracing::error!(reason, "store was damaged while it was open; restart to rebuild it from the journal");
    }

    fn stop_writing(&self) {
        self.writable.store(false, Ordering::Release);
        metrics::writable(false);
        tracing::error!("keystore takes no more changes until it is restarted");
    }
}

fn account_to_list(record: &Record) -> Option<&AccountId> {
    match record {
        Record::Account(account) => Some(&account.id),
        Record::Key(key) => Some(&key.account),
        Record::Forgotten(Forgotten::Key { account, .. }) => Some(account),
        Record::Webhook(_)
        | Record::SigningKey(_)
        | Record::Mark(_)
        | Record::Forgotten(_)
        | Record::Member(_)
        | Record::Stop(_)
        | Record::Policy(_)
        | Record::DeletedPolicy(_)
        | Record::ActivePolicies(_)
        | Record::Activation(_)
        | Record::Proposal(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::lock::LockedDirectory;
    use super::record::tests::{account, at, key};
    use super::snapshot::StoreId;
    use super::*;
    use metrics_exporter_prometheus::PrometheusBuilder;

    fn open(dir: &Path) -> DurableStore {
        DurableStore::open(dir, StoreId::from_random([1; 16]), at(1)).unwrap()
    }

    #[test]
    fn a_change_that_cannot_be_journalled_is_not_stored_and_stops_all_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut durable = open(dir.path());
        durable.commit(&[Record::Account(account("a"))]).unwrap();
        durable.journal.make_read_only();
        let refused = durable.commit(&[Record::Account(account("b"))]);
        assert!(matches!(refused, Err(CommitError::Journal(AppendError::Stuck(_)))), "{refused:?}");
        assert!(durable.store.account(&account("b").id).unwrap().is_none());
        assert!(durable.store.account(&account("a").id).unwrap().is_some());
        assert!(!durable.writable.load(Ordering::Acquire));
        assert!(matches!(durable.commit(&[Record::Account(account("c"))]), Err(CommitError::ReadOnly)));
        drop(durable);
        let mut durable = open(dir.path());
        durable.commit(&[Record::Account(account("b"))]).unwrap();
    }

    #[test]
    fn a_read_only_keystore_says_so_in_its_metrics() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let says = |line: &str| recorder.handle().render().lines().any(|found| found == line);
        ::metrics::with_local_recorder(&recorder, || {
            let dir = tempfile::tempdir().unwrap();
            let mut durable = open(dir.path());
            durable.commit(&[Record::Account(account("a"))]).unwrap();
            assert!(says("stage0_keystore_writable 1"));
            durable.journal.make_read_only();
            assert!(durable.commit(&[Record::Account(account("b"))]).is_err());
        });
        assert!(says("stage0_keystore_writable 0"));
        assert!(says("stage0_keystore_changes_total{outcome=\"stored\"} 1"));
        assert!(says("stage0_keystore_changes_total{outcome=\"failed\"} 1"));
    }

    #[test]
    fn a_journal_that_is_mostly_history_is_shortened_and_still_agrees_with_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut durable = open(dir.path());
        let mut record = key("k", "a", &[]);
        for turn in 0..40 {
            record.name = turn.to_string() + &"n".repeat(200_000);
            durable.commit(&[Record::Key(record.clone())]).unwrap();
            assert!(std::fs::metadata(dir.path().join(journal::FILE)).unwrap().len() < 2 << 20, "turn {turn}");
        }
        drop(durable);
        let durable = open(dir.path());
        assert_eq!(durable.position.sequence, 40);
        assert_eq!(durable.store.key(&record.id).unwrap(), Some(record));
        assert!(
            !std::fs::read_dir(dir.path())
                .unwrap()
                .any(|entry| { entry.unwrap().file_name().to_string_lossy().contains("damaged") })
        );
    }

    #[test]
    fn positions_that_the_state_store_may_know_survive_a_shortened_or_lost_journal() {
        let dir = tempfile::tempdir().unwrap();
        let look = || InspectedDirectory::inspect(LockedDirectory::take(dir.path()).unwrap()).unwrap();
        let mut durable = open(dir.path());
        durable.commit(&[Record::Account(account("a"))]).unwrap();
        drop(durable);
        assert!(!look().records_head(), "a first start that ended before its first head");
        let mut durable = open(dir.path());
        let known = durable.position;
        durable.changes.acknowledged(known);
        durable.record_head_kept().unwrap();
        let (mut record, journal_id) = (key("k", "a", &[]), durable.journal_id());
        // Meanwhile the state store cannot be reached.
        for name in ["1".to_owned(), "2".repeat(2 << 20), "3".to_owned()] {
            record.name = name;
            durable.commit(&[Record::Key(record.clone())]).unwrap();
        }
        assert_ne!(durable.journal_id(), journal_id, "it was shortened");
        drop(durable);
        for lost in [None, Some(record_store::DIR), Some(journal::FILE)] {
            match lost {
                Some(record_store::DIR) => std::fs::remove_dir_all(dir.path().join(record_store::DIR)).unwrap(),
                Some(file) => std::fs::remove_file(dir.path().join(file)).unwrap(),
                None => {}
            }
            let found = look();
            assert!(found.records_head(), "{lost:?}");
            assert_eq!(found.digest_at(known.sequence), Some(known.digest), "{lost:?}");
            assert_eq!(found.digest_at(known.sequence - 1), None, "{lost:?}");
            drop(found);
            drop(open(dir.path()));
        }
        let mut durable = open(dir.path());
        durable.changes.acknowledged(durable.position);
        durable.commit(&[Record::Account(account("b"))]).unwrap();
        drop(durable);
        std::fs::remove_file(dir.path().join(journal::FILE)).unwrap();
        assert_eq!(look().digest_at(known.sequence), None, "the state store knows of a later one");
    }

    #[test]
    fn a_store_that_was_changed_by_another_program_is_not_copied_into_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut durable = open(dir.path());
        let other = Snapshot::of(StoreId::from_random([2; 16]), 1, vec![Record::Account(account("x"))]).unwrap();
        let mut record = key("k", "a", &[]);
        record.name = "n".repeat(2 << 20);
        durable.store.fill(&other).unwrap();
        durable.commit(&[Record::Key(record)]).unwrap();
        assert!(!durable.writable.load(Ordering::Acquire));
    }

    #[test]
    fn a_store_that_another_process_has_open_is_not_damage_and_nothing_is_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        let copy = dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(dir.path().join(journal::FILE), copy.join(journal::FILE)).unwrap();
        std::os::unix::fs::symlink(dir.path().join(record_store::DIR), copy.join(record_store::DIR)).unwrap();
        let second = DurableStore::open(&copy, StoreId::from_random([1; 16]), at(1));
        assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
        drop((first, second));
        let names = std::fs::read_dir(&copy).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!names.into_iter().any(|name| name.to_string_lossy().contains(".damaged-")));
        assert!(DurableStore::open(&copy, StoreId::from_random([1; 16]), at(1)).is_ok());
    }

    #[test]
    fn a_rewritten_journal_is_locked_like_the_first_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut durable = open(dir.path());
        let journal_id = durable.journal_id();
        let mut record = key("k", "a", &[]);
        record.name = "n".repeat(2 << 20);
        durable.commit(&[Record::Key(record)]).unwrap();
        assert_ne!(durable.journal_id(), journal_id, "it was shortened");
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        let second = DurableStore::open(dir.path(), StoreId::from_random([1; 16]), at(1));
        assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
    }

    #[test]
    fn a_keystore_whose_lease_is_over_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut durable = open(dir.path());
        durable.tenure = Tenure::expired();
        let before = std::fs::read(dir.path().join(journal::FILE)).unwrap();
        let refused = durable.commit(&[Record::Account(account("a"))]);
        assert!(matches!(refused, Err(CommitError::LeaseOver)), "{refused:?}");
        assert_eq!(std::fs::read(dir.path().join(journal::FILE)).unwrap(), before);
        durable.tenure = Tenure::unlimited();
        durable.commit(&[Record::Account(account("a"))]).unwrap();
    }

    #[test]
    fn a_directory_that_is_in_use_cannot_be_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path());
        let second = DurableStore::open(dir.path(), StoreId::from_random([1; 16]), at(1));
        assert!(matches!(second, Err(OpenError::Locked(_))));
    }

    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy(&entry.path(), &to);
            } else {
                std::fs::copy(entry.path(), to).unwrap();
            }
        }
    }

    #[test]
    fn a_forgotten_key_whose_change_a_crash_interrupted_is_removed_from_the_store_at_start() {
        let dir = tempfile::tempdir().unwrap();
        let (data, aside) = (dir.path().join("data"), dir.path().join("aside"));
        let (kept, gone) = (key("kept", "a", &[]), key("gone", "a", &[]));
        let mut durable = open(&data);
        let records = [Record::Account(account("a")), Record::Key(kept.clone()), Record::Key(gone.clone())];
        durable.commit(&records).unwrap();
        drop(durable);
        copy(&data.join(record_store::DIR), &aside);
        let mut durable = open(&data);
        let forgotten = Forgotten::Key { id: gone.id.clone(), account: gone.account.clone() };
        durable.commit(&[Record::Forgotten(forgotten)]).unwrap();
        drop(durable);
        // As if the process had ended between the journal and the store.
        std::fs::remove_dir_all(data.join(record_store::DIR)).unwrap();
        copy(&aside, &data.join(record_store::DIR));
        for _ in 0..2 {
            let durable = open(&data);
            assert!(durable.store.key(&gone.id).unwrap().is_none());
            let listed = durable.store.keys(&kept.account, None, 9).unwrap();
            assert_eq!(listed, std::slice::from_ref(&kept));
        }
        let names = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!names.into_iter().any(|name| name.to_string_lossy().contains(".damaged-")));
    }
}
