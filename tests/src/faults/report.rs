//! The one report file of a run: how to repeat it, how long each kind of fault stopped answers, and what was found.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::outage::Measured;
use super::plan::Fault;
use crate::history::{Finding, Found, History};

const REPORT_VARIABLE: &str = "STAGE0_FAULT_REPORT";

/// What came of a run.
pub struct Report {
    pub seed: u64,
    pub command: String,
    pub took: Duration,
    pub faults: Vec<(Fault, Measured)>,
    pub rolling: Vec<Rolling>,
    /// Checks that were asked, that were decided, and that no gateway decided at first.
    pub checks: (usize, usize, usize),
    /// Processes that ended or panicked by themselves, and whatever kept the run from its end.
    pub crashes: Vec<String>,
    pub findings: Vec<Finding>,
}

/// What clients saw of a rolling restart.
#[derive(Debug, Clone)]
pub struct Rolling {
    pub took: Duration,
    pub servers: usize,
    pub asked: usize,
    /// Neither gateway decided it.
    pub failed: usize,
    pub measured: Measured,
    /// Requests that got no decision, by what was restarted and the reason.
    pub explained: BTreeMap<String, usize>,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.crashes.is_empty()
    }

    /// Writes it: where it is.
    pub fn write(&self, name: &str, history: &History, found: &Found) -> PathBuf {
        let own = || {
            let own = std::env::current_exe().expect("the test has a path");
            own.parent().expect("a directory").join(format!("fault-report-{name}.md"))
        };
        let path = std::env::var_os(REPORT_VARIABLE).map_or_else(own, PathBuf::from);
        std::fs::write(&path, self.render(history, found)).expect("the report can be written");
        path
    }

    fn render(&self, history: &History, found: &Found) -> String {
        let mut text = String::from("# Faults: what was broken, and what was found\n\n");
        let verdict = match (self.findings.len(), self.crashes.len()) {
            (0, 0) => "every promise was kept".to_owned(),
            (findings, crashes) => format!("NOT KEPT: {findings} findings, {crashes} crashes"),
        };
        let (asked, decided, failed) = self.checks;
        let _ = write!(
            text,
            "**Verdict: {verdict}.**\n\n\
             - {} faults, {asked} checks asked, {decided} decided, {failed} not decided by either gateway at first\n\
             - {} requests noted, {} decisions recorded, {} deliveries\n\
             - seed {}, {:.0} s; to repeat it: `{}`\n\
             - machine: {}\n\
             - partitions and slowness: rules of iptables in a network namespace of the test's own, by process; \
             slow: 15 % of packets lost. Clocks: a library that is loaded before the C library; nats-server takes its \
             clock from the kernel, so its clock does not jump. Disks: tmpfs.\n\n",
            self.faults.len(),
            history.ops.len(),
            found.records.len(),
            found.deliveries.len(),
            self.seed,
            self.took.as_secs_f64(),
            self.command,
            machine(),
        );
        self.table(&mut text);
        self.restarts(&mut text);
        self.list(&mut text);
        self.findings(&mut text);
        text
    }

    fn table(&self, text: &mut String) {
        let mut rows: BTreeMap<String, Vec<&Measured>> = BTreeMap::new();
        for (fault, measured) in &self.faults {
            rows.entry(fault.row()).or_default().push(measured);
        }
        text.push_str("## How long each fault stopped answers\n\n");
        text.push_str("The longest time without an answer to any client, from the fault until answers went on.\n\n");
        text.push_str("| fault | of | count | p50 | max | answered | requests refused |\n");
        text.push_str("| --- | --- | --- | --- | --- | --- | --- |\n");
        for (row, measured) in rows {
            let mut silences: Vec<Duration> = measured.iter().map(|one| one.silence).collect();
            silences.sort();
            let (p50, max) = (silences[(silences.len() - 1) / 2], silences[silences.len() - 1]);
            let answered: usize = measured.iter().map(|one| one.answered).sum();
            let refused: usize = measured.iter().flat_map(|one| one.failed.values()).sum();
            let _ = writeln!(
                text,
                "| {row} | {} | {} | {} | {answered} | {refused} |",
                silences.len(),
                seconds(p50),
                seconds(max)
            );
        }
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for (reason, count) in self.faults.iter().flat_map(|(_, measured)| &measured.failed) {
            *reasons.entry(reason).or_default() += count;
        }
        text.push_str("\nRequests that got no decision meanwhile, by reason:\n\n");
        for (reason, count) in reasons {
            let _ = writeln!(text, "- {count}: {reason}");
        }
    }

    fn restarts(&self, text: &mut String) {
        text.push_str("\n## Rolling restarts\n\n");
        if self.rolling.is_empty() {
            text.push_str("None in this run.\n");
        }
        for rolling in &self.rolling {
            let _ = writeln!(
                text,
                "- every role and {} of three NATS servers in {:.0} s: {} checks asked, {} failed (neither gateway \
                 decided), longest time without an answer {}",
                rolling.servers,
                rolling.took.as_secs_f64(),
                rolling.asked,
                rolling.failed,
                seconds(rolling.measured.silence)
            );
            for (reason, count) in &rolling.explained {
                let _ = writeln!(text, "  - {count} requests {reason}");
            }
        }
    }

    fn list(&self, text: &mut String) {
        text.push_str("\n## Every fault, in order\n\n");
        for (number, (fault, measured)) in self.faults.iter().enumerate() {
            let refused: usize = measured.failed.values().sum();
            let lost = if measured.lost > 0 { format!(", {} packets lost", measured.lost) } else { String::new() };
            let _ = writeln!(
                text,
                "{}. {fault}: {} without an answer, {} answered, {refused} refused{lost}",
                number + 1,
                seconds(measured.silence),
                measured.answered
            );
        }
    }

    fn findings(&self, text: &mut String) {
        text.push_str("\n## Findings\n\n");
        if self.is_clean() {
            text.push_str("None.\n");
        }
        for crash in &self.crashes {
            let _ = writeln!(text, "### Something ended, or did not come back, by itself\n\n{crash}\n");
        }
        for finding in &self.findings {
            let _ = writeln!(text, "### Broken: {}\n\n{}\n", finding.promise, finding.about);
            if !finding.story.is_empty() {
                let _ = writeln!(text, "```text\n{}\n```\n", finding.story.join("\n"));
            }
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Kernel, processors and load.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let (kernel, load) = (read("/proc/sys/kernel/osrelease"), read("/proc/loadavg"));
    format!("Linux {kernel}, {processors} processors, load at the end {load}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::plan;
    use crate::history::Promise;

    fn report(findings: Vec<Finding>) -> String {
        let fault = plan(1, 1).remove(0);
        let measured = |seconds| Measured {
            silence: Duration::from_secs(seconds),
            failed: [("503 why".to_owned(), 2)].into(),
            ..Measured::default()
        };
        let report = Report {
            seed: 17,
            command: "STAGE0_SEED=17 cargo test".to_owned(),
            took: Duration::from_secs(9),
            faults: [1, 4, 2].map(|seconds| (fault.clone(), measured(seconds))).to_vec(),
            rolling: vec![],
            checks: (3, 2, 1),
            crashes: vec![],
            findings,
        };
        report.render(&History::default(), &Found::default())
    }

    #[test]
    fn a_report_says_how_to_repeat_it_and_how_long_each_fault_stopped_answers() {
        let text = report(vec![]);
        assert!(text.contains("**Verdict: every promise was kept.**"), "{text}");
        assert!(text.contains("seed 17, 9 s; to repeat it: `STAGE0_SEED=17 cargo test`"), "{text}");
        let row = format!("| {} | 3 | 2.00 s | 4.00 s | 0 | 6 |", plan(1, 1)[0].row());
        assert!(text.contains(&row) && text.contains("- 6: 503 why"), "{text}");
    }

    #[test]
    fn a_finding_is_in_the_verdict_and_has_its_story() {
        let promise = Promise::NoApprovalIsUsedTwice;
        let text = report(vec![Finding { promise, about: "apr_1".to_owned(), story: vec!["1.000s: used".to_owned()] }]);
        assert!(text.contains("**Verdict: NOT KEPT: 1 findings, 0 crashes.**"), "{text}");
        assert!(
            text.contains("### Broken: no approval is used twice\n\napr_1\n\n```text\n1.000s: used\n```"),
            "{text}"
        );
    }
}
