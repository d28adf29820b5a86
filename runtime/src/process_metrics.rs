//! The metrics of a process itself, read when they are scraped: version, readiness, processor time, memory, open files.
//!
//! The names and units of `process_…` are those of Prometheus' client libraries. They are written here and not by the
//! recorder, whose counters are whole numbers: processor time is not. What cannot be read is left out; outside of Linux
//! that is everything from `/proc` and from control groups.

use std::fmt::{Display, Formatter};
use std::fs;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// Which program runs and in which role: the labels of `stage0_build_info`.
#[derive(Debug, Clone, Copy)]
pub struct BuildInfo {
    /// The version of the package.
    pub version: &'static str,
    /// The commit that it was built from.
    pub commit: &'static str,
    /// The role's name; `dev` where one process has all roles.
    pub role: &'static str,
}

impl Display for BuildInfo {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.version, self.commit)
    }
}

/// In the text format, to follow what the recorder renders.
pub(crate) fn render(build: BuildInfo, started_at: Timestamp, is_ready: bool) -> String {
    let BuildInfo { version, commit, role } = build;
    let mut page = String::new();
    let mut add = |kind: &str, name: &str, labels: &str, help: &str, value: Option<f64>| {
        if let Some(value) = value {
            page.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}\n\n"));
        }
    };
    // Rust's quotes and escapes are those of a label.
    let labels = format!("{{version={version:?},commit={commit:?},role={role:?}}}");
    let help = "1 for the version, the commit and the role of the process.";
    add("gauge", "stage0_build_info", &labels, help, Some(1.0));
    let labels = format!("{{role={role:?}}}");
    let ready = Some(f64::from(u8::from(is_ready)));
    add("gauge", "stage0_ready", &labels, "1 while /readyz says ready, 0 otherwise.", ready);
    let help = "The smallest memory limit of the process's control groups.";
    add("gauge", "stage0_memory_limit_bytes", "", help, memory_limit());

    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes = |name| Some(number(&status, name)? * 1_024.0);
    let help = "Total user and system CPU time spent in seconds.";
    add("counter", "process_cpu_seconds_total", "", help, Some(cpu_seconds()));
    add("gauge", "process_resident_memory_bytes", "", "Resident memory size in bytes.", kilobytes("VmRSS"));
    add("gauge", "process_virtual_memory_bytes", "", "Virtual memory size in bytes.", kilobytes("VmSize"));
    add("gauge", "process_threads", "", "Number of OS threads in the process.", number(&status, "Threads"));
    add("gauge", "process_open_fds", "", "Number of open file descriptors.", open_files());
    add("gauge", "process_max_fds", "", "Maximum number of open file descriptors.", max_open_files());
    let help = "Start time of the process since unix epoch in seconds.";
    let started = Some(started_at.as_duration().as_secs_f64());
    add("gauge", "process_start_time_seconds", "", help, started);
    page
}

fn cpu_seconds() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    let nanoseconds = u32::try_from(spent.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(spent.tv_sec).unwrap_or_default(), nanoseconds).as_secs_f64()
}

/// The number behind a name in `/proc/self/status`.
fn number(status: &str, name: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

fn open_files() -> Option<f64> {
    // One of them reads the directory.
    let open = fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1);
    u32::try_from(open).ok().map(f64::from)
}

/// None where it is unlimited.
fn max_open_files() -> Option<f64> {
    getrlimit(Resource::Nofile).current.and_then(|limit| u32::try_from(limit).ok()).map(f64::from)
}

fn memory_limit() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    // Of version 2; a process in groups of version 1 has a line for each kind instead.
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    smallest_limit(own, |group| fs::read_to_string(Path::new(CONTROL_GROUPS).join(group).join("memory.max")).ok())
}

/// Of this group and all around it; one without a limit says `max`.
fn smallest_limit(own: &str, limit_of: impl Fn(&Path) -> Option<String>) -> Option<f64> {
    let limits = Path::new(own).ancestors().filter_map(|group| limit_of(group)?.trim().parse::<f64>().ok());
    limits.reduce(f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> String {
        let build = BuildInfo { version: "1.2.3", commit: "0123456789ab", role: "gateway" };
        render(build, Timestamp::from_millisecond(1_800_000_000_250).unwrap(), false)
    }

    fn value(page: &str, name: &str) -> f64 {
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} in\n{page}")).parse().unwrap()
    }

    #[test]
    fn version_commit_role_and_readiness_are_on_the_page() {
        let page = page();
        for line in [
            "stage0_build_info{version=\"1.2.3\",commit=\"0123456789ab\",role=\"gateway\"} 1",
            "stage0_ready{role=\"gateway\"} 0",
            "process_start_time_seconds 1800000000.25",
            "# TYPE process_cpu_seconds_total counter",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        let count = |start: &str| page.lines().filter(|line| line.starts_with(start)).count();
        let samples = page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        assert_eq!((count("# HELP "), count("# TYPE ")), (samples, samples), "{page}");
    }

    #[test]
    fn the_values_of_this_process_are_in_bytes_seconds_and_numbers() {
        let page = page();
        let resident = value(&page, "process_resident_memory_bytes");
        assert!(resident > 1e6 && resident < value(&page, "process_virtual_memory_bytes"), "{page}");
        let open = value(&page, "process_open_fds");
        assert!(open >= 3.0 && open <= value(&page, "process_max_fds"), "{page}");
        // The harness runs a test on a thread of its own.
        assert!(value(&page, "process_threads") >= 2.0, "{page}");
    }

    #[test]
    fn processor_time_is_read_at_each_scrape_and_has_fractions_of_a_second() {
        let cpu = || value(&page(), "process_cpu_seconds_total");
        let before = cpu();
        let after = loop {
            let now = cpu();
            if now > before {
                break now;
            }
        };
        assert!(after - before < 1.0, "{before} {after}");
    }

    #[test]
    fn a_name_is_not_taken_for_a_longer_one() {
        let status = "VmRSSX:\t7 kB\nVmRSS:\t  20480 kB\nThreads:\t9\n";
        assert_eq!((number(status, "VmRSS"), number(status, "Threads")), (Some(20_480.0), Some(9.0)));
        assert_eq!(number(status, "VmSize"), None);
    }

    #[test]
    fn the_smallest_memory_limit_around_the_process_counts() {
        let limit_of = |limits: &'static [(&'static str, &'static str)]| {
            smallest_limit("system.slice/stage0.service", move |group| {
                let found = limits.iter().find(|(name, _)| Path::new(name) == group);
                found.map(|(_, limit)| format!("{limit}\n"))
            })
        };
        let slice = &[("system.slice/stage0.service", "max"), ("system.slice", "1000"), ("", "2000")];
        assert_eq!(limit_of(slice), Some(1_000.0));
        assert_eq!(limit_of(&[("system.slice/stage0.service", "500"), ("system.slice", "1000")]), Some(500.0));
        assert_eq!(limit_of(&[("system.slice/stage0.service", "max"), ("system.slice", "max")]), None);
        assert_eq!(limit_of(&[]), None);
    }
}
