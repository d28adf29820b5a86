//! Starts the binary: once for an answer, or as a `stage0 dev` that stops with the test.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The result of a run of the binary.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The binary, without the `STAGE0_…` variables of the environment.
pub(crate) fn stage0(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stage0"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"STAGE0_")) {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Writes a file with mode 0600.
pub(crate) fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    allow(path, 0o600);
}

/// Sets the mode of a file.
pub(crate) fn allow(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Polls until the condition holds; the timeout is longer than any machine needs.
pub(crate) fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs the command to its end.
pub(crate) fn run(arguments: &[&str]) -> Ended {
    ended(&mut stage0(arguments))
}

pub(crate) fn ended(command: &mut Command) -> Ended {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs the command with `input` on standard input.
pub(crate) fn run_with_input(command: &mut Command, input: &str) -> Ended {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // The write fails if the process ends without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

/// A running `stage0 dev` on a free port.
pub(crate) struct Dev {
    child: Child,
    pub(crate) data_dir: PathBuf,
    pub(crate) banner: String,
}

impl Dev {
    pub(crate) fn start(data_dir: &Path) -> Self {
        Self::start_with(data_dir, &[])
    }

    /// Returns when the banner is complete: then the server is ready.
    pub(crate) fn start_with(data_dir: &Path, more: &[&str]) -> Self {
        Self::start_as(data_dir, |mut command| {
            command.args(more);
            command
        })
    }

    /// Starts a variant of the usual command.
    pub(crate) fn start_as(data_dir: &Path, change: impl FnOnce(Command) -> Command) -> Self {
        let mut command = stage0(&["dev", "--listen", "127.0.0.1:0", "--data-dir"]);
        // More than the default: a machine that runs all tests is busy.
        command.arg(data_dir).env("STAGE0_REQUEST_BUDGET_MS", "20000");
        let mut command = change(command);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut banner = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while !banner.contains("Ctrl-C") {
            if lines.read_line(&mut banner).unwrap() == 0 {
                let mut err = String::new();
                child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
                panic!("no banner\n{banner}{err}");
            }
        }
        Self { child, data_dir: data_dir.to_owned(), banner }
    }

    /// A client command for this server.
    pub(crate) fn client(&self, arguments: &[&str]) -> Command {
        let mut command = stage0(arguments);
        command.arg("--data-dir").arg(&self.data_dir).args(["--timeout", "30"]);
        command
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> Ended {
        ended(&mut self.client(arguments))
    }

    pub(crate) fn check(&self, action: &Value, arguments: &[&str]) -> Ended {
        let mut all = vec!["check", "-"];
        all.extend(arguments);
        run_with_input(&mut self.client(&all), &action.to_string())
    }

    pub(crate) fn file(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.data_dir.join("dev.json")).unwrap()).unwrap()
    }

    pub(crate) fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.data_dir.join(name)).unwrap()
    }

    /// Stops the process by SIGTERM and returns its log.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }

    /// Kills the process.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Both fail if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
