//! What a process has used, as Linux counts it: `/proc/PID/stat`, `smaps_rollup` and `fd`.

use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

/// Linux counts a process's time for `/proc` in hundredths of a second, whatever its own clock.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Usage {
    pub(crate) process: String,
    /// User and system time of all its threads since it started.
    pub(crate) cpu: Duration,
    /// Bytes of resident memory.
    pub(crate) resident: u64,
    /// The part of them that is no file: what it needs, and what grows.
    pub(crate) anonymous: u64,
    pub(crate) open_files: usize,
}

impl Usage {
    pub(crate) fn of(name: &str, id: u32) -> anyhow::Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{id}/{file}");
            std::fs::read_to_string(&path).context(path)
        };
        let memory = read("smaps_rollup")?;
        Ok(Self {
            process: name.to_owned(),
            cpu: cpu(&read("stat")?).context("no CPU time")?,
            resident: memory_of(&memory, "Rss:").context("no resident memory")?,
            anonymous: memory_of(&memory, "Anonymous:").context("no anonymous memory")?,
            open_files: std::fs::read_dir(format!("/proc/{id}/fd"))?.count(),
        })
    }

    /// This program: the load.
    pub(crate) fn of_load() -> anyhow::Result<Self> {
        Self::of("load", std::process::id())
    }
}

/// The 14th and 15th field; the second is a name in brackets, which may hold anything.
fn cpu(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u32>().ok();
    Some(TICK * (ticks()? + ticks()?))
}

fn memory_of(rollup: &str, name: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_user_and_system_time_whatever_the_name() {
        let stat = "7 (a ) b 9 9) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 1 1 1";
        assert_eq!(cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu("7 (short) S"), None);
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let rollup = "5-7 ---p 00000000 00:00 0  [rollup]\nRss:  2048 kB\nPss: 9 kB\nAnonymous:   1024 kB\n";
        assert_eq!((memory_of(rollup, "Rss:"), memory_of(rollup, "Anonymous:")), (Some(2 << 20), Some(1 << 20)));
        assert_eq!(memory_of(rollup, "Swap:"), None);
    }

    #[test]
    fn this_program_uses_memory_and_files() {
        let usage = Usage::of_load().unwrap();
        assert!(usage.resident > usage.anonymous && usage.anonymous > 0 && usage.open_files > 0, "{usage:?}");
    }
}
