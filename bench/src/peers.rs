//! The product beside other services that answer whether an action may run: the same kind of question over TLS, from
//! the same load, in turns. `scripts/bench-peers.sh` fetches them.
//!
//! The report names what a peer does not do: the numbers do not measure the same work.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::deployment::{Deployment, Plan, Process, Usage};
use crate::load::{Endpoint, Target, Turn};
use crate::pace::Pace;
use crate::quantiles::{median, median_ratio};
use crate::request::{CheckRequest, Runs};
use crate::turn;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_DELAY: Duration = Duration::from_millis(20);
const WARM_UP: Duration = Duration::from_secs(1);
const POLICY: &str = include_str!("../peers/deployment.yaml");
const QUESTION: &str = include_str!("../peers/question.json");

const NOTES: [&str; 3] = [
    "Cerbos evaluates one policy with the seven conditions of the request. It records nothing, authenticates no caller \
     and counts no run.",
    "Stage0 evaluates its whole baseline, authenticates the key, and answers once the decision is synced to disk.",
    "Both log a line for each check, as they do by default.",
];

#[derive(Debug, Clone, Args)]
pub(crate) struct PeersArgs {
    /// The binary of Cerbos
    #[arg(long, value_name = "FILE")]
    cerbos: PathBuf,
    /// The binary under test
    #[arg(long, value_name = "FILE", default_value = "target/dist/stage0")]
    stage0: PathBuf,
    /// Seconds of each turn
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Turns of each contestant
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// Connections at the same time, each with one request in flight
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    connections: usize,
    seconds: u64,
    repeats: usize,
    cerbos_version: String,
    rows: Vec<Summary>,
    notes: [&'static str; 3],
}

/// Medians of turns.
#[derive(Debug, Serialize)]
struct Summary {
    name: &'static str,
    per_second: f64,
    /// The median of the quotients within each turn.
    of_cerbos: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Microseconds of processor time for each answer, of all its processes.
    cpu_us: f64,
    /// Megabytes that are no file's, at the end.
    memory: f64,
}

struct Contestant {
    name: &'static str,
    served: Served,
    target: Target,
    rates: Vec<f64>,
    p50s: Vec<f64>,
    p99s: Vec<f64>,
    cpus: Vec<f64>,
}

enum Served {
    Stage0(Box<Deployment>),
    Cerbos(Cerbos),
}

struct Cerbos {
    process: Process,
    address: SocketAddr,
    ca: PathBuf,
    _directory: TempDir,
}

pub(crate) async fn peers(args: &PeersArgs) -> anyhow::Result<Report> {
    ensure!(args.cerbos.exists(), "there is no `{}`: run scripts/bench-peers.sh", args.cerbos.display());
    let cerbos = Cerbos::start(&args.cerbos).await?;
    let question: serde_json::Value = serde_json::from_str(QUESTION)?;
    let question = question.to_string();
    let requests = (0..args.connections).map(|_| CheckRequest::new("/api/check/resources", None, &question)).collect();
    let endpoint = Endpoint::new(cerbos.address, &cerbos.ca)?;
    let target = Target::connect(&endpoint, requests, Some("EFFECT_ALLOW")).await?;
    let mut contestants = vec![Contestant::new("Cerbos, not recorded", Served::Cerbos(cerbos), target)];
    for (name, plan) in [
        ("Stage0 embedded, recorded", Plan::embedded(&args.stage0)),
        ("Stage0 on NATS, recorded", Plan::on_nats(&args.stage0)),
    ] {
        let deployment = Deployment::start(plan).await?;
        let key = deployment.access("peers").await?.key;
        let requests = (0..args.connections).map(|line| CheckRequest::check(&key, Runs::Nameless, line));
        let endpoint = Endpoint::new(deployment.address()?, deployment.ca())?;
        let requests = requests.collect::<Result<_, _>>()?;
        let target = Target::connect(&endpoint, requests, Some(r#""verdict":"ALLOW""#)).await?;
        contestants.push(Contestant::new(name, Served::Stage0(Box::new(deployment)), target));
    }
    for contestant in &mut contestants {
        contestant.target.turn(Pace::AsAnswered, WARM_UP).await.context(contestant.name)?;
    }
    for _ in 0..args.repeats {
        for contestant in &mut contestants {
            contestant.take_turn(turn(args.seconds)).await.context(contestant.name)?;
        }
    }
    let first = contestants.first().map(|cerbos| cerbos.rates.clone()).unwrap_or_default();
    let rows = contestants.iter().map(|contestant| contestant.summary(&first)).collect::<Result<_, _>>()?;
    let &PeersArgs { connections, seconds, repeats, .. } = args;
    Ok(Report { connections, seconds, repeats, cerbos_version: version(&args.cerbos)?, rows, notes: NOTES })
}

impl Contestant {
    fn new(name: &'static str, served: Served, target: Target) -> Self {
        Self { name, served, target, rates: Vec::new(), p50s: Vec::new(), p99s: Vec::new(), cpus: Vec::new() }
    }

    async fn take_turn(&mut self, time: Duration) -> anyhow::Result<()> {
        let before = self.served.cpu()?;
        let Turn { latencies, refused, .. } = &self.target.turn(Pace::AsAnswered, time).await?;
        ensure!(*refused == 0, "{refused} checks were refused");
        ensure!(latencies.len() > 0, "nothing was answered");
        let answered = latencies.len() as f64;
        self.cpus.push((self.served.cpu()? - before) / answered * 1e6);
        self.rates.push(answered / time.as_secs_f64());
        self.p50s.push(latencies.quantile(0.5));
        self.p99s.push(latencies.quantile(0.99));
        Ok(())
    }

    fn summary(&self, cerbos: &[f64]) -> anyhow::Result<Summary> {
        Ok(Summary {
            name: self.name,
            per_second: median(self.rates.clone()),
            of_cerbos: median_ratio(&self.rates, cerbos),
            p50_ms: median(self.p50s.clone()),
            p99_ms: median(self.p99s.clone()),
            cpu_us: median(self.cpus.clone()),
            memory: self.served.usage()?.iter().map(|usage| usage.anonymous as f64 / 1e6).sum(),
        })
    }
}

impl Served {
    fn usage(&self) -> anyhow::Result<Vec<Usage>> {
        match self {
            Self::Stage0(deployment) => deployment.usage(),
            Self::Cerbos(cerbos) => {
                cerbos.process.trim_log()?;
                Ok(vec![cerbos.process.usage()?])
            }
        }
    }

    fn cpu(&self) -> anyhow::Result<f64> {
        Ok(self.usage()?.iter().map(|usage| usage.cpu.as_secs_f64()).sum())
    }
}

impl Cerbos {
    async fn start(binary: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (tls, ca) = stage0_gateway::dev_tls(&directory.path().join("tls"))?;
        let policies = directory.path().join("policies");
        std::fs::create_dir(&policies)?;
        std::fs::write(policies.join("deployment.yaml"), POLICY)?;
        let (http, grpc) = (free_address()?, free_address()?);
        let config = format!(
            "server:\n  httpListenAddr: \"{http}\"\n  grpcListenAddr: \"{grpc}\"\n  tls:\n    cert: {:?}\n    \
             key: {:?}\nstorage:\n  driver: disk\n  disk:\n    directory: {policies:?}\n    watchForChanges: false\n\
             telemetry:\n  disabled: true\naudit:\n  enabled: false\n",
            tls.cert, tls.key
        );
        let path = directory.path().join("cerbos.yaml");
        std::fs::write(&path, config)?;
        let arguments = ["server".to_owned(), format!("--config={}", path.display())];
        let mut process = Process::start("cerbos", binary, &arguments, directory.path())?;
        let begun = Instant::now();
        while TcpStream::connect(http).await.is_err() {
            process.ensure_running()?;
            ensure!(begun.elapsed() < START_TIMEOUT, "Cerbos does not listen");
            tokio::time::sleep(RETRY_DELAY).await;
        }
        Ok(Self { process, address: http, ca, _directory: directory })
    }
}

/// Cerbos does not say which port it was given. Another program could take this one in between.
fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn version(binary: &Path) -> anyhow::Result<String> {
    let output = std::process::Command::new(binary).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, seconds, repeats, cerbos_version, rows, notes } = self;
        writeln!(
            f,
            "Cerbos {cerbos_version}; {connections} connections, {repeats} interleaved turns of {seconds} s each\n"
        )?;
        writeln!(
            f,
            "{:<28}{:>9}{:>11}{:>9}{:>9}{:>10}{:>12}",
            "", "req/s", "of Cerbos", "p50 ms", "p99 ms", "CPU µs", "memory MB"
        )?;
        for Summary { name, per_second, of_cerbos, p50_ms, p99_ms, cpu_us, memory } in rows {
            writeln!(
                f,
                "{name:<28}{per_second:>9.0}{of_cerbos:>10.2}×{p50_ms:>9.2}{p99_ms:>9.2}{cpu_us:>10.0}{memory:>12.1}"
            )?;
        }
        writeln!(f)?;
        notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}
