//! The journal: every acknowledged change, in order, fsynced before the store gets it.
//!
//! Owns one append-only file, which stays locked, and its good end. An append is either on disk or cut off again. If
//! even that fails, the caller must stop writing, or a later frame would follow garbage. [`frame`] has the format.

mod frame;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub(crate) use frame::{End, FrameError, Replay, replay, replay_until};

use crate::store::disk;
use crate::store::record::Record;
use crate::store::snapshot::Snapshot;
use frame::FrameBody;

/// The journal's file in the data directory. Where it exists, a keystore has started before.
pub const FILE: &str = "journal";

const MIN_REWRITE_BYTES: u64 = 1 << 20;
/// A journal is rewritten when it is this many times as large as its snapshot.
const REWRITE_FACTOR: u64 = 4;

#[derive(Debug)]
pub(crate) struct Journal {
    pub(super) dir: PathBuf,
    /// Locked, and positioned at its end.
    pub(super) file: File,
    pub(super) end: u64,
    snapshot_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    #[error("the change cannot be framed")]
    Frame(#[source] FrameError),
    #[error("the journal cannot be appended to")]
    RolledBack(#[source] io::Error),
    /// Unknown bytes are at the end: nothing more may be appended.
    #[error("the journal cannot be cut back after a failed append")]
    Stuck(#[source] io::Error),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RewriteError {
    #[error("the records cannot be framed")]
    Frame(#[source] FrameError),
    #[error("the journal cannot be written")]
    Io(#[source] io::Error),
}

pub(crate) fn read(mut file: &File) -> io::Result<Replay> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(frame::replay(&bytes))
}

/// A journal of one frame, which has everything.
pub(crate) fn of_snapshot(snapshot: &Snapshot) -> Result<Vec<u8>, FrameError> {
    let Snapshot { position, trail, .. } = snapshot;
    let entry = FrameBody::Snapshot { store_id: position.store_id, records: snapshot.records(), trail: trail.clone() };
    frame::encode(position.sequence, &entry)
}

impl Journal {
    /// Continues a locked journal that was read up to `replay.good`. Bytes after that are cut off.
    pub(crate) fn open(dir: &Path, file: File, replay: &Replay) -> io::Result<Self> {
        let mut journal =
            Self { dir: dir.to_owned(), file, end: replay.good as u64, snapshot_bytes: replay.snapshot_bytes as u64 };
        journal.cut()?;
        Ok(journal)
    }

    /// Replaces the journal by one that begins with these records. The new file is locked before it gets its name.
    pub(crate) fn rewrite(dir: &Path, snapshot: &Snapshot) -> Result<Self, RewriteError> {
        let bytes = of_snapshot(snapshot).map_err(RewriteError::Frame)?;
        let file = disk::replace_locked(dir, FILE, &bytes).map_err(RewriteError::Io)?;
        let end = bytes.len() as u64;
        Ok(Self { dir: dir.to_owned(), file, end, snapshot_bytes: end })
    }

    /// `Ok` means that the change is on disk. Returns where the journal ended before it, and its frame.
    pub(crate) fn append(&mut self, sequence: u64, records: Vec<Record>) -> Result<(u64, Vec<u8>), AppendError> {
        let bytes = frame::encode(sequence, &FrameBody::Change(records)).map_err(AppendError::Frame)?;
        let before = self.end;
        match self.file.write_all(&bytes).and_then(|()| self.file.sync_all()) {
            Ok(()) => {
                self.end += bytes.len() as u64;
                Ok((before, bytes))
            }
            Err(error) => {
                self.cut().map_err(AppendError::Stuck)?;
                Err(AppendError::RolledBack(error))
            }
        }
    }

    /// Takes the last append back, because the store could not apply it. `before` is what the append returned.
    pub(crate) fn undo(&mut self, before: u64) -> io::Result<()> {
        self.end = before;
        self.cut()
    }

    pub(crate) fn has_outgrown_its_snapshot(&self) -> bool {
        self.end > MIN_REWRITE_BYTES.max(self.snapshot_bytes.saturating_mul(REWRITE_FACTOR))
    }

    /// Makes writes fail, as when the file system becomes read-only after an error.
    #[cfg(test)]
    pub(crate) fn make_read_only(&mut self) {
        if let Ok(file) = File::open(self.dir.join(FILE)) {
            self.file = file;
        }
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.sync_all()
    }
}
