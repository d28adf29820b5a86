//! A memory limit for one process, as small as its container's.
//!
//! Owns the cgroup, version 1 or 2, that a process is put into and that goes with it. Where none can be made (no root,
//! no controller), the data of the process is limited by `RLIMIT_DATA`, generously, as allocators reserve more than
//! they use: then only what the test measures of `VmHWM` holds the limit.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Where memory is only measured: for the machine's sake, as a multiple of what is asked for.
const RESERVED_TIMES: u64 = 8;

/// Holds a process to its limit.
pub(crate) struct MemoryLimit {
    cgroup: Option<PathBuf>,
}

impl MemoryLimit {
    /// From now on the process may have this many bytes.
    pub(crate) fn new(pid: u32, bytes: u64) -> Self {
        let cgroup = made(bytes).filter(|cgroup| fs::write(cgroup.join("cgroup.procs"), pid.to_string()).is_ok());
        if cgroup.is_none() {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process's id");
            let reserved = Some(bytes * RESERVED_TIMES);
            let _ = prlimit(Some(pid), Resource::Data, Rlimit { current: reserved, maximum: reserved });
        }
        Self { cgroup }
    }
}

impl Drop for MemoryLimit {
    /// The process has ended by now.
    fn drop(&mut self) {
        if let Some(cgroup) = &self.cgroup {
            let _ = fs::remove_dir(cgroup);
        }
    }
}

/// A cgroup of its own with this limit, swap included.
fn made(bytes: u64) -> Option<PathBuf> {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    let name = format!("stage0-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
    let (parent, limits) = hierarchy()?;
    let cgroup = parent.join(name);
    fs::create_dir(&cgroup).ok()?;
    let [limit, ..] = limits;
    if fs::write(cgroup.join(limit), bytes.to_string()).is_err() {
        let _ = fs::remove_dir(&cgroup);
        return None;
    }
    // Not every kernel counts swap.
    let _ = fs::write(cgroup.join(limits[1]), if limits[1] == "memory.swap.max" { 0 } else { bytes }.to_string());
    Some(cgroup)
}

/// Where cgroups for memory can be made, and what the limits' files are called there.
fn hierarchy() -> Option<(PathBuf, [&'static str; 2])> {
    let one = Path::new("/sys/fs/cgroup/memory");
    if one.join("memory.limit_in_bytes").exists() {
        return Some((one.to_owned(), ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]));
    }
    let two = Path::new("/sys/fs/cgroup");
    let controls = fs::read_to_string(two.join("cgroup.subtree_control")).ok()?;
    controls.split_whitespace().any(|one| one == "memory").then(|| (two.to_owned(), ["memory.max", "memory.swap.max"]))
}
