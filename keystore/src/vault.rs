//! Journal and store as one thing that loses nothing.
//!
//! Owns the order of writes (journal, fsync, store, fsync, then the caller may acknowledge), and the opening of both
//! after whatever happened to them. What is believed after a crash is [`recovery`]'s to say; this file first only
//! looks, so that a directory that is refused stays as it is, and then carries it out, loudly. A change is written only
//! while this keystore holds its lease. When a failed write cannot be taken back, the vault stays readable and takes no
//! more changes.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use stage0_contract::AccountId;

use crate::bootstrap::OPERATOR_KEY_FILE;
use crate::changes::Changes;
use crate::disk;
use crate::image::{Digest, Image, Lineage, Position};
use crate::journal::{self, AppendError, End, Journal, Replay, RewriteError};
use crate::lease::Tenure;
use crate::lock::LockedDirectory;
use crate::metrics;
use crate::record::{Forgotten, Record};
use crate::recovery::{self, Fault, Plan, StoreFound};
use crate::reserve::{self, Reserve};
use crate::store::{self, Store, StoreError};
use crate::trail::Trail;

/// Journal and store, open for writing.
#[derive(Debug)]
pub(crate) struct Vault {
    journal: Journal,
    store: Store,
    position: Position,
    writable: Arc<AtomicBool>,
    changes: Changes,
    /// Journal and store say that a head is kept for them.
    says_head: bool,
    tenure: Tenure,
    reserve: Reserve,
    _lock: File,
}

/// What stands in a directory that was locked, looked at and not changed.
#[derive(Debug)]
pub(crate) struct Found {
    directory: LockedDirectory,
    replay: Option<Replay>,
    open: Option<(Store, Image)>,
    plan: Plan,
    reserve: Reserve,
}

/// The data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or made private.
    #[error("the data directory `{}` cannot be used", .0.display())]
    Directory(PathBuf, #[source] io::Error),
    /// Two writers would destroy each other's work.
    #[error(
        "the data directory `{}` is in use by another process, a keystore: end it, or give another --data-dir; nothing was changed",
        .0.display()
    )]
    Locked(PathBuf),
    /// The journal cannot be read or opened for writing.
    #[error("the journal `{}` cannot be opened", .0.display())]
    Journal(PathBuf, #[source] io::Error),
    /// Neither journal nor store proves what was acknowledged.
    #[error(
        "refusing to start on `{}`: {why}; nothing was changed: restore `journal` and `store` of this directory from one \
         backup; to begin anew, empty the directory and start once with --accept-restore (every key is lost)",
        .dir.display()
    )]
    Unprovable {
        /// The data directory.
        dir: PathBuf,
        /// What is wrong with which file.
        why: String,
    },
    /// It is not what the state store knows to have been acknowledged.
    #[error(
        "refusing to start on `{}`: {why}; nothing was changed: if an older state came back by mistake, put the newest \
         files back; if a backup was restored on purpose, start once with --accept-restore, which revokes every key that \
         the state store does not list as live (docs/OPERATIONS.md)", .dir.display()
    )]
    Outdated {
        /// The data directory.
        dir: PathBuf,
        /// What was found, and what is known.
        why: String,
    },
    /// What was put aside or written again could not be.
    #[error("the data directory `{}` cannot be repaired: {what}", .dir.display())]
    Repair {
        /// The data directory.
        dir: PathBuf,
        /// Which step failed.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A change was not stored; as if it had never been tried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error("the keystore takes no more changes since a failed write")]
    ReadOnly,
    #[error("the keystore's lease is over: another keystore may serve")]
    LeaseOver,
    /// Only what takes rights away is stored now.
    #[error("the disk of the keystore is nearly full; only revocations and deletions are stored")]
    DiskFull,
    #[error("the change cannot be written to the journal")]
    Journal(#[source] AppendError),
    #[error("the change cannot be written to the store")]
    Store(#[source] StoreError),
}

impl Found {
    /// Reads all that is in a directory.
    pub(crate) fn look(directory: LockedDirectory) -> Result<Self, OpenError> {
        let dir = &directory.dir;
        let replay = directory.journal.as_ref().map(journal::read).transpose();
        let replay = replay.map_err(|error| OpenError::Journal(dir.join(journal::FILE), error))?;
        let reserve = Reserve::find(dir).map_err(|error| OpenError::Directory(dir.clone(), error))?;
        let (found, open) = look_at_store(dir)?;
        let plan = recovery::plan(replay.as_ref(), &found);
        match &plan {
            Plan::Refuse { why } => return Err(refused(dir, why)),
            // The operator's key is written after journal and store: where it stands alone, they were lost, and an
            // empty keystore would look as if every key had been revoked.
            Plan::Begin => {
                let operator = dir.join(OPERATOR_KEY_FILE).try_exists();
                if operator.map_err(|error| OpenError::Directory(dir.clone(), error))? {
                    return Err(refused(dir, &Fault::EverythingMissing));
                }
            }
            Plan::Open | Plan::CatchUp | Plan::RebuildStore { .. } | Plan::RewriteJournal { .. } => {}
        }
        Ok(Self { directory, replay, open, plan, reserve })
    }

    /// What opening it will hold; none where there is nothing yet.
    pub(crate) fn image(&self) -> Option<&Image> {
        let journal = || self.replay.as_ref()?.image.as_ref();
        match &self.plan {
            Plan::Open | Plan::RewriteJournal { .. } => self.open.as_ref().map(|(_, image)| image),
            Plan::CatchUp | Plan::RebuildStore { .. } => journal(),
            Plan::Begin | Plan::Refuse { .. } => None,
        }
    }

    /// What the content was after a change, as far as the file that is believed goes back.
    pub(crate) fn digest_at(&self, sequence: u64) -> Option<Digest> {
        if let Plan::RewriteJournal { .. } = &self.plan {
            return self.open.as_ref()?.1.trail.digest_at(sequence);
        }
        let trail = self.replay.iter().flat_map(|replay| &replay.trail);
        trail.into_iter().find(|(at, _)| *at == sequence).map(|(_, digest)| *digest)
    }

    /// Journal or store say that a head was kept for them.
    pub(crate) fn says_head(&self) -> bool {
        let journal = self.replay.as_ref().and_then(|replay| replay.image.as_ref());
        let store = self.open.as_ref().map(|(_, image)| image);
        journal.into_iter().chain(store).any(|image| !image.trail.is_empty())
    }

    /// There is a store, and only the word of somebody else tells how new it is.
    pub(crate) fn lacks_journal(&self) -> bool {
        matches!(&self.plan, Plan::RewriteJournal { why: Fault::JournalMissing })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.directory.dir
    }

    /// Opens it, repairing what can be proven. `fresh` is the lineage of a new directory, `now` names what is put
    /// aside.
    pub(crate) fn open(self, fresh: Lineage, now: Timestamp, tenure: Tenure) -> Result<Vault, OpenError> {
        let Self { directory: LockedDirectory { dir, journal: file, lock }, replay, open, plan, reserve } = self;
        let journal_failed = |error| OpenError::Journal(dir.join(journal::FILE), error);
        let repair = Repair { dir: &dir, now };
        let both_say_head = |replay: &Replay, image: &Image| {
            let of_journal = replay.image.as_ref().map(|image| &image.trail);
            of_journal.is_some_and(|trail| !trail.is_empty()) && !image.trail.is_empty()
        };
        let (journal, store, position, trail, says_head) = match (plan, file, replay, open) {
            (Plan::Open, Some(file), Some(replay), Some((store, image))) => {
                let says_head = both_say_head(&replay, &image);
                let journal = repair.open_journal(file, &replay).map_err(journal_failed)?;
                (journal, store, image.position, image.trail, says_head)
            }
            (Plan::CatchUp, Some(file), Some(replay), Some((store, _))) => {
                let ahead = replay.image.as_ref().ok_or_else(|| refused(&dir, &Fault::StoreDisagrees))?;
                let (position, trail) = (ahead.position, ahead.trail.clone());
                tracing::warn!(sequence = position.sequence, "store catches up with the journal by one change");
                let catch_up = |error| repair.failed("the store cannot catch up", error);
                store.fill(ahead).map_err(catch_up)?;
                let says_head = !trail.is_empty();
                (repair.open_journal(file, &replay).map_err(journal_failed)?, store, position, trail, says_head)
            }
            (Plan::RebuildStore { why }, Some(file), Some(replay), open) => {
                drop(open);
                let journal = repair.open_journal(file, &replay).map_err(journal_failed)?;
                let image = replay.image.ok_or_else(|| refused(&dir, &why))?;
                let says_head = !image.trail.is_empty();
                (journal, repair.rebuild_store(&image, &why)?, image.position, image.trail, says_head)
            }
            (Plan::RewriteJournal { why }, file, replay, Some((store, image))) => {
                let journal = repair.rewrite_journal(&image, replay.is_some(), &why)?;
                // Until here the old one is locked.
                drop(file);
                let says_head = !image.trail.is_empty();
                (journal, store, image.position, image.trail, says_head)
            }
            (Plan::Begin, _, _, _) => {
                let (journal, store, position) = repair.begin(fresh)?;
                (journal, store, position, Trail::default(), false)
            }
            (Plan::Refuse { why }, _, _, _) => return Err(refused(&dir, &why)),
            // INVARIANT: a plan names only what was found; these pairs cannot be, and are refused if they are.
            (Plan::Open | Plan::CatchUp | Plan::RebuildStore { .. } | Plan::RewriteJournal { .. }, _, _, _) => {
                return Err(refused(&dir, &Fault::StoreDisagrees));
            }
        };
        metrics::writable(true);
        let writable = Arc::new(AtomicBool::new(true));
        let (changes, _lock) = (Changes::at(position, trail), lock);
        let mut vault = Vault { journal, store, position, writable, changes, says_head, tenure, reserve, _lock };
        // After all repairs: they may need the room.
        vault.reserve.tend();
        vault.tenure.stands_at(vault.place());
        Ok(vault)
    }
}

impl Vault {
    /// As a keystore without a state store opens it.
    #[cfg(test)]
    pub(crate) fn open(dir: &Path, fresh: Lineage, now: Timestamp) -> Result<Self, OpenError> {
        Found::look(LockedDirectory::take(dir)?)?.open(fresh, now, Tenure::for_life())
    }

    /// Holds this from now on, and nothing else: the journal first, so that a crash between leaves a store that it
    /// rebuilds.
    pub(crate) fn replace(&mut self, image: &Image) -> Result<(), OpenError> {
        let dir = self.journal.dir().to_owned();
        let failed = |what, source: Box<dyn std::error::Error + Send + Sync>| OpenError::Repair {
            dir: dir.clone(),
            what,
            source,
        };
        let journal = Journal::rewrite(&dir, image);
        self.journal = journal.map_err(|error| failed("a journal of what was restored", Box::new(error)))?;
        self.store.fill(image).map_err(|error| failed("a store of what was restored", Box::new(error)))?;
        self.tenure.stands_at(self.place());
        self.position = image.position;
        self.says_head = !image.trail.is_empty();
        self.changes.replaced(image.position, image.trail.clone());
        Ok(())
    }

    /// Says in journal and store that a head is kept for them, where they do not say so yet: it travels with them.
    pub(crate) fn say_head(&mut self) -> Result<(), OpenError> {
        if self.says_head {
            return Ok(());
        }
        let dir = self.journal.dir().to_owned();
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| OpenError::Repair {
            dir: dir.clone(),
            what: "they cannot say that the state store knows of them",
            source,
        };
        let store = || {
            self.store.keep_trail(self.position, &self.changes.trail())?;
            self.store.image()
        };
        let image = store().map_err(|error| failed(Box::new(error)))?;
        if !self.reserve.has_room_for(self.journal.bytes()) {
            tracing::warn!("the disk is nearly full: the journal does not say yet that the state store knows of it");
            return Ok(());
        }
        self.journal = Journal::rewrite(&dir, &image).map_err(|error| failed(Box::new(error)))?;
        self.tenure.stands_at(self.place());
        self.says_head = true;
        Ok(())
    }

    /// Stores one change. `Ok` means that it survives a power cut in both places.
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
        // Before anything is written: a store that fails half way takes no more changes, revocations among them.
        if !self.reserve.make_room(takes_away) {
            return Err(CommitError::DiskFull);
        }
        let next = self.store.position_after(self.position, records).map_err(CommitError::Store)?;
        let appended = loop {
            // The last moment: who was frozen for long must not add to what another one serves by now.
            if !self.tenure.holds() {
                return Err(CommitError::LeaseOver);
            }
            match self.journal.append(next.sequence, records.to_vec()) {
                Ok(appended) => break appended,
                // A quota is full before the disk is.
                Err(AppendError::Undone(error)) if reserve::is_full(&error) => {
                    if !takes_away || !self.reserve.give_step() {
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
            // Whether the store has it is unknown until it is opened again; so the journal is cut back and no more is
            // written.
            self.stop_writing();
            if let Err(error) = self.journal.undo(appended) {
                tracing::error!(%error, "journal cannot be cut back after a failed change");
            }
            return Err(CommitError::Store(error));
        }
        self.position = next;
        self.changes.moved(next, records.iter().filter_map(listed_account).cloned().collect());
        self.shorten_journal();
        Ok(())
    }

    /// What was changed since it was opened, for whoever keeps a copy of it elsewhere.
    pub(crate) fn changes(&self) -> &Changes {
        &self.changes
    }

    /// The journal that is locked now.
    pub(crate) fn place(&self) -> Option<String> {
        crate::lock::place_of(&self.journal.file().metadata().ok()?)
    }

    /// Looks after the disk reserve.
    pub(crate) fn tend_reserve(&mut self) {
        self.reserve.tend();
    }

    /// Whether the disk is nearly full.
    pub(crate) fn disk_low(&self) -> Arc<AtomicBool> {
        self.reserve.low()
    }

    /// Reads go here, from any thread that may block.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Whether changes are still taken.
    pub(crate) fn writable(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.writable)
    }

    /// Rewrites a journal that is mostly history. A failure costs disk space, unless the new file may or may not be in
    /// place.
    fn shorten_journal(&mut self) {
        // What the state store may know must not be forgotten with what is cut off.
        if self.changes.trail().is_full() {
            return;
        }
        // A rewrite that fails half way would stop all changes.
        if !self.journal.has_outgrown_its_snapshot() || !self.reserve.has_room_for(self.journal.bytes()) {
            return;
        }
        let image = match self.store.image() {
            Ok(image) if image.position == self.position => image,
            Ok(_) => return self.distrust_store("it stands elsewhere"),
            Err(error) => return self.distrust_store(&error.to_string()),
        };
        match Journal::rewrite(self.journal.dir(), &image) {
            Ok(journal) => {
                self.journal = journal;
                self.tenure.stands_at(self.place());
                tracing::info!(sequence = self.position.sequence, records = image.len(), "journal was shortened");
            }
            Err(error) => {
                // The open handle may point to the file that was replaced: an append there would be lost.
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

/// Which account is to be listed again, in the state store.
fn listed_account(record: &Record) -> Option<&AccountId> {
    match record {
        Record::Account(account) => Some(&account.id),
        Record::Key(key) => Some(&key.account),
        Record::Forgotten(Forgotten::Key { account, .. }) => Some(account),
        Record::Webhook(_) | Record::SigningKey(_) | Record::Mark(_) | Record::Forgotten(_) => None,
    }
}

fn refused(dir: &Path, why: &Fault) -> OpenError {
    OpenError::Unprovable { dir: dir.to_owned(), why: why.to_string() }
}

/// Opens a store that exists and reads all of it. One that somebody else has open is neither whole nor damaged.
fn look_at_store(dir: &Path) -> Result<(StoreFound, Option<(Store, Image)>), OpenError> {
    let store = dir.join(store::DIR);
    match store.try_exists() {
        Ok(false) => return Ok((StoreFound::Missing, None)),
        Err(error) => return Ok((StoreFound::Broken(error.to_string()), None)),
        Ok(true) => {}
    }
    match Store::open(&store).and_then(|store| store.image().map(|image| (store, image))) {
        Ok((store, image)) => Ok((StoreFound::Whole(image.clone()), Some((store, image)))),
        Err(StoreError::InUse) => Err(OpenError::Locked(dir.to_owned())),
        Err(error) => Ok((StoreFound::Broken(chain(&error)), None)),
    }
}

/// Carries a plan out in one directory.
struct Repair<'a> {
    dir: &'a Path,
    now: Timestamp,
}

impl Repair<'_> {
    fn begin(&self, fresh: Lineage) -> Result<(Journal, Store, Position), OpenError> {
        let image = Image::of(fresh, 0, Vec::new()).map_err(|error| self.failed("an empty image", error))?;
        // The journal first: a store without one is not a first start.
        let journal = Journal::rewrite(self.dir, &image).map_err(|error| self.failed("a first journal", error))?;
        Ok((journal, self.fill_store(&image)?, image.position))
    }

    fn open_journal(&self, file: File, replay: &Replay) -> io::Result<Journal> {
        if replay.end == End::Torn {
            tracing::warn!(
                bytes = replay.good,
                "journal ends in an unfinished append, which was not acknowledged; cut off"
            );
        }
        Journal::open(self.dir, file, replay)
    }

    fn rebuild_store(&self, image: &Image, why: &Fault) -> Result<Store, OpenError> {
        let aside = self.put_aside(store::DIR)?;
        if image.is_empty() {
            tracing::info!("store is made anew from an empty journal");
        } else {
            let (records, sequence) = (image.len(), image.position.sequence);
            tracing::error!(%why, records, sequence, aside, "store was rebuilt from the journal");
        }
        self.fill_store(image)
    }

    fn rewrite_journal(&self, image: &Image, exists: bool, why: &Fault) -> Result<Journal, OpenError> {
        let aside = if exists { self.keep_aside(journal::FILE)? } else { String::new() };
        let (records, sequence) = (image.len(), image.position.sequence);
        tracing::error!(%why, records, sequence, aside, "journal was rewritten from the store");
        Journal::rewrite(self.dir, image).map_err(|error: RewriteError| self.failed("a new journal", error))
    }

    fn fill_store(&self, image: &Image) -> Result<Store, OpenError> {
        let failed = |error| self.failed("a new store", error);
        let store = Store::open(&self.dir.join(store::DIR)).map_err(failed)?;
        store.fill(image).map_err(failed)?;
        Ok(store)
    }

    /// Damaged files are evidence: renamed, never deleted. Returns the new name, or nothing when there was no file.
    fn put_aside(&self, name: &str) -> Result<String, OpenError> {
        let failed = |error| self.failed("what is damaged cannot be put aside", error);
        let aside = self.free_name(name).map_err(failed)?;
        match std::fs::rename(self.dir.join(name), self.dir.join(&aside)) {
            Ok(()) => disk::sync_dir(self.dir).map(|()| aside).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(failed(error)),
        }
    }

    /// As [`Repair::put_aside`], of a file that is replaced next: its name, by which it is locked, leads to it until
    /// then.
    fn keep_aside(&self, name: &str) -> Result<String, OpenError> {
        let failed = |error| self.failed("what is damaged cannot be put aside", error);
        let aside = self.free_name(name).map_err(failed)?;
        match std::fs::hard_link(self.dir.join(name), self.dir.join(&aside)) {
            Ok(()) => disk::sync_dir(self.dir).map(|()| aside).map_err(failed),
            // Not every file system has a second name for a file.
            Err(_) => self.put_aside(name),
        }
    }

    fn free_name(&self, name: &str) -> io::Result<String> {
        let mut aside = format!("{name}.damaged-{}", self.now.strftime("%Y%m%dT%H%M%SZ"));
        while self.dir.join(&aside).try_exists()? {
            aside.push('+');
        }
        Ok(aside)
    }

    fn failed(&self, what: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> OpenError {
        OpenError::Repair { dir: self.dir.to_owned(), what, source: Box::new(source) }
    }
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Forgotten;
    use crate::record::tests::{account, at, key};
    use metrics_exporter_prometheus::PrometheusBuilder;

    fn open(dir: &Path) -> Vault {
        Vault::open(dir, Lineage::from_random([1; 16]), at(1)).unwrap()
    }

    #[test]
    fn a_change_that_cannot_be_journalled_is_not_in_the_store_and_stops_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = open(dir.path());
        vault.commit(&[Record::Account(account("a"))]).unwrap();
        vault.journal.lose_the_right_to_write();
        let refused = vault.commit(&[Record::Account(account("b"))]);
        assert!(matches!(refused, Err(CommitError::Journal(AppendError::Stuck(_)))), "{refused:?}");
        assert!(vault.store().account(&account("b").id).unwrap().is_none());
        assert!(vault.store().account(&account("a").id).unwrap().is_some());
        assert!(!vault.writable().load(Ordering::Acquire));
        assert!(matches!(vault.commit(&[Record::Account(account("c"))]), Err(CommitError::ReadOnly)));
        drop(vault);
        let mut vault = open(dir.path());
        vault.commit(&[Record::Account(account("b"))]).unwrap();
    }

    #[test]
    fn a_keystore_that_takes_no_more_changes_says_so_in_its_metrics() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let says = |line: &str| recorder.handle().render().lines().any(|found| found == line);
        ::metrics::with_local_recorder(&recorder, || {
            let dir = tempfile::tempdir().unwrap();
            let mut vault = open(dir.path());
            vault.commit(&[Record::Account(account("a"))]).unwrap();
            assert!(says("stage0_keystore_writable 1"));
            vault.journal.lose_the_right_to_write();
            assert!(vault.commit(&[Record::Account(account("b"))]).is_err());
        });
        assert!(says("stage0_keystore_writable 0"));
        assert!(says("stage0_keystore_changes_total{outcome=\"stored\"} 1"));
        assert!(says("stage0_keystore_changes_total{outcome=\"failed\"} 1"));
    }

    #[test]
    fn a_journal_that_is_mostly_history_is_shortened_and_still_agrees_with_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = open(dir.path());
        let mut record = key("k", "a", &[]);
        for turn in 0..40 {
            record.name = turn.to_string() + &"n".repeat(200_000);
            vault.commit(&[Record::Key(record.clone())]).unwrap();
            assert!(std::fs::metadata(dir.path().join(journal::FILE)).unwrap().len() < 2 << 20, "turn {turn}");
        }
        drop(vault);
        let vault = open(dir.path());
        assert_eq!(vault.position.sequence, 40);
        assert_eq!(vault.store().key(&record.id).unwrap(), Some(record));
        assert!(
            !std::fs::read_dir(dir.path())
                .unwrap()
                .any(|entry| { entry.unwrap().file_name().to_string_lossy().contains("damaged") })
        );
    }

    #[test]
    fn what_the_state_store_may_know_outlives_a_shortened_journal_and_a_lost_one() {
        let dir = tempfile::tempdir().unwrap();
        let look = || Found::look(LockedDirectory::take(dir.path()).unwrap()).unwrap();
        let mut vault = open(dir.path());
        vault.commit(&[Record::Account(account("a"))]).unwrap();
        drop(vault);
        assert!(!look().says_head(), "a first start that ended before its first head");
        let mut vault = open(dir.path());
        let known = vault.position;
        vault.changes().acknowledged(known);
        vault.say_head().unwrap();
        let (mut record, place) = (key("k", "a", &[]), vault.place());
        // The state store is away meanwhile.
        for name in ["1".to_owned(), "2".repeat(2 << 20), "3".to_owned()] {
            record.name = name;
            vault.commit(&[Record::Key(record.clone())]).unwrap();
        }
        assert_ne!(vault.place(), place, "it was shortened");
        drop(vault);
        for lost in [None, Some(store::DIR), Some(journal::FILE)] {
            match lost {
                Some(store::DIR) => std::fs::remove_dir_all(dir.path().join(store::DIR)).unwrap(),
                Some(file) => std::fs::remove_file(dir.path().join(file)).unwrap(),
                None => {}
            }
            let found = look();
            assert!(found.says_head(), "{lost:?}");
            assert_eq!(found.digest_at(known.sequence), Some(known.digest), "{lost:?}");
            assert_eq!(found.digest_at(known.sequence - 1), None, "{lost:?}");
            drop(found);
            drop(open(dir.path()));
        }
        let mut vault = open(dir.path());
        vault.changes().acknowledged(vault.position);
        vault.commit(&[Record::Account(account("b"))]).unwrap();
        drop(vault);
        std::fs::remove_file(dir.path().join(journal::FILE)).unwrap();
        assert_eq!(look().digest_at(known.sequence), None, "the state store knows of a later one");
    }

    #[test]
    fn a_store_that_changes_behind_our_back_is_not_taken_into_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = open(dir.path());
        let other = Image::of(Lineage::from_random([2; 16]), 1, vec![Record::Account(account("x"))]).unwrap();
        let mut record = key("k", "a", &[]);
        record.name = "n".repeat(2 << 20);
        vault.store.fill(&other).unwrap();
        vault.commit(&[Record::Key(record)]).unwrap();
        assert!(!vault.writable().load(Ordering::Acquire));
    }

    #[test]
    fn a_store_that_another_process_has_open_is_not_damage_and_nothing_is_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        let copy = dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(dir.path().join(journal::FILE), copy.join(journal::FILE)).unwrap();
        std::os::unix::fs::symlink(dir.path().join(store::DIR), copy.join(store::DIR)).unwrap();
        let second = Vault::open(&copy, Lineage::from_random([1; 16]), at(1));
        assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
        drop((first, second));
        let names = std::fs::read_dir(&copy).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!names.into_iter().any(|name| name.to_string_lossy().contains(".damaged-")));
        assert!(Vault::open(&copy, Lineage::from_random([1; 16]), at(1)).is_ok());
    }

    #[test]
    fn a_journal_that_was_rewritten_is_locked_as_the_first_one_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = open(dir.path());
        let place = vault.place();
        let mut record = key("k", "a", &[]);
        record.name = "n".repeat(2 << 20);
        vault.commit(&[Record::Key(record)]).unwrap();
        assert_ne!(vault.place(), place, "it was shortened");
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        let second = Vault::open(dir.path(), Lineage::from_random([1; 16]), at(1));
        assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
    }

    #[test]
    fn a_keystore_whose_lease_is_over_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut vault = open(dir.path());
        vault.tenure = Tenure::of_nobody();
        let before = std::fs::read(dir.path().join(journal::FILE)).unwrap();
        let refused = vault.commit(&[Record::Account(account("a"))]);
        assert!(matches!(refused, Err(CommitError::LeaseOver)), "{refused:?}");
        assert_eq!(std::fs::read(dir.path().join(journal::FILE)).unwrap(), before);
        vault.tenure = Tenure::for_life();
        vault.commit(&[Record::Account(account("a"))]).unwrap();
    }

    #[test]
    fn only_one_may_open_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _first = open(dir.path());
        let second = Vault::open(dir.path(), Lineage::from_random([1; 16]), at(1));
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
    fn what_was_forgotten_in_the_change_that_a_crash_interrupted_is_forgotten_by_the_store_too() {
        let dir = tempfile::tempdir().unwrap();
        let (data, aside) = (dir.path().join("data"), dir.path().join("aside"));
        let (kept, gone) = (key("kept", "a", &[]), key("gone", "a", &[]));
        let mut vault = open(&data);
        let records = [Record::Account(account("a")), Record::Key(kept.clone()), Record::Key(gone.clone())];
        vault.commit(&records).unwrap();
        drop(vault);
        copy(&data.join(store::DIR), &aside);
        let mut vault = open(&data);
        let forgotten = Forgotten::Key { id: gone.id.clone(), account: gone.account.clone() };
        vault.commit(&[Record::Forgotten(forgotten)]).unwrap();
        drop(vault);
        // As if the process had ended between the journal and the store.
        std::fs::remove_dir_all(data.join(store::DIR)).unwrap();
        copy(&aside, &data.join(store::DIR));
        for _ in 0..2 {
            let vault = open(&data);
            assert!(vault.store().key(&gone.id).unwrap().is_none());
            let listed = vault.store().keys(&kept.account, None, 9).unwrap();
            assert_eq!(listed, std::slice::from_ref(&kept));
        }
        let names = std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!names.into_iter().any(|name| name.to_string_lossy().contains(".damaged-")));
    }
}
