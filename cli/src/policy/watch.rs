//! Runs something again whenever a file of a pack changes. Files are asked for their time of change, because that works
//! on every file system, shared folders of containers included.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::exit::Exit;
use crate::{failure, out};

const INTERVAL: Duration = Duration::from_millis(300);
/// As many files of a folder are watched.
const MAX_FILES: usize = 100;

/// Runs `work`, and again after every change, until the process ends.
pub(super) fn watch(dir: &Path, work: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Exit> {
    loop {
        let seen = times(dir);
        if let Err(error) = work() {
            out::stderr_line(format!("error: {}", failure::describe(&error)));
        }
        out::stderr_line(format!("watching {}; end with Ctrl-C", dir.display()));
        while times(dir) == seen {
            thread::sleep(INTERVAL);
        }
        out::line("")?;
    }
}

/// When each file of the pack, and of packs beside it that it may extend, was changed.
fn times(dir: &Path) -> BTreeMap<PathBuf, Option<SystemTime>> {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let beside = dir.parent().map_or_else(Vec::new, entries);
    let packs = beside.into_iter().filter(|folder| *folder != dir && folder.join(super::MANIFEST).is_file());
    let files = packs.flat_map(|folder| entries(&folder)).chain(entries(&dir));
    files.map(|file| (file.clone(), fs::metadata(&file).and_then(|data| data.modified()).ok())).collect()
}

/// Hidden files, such as those of editors, are no part of a pack.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    let shown = listed.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
    shown.take(MAX_FILES).map(|entry| entry.path()).collect()
}
