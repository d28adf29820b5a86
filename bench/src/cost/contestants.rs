//! The contestants: each is a set of processes, an address and requests. Those of one environment share a deployment;
//! each has an account of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use super::CostArgs;
use crate::deployment::{Access, Deployment, Nats, Plan, Process, Usage};
use crate::floors::SERVES;
use crate::load::{Endpoint, Target};
use crate::pace::Pace;
use crate::request::{CheckRequest, Runs};

const WARM_UP: Duration = Duration::from_secs(1);
const UNREACHABLE_QUOTA: u64 = 1_000_000_000;
const WANTED: &str = r#""verdict":"ALLOW""#;
/// This program, also in a child.
const SELF: &str = "/proc/self/exe";

/// How the product is asked: the names are those of `compare`.
struct Way {
    number: char,
    label: &'static str,
    runs: Runs,
    is_limited: bool,
}

const WAYS: [Way; 3] = [
    Way { number: '1', label: "recorded", runs: Runs::Nameless, is_limited: false },
    Way { number: '3', label: "recorded, run state", runs: Runs::OfLine, is_limited: false },
    Way { number: '5', label: "all on", runs: Runs::OfLine, is_limited: true },
];

/// What a contestant is compared with.
#[derive(Clone, Copy)]
enum Under {
    /// An echo, however the product is asked.
    Echo(char),
    /// Another deployment that is asked in the same way.
    SameWay(char),
}

impl Under {
    fn of(self, way: &Way) -> String {
        match self {
            Self::Echo(letter) => letter.to_string(),
            Self::SameWay(letter) => format!("{letter}{}", way.number),
        }
    }
}

pub(super) struct Contestant {
    pub(super) name: String,
    /// What the name of the floor under it begins with.
    pub(super) floor: Option<String>,
    pub(super) at_rest: Vec<Usage>,
    parts: Rc<Parts>,
    asked: Asked,
}

/// A contestant's connections.
pub(super) struct Connected {
    pub(super) target: Target,
}

enum Parts {
    Product(Deployment),
    Floor(FloorParts),
}

/// Processes end before nats-server, and that before the directory is removed.
struct FloorParts {
    processes: Vec<Process>,
    nats: Option<Nats>,
    address: SocketAddr,
    ca: PathBuf,
    _directory: TempDir,
}

enum Asked {
    Echo,
    Check(Access, Runs),
}

/// Starts those that the settings select.
pub(super) async fn start(settings: &CostArgs) -> anyhow::Result<Vec<Contestant>> {
    let mut all = Vec::new();
    let takes_part =
        |name: &str| settings.only.is_empty() || settings.only.iter().any(|only| name.starts_with(only.as_str()));
    for (name, on_nats) in [("a TLS echo", false), ("b TLS + NATS echo", true)] {
        if takes_part(name) {
            let parts = Rc::new(Parts::Floor(FloorParts::start(on_nats).await?));
            all.push(Contestant::new(name.to_owned(), None, parts, Asked::Echo)?);
        }
    }
    let stage0 = &settings.stage0;
    for (letter, place, floor, plan) in [
        ('c', "embedded", Under::Echo('a'), Plan::embedded(stage0)),
        ('d', "NATS", Under::Echo('b'), Plan::on_nats(stage0)),
        ('e', "NATS, keys", Under::Echo('b'), Plan::on_nats(stage0).authenticated()),
        ('f', "3 NATS", Under::SameWay('d'), Plan::on_nats(stage0).clustered()),
        ('g', "3 NATS, one lost", Under::SameWay('d'), Plan::on_nats(stage0).clustered_with_one_lost()),
        ('h', "3 NATS, relaxed", Under::SameWay('d'), Plan::on_nats(stage0).clustered_and_relaxed()),
    ] {
        let name = |way: &Way| format!("{letter}{} {place}, {}", way.number, way.label);
        let ways: Vec<_> = WAYS.iter().filter(|way| takes_part(&name(way))).collect();
        if ways.is_empty() {
            continue;
        }
        let parts = Rc::new(Parts::Product(Deployment::start(plan).await?));
        let Parts::Product(deployment) = &*parts else { continue };
        for way in ways {
            let access = deployment.access(&name(way)).await?;
            if way.is_limited {
                deployment.limit(&access.account, UNREACHABLE_QUOTA).await?;
            }
            let asked = Asked::Check(access, way.runs);
            all.push(Contestant::new(name(way), Some(floor.of(way)), Rc::clone(&parts), asked)?);
        }
    }
    ensure!(!all.is_empty(), "no contestant is named like `{}`", settings.only.join(","));
    Ok(all)
}

impl Contestant {
    fn new(name: String, floor: Option<String>, parts: Rc<Parts>, asked: Asked) -> anyhow::Result<Self> {
        let at_rest = parts.usage()?;
        Ok(Self { name, floor, at_rest, parts, asked })
    }

    pub(super) fn usage(&self) -> anyhow::Result<Vec<Usage>> {
        self.parts.usage()
    }

    /// Opens this many connections, and warms up until its runs have grown.
    pub(super) async fn connect(&self, connections: usize) -> anyhow::Result<Connected> {
        let (address, ca) = match &*self.parts {
            Parts::Product(deployment) => (deployment.address()?, deployment.ca()),
            Parts::Floor(floor) => (floor.address, &*floor.ca),
        };
        let endpoint = Endpoint::new(address, ca)?;
        let (requests, wanted, checks) = match &self.asked {
            Asked::Echo => {
                let body = Runs::Nameless.body(0)?;
                ((0..connections).map(|_| CheckRequest::new("/echo", None, &body)).collect(), None, 0)
            }
            Asked::Check(access, runs) => {
                let requests = (0..connections).map(|line| CheckRequest::check(&access.key, *runs, line));
                (requests.collect::<Result<_, _>>()?, Some(WANTED), runs.checks_until_grown(connections))
            }
        };
        let mut target = Target::connect(&endpoint, requests, wanted).await?;
        let mut answered = 0;
        while answered <= checks {
            let turn = target.turn(Pace::AsAnswered, WARM_UP).await?;
            ensure!(turn.latencies.len() > 0, "nothing was answered");
            answered += turn.latencies.len();
        }
        Ok(Connected { target })
    }
}

impl Parts {
    fn usage(&self) -> anyhow::Result<Vec<Usage>> {
        match self {
            Self::Product(deployment) => deployment.usage(),
            Self::Floor(floor) => {
                let nats = floor.nats.iter().flat_map(Nats::processes);
                floor.processes.iter().chain(nats).map(Process::usage).collect()
            }
        }
    }
}

impl FloorParts {
    async fn start(on_nats: bool) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let tls = directory.path().join("tls");
        let (_, ca) = stage0_gateway::dev_tls(&tls)?;
        let nats = if on_nats { Some(Nats::start(directory.path()).await?) } else { None };
        let tls = tls.display().to_string();
        let mut processes = Vec::new();
        let address = match &nats {
            None => floor("dev", &["tls", &tls], directory.path(), &mut processes).await?,
            Some(nats) => {
                floor("evaluator", &["responder", nats.url()], directory.path(), &mut processes).await?;
                let asker = ["asker", &tls, nats.url()];
                let address = floor("gateway", &asker, directory.path(), &mut processes).await?;
                processes.reverse();
                address
            }
        };
        let address = address.parse().context("a floor without an address")?;
        Ok(Self { processes, nats, address, ca, _directory: directory })
    }
}

/// Starts one process under the name of the role whose place it takes; what it says that it serves.
async fn floor(
    name: &str,
    arguments: &[&str],
    directory: &Path,
    processes: &mut Vec<Process>,
) -> anyhow::Result<String> {
    let arguments: Vec<_> = ["floor"].iter().chain(arguments).map(|&argument| argument.to_owned()).collect();
    let mut process = Process::start(name, Path::new(SELF), &arguments, directory)?;
    let serves = |line: &str| line.strip_prefix(SERVES).map(|address| address.trim().to_owned());
    let address = process.wait_for("a floor that serves", serves).await?;
    processes.push(process);
    Ok(address)
}
