//! Writes private files atomically: mode 0600, and complete or not there.
//!
//! INVARIANT: a reader sees the old content or the new one, even after a crash at any point: a temporary file is
//! written, synced and renamed, and then the directory is synced. A file keeps its owner when root replaces it, so that
//! the role can read it at every moment.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::Path;

use anyhow::Context as _;

pub(crate) fn private_dir(path: &Path) -> anyhow::Result<()> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.with_context(|| format!("cannot create the directory `{}`", path.display()))
}

pub(crate) fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    write_and_rename(path, text).with_context(|| format!("cannot write `{}`", path.display()))
}

fn write_and_rename(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // A crash may have left one with another mode, so it is created again.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(text.as_bytes())?;
    // Only root may give a file away.
    if let Ok(replaced) = fs::metadata(path)
        && file.metadata()?.uid() == 0
    {
        fchown(&file, Some(replaced.uid()), Some(replaced.gid()))?;
    }
    file.sync_all()?;
    fs::rename(temporary, path)?;
    sync_parent(path)
}

/// Syncs the directory of a file, so that a rename survives a power cut.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_temporary_file_left_by_a_crash_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.key");
        fs::write(&path, "old").unwrap();
        fs::write(dir.path().join("api.key.new"), "half").unwrap();
        replace(&path, "new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
