//! A real nats-server for tests: started on a free port, killed, restarted, frozen and thawed at will.
//!
//! Owns finding the binary, the process and its directory; both end with the value. Refuses to skip: where no server can be found the
//! test fails and says what to run.

// This is test code that several packages share.
#![allow(clippy::expect_used, clippy::panic)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::nats::NatsConfig;

/// Names the binary to use.
const BINARY_VARIABLE: &str = "STAGE0_NATS_SERVER";
const OLDEST: (u32, u32) = (2, 15);
const START_WITHIN: Duration = Duration::from_secs(20);
const HOW_TO_GET_ONE: &str =
    "no nats-server 2.15 or newer: run `scripts/test.sh`, which fetches one, or set STAGE0_NATS_SERVER to its path";

/// A nats-server of one test.
pub struct NatsServer {
    binary: PathBuf,
    directory: TempDir,
    settings: String,
    process: Option<Child>,
    port: u16,
}

impl NatsServer {
    /// A server that lets everybody do everything, with the settings that the backplane asks for.
    pub async fn start() -> Self {
        Self::start_with("max_payload: 8MB").await
    }

    /// A server with these settings, in nats-server's own format; address, ports file and pings come on top.
    pub async fn start_with(settings: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory for nats-server");
        let mut server =
            Self { binary: find_binary(), directory, settings: settings.to_owned(), process: None, port: 0 };
        server.launch().await;
        server
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// How to reach it, impatiently, so that tests of failures are short.
    #[must_use]
    pub fn config(&self, name: &str) -> NatsConfig {
        NatsConfig {
            ping_interval: Duration::from_millis(200),
            attempt_within: Duration::from_secs(1),
            ..NatsConfig::new(self.url(), name)
        }
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("nats-server can be killed");
            process.wait().expect("nats-server ends");
        }
    }

    /// Starts it again on the same port, with nothing remembered.
    pub async fn restart(&mut self) {
        self.kill();
        self.launch().await;
    }

    /// Stops it from running, connections left open.
    pub fn freeze(&self) {
        let process = self.signal(Signal::STOP);
        // The signal takes a moment to reach every thread.
        waitpid(Some(process), WaitOptions::UNTRACED).expect("nats-server stops");
    }

    /// Lets it run again.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) -> Pid {
        let process = Pid::from_child(self.process.as_ref().expect("nats-server runs"));
        kill_process(process, signal).expect("nats-server can be signalled");
        process
    }

    async fn launch(&mut self) {
        let directory = self.directory.path();
        let ports = directory.join("ports");
        drop(std::fs::remove_dir_all(&ports));
        std::fs::create_dir(&ports).expect("a directory for the ports file");
        let wanted = if self.port == 0 { -1 } else { i32::from(self.port) };
        let mut text = String::new();
        writeln!(text, "listen: \"127.0.0.1:{wanted}\"").expect("text grows");
        writeln!(text, "ports_file_dir: {ports:?}").expect("text grows");
        writeln!(text, "ping_interval: \"1s\"\n{}", self.settings).expect("text grows");
        let config = directory.join("nats.conf");
        std::fs::write(&config, text).expect("the configuration can be written");
        let log = std::fs::File::create(directory.join("nats.log")).expect("the log can be written");
        let process = Command::new(&self.binary)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; {HOW_TO_GET_ONE}", self.binary.display()));
        self.process = Some(process);
        let started = Instant::now();
        loop {
            if let Some(port) = port_in(&ports) {
                self.port = port;
                return;
            }
            let ended = self.process.as_mut().is_some_and(|process| !matches!(process.try_wait(), Ok(None)));
            if ended || started.elapsed() > START_WITHIN {
                let log = std::fs::read_to_string(directory.join("nats.log")).unwrap_or_default();
                panic!("nats-server does not start:\n{log}");
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last resort where nothing can be awaited: looks again and again, and fails loudly.
///
/// # Panics
/// When `condition` does not hold `within` the time.
pub async fn wait_for(what: &str, within: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < within, "waited {within:?} in vain for: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// The server writes the file when it listens, so a half-written one is read again.
fn port_in(directory: &Path) -> Option<u16> {
    let file = std::fs::read_dir(directory).ok()?.find_map(Result::ok)?;
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    let url = ports.get("nats")?.get(0)?.as_str()?;
    url.rsplit(':').next()?.parse().ok()
}

fn find_binary() -> PathBuf {
    if let Some(named) = std::env::var_os(BINARY_VARIABLE) {
        let named = PathBuf::from(named);
        assert!(is_new_enough(&named), "{BINARY_VARIABLE}={}: {HOW_TO_GET_ONE}", named.display());
        return named;
    }
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    [local, PathBuf::from("nats-server")]
        .into_iter()
        .find(|binary| is_new_enough(binary))
        .unwrap_or_else(|| panic!("{HOW_TO_GET_ONE}"))
}

fn is_new_enough(binary: &Path) -> bool {
    let Ok(output) = Command::new(binary).arg("--version").output() else { return false };
    let text = String::from_utf8_lossy(&output.stdout);
    version(&text).is_some_and(|version| version >= OLDEST)
}

/// From `nats-server: v2.15.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let (_, numbers) = text.trim().rsplit_once('v')?;
    let mut numbers = numbers.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
