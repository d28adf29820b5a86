//! nats-server as a process on this machine, in a directory of its own; both end when the value is dropped.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{HOW_TO_GET_ONE, OLDEST, Ports, START_TIMEOUT, configuration, version};

/// A server in lame duck mode sends one client away each second.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(60);
const BINARY_VARIABLE: &str = "STAGE0_TEST_NATS_SERVER";

/// Where a server runs and keeps its data; what is left out is chosen for it.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// JetStream's directory.
    pub store: Option<PathBuf>,
    /// The process's group, by which rules of a firewall know its packets. Setting it takes root.
    pub group: Option<u32>,
}

pub(super) struct Process {
    binary: PathBuf,
    directory: TempDir,
    place: Place,
    settings: String,
    process: Option<Child>,
    ports: Ports,
}

impl Process {
    pub(super) async fn start(binary: PathBuf, place: Place, settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for nats-server");
        let (settings, ports) = (settings.to_owned(), Ports::default());
        let mut server = Self { binary, directory, place, settings, process: None, ports };
        server.launch().await;
        server
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("nats-server can be killed");
            process.wait().expect("nats-server ends");
        }
    }

    pub(super) async fn restart(&mut self) {
        self.kill();
        self.launch().await;
    }

    pub(super) async fn restart_with(&mut self, settings: &str) {
        settings.clone_into(&mut self.settings);
        self.restart().await;
    }

    /// Needed only after a restart: a server on a free port cannot be named in any other way.
    pub(super) async fn reload_with(&mut self, settings: &str) {
        const RELOADED: &str = "Reloaded server configuration";
        let log = self.directory.path().join("nats.log");
        let read = || std::fs::read_to_string(&log).unwrap_or_default();
        let before = read().matches(RELOADED).count();
        settings.clone_into(&mut self.settings);
        self.configure();
        self.signal(Signal::HUP);
        let asked = Instant::now();
        while read().matches(RELOADED).count() == before {
            assert!(asked.elapsed() < START_TIMEOUT, "nats-server does not reload:\n{}", read());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Lets it hand over what it leads and send its clients away, as an operator does, and waits until it has ended.
    pub(super) async fn retire(&mut self) {
        self.signal(Signal::USR2);
        let asked = Instant::now();
        while self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None))) {
            assert!(asked.elapsed() < RETIRE_TIMEOUT, "nats-server does not end in lame duck mode");
            sleep(Duration::from_millis(5)).await;
        }
        self.process = None;
    }

    pub(super) fn freeze(&self) {
        let process = self.signal(Signal::STOP);
        // The signal takes a moment to reach every thread.
        waitpid(Some(process), WaitOptions::UNTRACED).expect("nats-server stops");
    }

    pub(super) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) -> Pid {
        let process = Pid::from_child(self.process.as_ref().expect("nats-server runs"));
        kill_process(process, signal).expect("nats-server can be signalled");
        process
    }

    fn configure(&self) -> PathBuf {
        let directory = self.directory.path();
        let address = |port| format!("127.0.0.1:{}", if port == 0 { -1 } else { i32::from(port) });
        let (clients, monitor) = (address(self.ports.clients), address(self.ports.monitor));
        let settings = format!("ports_file_dir: {:?}\n{}", directory.join("ports"), self.settings);
        let config = directory.join("nats.conf");
        std::fs::write(&config, configuration(&clients, &monitor, &settings))
            .expect("the configuration can be written");
        config
    }

    async fn launch(&mut self) {
        let config = self.configure();
        let directory = self.directory.path();
        let ports = directory.join("ports");
        drop(std::fs::remove_dir_all(&ports));
        std::fs::create_dir(&ports).expect("a directory for the ports file");
        let log = std::fs::File::create(directory.join("nats.log")).expect("the log can be written");
        let mut command = Command::new(&self.binary);
        if let Some(group) = self.place.group {
            command.gid(group);
        }
        let process = command
            .arg("-c")
            .arg(&config)
            // This sets the directory; it does not enable JetStream.
            .arg("-sd")
            .arg(self.place.store.as_deref().unwrap_or(&directory.join("store")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; {HOW_TO_GET_ONE}", self.binary.display()));
        self.process = Some(process);
        let started = Instant::now();
        loop {
            if let Some(ports) = ports_in(&ports) {
                self.ports = ports;
                return;
            }
            let ended = self.process.as_mut().is_some_and(|process| !matches!(process.try_wait(), Ok(None)));
            if ended || started.elapsed() > START_TIMEOUT {
                let log = std::fs::read_to_string(directory.join("nats.log")).unwrap_or_default();
                panic!("nats-server does not start:\n{log}");
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server writes the file when it listens, so a half-written one is read again.
fn ports_in(directory: &Path) -> Option<Ports> {
    let file = std::fs::read_dir(directory).ok()?.find_map(Result::ok)?;
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    let port = |what| ports.get(what)?.get(0)?.as_str()?.rsplit(':').next()?.parse().ok();
    Some(Ports { clients: port("nats")?, monitor: port("monitoring")? })
}

/// A binary that is named and unusable fails the test; falling back to a container would hide the mistake.
pub(super) fn find_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(BINARY_VARIABLE) {
        let named = PathBuf::from(named);
        assert!(
            is_new_enough(&named),
            "{BINARY_VARIABLE}={}: not a nats-server of 2.15 or newer; {HOW_TO_GET_ONE}",
            named.display()
        );
        return Some(named);
    }
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    [local, PathBuf::from("nats-server")].into_iter().find(|binary| is_new_enough(binary))
}

/// From its own output: `nats-server: v2.15.1`.
fn is_new_enough(binary: &Path) -> bool {
    let Ok(output) = Command::new(binary).arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.trim().rsplit_once('v').and_then(|(_, number)| version(number));
    number.is_some_and(|version| version >= OLDEST)
}
