//! A file that a command makes: new, for its owner alone, and whole or not there.
//!
//! INVARIANT: nobody's file is overwritten, and under the name that was asked for never stands a part of what it should hold: the name is
//! taken by an empty file, the content is written to `NAME.part` and takes its place at the end. What fails before leaves
//! neither behind; a crash leaves both, and the empty one shows it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A file that is not finished yet.
pub(crate) struct NewFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    /// Takes the name, of mode 0600; fails when it is taken.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let cannot = |path: &Path| format!("cannot make `{}`", path.display());
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        new(path).with_context(|| cannot(path))?;
        let file = new(&part).inspect_err(|_| remove(path)).with_context(|| cannot(&part))?;
        Ok(Self { path: path.to_owned(), part, file, kept: false })
    }

    /// Adds to it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write `{}`", self.part.display()))
    }

    /// Says that it is complete: it is on disk under its name when this returns.
    pub(crate) fn keep(mut self) -> anyhow::Result<()> {
        self.place().with_context(|| format!("cannot write `{}`", self.path.display()))?;
        self.kept = true;
        Ok(())
    }

    fn place(&self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.part, &self.path)?;
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
            Some(_) | None => File::open(".")?.sync_all(),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            remove(&self.part);
            remove(&self.path);
        }
    }
}

fn new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// It is ours; when it cannot be removed, what went wrong before is still what matters.
fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_not_finished_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = NewFile::create(&path).unwrap();
        file.write(b"half").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"", "nobody takes the half for the whole");
        drop(file);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn what_is_finished_is_there_and_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = NewFile::create(&path).unwrap();
        file.write(b"wh").unwrap();
        file.write(b"ole").unwrap();
        file.keep().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn a_file_that_is_there_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        for taken in ["x", "x.part"] {
            std::fs::write(dir.path().join(taken), "somebody's").unwrap();
            assert!(NewFile::create(&dir.path().join("x")).is_err(), "{taken}");
            assert_eq!(names(dir.path()), [taken]);
            assert_eq!(std::fs::read(dir.path().join(taken)).unwrap(), b"somebody's");
            std::fs::remove_file(dir.path().join(taken)).unwrap();
        }
    }
}
