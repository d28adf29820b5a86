//! A real nats-server for a deployment, in a directory of its own, on free ports.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use stage0_backplane::testing::SYNCED;

use super::Process;

const BINARY_VARIABLE: &str = "STAGE0_TEST_NATS_SERVER";
const START_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

pub(crate) struct Nats {
    process: Process,
    url: String,
    monitor: String,
}

impl Nats {
    /// JetStream's files are in `nats/` of this directory; each message is synced before it is acknowledged.
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Self> {
        let own = directory.join("nats");
        let ports = own.join("ports");
        std::fs::create_dir_all(&ports)?;
        let config = own.join("nats.conf");
        let addresses = format!("listen: \"127.0.0.1:-1\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: {ports:?}");
        std::fs::write(&config, format!("{addresses}\n{SYNCED}\n"))?;
        let arguments = [Path::new("-c"), &config, Path::new("-sd"), &own.join("store")];
        let arguments = arguments.map(|argument| argument.display().to_string());
        let mut process = Process::start("nats-server", &binary()?, &arguments, directory)?;
        let begun = Instant::now();
        let (url, monitor) = loop {
            if let Some(addresses) = addresses_in(&ports) {
                break addresses;
            }
            process.ensure_running()?;
            ensure!(begun.elapsed() < START_TIMEOUT, "nats-server does not start");
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        Ok(Self { process, url, monitor })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its monitor's address (`/jsz`, `/varz`).
    pub(crate) fn monitor(&self) -> &str {
        &self.monitor
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }
}

/// The one that is named, that of the working copy, or that of the `PATH`.
fn binary() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os(BINARY_VARIABLE) {
        return Ok(named.into());
    }
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let found = std::iter::once(local).chain(others).find(|file| file.is_file());
    found.with_context(|| {
        format!("no nats-server found: run `scripts/test.sh`, which fetches it, or set {BINARY_VARIABLE}")
    })
}

/// The server writes the file when it listens, so a half-written one is read again.
fn addresses_in(ports: &Path) -> Option<(String, String)> {
    let file = std::fs::read_dir(ports).ok()?.find_map(Result::ok)?;
    let found: Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    let address = |what: &str| found.get(what)?.get(0)?.as_str().map(str::to_owned);
    Some((address("nats")?, address("monitoring")?))
}
