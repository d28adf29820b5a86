//! One process at a time in a data directory.
//!
//! Owns the locks: one on the file `lock`, and one on the journal itself, which every change is appended to. A lock
//! file that somebody removes guards nothing, so that the journal's lock is what counts; both are held for life.
//! INVARIANT: a file is locked only while its name still leads to it, and a new journal is locked before it gets its
//! name: at no moment can a second process lock what `journal` names. That somebody else holds a lock is never damage.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::bootstrap::OPERATOR_KEY_FILE;
use crate::disk;
use crate::journal;
use crate::seal::SECRETS_KEY_FILE;
use crate::signer::SIGNING_KEY_FILE;
use crate::vault::OpenError;

const LOCK: &str = "lock";
/// A file that is replaced as often between opening and locking it is replaced by somebody who works in the directory.
const MAX_TRIES: u32 = 100;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A directory that no other process uses.
#[derive(Debug)]
pub(crate) struct LockedDirectory {
    pub(crate) dir: PathBuf,
    /// Open for reading and writing, and locked; none: there is none.
    pub(crate) journal: Option<File>,
    pub(crate) lock: File,
}

impl LockedDirectory {
    /// Makes the directory private, and locks it and its journal.
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

    /// Where the locked journal stands, in words that no other journal of any running host has; none without a journal.
    pub(crate) fn place(&self) -> Option<String> {
        self.journal.as_ref().and_then(|journal| place_of(&journal.metadata().ok()?))
    }
}

/// As [`LockedDirectory::place`], of a directory that is not locked: whoever is about to wait for it may compare.
pub(crate) fn place(dir: &Path) -> Option<String> {
    place_of(&std::fs::metadata(dir.join(journal::FILE)).ok()?)
}

/// Of an open file.
pub(crate) fn place_of(file: &std::fs::Metadata) -> Option<String> {
    let boot = std::fs::read_to_string(BOOT_ID).ok()?;
    Some(format!("{}/{}/{}", boot.trim(), file.dev(), file.ino()))
}

/// The file that the name leads to, locked; none: there is no such file.
fn locked(path: &Path, options: &OpenOptions) -> Result<Option<File>, TryLockError> {
    for _ in 0..MAX_TRIES {
        let file = match options.open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TryLockError::Error(error)),
        };
        file.try_lock()?;
        let (ours, named) = (file.metadata().map_err(TryLockError::Error)?, std::fs::metadata(path));
        // Removed or replaced between opening and locking: what was locked is nobody's file any more.
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
    fn a_removed_lock_file_lets_nobody_in_beside_a_locked_journal() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(journal::FILE), "x").unwrap();
        let first = LockedDirectory::take(dir.path()).unwrap();
        assert!(first.place().is_some() && first.place() == place(dir.path()));
        std::fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert!(matches!(LockedDirectory::take(dir.path()), Err(OpenError::Locked(_))));
        drop(first);
        assert!(LockedDirectory::take(dir.path()).is_ok());
    }

    #[test]
    fn a_directory_without_a_journal_is_held_by_its_lock_file() {
        let dir = tempfile::tempdir().unwrap();
        let first = LockedDirectory::take(dir.path()).unwrap();
        assert_eq!((first.place(), place(dir.path())), (None, None));
        assert!(matches!(LockedDirectory::take(dir.path()), Err(OpenError::Locked(_))));
    }
}
