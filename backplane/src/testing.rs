//! A real nats-server for tests, or three that are a cluster, and small disks. Servers end when the value is dropped,
//! also when the test panics.
//!
//! Runs a binary (`STAGE0_TEST_NATS_SERVER`, `.tools/bin`, the `PATH`), or without one, with the feature
//! `containers`, a container of `STAGE0_TEST_NATS_IMAGE` (`nats:2.15` unless set). `STAGE0_TEST_NATS` set to `binary`
//! or `container` forces one of them. Does not skip: if neither is available the test fails and says what to do.

// Test code that several packages share.
#![allow(clippy::expect_used, clippy::panic)]

mod cluster;
#[cfg(feature = "containers")]
mod container;
#[cfg(not(feature = "containers"))]
#[path = "testing/no_container.rs"]
mod container;
mod disk;
mod process;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::nats::NatsConfig;
pub use cluster::{NODES, NatsCluster, block as cluster_block, name as server_name, route_ports};
use container::Container;
pub use disk::{Disk, run};
pub use process::Place;
use process::Process;

const WAY_VARIABLE: &str = "STAGE0_TEST_NATS";
const OLDEST: (u32, u32) = (2, 15);
const START_TIMEOUT: Duration = Duration::from_secs(20);
const HOW_TO_GET_ONE: &str =
    "run `scripts/test.sh`, which fetches nats-server 2.15, or set STAGE0_TEST_NATS_SERVER to the path of one";

/// Settings that the backplane needs: room for the largest message, and JetStream that syncs before it acknowledges.
pub const SYNCED: &str = "max_payload: 8MB\njetstream {\n  sync_interval: always\n}";

/// A test's nats-server.
pub struct NatsServer {
    runs: Runs,
}

enum Runs {
    Process(Process),
    Container(Box<Container>),
}

/// Ports on this machine; zero until the server has chosen them.
#[derive(Debug, Clone, Copy, Default)]
struct Ports {
    clients: u16,
    monitor: u16,
}

macro_rules! either {
    ($runs:expr, $server:ident => $call:expr) => {
        match $runs {
            Runs::Process($server) => $call,
            Runs::Container($server) => $call,
        }
    };
}

impl NatsServer {
    /// A server without logins, with [`SYNCED`].
    pub async fn start() -> Self {
        Self::start_with(SYNCED).await
    }

    /// A server with these settings, in nats-server's own format; addresses, pings and JetStream's directory are added.
    /// A container gets copies of the files that the settings name by absolute path in double quotes.
    pub async fn start_with(settings: &str) -> Self {
        let runs = match find_binary().await {
            Some(binary) => Runs::Process(Process::start(binary, Place::default(), settings).await),
            None => Runs::Container(Box::new(Container::start(settings).await)),
        };
        Self { runs }
    }

    /// Like [`Self::start_with`], with JetStream in this directory of the machine. None if only a container is
    /// available, which does not see the machine's directories: the caller reports that it tested nothing.
    pub async fn start_in(store: &Path, settings: &str) -> Option<Self> {
        let place = Place { store: Some(store.to_owned()), ..Place::default() };
        let process = Process::start(find_binary().await?, place, settings).await;
        Some(Self { runs: Runs::Process(process) })
    }

    /// Its address, which stays the same after a restart.
    pub fn url(&self) -> String {
        let ports = either!(&self.runs, server => server.ports());
        format!("nats://127.0.0.1:{}", ports.clients)
    }

    /// Its monitor's address (`/jsz`, `/healthz`), which stays the same after a restart.
    pub fn monitor(&self) -> String {
        let ports = either!(&self.runs, server => server.ports());
        format!("http://127.0.0.1:{}", ports.monitor)
    }

    /// A client configuration with short timeouts, so that tests of failures are short.
    pub fn config(&self, name: &str) -> NatsConfig {
        NatsConfig {
            ping_interval: Duration::from_millis(200),
            attempt_timeout: Duration::from_secs(1),
            ..NatsConfig::new(self.url(), name)
        }
    }

    /// Kills it as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        either!(&mut self.runs, server => server.kill());
    }

    /// Starts it again on the same ports; only what it had on disk is left.
    pub async fn restart(&mut self) {
        either!(&mut self.runs, server => server.restart().await);
    }

    /// Starts it again on the same ports with other settings. A container loses its disk.
    pub async fn restart_with(&mut self, settings: &str) {
        either!(&mut self.runs, server => server.restart_with(settings).await);
    }

    /// Reloads the settings while it runs, as an operator does (SIGHUP). A container is restarted.
    pub async fn reload_with(&mut self, settings: &str) {
        match &mut self.runs {
            Runs::Process(process) => process.reload_with(settings).await,
            Runs::Container(container) => container.restart_with(settings).await,
        }
    }

    /// Freezes it; connections stay open.
    pub fn freeze(&self) {
        either!(&self.runs, server => server.freeze());
    }

    /// Lets it run again.
    pub fn thaw(&self) {
        either!(&self.runs, server => server.thaw());
    }
}

/// Polls until the condition holds and panics if that takes too long. Only where there is nothing to await.
pub async fn wait_for(what: &str, within: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < within, "waited {within:?} in vain for: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Way {
    Any,
    Binary,
    Container,
}

/// The binary to run; none: a container is used, and a Docker engine answers.
async fn find_binary() -> Option<PathBuf> {
    let way = way(std::env::var_os(WAY_VARIABLE).as_deref());
    if way != Way::Container {
        if let Some(binary) = process::find_binary() {
            return Some(binary);
        }
        assert!(way == Way::Any, "no nats-server found, and {WAY_VARIABLE}=binary: {HOW_TO_GET_ONE}");
    }
    match container::engine().await {
        Ok(()) => None,
        Err(problem) if way == Way::Any => {
            panic!("no nats-server found, and no Docker engine answers ({problem}): {HOW_TO_GET_ONE}, or start Docker")
        }
        Err(problem) => panic!("{WAY_VARIABLE}=container, but no Docker engine answers ({problem}): start Docker"),
    }
}

/// An invalid value is not printed: it may be the address of the product's server.
fn way(value: Option<&OsStr>) -> Way {
    match value.map(OsStr::as_encoded_bytes) {
        None => Way::Any,
        Some(b"binary") => Way::Binary,
        Some(b"container") => Way::Container,
        Some(_) => {
            panic!("{WAY_VARIABLE} must be `binary` or `container` for tests: unset it to leave them the choice")
        }
    }
}

fn configuration(listen: &str, monitor: &str, settings: &str) -> String {
    format!("listen: {listen:?}\nhttp: {monitor:?}\nping_interval: \"1s\"\n{settings}\n")
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    #[should_panic(expected = "must be `binary` or `container`")]
    fn a_test_server_setting_other_than_binary_or_container_is_refused() {
        way(Some(OsStr::new("nats://hunter2@h")));
    }

    #[test]
    fn a_test_server_can_be_forced_to_be_a_binary_or_a_container() {
        assert_eq!(way(None), Way::Any);
        assert_eq!(way(Some(OsStr::new("binary"))), Way::Binary);
        assert_eq!(way(Some(OsStr::new("container"))), Way::Container);
    }

    #[test]
    fn versions_are_numbers_and_not_text() {
        assert!(version("2.9.25").unwrap() < OLDEST && version("2.100.0").unwrap() > OLDEST);
        assert_eq!(version("dev"), None);
    }

    #[tokio::test]
    async fn a_server_ends_with_its_test_even_when_that_panics() {
        let (tell, address) = oneshot::channel();
        let test = tokio::spawn(async move {
            let nats = NatsServer::start().await;
            nats.freeze();
            tell.send(nats.url().replace("nats://", "")).unwrap();
            panic!("as wanted");
        });
        let address = address.await.unwrap();
        assert!(test.await.unwrap_err().is_panic());
        assert!(TcpStream::connect(&address).await.is_err(), "{address} still listens");
    }

    #[tokio::test]
    async fn a_server_that_is_frozen_can_be_killed_twice_and_is_back_at_its_addresses() {
        let mut nats = NatsServer::start().await;
        let (address, monitor) = (nats.url(), nats.monitor());
        nats.freeze();
        nats.kill();
        nats.kill();
        assert!(async_nats::connect(&address).await.is_err());
        nats.restart().await;
        assert_eq!((nats.url(), nats.monitor()), (address.clone(), monitor.clone()));
        assert!(async_nats::connect(&address).await.is_ok());
        assert!(TcpStream::connect(monitor.replace("http://", "")).await.is_ok());
    }

    #[tokio::test]
    #[should_panic(expected = "nats-server does not start")]
    async fn settings_that_nats_server_refuses_are_printed() {
        NatsServer::start_with("max_payload: nonsense").await;
    }
}
