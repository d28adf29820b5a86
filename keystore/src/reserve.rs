//! Disk space that is kept for taking rights away.
//!
//! Owns the file `reserve` of the data directory, which holds nothing and is given up step by step when the disk is full, and the
//! rule who may use what it frees: a revocation can be stored on a full disk, a new key cannot. Refuses to guess: where the file system
//! does not say how much is free, nothing is refused, and the write itself tells. The file is made again once there is room.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::metrics;

pub(crate) const FILE: &str = "reserve";

const RESERVE_BYTES: u64 = 8 << 20;
/// Given up at a time, as what is freed can be taken by whatever filled the disk. The store grows by segments of 512 KiB.
const STEP_BYTES: u64 = 1 << 20;
/// With less free than this, only what takes rights away is stored.
const MIN_FREE_BYTES: u64 = 4 << 20;
/// With so much free beside it the file is made, or made again: more than the minimum, so that it does not come and go.
const ROOM_BYTES: u64 = 2 * MIN_FREE_BYTES;

/// The reserve of an open data directory.
#[derive(Debug)]
pub(crate) struct Reserve {
    dir: PathBuf,
    held: u64,
    low: Arc<AtomicBool>,
}

impl Reserve {
    /// Looks what is there, and makes nothing. A disk that is full gives up a step at once: opening the store writes.
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

    /// Whether the disk is nearly full, for whoever tells how the keystore is.
    pub(crate) fn low(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.low)
    }

    /// Whether a change may be stored; one that takes rights away may, and is given room if need be.
    pub(crate) fn make_room(&mut self, takes_away: bool) -> bool {
        let free = self.look();
        if !takes_away {
            return free >= MIN_FREE_BYTES;
        }
        while self.free() < STEP_BYTES && self.give_step() {}
        true
    }

    /// Whether so much more can be written without coming near the end.
    pub(crate) fn has_room_for(&self, bytes: u64) -> bool {
        self.free() >= MIN_FREE_BYTES.saturating_add(bytes)
    }

    /// Gives up some of the file; false when nothing was left.
    pub(crate) fn give_step(&mut self) -> bool {
        if self.held == 0 {
            return false;
        }
        let left = self.held.saturating_sub(STEP_BYTES);
        let cut = OpenOptions::new().write(true).open(self.dir.join(FILE)).and_then(|file| {
            file.set_len(left)?;
            // Only then can another file have the blocks.
            file.sync_all()
        });
        if let Err(error) = cut {
            tracing::error!(%error, "disk reserve cannot be given up");
            return false;
        }
        self.held = left;
        tracing::warn!(left, "disk is full: part of the reserve was given up for revocations");
        true
    }

    /// Makes the file again where there is room, and notes how full the disk is.
    pub(crate) fn tend(&mut self) {
        let free = self.look();
        let missing = RESERVE_BYTES.saturating_sub(self.held);
        if missing > 0 && free >= missing.saturating_add(ROOM_BYTES) {
            match self.fill() {
                Ok(()) => self.held = RESERVE_BYTES,
                Err(error) => {
                    tracing::warn!(%error, "disk reserve cannot be made");
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
            write_noise(&mut file)?;
        }
        file.sync_all()
    }

    /// What is free, noted.
    fn look(&self) -> u64 {
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

    /// Everything, where the file system does not say.
    fn free(&self) -> u64 {
        match statvfs(&self.dir) {
            Ok(found) if found.f_blocks > 0 => found.f_bavail.saturating_mul(found.f_frsize),
            Ok(_) | Err(_) => u64::MAX,
        }
    }
}

/// Bytes that no file system stores as a hole or in less space.
fn write_noise(file: &mut File) -> io::Result<()> {
    let mut noise = vec![0; 1 << 16];
    let mut left = RESERVE_BYTES;
    while left > 0 {
        getrandom::fill(&mut noise).map_err(io::Error::other)?;
        file.write_all(&noise)?;
        left = left.saturating_sub(noise.len() as u64);
    }
    Ok(())
}

/// Whether an error says that there is no room, by the disk's size or a quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> Reserve {
        let mut reserve = Reserve::find(dir).unwrap();
        reserve.tend();
        reserve
    }

    #[test]
    fn looking_makes_no_reserve() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Reserve::find(dir.path()).unwrap().held, 0);
        assert!(!dir.path().join(FILE).exists());
    }

    #[test]
    fn a_disk_with_room_gets_a_reserve_and_one_that_is_given_up_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut reserve = open(dir.path());
        let length = || std::fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert_eq!(length(), RESERVE_BYTES);
        assert!(reserve.give_step());
        assert_eq!(length(), RESERVE_BYTES - STEP_BYTES);
        while reserve.give_step() {}
        assert_eq!((length(), reserve.held), (0, 0));
        reserve.tend();
        assert_eq!((length(), open(dir.path()).held), (RESERVE_BYTES, RESERVE_BYTES));
    }

    #[test]
    fn noise_fills_the_reserve_where_a_file_system_cannot_allocate() {
        let mut file = tempfile::tempfile().unwrap();
        write_noise(&mut file).unwrap();
        assert_eq!(file.metadata().unwrap().len(), RESERVE_BYTES);
    }
}
