//! A real nats-server for a deployment, or three that are a cluster, each in a directory of its own, on free ports.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use stage0_backplane::testing::{NODES, SYNCED, cluster_block, route_ports, server_name};

use super::Process;

const BINARY_VARIABLE: &str = "STAGE0_TEST_NATS_SERVER";
/// Messages are synced every two minutes, which is the default of NATS.
const RELAXED: &str = "max_payload: 8MB\njetstream {}";
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// An election takes up to nine seconds, and a busy machine adds to it.
const AGREEMENT_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The servers of a deployment.
pub(crate) struct Nats {
    servers: Vec<Server>,
}

struct Server {
    process: Process,
    url: String,
    monitor: String,
}

impl Nats {
    /// JetStream's files are in `nats/` of this directory; each message is synced before it is acknowledged.
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Self> {
        Ok(Self { servers: vec![Server::start(directory, "nats", SYNCED).await?] })
    }

    /// Three servers, each of which syncs before it acknowledges unless it is relaxed. Returns once they have agreed on
    /// a leader.
    pub(crate) async fn start_cluster(directory: &Path, is_synced: bool) -> anyhow::Result<Self> {
        let jetstream = if is_synced { SYNCED } else { RELAXED };
        let routes = route_ports();
        let mut servers = Vec::new();
        for node in 0..NODES {
            let name = server_name(node);
            let settings = format!("server_name: {name}\n{}\n{jetstream}", cluster_block(node, &routes));
            servers.push(Server::start(directory, &format!("nats-{name}"), &settings).await?);
        }
        let client = reqwest::Client::builder().no_proxy().timeout(START_TIMEOUT).build()?;
        let begun = Instant::now();
        for server in &servers {
            let url = format!("{}/healthz", server.monitor);
            while !client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                ensure!(begun.elapsed() < AGREEMENT_TIMEOUT, "the servers of NATS do not agree on a leader");
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(Self { servers })
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.servers.len() > 1
    }

    /// Ends the last server as a crash would; its address stays in the lists.
    pub(super) fn lose_one(&mut self) {
        if let Some(server) = self.servers.pop() {
            drop(server.process);
        }
    }

    /// Of the first server.
    pub(crate) fn url(&self) -> &str {
        self.servers.first().map_or("", |server| &server.url)
    }

    /// Of all servers, as a role takes them.
    pub(crate) fn urls(&self) -> String {
        self.list(|server| &server.url)
    }

    /// Addresses of the monitors (`/jsz`, `/varz`), as a role takes them.
    pub(crate) fn monitors(&self) -> String {
        self.list(|server| &server.monitor)
    }

    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.servers.iter().map(|server| &server.process)
    }

    fn list(&self, of: impl Fn(&Server) -> &str) -> String {
        self.servers.iter().map(of).collect::<Vec<_>>().join(",")
    }
}

impl Server {
    async fn start(directory: &Path, name: &str, settings: &str) -> anyhow::Result<Self> {
        let own = directory.join(name);
        let ports = own.join("ports");
        std::fs::create_dir_all(&ports)?;
        let config = own.join("nats.conf");
        let addresses = format!("listen: \"127.0.0.1:-1\"\nhttp: \"127.0.0.1:-1\"\nports_file_dir: {ports:?}");
        std::fs::write(&config, format!("{addresses}\n{settings}\n"))?;
        let arguments = [Path::new("-c"), &config, Path::new("-sd"), &own.join("store")];
        let arguments = arguments.map(|argument| argument.display().to_string());
        let mut process = Process::start("nats-server", &binary()?, &arguments, &own)?;
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
