//! A machine on which documents are followed word for word, as root, with their own paths, ports and users.
//!
//! It is this machine behind new namespaces (`unshare`): what a document may change is a layer in memory above this
//! machine's files, the network is one of its own, and every process on it ends with the value. `systemctl` and
//! `journalctl` are stand-ins that start what the unit files say, as the user whom they name, and start it again when
//! it fails; what confines a unit has no effect. Needs root, `unshare`, `nsenter` and `ip`: without them a test fails,
//! and says so.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::process::binary;

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/machine");
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Longer than any runbook takes on a busy machine; what waits in vain ends.
const TIMEOUT_SECONDS: &str = "300";

/// The programs of an administrator.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs what it reads, up to the next NUL, and says when that is done. The first command that fails ends it.
const SHELL: &str =
    r#"exec 2>&1; while IFS= read -r -d "" block; do eval "$block" < /dev/null; printf '\n%s\n' "$0"; done"#;
const DONE: &str = "--- done";

pub struct Machine {
    unshare: Child,
    /// The first process in the namespaces.
    inside: u32,
    shell: RefCell<Shell>,
}

/// One shell of root, in root's directory, as an operator has it: variables and functions stay.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Machine {
    /// A machine on which nothing is installed but the two programs, with the checkout's `deploy` in root's directory.
    pub fn new() -> Self {
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
            .arg(Path::new(ASSETS).join("init.sh"))
            .args([Path::new(ASSETS), &real(&binary()), &real(&nats_server()), &real(Path::new(CHECKOUT))])
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unshare, of the package util-linux");
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut why = String::new();
            let _ = unshare.stderr.take().unwrap().read_to_string(&mut why);
            panic!("this test needs a machine of its own: root, and the right to mount; here: {why}");
        }
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let inside = std::fs::read_to_string(children).unwrap().trim().parse().expect("one child");
        Self { unshare, inside, shell: RefCell::new(Shell::start(inside)) }
    }

    /// Gives machines one network, on which they have the addresses 10.0.0.1, 10.0.0.2 and so on, in their order.
    pub fn connect(machines: &[Self]) {
        let (first, others) = machines.split_first().unwrap();
        first.run("ip link add br0 type bridge && ip address add 10.0.0.1/24 dev br0 && ip link set br0 up");
        for (other, number) in others.iter().zip(2..) {
            first.plug_in(other, number);
        }
    }

    /// Connects another machine to the network that this one is the first of.
    pub fn plug_in(&self, other: &Self, number: usize) {
        // The link of a machine that was lost goes with it, but not at once.
        let link = format!("v{number}");
        let script = format!(
            "ip link delete {link} 2> /dev/null || true\n\
             ip link add {link} type veth peer name eth0 netns {pid}\n\
             ip link set {link} master br0 up",
            pid = other.inside
        );
        // Process ids of the host are known outside of the machine only.
        let output = Command::new("nsenter")
            .args(["-t", &self.inside.to_string(), "--net", "bash", "-ec", &script])
            .output()
            .expect("nsenter, of the package util-linux");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        other.run(&format!("ip address add 10.0.0.{number}/24 dev eth0 && ip link set eth0 up"));
    }

    /// Runs commands in root's shell, and returns what they printed. Each must succeed.
    pub fn run(&self, commands: &str) -> String {
        self.shell.borrow_mut().run(commands).unwrap_or_else(|said| panic!("it failed:\n{said}\nof:\n{commands}"))
    }

    /// As above, of commands of which the last one fails.
    pub fn fails(&self, commands: &str) -> String {
        self.run(&format!("if {{ {commands}\n}}; then echo 'this did not fail'; false; fi"))
    }

    /// Carries a file from root's directory on another machine to this one's.
    pub fn carry(&self, from: &Self, name: &str) {
        let path = |machine: &Self| format!("/proc/{}/root/root/{name}", machine.inside);
        std::fs::copy(path(from), path(self)).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

impl Shell {
    fn start(inside: u32) -> Self {
        let mut child = Command::new("timeout")
            .args([TIMEOUT_SECONDS, "nsenter", "-t", &inside.to_string(), "--mount", "--net", "--pid"])
            .args(["env", "--ignore-environment", "--chdir=/root", "HOME=/root", &format!("PATH={PATH}")])
            // More than the defaults: a machine that runs all tests is busy.
            .args(["STAGE0_REQUEST_BUDGET_MS=20000", "STAGE0_TIMEOUT=30", "bash", "-ec", SHELL, DONE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("timeout and nsenter");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, input, output }
    }

    /// What the commands print; as an error, if one of them failed.
    fn run(&mut self, commands: &str) -> Result<String, String> {
        let mut said = String::new();
        if write!(self.input, "{commands}\0").and_then(|()| self.input.flush()).is_err() {
            return Err("the shell has ended before".to_owned());
        }
        loop {
            let mut line = Vec::new();
            let read = self.output.read_until(b'\n', &mut line).unwrap();
            let line = String::from_utf8_lossy(&line);
            if line.trim_end() == DONE {
                return Ok(said);
            }
            if read == 0 {
                return Err(said);
            }
            said.push_str(&line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journals = Shell::start(self.inside).run("tail -n 8 /run/units/*.log");
            eprintln!("--- the machine's journals:\n{}", journals.unwrap_or_else(|said| said));
        }
        // With it, by `--kill-child`, goes everything inside.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The server that the other tests use.
fn nats_server() -> PathBuf {
    match std::env::var_os("STAGE0_TEST_NATS_SERVER") {
        Some(named) => named.into(),
        None => Path::new(CHECKOUT).join(".tools/bin/nats-server"),
    }
}
