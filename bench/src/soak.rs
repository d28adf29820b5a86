//! A steady load for a long time, everything on: memory and open files of each process in the first third of the time
//! against the last, errors, and what connections cost that do nothing.
//!
//! Checks belong to runs of twenty, quotas are counted, and a webhook gets every decision.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::Method;
use serde::Serialize;
use serde_json::json;

use crate::chart::{Axis, Chart, Charts, LineChart, Series};
use crate::deployment::{Access, Deployment, Plan, Usage};
use crate::load::{Endpoint, Line, Target};
use crate::pace::Pace;
use crate::quantiles::Latencies;
use crate::receiver::Receiver;
use crate::request::{CheckRequest, Runs};

const UNREACHABLE_LIMIT: u64 = 1_000_000_000;
const WANTED: &str = r#""verdict":"ALLOW""#;
/// Lets a deployment settle before its memory counts as that at rest.
const REST_TIME: Duration = Duration::from_secs(3);
/// Samples of memory in a soak, at least; a third of them is compared with another third.
const MIN_SAMPLES: u64 = 30;
const MAX_SAMPLE_INTERVAL: Duration = Duration::from_secs(5);
/// After the load, for what is still on its way to the webhook.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const OPENED_TOGETHER: usize = 32;

#[derive(Debug, Clone, Args)]
pub(crate) struct SoakArgs {
    /// Minutes of load
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Ends after this many checks, instead of after a time
    #[arg(long, value_name = "N")]
    checks: Option<u64>,
    /// Checks in a second, over all connections; 0: as fast as they are answered
    #[arg(long, default_value_t = 1_000)]
    rate: u32,
    /// Connections at the same time
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Connections that do nothing, afterwards
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    idle: usize,
    /// One process, or one for each role on NATS
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Place::Embedded, Place::Nats])]
    places: Vec<Place>,
    /// Fails if the memory of a process grows by more than this from the first third to the last, in percent
    #[arg(long, value_name = "PERCENT")]
    max_growth: Option<f64>,
    /// The binary under test
    #[arg(long, value_name = "FILE", default_value = "target/dist/stage0")]
    stage0: PathBuf,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Writes charts into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Place {
    Embedded,
    Nats,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    connections: usize,
    places: Vec<Soaked>,
}

#[derive(Debug, Serialize)]
struct Soaked {
    name: &'static str,
    seconds: f64,
    answered: u64,
    /// Answers 503.
    refused: u64,
    /// Events that the webhook got: decisions and marks.
    delivered: u64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    slowest_ms: f64,
    processes: Vec<Memory>,
    idle: Option<Idle>,
}

/// Megabytes that are no file's, and open files.
#[derive(Debug, Serialize)]
struct Memory {
    process: String,
    at_rest: f64,
    resident_at_rest: f64,
    /// Means of the samples of a third.
    first_third: f64,
    last_third: f64,
    most: f64,
    files_first: usize,
    files_last: usize,
    /// Each sample: what a chart shows.
    samples: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Idle {
    connections: usize,
    /// Megabytes of the process that holds them, before and with them.
    before: f64,
    with: f64,
    bytes_of_one: f64,
    opened_in_seconds: f64,
}

pub(crate) async fn soak(args: &SoakArgs) -> anyhow::Result<Report> {
    let mut places = Vec::new();
    for place in &args.places {
        places.push(place.soak(args).await?);
    }
    if let Some(most) = args.max_growth {
        for (place, memory) in places.iter().flat_map(|place| place.processes.iter().map(move |of| (place.name, of))) {
            ensure!(memory.growth() <= most, "{place}, {}: grew by {:.1} %", memory.process, memory.growth());
        }
    }
    Ok(Report { connections: args.connections, places })
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Nats => "NATS",
        }
    }

    async fn soak(self, args: &SoakArgs) -> anyhow::Result<Soaked> {
        let plan = match self {
            Self::Embedded => Plan::embedded(&args.stage0),
            Self::Nats => Plan::on_nats(&args.stage0),
        };
        let (deployment, receiver) = (Deployment::start(plan).await?, Receiver::start().await?);
        let access = account(&deployment, &receiver).await?;
        tokio::time::sleep(REST_TIME).await;
        let rest = deployment.usage()?;
        let mut soaked = args.load(self, &deployment, &access, rest).await?;
        soaked.delivered = delivered(&receiver, soaked.answered).await;
        if args.idle > 0 {
            soaked.idle = Some(idle(&deployment, &access, args.idle).await?);
        }
        Ok(soaked)
    }
}

/// How many events have arrived once the last ones had time to: a decision each, and the log's marks.
async fn delivered(receiver: &Receiver, checks: u64) -> u64 {
    let begun = Instant::now();
    while receiver.count() < checks && begun.elapsed() < DELIVERY_TIMEOUT {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    receiver.count()
}

/// An account whose checks are counted, recorded and delivered, and may name as many runs as they want.
async fn account(deployment: &Deployment, receiver: &Receiver) -> anyhow::Result<Access> {
    let access = deployment.access("soak").await?;
    deployment.limit(&access.account, UNREACHABLE_LIMIT).await?;
    let path = format!("/v1/accounts/{}", access.account);
    deployment.call(Method::PATCH, &path, &json!({"max_runs": UNREACHABLE_LIMIT})).await?;
    deployment.webhook(&access.account, receiver.address).await?;
    Ok(access)
}

impl SoakArgs {
    async fn load(
        &self,
        place: Place,
        deployment: &Deployment,
        access: &Access,
        rest: Vec<Usage>,
    ) -> anyhow::Result<Soaked> {
        let endpoint = Endpoint::new(deployment.address()?, deployment.ca())?;
        let requests = (0..self.connections).map(|line| CheckRequest::check(&access.key, Runs::Young, line));
        let mut target = Target::connect(&endpoint, requests.collect::<Result<_, _>>()?, Some(WANTED)).await?;
        let pace = if self.rate == 0 { Pace::AsAnswered } else { Pace::PerSecond(f64::from(self.rate)) };
        let (begun, mut answered, mut refused) = (Instant::now(), 0, 0);
        let (mut latencies, mut samples) = (Latencies::new()?, Vec::new());
        while !self.is_over(begun, answered + refused) {
            let turn = target.turn(pace, self.sample_interval()).await?;
            latencies.add(&turn.latencies)?;
            answered += turn.latencies.len();
            refused += turn.refused;
            samples.push(deployment.usage()?);
        }
        let processes = rest.into_iter().map(|rest| Memory::of(&rest, &samples)).collect::<Result<_, _>>()?;
        Ok(Soaked {
            name: place.name(),
            seconds: begun.elapsed().as_secs_f64(),
            answered,
            refused,
            delivered: 0,
            p50_ms: latencies.quantile(0.5),
            p99_ms: latencies.quantile(0.99),
            p999_ms: latencies.quantile(0.999),
            slowest_ms: latencies.quantile(1.0),
            processes,
            idle: None,
        })
    }

    fn is_over(&self, begun: Instant, sent: u64) -> bool {
        match self.checks {
            Some(checks) => sent >= checks,
            None => begun.elapsed() >= Duration::from_secs(self.minutes * 60),
        }
    }

    fn sample_interval(&self) -> Duration {
        let whole = match self.checks {
            Some(checks) => Duration::from_secs_f64(checks as f64 / f64::from(self.rate.max(1_000))),
            None => Duration::from_secs(self.minutes * 60),
        };
        (whole / MIN_SAMPLES as u32).clamp(Duration::from_millis(200), MAX_SAMPLE_INTERVAL)
    }
}

impl Memory {
    fn of(rest: &Usage, samples: &[Vec<Usage>]) -> anyhow::Result<Self> {
        let own = samples.iter().filter_map(|sample| sample.iter().find(|usage| usage.process == rest.process));
        let own: Vec<&Usage> = own.collect();
        let memory: Vec<f64> = own.iter().map(|usage| megabytes(usage.anonymous)).collect();
        ensure!(!memory.is_empty(), "no samples");
        let third = memory.len().div_ceil(3);
        let (first, last) = (memory.get(..third), memory.get(memory.len() - third..));
        let (first, last) = (first.context("no samples")?, last.context("no samples")?);
        Ok(Self {
            process: rest.process.clone(),
            at_rest: megabytes(rest.anonymous),
            resident_at_rest: megabytes(rest.resident),
            first_third: mean(first),
            last_third: mean(last),
            most: memory.iter().copied().fold(0.0, f64::max),
            files_first: own.first().map_or(0, |usage| usage.open_files),
            files_last: own.last().map_or(0, |usage| usage.open_files),
            samples: memory,
        })
    }

    /// From the first third to the last, in percent.
    fn growth(&self) -> f64 {
        (self.last_third / self.first_third - 1.0) * 100.0
    }
}

/// Opens connections that make one check each and then nothing.
async fn idle(deployment: &Deployment, access: &Access, count: usize) -> anyhow::Result<Idle> {
    tokio::time::sleep(REST_TIME).await;
    let holder = || -> anyhow::Result<f64> {
        let usage = deployment.usage()?.into_iter().next().context("a deployment without a process")?;
        Ok(megabytes(usage.anonymous))
    };
    let (before, begun) = (holder()?, Instant::now());
    let endpoint = Endpoint::new(deployment.address()?, deployment.ca())?;
    let body = Runs::Nameless.body(0)?;
    let opened = (0..count).map(|_| async {
        let mut line = endpoint.open(None).await.context("cannot open a connection: is `ulimit -n` high enough?")?;
        let status = line.ask(CheckRequest::new("/check", Some(&access.key), &body).next()).await?;
        ensure!(status == 200, "a check was not answered: {status}");
        Ok(line)
    });
    let lines: Vec<Line> = futures_util::stream::iter(opened).buffer_unordered(OPENED_TOGETHER).try_collect().await?;
    let opened = begun.elapsed().as_secs_f64();
    tokio::time::sleep(REST_TIME).await;
    let with = holder()?;
    let connections = lines.len();
    Ok(Idle {
        connections,
        before,
        with,
        bytes_of_one: (with - before) * 1e6 / connections as f64,
        opened_in_seconds: opened,
    })
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn mean(numbers: &[f64]) -> f64 {
    numbers.iter().sum::<f64>() / numbers.len() as f64
}

impl Charts for Report {
    fn charts(&self) -> Vec<Chart> {
        self.places.iter().map(Soaked::chart).collect()
    }
}

impl Soaked {
    fn chart(&self) -> Chart {
        let series = self.processes.iter().map(|memory| {
            let step = self.seconds / 60.0 / memory.samples.len().max(1) as f64;
            let points = memory.samples.iter().enumerate();
            let points = points.map(|(number, &sample)| ((number + 1) as f64 * step, sample));
            Series { name: memory.process.clone(), points: points.collect() }
        });
        let title = format!("Memory under a steady load, {}", self.name);
        let (x, y) = (Axis::linear("minutes"), Axis::linear("MB that are no file's"));
        LineChart { title, x, y, series: series.collect() }.chart(&format!("soak-{}", self.name.to_lowercase()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "runs of twenty checks, quotas, records, one webhook; {} connections", self.connections)?;
        self.places.iter().try_for_each(|place| writeln!(f, "\n{place}"))
    }
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, seconds, answered, refused, delivered, p50_ms, p99_ms, p999_ms, slowest_ms, .. } = self;
        let rate = *answered as f64 / seconds;
        writeln!(
            f,
            "{name}: {answered} checks in {seconds:.0} s ({rate:.0}/s), {refused} 503s, {delivered} delivered"
        )?;
        writeln!(f, "  p50 {p50_ms:.2} ms, p99 {p99_ms:.2}, p99.9 {p999_ms:.2}, slowest {slowest_ms:.2}")?;
        writeln!(
            f,
            "  {:<16}{:>9}{:>10}{:>13}{:>12}{:>9}{:>9}{:>14}",
            "memory, MB", "at rest", "resident", "first third", "last third", "growth", "most", "open files"
        )?;
        for memory in &self.processes {
            let files = format!("{}–{}", memory.files_first, memory.files_last);
            writeln!(
                f,
                "  {:<16}{:>9.1}{:>10.1}{:>13.1}{:>12.1}{:>8.1}%{:>9.1}{files:>14}",
                memory.process,
                memory.at_rest,
                memory.resident_at_rest,
                memory.first_third,
                memory.last_third,
                memory.growth(),
                memory.most,
            )?;
        }
        let Some(Idle { connections, before, with, bytes_of_one, opened_in_seconds }) = &self.idle else {
            return Ok(());
        };
        let each = bytes_of_one / 1024.0;
        writeln!(
            f,
            "  {connections} idle connections: {before:.1} MB before, {with:.1} with them, {each:.1} KiB each; \
             opened in {opened_in_seconds:.1} s"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(anonymous: u64, open_files: usize) -> Usage {
        Usage { process: "dev".to_owned(), cpu: Duration::ZERO, resident: 2 * anonymous, anonymous, open_files }
    }

    #[test]
    fn memory_of_the_first_third_is_compared_with_that_of_the_last() {
        let samples: Vec<_> = [10, 12, 30, 30, 22, 22].map(|sample| vec![usage(sample * 1_000_000, 7)]).into();
        let memory = Memory::of(&usage(5_000_000, 3), &samples).unwrap();
        assert_eq!((memory.at_rest, memory.first_third, memory.last_third), (5.0, 11.0, 22.0));
        assert!((memory.growth() - 100.0).abs() < 1e-9 && (memory.most - 30.0).abs() < 1e-9);
    }

    #[test]
    fn a_process_without_samples_is_a_failure_and_not_flat() {
        assert!(Memory::of(&usage(1, 1), &[vec![]]).is_err_and(|error| error.to_string() == "no samples"));
    }
}
