//! A test's own disk, which soon fills up.
//!
//! Needs root. Where a disk cannot be mounted the test fails, unless `STAGE0_ALLOW_NO_POWERCUT=1` is set; then it
//! prints what was not tested. Everything that uses the disk must end before this value does.

#![allow(clippy::print_stderr)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const ALLOWED_VARIABLE: &str = "STAGE0_ALLOW_NO_POWERCUT";

/// A mounted file system, unmounted when dropped.
pub struct Disk {
    at: PathBuf,
    _directory: TempDir,
}

impl Disk {
    /// A file system in memory of this size. None where that is impossible and was waived.
    pub fn small(bytes: u64) -> Option<Self> {
        Self::mounted(|at| run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", text(at)]))
    }

    /// What `mount` mounts on the directory that it is given. None where that is impossible and was waived.
    pub fn mounted(mount: impl FnOnce(&Path) -> Result<(), String>) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory for the disk");
        let at = directory.path().join("disk");
        std::fs::create_dir(&at).expect("a directory to mount the disk on");
        let Err(why) = mount(&at) else { return Some(Self { at, _directory: directory }) };
        eprintln!("NOT TESTED: a disk of its own needs root, loop devices and mkfs.ext4: {why}");
        let allowed = std::env::var(ALLOWED_VARIABLE).is_ok_and(|value| value == "1");
        assert!(allowed, "set {ALLOWED_VARIABLE}=1 to go without the tests of disks: {why}");
        None
    }

    /// Where the file system is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Fills the disk except for this many bytes.
    pub fn fill(&self, leave: u64) {
        let mut file = std::fs::File::create(self.filler()).expect("a file that fills the disk");
        for block in [1 << 20, 4096] {
            while file.write_all(&vec![1; block]).is_ok() {}
        }
        let length = file.metadata().expect("its length").len();
        file.set_len(length.saturating_sub(leave)).expect("the file can be cut");
    }

    /// Frees what [`Self::fill`] took.
    pub fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("the file that fills the disk can be removed");
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(run("umount", &[text(&self.at)]));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// Runs a command that administers disks; the error is its output.
pub fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}
