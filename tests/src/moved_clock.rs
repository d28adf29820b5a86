//! A process whose wall clock is not this machine's: a small library, loaded before the C library, adds to what it
//! says.
//!
//! Owns the library and the file with the difference, which a test may change while the process runs. The kernel's own
//! clock (`CLOCK_BOOTTIME`) and timers stay as they are, as on a host whose clock somebody sets.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::api::Api;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile long *seconds;

__attribute__((constructor)) static void start(void) {
    const char *name = getenv("MOVED_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) abort();
    void *map = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) abort();
    seconds = map;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && seconds && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += *seconds;
    return result;
}
"#;

/// A clock that is so many seconds ahead of this machine's.
pub struct MovedClock {
    _directory: TempDir,
    library: PathBuf,
    difference: PathBuf,
    file: File,
}

impl MovedClock {
    pub fn ahead(seconds: i64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let library = build(directory.path());
        let difference = directory.path().join("difference");
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&difference).unwrap();
        let clock = Self { _directory: directory, library, difference, file };
        clock.set(seconds);
        clock
    }

    /// Sets it: from now on it is so far ahead; negative: behind.
    pub fn set(&self, seconds: i64) {
        self.file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// Sets it ahead in steps, and asks after each of them: a process does not follow a jump of over an hour at once.
    pub async fn creep(&self, seconds: i64, api: &Api) {
        const STEP: i64 = 3_000;
        let mut bytes = [0; size_of::<i64>()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        let mut ahead = i64::from_ne_bytes(bytes);
        while ahead < seconds {
            ahead = seconds.min(ahead + STEP);
            self.set(ahead);
            api.get("/v1/approvals").await.expect(200);
        }
    }

    /// For the process that is to have it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        vec![("LD_PRELOAD".to_owned(), text(&self.library)), ("MOVED_CLOCK".to_owned(), text(&self.difference))]
    }
}

fn build(directory: &Path) -> PathBuf {
    let (source, library) = (directory.join("clock.c"), directory.join("clock.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
    let built = built.expect("`cc`, which Rust links with");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    library
}
