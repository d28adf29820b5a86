//! The stack of `docker-compose.yml`, as a platform team starts it: by compose, from images, used from outside.
//!
//! Owns one project with names, ports and a network of its own, and its end: containers, networks and volumes go with
//! the value. Needs what `scripts/containers.sh up` gives: an engine, compose and images; a variable that is missing
//! fails the test and says so.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A project of compose.
pub struct Containers {
    name: String,
    compose: Vec<String>,
    /// Below the project's root; each adds to those before it.
    files: &'static [&'static str],
    settings: Vec<(&'static str, String)>,
    /// Where the gateways are reached.
    pub url: String,
    /// Where the receiver's page is.
    pub page: String,
}

impl Containers {
    /// Nothing is started yet.
    pub fn new(purpose: &str) -> Self {
        let (clients, page) = (free_port(), free_port());
        let process = std::process::id();
        // Two runs on one machine must not meet in one network.
        let edge = format!("10.{}.{}", 64 + process / 256 % 128, process % 256);
        let settings = vec![
            ("S0_PUBLISH", format!("127.0.0.1:{clients}")),
            ("S0_PAGE", format!("127.0.0.1:{page}")),
            ("S0_EDGE", edge),
            ("S0_IMAGE", needed("STAGE0_TEST_IMAGE")),
            ("S0_NATS_IMAGE", needed("STAGE0_TEST_NATS_IMAGE")),
            ("S0_BALANCER_IMAGE", needed("STAGE0_TEST_BALANCER_IMAGE")),
        ];
        Self {
            name: format!("stage0-test-{purpose}-{process}"),
            compose: needed("STAGE0_TEST_COMPOSE").split_whitespace().map(str::to_owned).collect(),
            files: &["docker-compose.yml"],
            settings,
            url: format!("https://127.0.0.1:{clients}"),
            page: format!("http://127.0.0.1:{page}"),
        }
    }

    /// With three servers of NATS. Nothing is started yet.
    #[must_use]
    pub fn with_cluster(purpose: &str) -> Self {
        let mut own = Self::new(purpose);
        own.files = &["docker-compose.yml", "deploy/cluster/docker-compose.yml"];
        own
    }

    /// As the first, on the same address: it cannot start beside it.
    #[must_use]
    pub fn at_the_address_of(other: &Self, purpose: &str) -> Self {
        let mut own = Self::new(purpose);
        let address = other.settings.iter().find(|(name, _)| *name == "S0_PUBLISH").unwrap().1.clone();
        own.settings.retain(|(name, _)| !matches!(*name, "S0_PUBLISH" | "S0_EDGE"));
        own.settings.push(("S0_PUBLISH", address));
        own.settings.push(("S0_EDGE", format!("10.200.{}", std::process::id() % 256)));
        own
    }

    /// `docker compose …` of this project; its output whole, whatever became of it.
    pub fn try_compose(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.compose[0]);
        command.args(&self.compose[1..]).args(["-p", &self.name]);
        for file in self.files {
            command.arg("-f").arg(root().join(file));
        }
        command.args(arguments).current_dir(root()).envs(self.settings.iter().map(|(name, value)| (*name, value)));
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{:?}: {error}", self.compose))
    }

    /// As above, and it must do it; what it prints.
    pub fn compose(&self, arguments: &[&str]) -> String {
        let output = self.try_compose(arguments);
        assert!(output.status.success(), "compose {arguments:?}:\n{}\n{}", text(&output.stderr), self.logs());
        text(&output.stdout)
    }

    /// How a shell calls compose for this project.
    pub fn shell(&self) -> String {
        let settings: Vec<_> = self.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let files: String = self.files.iter().map(|file| format!(" -f {}", root().join(file).display())).collect();
        format!("env {} {} -p {}{files}", settings.join(" "), self.compose.join(" "), self.name)
    }

    /// Containers of a service, running or not.
    pub fn of(&self, service: &str) -> Vec<String> {
        let of_service = format!("label=com.docker.compose.service={service}");
        let found = docker(&["ps", "-aq", "--filter", &self.label(), "--filter", &of_service]);
        found.split_whitespace().map(str::to_owned).collect()
    }

    /// Whatever is left of the project: containers, networks, volumes.
    pub fn left(&self) -> Vec<String> {
        let label = self.label();
        let lists: [&[&str]; 3] = [
            &["ps", "-aq", "--filter", &label],
            &["network", "ls", "-q", "--filter", &label],
            &["volume", "ls", "-q", "--filter", &label],
        ];
        lists.iter().flat_map(|list| docker(list).split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    /// The last lines of every container, for a test that failed.
    pub fn logs(&self) -> String {
        let output = self.try_compose(&["logs", "--no-color", "--tail=40"]);
        text(&output.stdout)
    }

    fn label(&self) -> String {
        format!("label=com.docker.compose.project={}", self.name)
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let output = self.try_compose(&["down", "--volumes", "--remove-orphans", "--timeout", "5"]);
        // A second panic would abort the whole run.
        assert!(output.status.success() || std::thread::panicking(), "down: {}", text(&output.stderr));
    }
}

/// `docker …`, which must do it; what it prints.
pub fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output().expect("docker is there");
    assert!(output.status.success(), "docker {arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// What the engine knows of a container or an image.
pub fn inspect(id: &str) -> Value {
    let found: Value = serde_json::from_str(&docker(&["inspect", id])).expect("JSON");
    found[0].clone()
}

/// The image under test.
pub fn image() -> String {
    needed("STAGE0_TEST_IMAGE")
}

fn needed(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: scripts/test.sh containers runs this"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the project has a root")
}

/// Somebody else may take it before the engine does; then the test fails and says so.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
