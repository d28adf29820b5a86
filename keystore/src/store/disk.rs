//! The few file operations whose order decides what a crash leaves behind.
//!
//! Owns private modes (0600, 0700), write-then-rename, and the fsync of directories, without which a new name is not on
//! disk. Everything here blocks; it runs on the writer's thread and at start.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

pub(crate) fn private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => Ok(()),
    }
}

pub(crate) fn private_files(dir: &Path, names: &[&str]) -> io::Result<()> {
    for file in names.iter().map(|name| dir.join(name)) {
        match std::fs::symlink_metadata(&file) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o077 != 0 => {
                std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
                let file = file.display();
                tracing::warn!(%file, "others could read a file of the keystore; now its owner alone can");
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    put(dir, name, bytes, |_| Ok(())).map(drop)
}

/// Like [`replace`]. The new file is locked before it gets its name, and is returned positioned at its end.
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
