//! One process of a deployment: started, read, measured, ended.
//!
//! It ends when the value is dropped. It also ends when this program does, whatever ends it: the process is started
//! through this program's own `child`, which asks Linux for a SIGKILL at the death of its parent and then becomes the
//! wanted program. Linux means the thread that started the child, so one thread that never ends starts all of them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::process::{CommandExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::Usage;

/// How long a start may take on a busy machine, or with a million keys to read.
const START_TIMEOUT: Duration = Duration::from_secs(600);
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// A log larger than this is emptied.
const MAX_LOG_BYTES: u64 = 64 << 20;
/// The end of a log that an error shows.
const SHOWN_BYTES: usize = 4_000;

pub(crate) struct Process {
    name: String,
    child: Child,
    /// Standard output and standard error.
    log: PathBuf,
}

impl Process {
    /// Starts the program, with both outputs in a file of this directory and without this machine's settings for it.
    pub(crate) fn start(name: &str, program: &Path, arguments: &[String], directory: &Path) -> anyhow::Result<Self> {
        let log = directory.join(format!("{}.log", name.replace(' ', "-")));
        // Appending, so that it can be emptied while it is written.
        let output = OpenOptions::new().append(true).create(true).open(&log)?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["child", &std::process::id().to_string(), "--"]).arg(program).args(arguments);
        for (variable, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"STAGE0_")) {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time so far, memory and open files.
    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        Usage::of(&self.name, self.id()).with_context(|| format!("{} has ended:\n{}", self.name, self.end_of_log()))
    }

    /// The first output line in which `find` finds something.
    pub(crate) async fn wait_for<T>(&mut self, what: &str, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            // A half-written line finds nothing, and is read again.
            if let Some(found) = self.output().lines().find_map(&find) {
                return Ok(found);
            }
            self.ensure_running()?;
            ensure!(begun.elapsed() < START_TIMEOUT, "{}: no sign of {what} in:\n{}", self.name, self.end_of_log());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    pub(crate) fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} has ended ({status}):\n{}", self.name, self.end_of_log()),
        }
    }

    /// Empties the log once it is large, so that a long measurement does not fill the disk.
    pub(crate) fn trim_log(&self) -> anyhow::Result<()> {
        if std::fs::metadata(&self.log)?.len() > MAX_LOG_BYTES {
            File::options().write(true).open(&self.log)?.set_len(0)?;
        }
        Ok(())
    }

    fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn end_of_log(&self) -> String {
        let output = self.output();
        let from = (output.len().saturating_sub(SHOWN_BYTES)..=output.len()).find(|&at| output.is_char_boundary(at));
        output.get(from.unwrap_or_default()..).unwrap_or_default().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Becomes this program, which is killed when its parent dies.
pub(crate) fn run_child(parent: u32, command: &[OsString]) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    ensure!(parent_id() == parent, "the parent has ended already");
    let (program, arguments) = command.split_first().context("no program")?;
    let error = Command::new(program).args(arguments).exec();
    Err(anyhow!(error).context(format!("cannot start `{}`", Path::new(program).display())))
}

type Spawned = std::io::Result<Child>;

fn spawn(command: Command) -> anyhow::Result<Child> {
    static SPAWNER: OnceLock<Sender<(Command, Sender<Spawned>)>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = channel::<(Command, Sender<Spawned>)>();
        std::thread::spawn(move || {
            for (mut command, answer) in receiver {
                // Its caller waits for it.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (answer, spawned) = channel();
    spawner.send((command, answer)).context("no thread starts processes")?;
    Ok(spawned.recv()??)
}
