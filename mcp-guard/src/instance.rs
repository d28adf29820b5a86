//! Which of several guards of one server a process is: its id and counts, in a file of its own.
//!
//! Every process that runs has another file, and holds a lock on it as long as it lives. A process that ended in order
//! leaves its file to the next one, so an editor that is opened every day stays one guard. The file of a process that
//! was killed is left alone until its silence has shown: no neighbour and no successor hides it.
//! INVARIANT: the file decides nothing. Where it cannot be used, the guard runs under an id of its own.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stage0_contract::{GuardCounts, GuardId};

/// Guards of one server that can have a file at once.
const MAX_INSTANCES: u32 = 100;
/// After a report is overdue: time for the server to notice and to say so.
const SILENCE_SHOWS_AFTER: Duration = Duration::from_secs(180);
/// Of the server's name, in the guard's id.
const MAX_NAMED_CHARS: usize = 40;
const RANDOM_BYTES: usize = 5;
/// Of the hash of server and key, in the file's name.
const HASH_HEX_CHARS: usize = 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    guard_id: GuardId,
    #[serde(flatten)]
    counts: GuardCounts,
    /// When the server misses the next report. `None`: it misses none.
    #[serde(default)]
    due_at: Option<Timestamp>,
}

/// The file of this process. It is another's when this is dropped.
#[derive(Debug)]
pub(crate) struct Instance {
    path: PathBuf,
    /// Held, not read.
    _lock: File,
    kept: Kept,
}

/// Why a process has no file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceError {
    #[error("cannot use `{}`: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{MAX_INSTANCES} guards of this server run or were killed a moment ago")]
    TooMany,
    #[error("no random numbers")]
    Random,
}

impl Instance {
    /// Takes a file that is free: first one that was left in order, then one whose silence has shown, then a new one.
    pub(crate) fn claim(dir: &Path, server: &str, principal: &str, now: Timestamp) -> Result<Self, InstanceError> {
        let failed = |path: &Path, source| InstanceError::File { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(dir, error))?;
        let hash = HEXLOWER.encode(&Sha256::digest(serde_json::json!([server, principal]).to_string()));
        let hash = hash.get(..HASH_HEX_CHARS).unwrap_or_default();
        let mut silent = None;
        for number in 1..=MAX_INSTANCES {
            let path = dir.join(format!("{server}-{hash}.{number}.json"));
            let lock_path = path.with_extension("lock");
            let Some(lock) = try_lock(&lock_path).map_err(|error| failed(&lock_path, error))? else { continue };
            // A file that cannot be read is begun again, under another id: the old one turns silent.
            let kept: Option<Kept> = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match kept {
                Some(kept) if kept.due_at.is_none() => return Ok(Self { path, _lock: lock, kept }),
                Some(kept) if kept.has_shown_its_silence(now) => {
                    silent.get_or_insert(Self { path, _lock: lock, kept });
                }
                Some(_) => {}
                None => {
                    let guard_id = new_id(server).ok_or(InstanceError::Random)?;
                    let kept = Kept { guard_id, counts: GuardCounts::default(), due_at: None };
                    return Ok(silent.unwrap_or(Self { path, _lock: lock, kept }));
                }
            }
        }
        silent.ok_or(InstanceError::TooMany)
    }

    pub(crate) fn id(&self) -> &GuardId {
        &self.kept.guard_id
    }

    /// What the processes of this file counted before.
    pub(crate) fn counts(&self) -> GuardCounts {
        self.kept.counts
    }

    /// Keeps what was reported: these counts, and when the next report is due.
    pub(crate) fn keep(&self, counts: GuardCounts, due_at: Option<Timestamp>) -> io::Result<()> {
        let kept = Kept { guard_id: self.kept.guard_id.clone(), counts, due_at };
        let beside = self.path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&serde_json::to_vec(&kept)?)?;
        std::fs::rename(&beside, &self.path)
    }
}

impl Kept {
    fn has_shown_its_silence(&self, now: Timestamp) -> bool {
        self.due_at.is_some_and(|due_at| due_at.saturating_add(SILENCE_SHOWS_AFTER).is_ok_and(|shown| shown < now))
    }
}

/// An id that no other guard has.
pub(crate) fn new_id(server: &str) -> Option<GuardId> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).ok()?;
    let plain = server.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    let named: String = plain.take(MAX_NAMED_CHARS).collect();
    GuardId::parse(&format!("mcp-{named}-{}", HEXLOWER.encode(&random))).ok()
}

/// `None`: another process holds it. The system gives it back when that process ends, in whatever way.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::UNIX_EPOCH;

    fn after(seconds: u64) -> Timestamp {
        START + Duration::from_secs(seconds)
    }

    fn claim(dir: &Path, seconds: u64) -> Instance {
        Instance::claim(dir, "a.b", "key", after(seconds)).unwrap()
    }

    fn counts(asked: u64) -> GuardCounts {
        GuardCounts { asked, ..GuardCounts::default() }
    }

    #[test]
    fn guards_that_run_at_the_same_time_have_ids_of_their_own_and_the_next_ones_have_them_again() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (claim(dir.path(), 0), claim(dir.path(), 0));
        assert_ne!(first.id(), second.id());
        assert!(first.id().to_string().starts_with("mcp-a-b-"));
        first.keep(counts(3), None).unwrap();
        second.keep(counts(0), Some(after(180))).unwrap();
        let id = first.id().clone();
        drop(first);
        let next = claim(dir.path(), 1);
        assert_eq!((next.id(), next.counts()), (&id, counts(3)), "it ended in order");
        let others = Instance::claim(dir.path(), "a.b", "another", START).unwrap();
        assert!(others.id() != &id && others.id() != second.id(), "the key is another");
    }

    #[test]
    fn the_id_of_a_killed_guard_is_left_alone_until_its_silence_has_shown() {
        let dir = tempfile::tempdir().unwrap();
        let killed = claim(dir.path(), 0);
        killed.keep(counts(1), Some(after(180))).unwrap();
        let id = killed.id().clone();
        drop(killed);
        let neighbour = claim(dir.path(), 359);
        neighbour.keep(counts(0), None).unwrap();
        let neighbours = neighbour.id().clone();
        assert_ne!(neighbours, id, "it would hide the silence");
        drop(neighbour);
        let next = claim(dir.path(), 361);
        assert_eq!(next.id(), &neighbours, "one that ended in order comes first");
        let later = claim(dir.path(), 361);
        assert_eq!((later.id(), later.counts()), (&id, counts(1)));
    }

    #[test]
    fn a_damaged_file_is_begun_again_under_another_id() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(dir.path(), 0);
        first.keep(counts(1), None).unwrap();
        let (path, id) = (first.path.clone(), first.id().clone());
        drop(first);
        std::fs::write(&path, "{").unwrap();
        let again = claim(dir.path(), 0);
        assert!(again.id() != &id && again.path == path && again.counts() == counts(0));
    }

    #[test]
    fn more_guards_than_there_are_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut held: Vec<Instance> = (0..MAX_INSTANCES).map(|_| claim(dir.path(), 0)).collect();
        let refused = Instance::claim(dir.path(), "a.b", "key", START);
        assert!(matches!(refused, Err(InstanceError::TooMany)), "{refused:?}");
        held.pop();
        claim(dir.path(), 0);
    }

    #[test]
    fn an_id_is_short_enough_whatever_the_servers_name() {
        assert!(new_id(&"a".repeat(64)).unwrap().to_string().len() <= 64);
    }
}
