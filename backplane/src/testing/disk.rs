//! A test's own disk: one whose power can be cut, or one that soon fills up.
//!
//! Needs root, loop devices and mkfs.ext4. Where they are missing the test fails, unless `STAGE0_ALLOW_NO_POWERCUT=1`
//! is set; then it prints what was not tested. Everything that uses the disk must end before this value does.

#![allow(clippy::print_stderr)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const ALLOWED_VARIABLE: &str = "STAGE0_ALLOW_NO_POWERCUT";
const IMAGE_BYTES: u64 = 64 << 20;

/// Shuts a mounted file system down at once without flushing its log, so that only synced data is left. A script,
/// because an ioctl needs `unsafe` in Rust, which this workspace denies.
const CUT_POWER: &str = "\
import fcntl, os, struct, sys
FS_IOC_SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), FS_IOC_SHUTDOWN, struct.pack('I', NO_LOG_FLUSH))";

/// A mounted file system, unmounted when dropped.
pub struct Disk {
    at: PathBuf,
    /// Set for a disk whose power can be cut.
    image: Option<PathBuf>,
    _directory: TempDir,
}

impl Disk {
    /// An ext4 in a file, whose power can be cut. None where that is impossible and was waived.
    #[must_use]
    pub fn with_a_plug() -> Option<Self> {
        or_say_so(Self::in_a_file())
    }

    /// A file system in memory of this size. None where that is impossible and was waived.
    #[must_use]
    pub fn small(bytes: u64) -> Option<Self> {
        or_say_so(Self::in_memory(bytes))
    }

    /// Where the file system is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Loses what was not synced, and everything written from now on.
    pub fn cut_power(&self) {
        run("python3", &["-c", CUT_POWER, text(&self.at)]).expect("the power can be cut");
    }

    /// Mounts what the cut left, from a copy: another process may still hold the file system that was shut down.
    pub fn restore_power(&self) {
        let image = self.image.as_ref().expect("a disk with a plug");
        let copy = image.with_extension("copy");
        self.unmount().expect("the disk can be unmounted");
        std::fs::copy(image, &copy).expect("the image can be copied");
        std::fs::rename(&copy, image).expect("the image can be replaced");
        mount(image, &self.at).expect("the disk can be mounted again");
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

    fn in_a_file() -> Result<Self, String> {
        let (directory, at) = mount_point()?;
        let image = directory.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES)).map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q", "-F", text(&image)])?;
        mount(&image, &at)?;
        Ok(Self { at, image: Some(image), _directory: directory })
    }

    fn in_memory(bytes: u64) -> Result<Self, String> {
        let (directory, at) = mount_point()?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", text(&at)])?;
        Ok(Self { at, image: None, _directory: directory })
    }

    fn unmount(&self) -> Result<(), String> {
        run("umount", &[text(&self.at)])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.unmount());
    }
}

fn or_say_so(disk: Result<Disk, String>) -> Option<Disk> {
    let why = match disk {
        Ok(disk) => return Some(disk),
        Err(why) => why,
    };
    eprintln!("NOT TESTED: a disk of its own needs root, loop devices and mkfs.ext4: {why}");
    let allowed = std::env::var(ALLOWED_VARIABLE).is_ok_and(|value| value == "1");
    assert!(allowed, "set {ALLOWED_VARIABLE}=1 to go without the tests of disks: {why}");
    None
}

fn mount_point() -> Result<(TempDir, PathBuf), String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let at = directory.path().join("disk");
    std::fs::create_dir(&at).map_err(|error| error.to_string())?;
    Ok((directory, at))
}

fn mount(image: &Path, at: &Path) -> Result<(), String> {
    run("mount", &["-o", "loop", text(image), text(at)])
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}
