//! A file that a command creates: new, mode 0600, and complete or not there.
//!
//! INVARIANT: no existing file is overwritten, and the file never holds a part of its content. An empty file reserves
//! the name until `NAME.part` replaces it. A failure removes both; a crash leaves both.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::files::sync_parent;

pub(crate) struct NewFile {
    path: PathBuf,
    part: PathBuf,
    file: File,
    is_complete: bool,
}

impl NewFile {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let cannot = |path: &Path| format!("cannot create `{}`", path.display());
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        new(path).with_context(|| cannot(path))?;
        let file = new(&part).inspect_err(|_| remove(path)).with_context(|| cannot(&part))?;
        Ok(Self { path: path.to_owned(), part, file, is_complete: false })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write `{}`", self.part.display()))
    }

    pub(crate) fn keep_line(mut self, text: &str) -> anyhow::Result<()> {
        self.write(format!("{text}\n").as_bytes())?;
        self.keep()
    }

    /// Completes the file: it is on disk under its name when this returns.
    pub(crate) fn keep(mut self) -> anyhow::Result<()> {
        let kept = self
            .file
            .sync_all()
            .and_then(|()| std::fs::rename(&self.part, &self.path))
            .and_then(|()| sync_parent(&self.path));
        kept.with_context(|| format!("cannot write `{}`", self.path.display()))?;
        self.is_complete = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_complete {
            remove(&self.part);
            remove(&self.path);
        }
    }
}

fn new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A failure is ignored: the error that led here is the one to report.
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
    fn an_incomplete_file_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut file = NewFile::create(&path).unwrap();
        file.write(b"half").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"", "the incomplete content has another name");
        drop(file);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_complete_file_is_there_with_mode_0600() {
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
    fn an_existing_file_is_not_overwritten() {
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
