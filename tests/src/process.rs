//! One process of the product: started, heard, signalled, ended.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::Value;

use crate::limit::MemoryLimit;

/// How long a start may take on a slow machine; nothing waits for it when things go well.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Longer than any service takes to finish what it has in hand.
const END_TIMEOUT: Duration = Duration::from_secs(60);

pub struct Process {
    child: Child,
    heard: Arc<Heard>,
    _limit: Option<MemoryLimit>,
}

#[derive(Default)]
struct Heard {
    lines: Mutex<Lines>,
    more: Condvar,
}

impl Heard {
    /// A test that failed while it listened must still be able to say what it heard.
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Lines {
    all: Vec<String>,
    open: usize,
}

/// The binary under test: `STAGE0_BIN`, else beside this test's own.
pub fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("STAGE0_BIN") {
        return named.into();
    }
    let own = std::env::current_exe().expect("the test has a path");
    let beside = own.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps").join("stage0");
    assert!(beside.exists(), "{} is missing: run `cargo build`, or scripts/test.sh", beside.display());
    beside
}

/// The binary under test, without this machine's settings for it.
pub fn command() -> Command {
    command_of(&binary())
}

fn command_of(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STAGE0_")) {
        command.env_remove(name);
    }
    command
}

impl Process {
    /// Starts `stage0` with these arguments and reads both of its outputs line by line.
    pub fn start(arguments: &[String]) -> Self {
        Self::start_within(arguments, None)
    }

    /// As [`Process::start`], with a limit of its memory in bytes.
    pub fn start_within(arguments: &[String], memory: Option<u64>) -> Self {
        Self::start_in(arguments, memory, &[])
    }

    /// As above, with these variables beside those of this machine.
    pub fn start_in(arguments: &[String], memory: Option<u64>, environment: &[(String, String)]) -> Self {
        Self::launch(command(), arguments, memory, environment)
    }

    /// As [`Process::start`], of another binary, such as the last release's.
    pub fn start_of(program: &Path, arguments: &[String]) -> Self {
        Self::launch(command_of(program), arguments, None, &[])
    }

    /// With these variables, and in this group, by which a firewall knows its packets; that takes root.
    pub fn start_in_group(arguments: &[String], environment: &[(String, String)], group: u32) -> Self {
        let mut command = command();
        command.gid(group);
        Self::launch(command, arguments, None, environment)
    }

    fn launch(
        mut command: Command,
        arguments: &[String],
        memory: Option<u64>,
        environment: &[(String, String)],
    ) -> Self {
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().expect("stage0 starts");
        let heard = Arc::new(Heard::default());
        heard.lock().open = 2;
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let heard = Arc::clone(&heard);
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    heard.lock().all.push(line);
                    heard.more.notify_all();
                }
                heard.lock().open -= 1;
                heard.more.notify_all();
            });
        }
        let limit = memory.map(|bytes| MemoryLimit::new(child.id(), bytes));
        Self { child, heard, _limit: limit }
    }

    /// The first line, already said or still to come, in which `find` finds something.
    pub fn wait_for<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> T {
        let until = Instant::now() + START_TIMEOUT;
        let (mut at, mut lines) = (0, self.heard.lock());
        loop {
            while at < lines.all.len() {
                if let Some(found) = find(&lines.all[at]) {
                    return found;
                }
                at += 1;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(lines.open > 0 && !left.is_zero(), "in vain waited for {what} in:\n{}", lines.all.join("\n"));
            lines = self.heard.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A field of a JSON log line with this message.
    pub fn wait_for_log(&self, message: &str, field: &str) -> String {
        self.wait_for(message, |line| {
            let line: Value = serde_json::from_str(line).ok()?;
            (line["message"] == message).then(|| line[field].as_str().map(str::to_owned))?
        })
    }

    /// All output so far.
    pub fn said(&self) -> String {
        self.heard.lock().all.join("\n")
    }

    pub fn signal(&self, signal: Signal) {
        let id = Pid::from_child(&self.child);
        kill_process(id, signal).expect("the process is there");
    }

    /// kill -9.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGSTOP: it is there, and does nothing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        // The signal takes a moment to reach every thread.
        waitpid(Some(Pid::from_child(&self.child)), WaitOptions::UNTRACED).expect("the process stops");
    }

    /// Resumes a frozen process (SIGCONT).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGTERM, and the status that follows.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits for an end of its own accord.
    pub fn ended(&mut self) -> ExitStatus {
        let listening = self.heard.more.wait_timeout_while(self.heard.lock(), END_TIMEOUT, |lines| lines.open > 0);
        let (lines, waited) = listening.unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "it does not end:\n{}", lines.all.join("\n"));
        drop(lines);
        self.child.wait().expect("the process ends")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that was resident since its start, or since [`Process::forget_peak`].
    pub fn peak(&self) -> u64 {
        self.memory("VmHWM:")
    }

    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").expect("a running process");
    }

    fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running process");
        let line = status.lines().find(|line| line.starts_with(name)).expect("a process that was not killed");
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Processor time of all its threads; the system counts hundredths of a second.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a running process");
        let behind_name = stat.rsplit_once(')').expect("a name").1;
        let ticks = behind_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap());
        Duration::from_millis(10 * ticks.sum::<u64>())
    }

    /// Whether it is there still.
    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("a process of ours").is_none()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- stage0 said:\n{}", self.said());
        }
    }
}
