//! Disk space that is reserved for taking rights away.
//!
//! The file `reserve` is released step by step when the disk is full, so that a revocation can be stored and a new key
//! cannot. Where the file system does not say how much is free, nothing is refused in advance.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::errors::chain;
use crate::metrics;

pub(crate) const FILE: &str = "reserve";

const RESERVE_BYTES: u64 = 8 << 20;
/// Released at a time: other programs can take what is released. The store grows by segments of 512 KiB.
const STEP_BYTES: u64 = 1 << 20;
/// With less free space, only changes that take rights away are stored.
const MIN_FREE_BYTES: u64 = 4 << 20;
/// That must remain beside the file for it to be created: more than the minimum, so that it does not come and go.
const ROOM_BYTES: u64 = 2 * MIN_FREE_BYTES;

#[derive(Debug)]
pub(crate) struct Reserve {
    dir: PathBuf,
    held: u64,
    pub(crate) low: Arc<AtomicBool>,
}

impl Reserve {
    /// Finds the file, and creates none. On a full disk a step is released at once, because opening the store writes.
    pub(crate) fn find(dir: &Path) -> io::Result<Self> {
        let held = match std::fs::symlink_metadata(dir.join(FILE)) {
            Ok(found) if found.is_file() => found.len(),
            Ok(_) => return Err(io::Error::other("`reserve` is not a file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let mut reserve = Self { dir: dir.to_owned(), held, low: Arc::default() };
        reserve.make_room(true);
        Ok(reserve)
    }

    /// For a change that takes rights away, space is released if needed.
    pub(crate) fn make_room(&mut self, takes_away: bool) -> bool {
        let free = self.check();
        if !takes_away {
            return free >= MIN_FREE_BYTES;
        }
        while self.free() < STEP_BYTES && self.release_step() {}
        true
    }

    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        self.free() >= MIN_FREE_BYTES.saturating_add(bytes)
    }

    pub(crate) fn release_step(&mut self) -> bool {
        if self.held == 0 {
            return false;
        }
        let left = self.held.saturating_sub(STEP_BYTES);
        let cut = OpenOptions::new().write(true).open(self.dir.join(FILE)).and_then(|file| {
            file.set_len(left)?;
            // Only now are the blocks free for another file.
            file.sync_all()
        });
        if let Err(error) = cut {
            tracing::error!(error = %chain(&error), "disk reserve cannot be given up");
            return false;
        }
        self.held = left;
        tracing::warn!(left, "disk is full: part of the reserve was given up for revocations");
        true
    }

    /// Creates the file again if there is room, and updates the disk state.
    pub(crate) fn maintain(&mut self) {
        let free = self.check();
        let missing = RESERVE_BYTES.saturating_sub(self.held);
        if missing > 0 && free >= missing.saturating_add(ROOM_BYTES) {
            match self.fill() {
                Ok(()) => self.held = RESERVE_BYTES,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "disk reserve cannot be made");
                    self.held = std::fs::metadata(self.dir.join(FILE)).map_or(0, |found| found.len());
                }
            }
        }
        metrics::reserve(self.held);
    }

    fn fill(&self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(false).mode(0o600).open(self.dir.join(FILE))?;
        if fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES).is_err() {
            write_random(&mut file)?;
        }
        file.sync_all()
    }

    /// Free space. Logs when the disk becomes nearly full and when it has room again.
    fn check(&self) -> u64 {
        let free = self.free();
        let low = free < MIN_FREE_BYTES;
        if low != self.low.swap(low, Ordering::AcqRel) {
            if low {
                tracing::error!(free, "disk of the keystore is nearly full: only revocations and deletions are stored");
            } else {
                tracing::info!(free, "disk of the keystore has room again");
            }
        }
        free
    }

    /// Free bytes, or the maximum if the file system does not say.
    fn free(&self) -> u64 {
        match statvfs(&self.dir) {
            Ok(found) if found.f_blocks > 0 => found.f_bavail.saturating_mul(found.f_frsize),
            Ok(_) | Err(_) => u64::MAX,
        }
    }
}

/// Random bytes, which no file system stores as a hole or compresses.
fn write_random(file: &mut File) -> io::Result<()> {
    let mut random = vec![0; 1 << 16];
    let mut left = RESERVE_BYTES;
    while left > 0 {
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        file.write_all(&random)?;
        left = left.saturating_sub(random.len() as u64);
    }
    Ok(())
}

pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Reserve {
        let mut reserve = Reserve::find(dir).unwrap();
        reserve.maintain();
        reserve
    }

    #[test]
    fn finding_a_reserve_creates_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Reserve::find(dir.path()).unwrap().held, 0);
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_reserve_is_created_where_there_is_room_and_again_after_its_release() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = open(dir.path());
        let length = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert_eq!(length(), RESERVE_BYTES);
        assert!(reserve.release_step());
        assert_eq!(length(), RESERVE_BYTES - STEP_BYTES);
        while reserve.release_step() {}
        assert_eq!((length(), reserve.held), (0, 0));
        reserve.maintain();
        assert_eq!((length(), open(dir.path()).held), (RESERVE_BYTES, RESERVE_BYTES));
    }

    #[test]
    fn random_bytes_fill_the_reserve_where_a_file_system_cannot_allocate() {
        let mut file = tempfile::tempfile().unwrap();
        write_random(&mut file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), RESERVE_BYTES);
    }
}
