//! Opening a data directory: inspect it, decide what to believe, repair what can be proven.
//!
//! [`InspectedDirectory::inspect`] only reads; [`InspectedDirectory::open`] carries the plan of [`recovery`] out and
//! logs every repair. Damaged files are evidence: they are renamed and never deleted.

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::Timestamp;

use super::changes::Changes;
use super::journal::{self, End, Journal, Replay};
use super::lock::LockedDirectory;
use super::record_store::{self, RecordStore, StoreError};
use super::recovery::{self, Fault, RecoveryPlan, StoreFound};
use super::reserve::Reserve;
use super::snapshot::{Digest, Position, Snapshot, StoreId};
use super::trail::Trail;
use super::{DurableStore, disk};
use crate::errors::chain;
use crate::keyfile::OPERATOR_KEY_FILE;
use crate::lease::tenure::Tenure;
use crate::metrics;
use crate::shipping::follower::ShippedJournal;

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the data directory `{}` cannot be used", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// Another process has it open; two writers would destroy each other's work.
    #[error(
        "the data directory `{}` is in use by another process, a keystore: end it, or give another --data-dir; \
         nothing was changed",
        .0.display()
    )]
    Locked(PathBuf),
    #[error("the journal `{}` cannot be opened", .0.display())]
    Journal(PathBuf, #[source] io::Error),
    #[error(
        "refusing to start on `{}`: {why}; nothing was changed: restore `journal` and `store` of this directory from \
         one backup; to begin anew, empty the directory and start once with --accept-restore (every key is lost)",
        .dir.display()
    )]
    Unprovable { dir: PathBuf, why: String },
    #[error(
        "refusing to start on `{}`: {why}; nothing was changed: if an older state came back by mistake, put the newest \
         files back; if a backup was restored on purpose, start once with --accept-restore, which revokes every key \
         that the state store does not list as live (docs/OPERATIONS.md)", .dir.display()
    )]
    Outdated { dir: PathBuf, why: String },
    /// A repair failed half way; the next start tries it again.
    #[error("the data directory `{}` cannot be repaired: {what}", .dir.display())]
    Repair { dir: PathBuf, what: &'static str, source: Box<dyn Error + Send + Sync> },
}

impl OpenError {
    pub(super) fn repair(dir: &Path, what: &'static str, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Repair { dir: dir.to_owned(), what, source: Box::new(source) }
    }

    fn unprovable(dir: &Path, why: &Fault) -> Self {
        Self::Unprovable { dir: dir.to_owned(), why: why.to_string() }
    }
}

#[derive(Debug)]
pub(crate) struct InspectedDirectory {
    pub(crate) directory: LockedDirectory,
    replay: Option<Replay>,
    opened: Option<(RecordStore, Snapshot)>,
    plan: RecoveryPlan,
    reserve: Reserve,
    /// `operator.key` is there and nothing else: journal and store were lost.
    lost: bool,
}

impl InspectedDirectory {
    pub(crate) fn inspect(directory: LockedDirectory) -> Result<Self, OpenError> {
        let dir = &directory.dir;
        let replay = directory.journal.as_ref().map(journal::read).transpose();
        let replay = replay.map_err(|error| OpenError::Journal(dir.join(journal::FILE), error))?;
        let reserve = Reserve::find(dir).map_err(|error| OpenError::Directory(dir.clone(), error))?;
        let (found, opened) = inspect_store(dir)?;
        let plan = recovery::plan(replay.as_ref(), &found).map_err(|why| OpenError::unprovable(dir, &why))?;
        // The operator's key is written after journal and store. If it is there alone, they were lost, and an empty
        // keystore would look as if every key had been revoked.
        let operator_key = || dir.join(OPERATOR_KEY_FILE).try_exists();
        let lost =
            plan == RecoveryPlan::Begin && operator_key().map_err(|error| OpenError::Directory(dir.clone(), error))?;
        Ok(Self { directory, replay, opened, plan, reserve, lost })
    }

    /// Refuses a directory that has lost its journal and its store.
    pub(crate) fn refuse_lost(&self) -> Result<(), OpenError> {
        if self.lost { Err(OpenError::unprovable(&self.directory.dir, &Fault::EverythingMissing)) } else { Ok(()) }
    }

    /// Replaces the content by that of a shipped journal, which is newer. What was there is put aside.
    pub(crate) fn replace(self, shipped: ShippedJournal, now: Timestamp) -> Result<Self, OpenError> {
        let Self { directory: LockedDirectory { dir, journal: old, lock }, opened, reserve, .. } = self;
        let ShippedJournal { bytes, replay } = shipped;
        // INVARIANT: a shipped journal was replayed to its end.
        let snapshot = replay.snapshot.clone().ok_or_else(|| OpenError::unprovable(&dir, &Fault::JournalDamaged))?;
        let repair = Repair { dir: &dir, now, word: "older" };
        drop(opened);
        let aside = if old.is_some() { repair.link_aside(journal::FILE)? } else { String::new() };
        // The journal first: a store that is missing beside it is built again, and an older one is put aside.
        let journal = disk::replace_locked(&dir, journal::FILE, &bytes)
            .map_err(|error| OpenError::Journal(dir.join(journal::FILE), error))?;
        // Only now: until the new journal is locked, the old one must be.
        drop(old);
        repair.put_aside(record_store::DIR)?;
        let store = repair.fill_store(&snapshot)?;
        let (records, sequence) = (snapshot.len(), snapshot.position.sequence);
        tracing::warn!(records, sequence, aside, "the directory has the journal that the last keystore shipped");
        let directory = LockedDirectory { dir, journal: Some(journal), lock };
        let opened = Some((store, snapshot));
        Ok(Self { directory, replay: Some(replay), opened, plan: RecoveryPlan::Open, reserve, lost: false })
    }

    /// The content that [`open`](Self::open) will serve; `None` for a new directory.
    pub(crate) fn snapshot(&self) -> Option<&Snapshot> {
        match &self.plan {
            RecoveryPlan::Open | RecoveryPlan::RewriteJournal { .. } => self.of_store(),
            RecoveryPlan::CatchUp | RecoveryPlan::RebuildStore { .. } => self.of_journal(),
            RecoveryPlan::Begin => None,
        }
    }

    fn of_journal(&self) -> Option<&Snapshot> {
        self.replay.as_ref()?.snapshot.as_ref()
    }

    fn of_store(&self) -> Option<&Snapshot> {
        self.opened.as_ref().map(|(_, snapshot)| snapshot)
    }

    /// The digest of the content after an earlier change, as far as the file that is believed goes back.
    pub(crate) fn digest_at(&self, sequence: u64) -> Option<Digest> {
        if let RecoveryPlan::RewriteJournal { .. } = &self.plan {
            return self.of_store()?.trail.digest_at(sequence);
        }
        let mut trail = self.replay.iter().flat_map(|replay| &replay.trail);
        trail.find(|(at, _)| *at == sequence).map(|(_, digest)| *digest)
    }

    /// Whether journal or store records that the state store kept a head for them.
    pub(crate) fn records_head(&self) -> bool {
        self.of_journal().into_iter().chain(self.of_store()).any(|snapshot| !snapshot.trail.is_empty())
    }

    /// Whether there is a store without a journal, so that only the state store can tell how new it is.
    pub(crate) fn lacks_journal(&self) -> bool {
        matches!(&self.plan, RecoveryPlan::RewriteJournal { why: Fault::JournalMissing })
    }

    /// A new directory gets the id `new_id`; the names of files that are put aside contain `now`.
    pub(crate) fn open(self, new_id: StoreId, now: Timestamp, tenure: Tenure) -> Result<DurableStore, OpenError> {
        let Self { directory: LockedDirectory { dir, journal: file, lock }, replay, opened, plan, reserve, .. } = self;
        let repair = Repair { dir: &dir, now, word: "damaged" };
        let files = match (plan, file, replay, opened) {
            (RecoveryPlan::Open, Some(file), Some(replay), Some((store, snapshot))) => {
                let journal_records_head = replay.snapshot.as_ref().is_some_and(|of| !of.trail.is_empty());
                let files = OpenFiles::new(repair.open_journal(file, &replay)?, store, &snapshot);
                OpenFiles { records_head: files.records_head && journal_records_head, ..files }
            }
            (RecoveryPlan::CatchUp, Some(file), Some(replay), Some((store, _))) => {
                let ahead =
                    replay.snapshot.as_ref().ok_or_else(|| OpenError::unprovable(&dir, &Fault::StoreDisagrees))?;
                tracing::warn!(sequence = ahead.position.sequence, "store catches up with the journal by one change");
                store.fill(ahead).map_err(|error| OpenError::repair(&dir, "the store cannot catch up", error))?;
                OpenFiles::new(repair.open_journal(file, &replay)?, store, ahead)
            }
            (RecoveryPlan::RebuildStore { why }, Some(file), Some(replay), opened) => {
                drop(opened);
                let journal = repair.open_journal(file, &replay)?;
                let snapshot = replay.snapshot.ok_or_else(|| OpenError::unprovable(&dir, &why))?;
                OpenFiles::new(journal, repair.rebuild_store(&snapshot, &why)?, &snapshot)
            }
            (RecoveryPlan::RewriteJournal { why }, file, replay, Some((store, snapshot))) => {
                let journal = repair.rewrite_journal(&snapshot, replay.is_some(), &why)?;
                // Only now: until the new journal is locked, the old one must be.
                drop(file);
                OpenFiles::new(journal, store, &snapshot)
            }
            (RecoveryPlan::Begin, _, _, _) => repair.begin(new_id)?,
            // INVARIANT: a plan names only files that were found.
            _ => return Err(OpenError::unprovable(&dir, &Fault::StoreDisagrees)),
        };
        metrics::writable(true);
        let OpenFiles { journal, store, position, trail, records_head } = files;
        let mut durable = DurableStore {
            journal,
            store,
            position,
            writable: Arc::new(AtomicBool::new(true)),
            changes: Changes::at(position, trail),
            records_head,
            tenure,
            reserve,
            _lock: lock,
        };
        // After all repairs, which may need the room.
        durable.reserve.maintain();
        durable.tenure.set_journal_id(durable.journal_id());
        Ok(durable)
    }
}

#[cfg(test)]
impl DurableStore {
    pub(crate) fn open(dir: &Path, new_id: StoreId, now: Timestamp) -> Result<Self, OpenError> {
        let found = InspectedDirectory::inspect(LockedDirectory::take(dir)?)?;
        found.refuse_lost()?;
        found.open(new_id, now, Tenure::unlimited())
    }
}

struct OpenFiles {
    journal: Journal,
    store: RecordStore,
    position: Position,
    trail: Trail,
    records_head: bool,
}

impl OpenFiles {
    fn new(journal: Journal, store: RecordStore, snapshot: &Snapshot) -> Self {
        let trail = snapshot.trail.clone();
        Self { journal, store, position: snapshot.position, records_head: !trail.is_empty(), trail }
    }
}

fn inspect_store(dir: &Path) -> Result<(StoreFound, Option<(RecordStore, Snapshot)>), OpenError> {
    let store = dir.join(record_store::DIR);
    match store.try_exists() {
        Ok(false) => return Ok((StoreFound::Missing, None)),
        Err(error) => return Ok((StoreFound::Broken(error.to_string()), None)),
        Ok(true) => {}
    }
    match RecordStore::open(&store).and_then(|store| store.snapshot().map(|snapshot| (store, snapshot))) {
        Ok((store, snapshot)) => Ok((StoreFound::Whole(snapshot.clone()), Some((store, snapshot)))),
        Err(StoreError::InUse) => Err(OpenError::Locked(dir.to_owned())),
        Err(error) => Ok((StoreFound::Broken(chain(&error)), None)),
    }
}

struct Repair<'a> {
    dir: &'a Path,
    now: Timestamp,
    /// What a file is that is put aside; part of its new name.
    word: &'static str,
}

impl Repair<'_> {
    fn begin(&self, new_id: StoreId) -> Result<OpenFiles, OpenError> {
        let snapshot = Snapshot::of(new_id, 0, Vec::new()).map_err(|error| self.failed("an empty snapshot", error))?;
        // The journal first: a store without a journal is not taken for a first start.
        let journal = Journal::rewrite(self.dir, &snapshot).map_err(|error| self.failed("a first journal", error))?;
        Ok(OpenFiles::new(journal, self.fill_store(&snapshot)?, &snapshot))
    }

    fn open_journal(&self, file: File, replay: &Replay) -> Result<Journal, OpenError> {
        if replay.end == End::Torn {
            let bytes = replay.good;
            tracing::warn!(bytes, "journal ends in an unfinished append, which was not acknowledged; cut off");
        }
        Journal::open(self.dir, file, replay).map_err(|error| OpenError::Journal(self.dir.join(journal::FILE), error))
    }

    fn rebuild_store(&self, snapshot: &Snapshot, why: &Fault) -> Result<RecordStore, OpenError> {
        let aside = self.put_aside(record_store::DIR)?;
        if snapshot.is_empty() {
            tracing::info!("store is created again from an empty journal");
        } else {
            let (records, sequence) = (snapshot.len(), snapshot.position.sequence);
            tracing::error!(%why, records, sequence, aside, "store was rebuilt from the journal");
        }
        self.fill_store(snapshot)
    }

    fn rewrite_journal(&self, snapshot: &Snapshot, exists: bool, why: &Fault) -> Result<Journal, OpenError> {
        let aside = if exists { self.link_aside(journal::FILE)? } else { String::new() };
        let (records, sequence) = (snapshot.len(), snapshot.position.sequence);
        tracing::error!(%why, records, sequence, aside, "journal was rewritten from the store");
        Journal::rewrite(self.dir, snapshot).map_err(|error| self.failed("a new journal", error))
    }

    fn fill_store(&self, snapshot: &Snapshot) -> Result<RecordStore, OpenError> {
        let store = RecordStore::open(&self.dir.join(record_store::DIR));
        let filled = store.and_then(|store| store.fill(snapshot).map(|()| store));
        filled.map_err(|error| self.failed("a new store", error))
    }

    /// Renames a damaged file. Returns the new name, empty if there was no file.
    fn put_aside(&self, name: &str) -> Result<String, OpenError> {
        let failed = |error| self.failed("what is replaced cannot be put aside", error);
        let aside = self.free_name(name).map_err(failed)?;
        match std::fs::rename(self.dir.join(name), self.dir.join(&aside)) {
            Ok(()) => disk::sync_dir(self.dir).map(|()| aside).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(failed(error)),
        }
    }

    /// A file that is about to be replaced keeps its own name, by which it is locked, until then.
    fn link_aside(&self, name: &str) -> Result<String, OpenError> {
        let failed = |error| self.failed("what is replaced cannot be put aside", error);
        let aside = self.free_name(name).map_err(failed)?;
        match std::fs::hard_link(self.dir.join(name), self.dir.join(&aside)) {
            Ok(()) => disk::sync_dir(self.dir).map(|()| aside).map_err(failed),
            // Not every file system has hard links.
            Err(_) => self.put_aside(name),
        }
    }

    fn free_name(&self, name: &str) -> io::Result<String> {
        let mut aside = format!("{name}.{}-{}", self.word, self.now.strftime("%Y%m%dT%H%M%SZ"));
        while self.dir.join(&aside).try_exists()? {
            aside.push('+');
        }
        Ok(aside)
    }

    fn failed(&self, what: &'static str, source: impl Error + Send + Sync + 'static) -> OpenError {
        OpenError::repair(self.dir, what, source)
    }
}
