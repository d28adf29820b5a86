//! The journal: every acknowledged change, in order, fsynced before the store hears of it.
//!
//! Owns one append-only file, locked for life, and its good end. An append either is on disk or is cut off again; when
//! even the cut fails, the caller must stop writing, or a later frame would stand behind garbage. What a file means is
//! [`frame`]'s to say.

mod frame;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

pub(crate) use frame::{End, FrameError, Replay};

use crate::disk;
use crate::image::Image;
use crate::record::Record;
use frame::Entry;

/// The journal's file in the data directory: where it is, a keystore has begun.
pub const FILE: &str = "journal";

/// Below this a journal is not worth rewriting.
const SMALL: u64 = 1 << 20;
/// How often the live state must fit into the journal before it is rewritten.
const GROWN: u64 = 4;

/// The open file, positioned at its good end.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    file: File,
    end: u64,
    snapshot: u64,
}

/// A change was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppendError {
    #[error("the change cannot be framed")]
    Frame(#[source] FrameError),
    /// As if it had never been tried.
    #[error("the journal cannot be appended to")]
    Undone(#[source] io::Error),
    /// Unknown bytes stand at the end: nothing more may be appended.
    #[error("the journal cannot be cut back after a failed append")]
    Stuck(#[source] io::Error),
}

/// A journal could not be made anew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RewriteError {
    #[error("the records cannot be framed")]
    Frame(#[source] FrameError),
    #[error("the journal cannot be written")]
    Io(#[source] io::Error),
}

/// Reads a journal from its beginning.
pub(crate) fn read(mut file: &File) -> io::Result<Replay> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(frame::replay(&bytes))
}

impl Journal {
    /// Goes on with a locked journal that was read and found good up to `replay.good`; what stands behind is cut off.
    pub(crate) fn open(dir: &Path, file: File, replay: &Replay) -> io::Result<Self> {
        let mut journal = Self { dir: dir.to_owned(), file, end: replay.good as u64, snapshot: replay.snapshot as u64 };
        journal.cut()?;
        Ok(journal)
    }

    /// Puts a new journal in place that begins with these records, locked before it is there.
    pub(crate) fn rewrite(dir: &Path, image: &Image) -> Result<Self, RewriteError> {
        let position = image.position;
        let (records, trail) = (image.records(), image.trail.clone());
        let entry = Entry::Snapshot { lineage: position.lineage, records, trail };
        let bytes = frame::encode(position.sequence, &entry).map_err(RewriteError::Frame)?;
        let file = disk::replace_locked(dir, FILE, &bytes).map_err(RewriteError::Io)?;
        let end = bytes.len() as u64;
        Ok(Self { dir: dir.to_owned(), file, end, snapshot: end })
    }

    /// Appends one change. `Ok` means on disk.
    pub(crate) fn append(&mut self, sequence: u64, records: Vec<Record>) -> Result<Appended, AppendError> {
        let bytes = frame::encode(sequence, &Entry::Change(records)).map_err(AppendError::Frame)?;
        let before = self.end;
        match self.file.write_all(&bytes).and_then(|()| self.file.sync_all()) {
            Ok(()) => {
                self.end += bytes.len() as u64;
                Ok(Appended { before })
            }
            Err(error) => {
                self.cut().map_err(AppendError::Stuck)?;
                Err(AppendError::Undone(error))
            }
        }
    }

    /// Takes the last append back, because the store could not follow.
    pub(crate) fn undo(&mut self, Appended { before }: Appended) -> io::Result<()> {
        self.end = before;
        self.cut()
    }

    /// Whether most of the file is history that the live state no longer needs.
    pub(crate) fn has_outgrown_its_snapshot(&self) -> bool {
        self.end > SMALL.max(self.snapshot.saturating_mul(GROWN))
    }

    /// Its size: a rewrite takes no more.
    pub(crate) fn bytes(&self) -> u64 {
        self.end
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that is locked.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// As when the file system turns read-only after an error.
    #[cfg(test)]
    pub(crate) fn lose_the_right_to_write(&mut self) {
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

/// What [`Journal::undo`] takes back; only the last append can be.
#[derive(Debug)]
pub(crate) struct Appended {
    before: u64,
}
