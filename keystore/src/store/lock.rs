//! One process at a time in a data directory.
//!
//! Owns two locks, held until the process ends: one on the file `lock` and one on the journal, to which every change is
//! appended. A lock file can be removed and then guards nothing, so the lock of the journal is the one that counts.
//! INVARIANT: a file is locked only while its name still leads to it, and a new journal is locked before it gets its
//! name. So no second process can ever lock the file that `journal` names.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::OpenError;
use crate::keyfile::{OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE};
use crate::store::{disk, journal};

const LOCK: &str = "lock";
/// A file that is replaced this often between opening and locking belongs to a directory that is in use.
const MAX_TRIES: u32 = 100;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug)]
pub(crate) struct LockedDirectory {
    pub(crate) dir: PathBuf,
    /// Open for reading and writing, and locked, if it exists.
    pub(crate) journal: Option<File>,
    pub(crate) lock: File,
}

impl LockedDirectory {
    pub(crate) fn take(dir: &Path) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Directory(dir.to_owned(), error);
        let own = [OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE, journal::FILE];
        disk::private_dir(dir).and_then(|()| disk::private_files(dir, &own)).map_err(failed)?;
        let in_use = |error: TryLockError| match error {
            TryLockError::WouldBlock => OpenError::Locked(dir.to_owned()),
            TryLockError::Error(error) => OpenError::Directory(dir.to_owned(), error),
        };
        let create = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        let lock = locked(&dir.join(LOCK), &create).map_err(in_use)?;
        let lock = lock.ok_or_else(|| OpenError::Locked(dir.to_owned()))?;
        let journal = locked(&dir.join(journal::FILE), OpenOptions::new().read(true).write(true)).map_err(in_use)?;
        Ok(Self { dir: dir.to_owned(), journal, lock })
    }

    /// Identifies the locked journal among all journals on running hosts. `None` without a journal.
    pub(crate) fn journal_id(&self) -> Option<String> {
        self.journal.as_ref().and_then(|journal| journal_id_of(&journal.metadata().ok()?))
    }
}

/// Like [`LockedDirectory::journal_id`], for a directory that is not locked.
pub(crate) fn journal_id(dir: &Path) -> Option<String> {
    journal_id_of(&std::fs::metadata(dir.join(journal::FILE)).ok()?)
}

pub(crate) fn journal_id_of(file: &std::fs::Metadata) -> Option<String> {
    let boot = std::fs::read_to_string(BOOT_ID).ok()?;
    Some(format!("{}/{}/{}", boot.trim(), file.dev(), file.ino()))
}

/// Opens and locks the file that the name leads to. `None` if there is no such file.
fn locked(path: &Path, options: &OpenOptions) -> Result<Option<File>, TryLockError> {
    for _ in 0..MAX_TRIES {
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TryLockError::Error(error)),
        };
        file.try_lock()?;
        let ours = file.metadata().map_err(TryLockError::Error)?;
        let named = std::fs::metadata(path);
        // Otherwise it was removed or replaced between opening and locking.
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino())) {
            return Ok(Some(file));
        }
    }
    Err(TryLockError::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stays_locked_by_its_journal_when_the_lock_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(journal::FILE), "x").unwrap();
        let first = LockedDirectory::take(dir.path()).unwrap();
        assert!(first.journal_id().is_some() && first.journal_id() == journal_id(dir.path()));
        std::fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert!(matches!(LockedDirectory::take(dir.path()), Err(OpenError::Locked(_))));
        drop(first);
        assert!(LockedDirectory::take(dir.path()).is_ok());
    }

    #[test]
    fn a_directory_without_a_journal_is_locked_by_its_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let first = LockedDirectory::take(dir.path()).unwrap();
        assert_eq!((first.journal_id(), journal_id(dir.path())), (None, None));
        assert!(matches!(LockedDirectory::take(dir.path()), Err(OpenError::Locked(_))));
    }
}
