//! The few file operations whose order decides what a crash leaves behind.
//!
//! Owns private modes (0600, 0700), write-then-rename and the fsync of directories: a name is on disk only once its directory
//! is. Everything here blocks; it is called from the writer's thread and at start.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Makes the directory, or takes away what others may do in it.
pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

/// Takes away what others may do with these files of the directory, as far as they are there.
pub(crate) fn private_files(dir: &Path, names: &[&str]) -> io::Result<()> {
    for file in names.iter().map(|name| dir.join(name)) {
        match std::fs::symlink_metadata(&file) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o077 != 0 => {
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
                tracing::warn!(file = %file.display(), "others could read a file of the keystore; now its owner alone can");
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// Puts a whole file in place: after a crash there is the old one or the new one.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    put(dir, name, bytes, |_| Ok(())).map(drop)
}

/// As [`replace`]; the new file is locked before it gets its name, and is returned at its end.
pub(crate) fn replace_locked(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<File> {
    put(dir, name, bytes, |file| file.try_lock().map_err(io::Error::from))
}

fn put(dir: &Path, name: &str, bytes: &[u8], lock: fn(&File) -> io::Result<()>) -> io::Result<File> {
    let unfinished = dir.join(format!("{name}.new"));
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&unfinished)?;
    lock(&file)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, dir.join(name))?;
    sync_dir(dir)?;
    Ok(file)
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
