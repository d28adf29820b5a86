//! Freezes one process by its cgroup, as a container's pause does: it gets no signal and notices nothing.
//!
//! Owns a cgroup, version 1 or 2, into which the process is put and from which it is let go. Only root can make one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that can be frozen; it runs again when this is dropped.
pub struct Freezer {
    parent: PathBuf,
    cgroup: PathBuf,
    pid: u32,
    is_first_version: bool,
}

impl Freezer {
    /// `None` if this machine does not allow making a cgroup; the caller then reports that it did not test.
    pub fn of(pid: u32) -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let one = Path::new("/sys/fs/cgroup/freezer");
        let is_first_version = one.join("cgroup.procs").exists();
        let parent = if is_first_version { one } else { Path::new("/sys/fs/cgroup") };
        let name = format!("stage0-freezer-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let cgroup = parent.join(name);
        fs::create_dir(&cgroup).ok()?;
        let freezer = Self { parent: parent.to_owned(), cgroup, pid, is_first_version };
        fs::write(freezer.cgroup.join("cgroup.procs"), pid.to_string()).is_ok().then_some(freezer)
    }

    pub fn freeze(&self) {
        self.set(true);
        let until = Instant::now() + FREEZE_TIMEOUT;
        while !self.is_frozen() {
            assert!(Instant::now() < until, "the process does not freeze");
            std::thread::yield_now();
        }
    }

    pub fn thaw(&self) {
        self.set(false);
    }

    fn set(&self, frozen: bool) {
        let (file, word) = match (self.is_first_version, frozen) {
            (true, true) => ("freezer.state", "FROZEN"),
            (true, false) => ("freezer.state", "THAWED"),
            (false, true) => ("cgroup.freeze", "1"),
            (false, false) => ("cgroup.freeze", "0"),
        };
        fs::write(self.cgroup.join(file), word).expect("a cgroup of ours");
    }

    fn is_frozen(&self) -> bool {
        let (file, word) =
            if self.is_first_version { ("freezer.state", "FROZEN") } else { ("cgroup.events", "frozen 1") };
        fs::read_to_string(self.cgroup.join(file)).is_ok_and(|state| state.contains(word))
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set(false);
        // A process that has ended by now is in no cgroup.
        let _ = fs::write(self.parent.join("cgroup.procs"), self.pid.to_string());
        let _ = fs::remove_dir(&self.cgroup);
    }
}
