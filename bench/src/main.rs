//! What recording, run state and quotas cost, as ratios against floors of the same run: `cargo run --profile dist -p
//! stage0-bench -- compare`. What a flood of bad keys costs good traffic: `… -- flood`. How costs grow with what the
//! product holds: `… -- growth`. What a long time does to memory: `… -- soak`.
//!
//! All contestants are started and then take turns, so that a drift of the machine affects all of them. Uses real parts
//! only. Load and servers share the machine's cores: only ratios within one run mean something.

// A program for people at a terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod chart;
mod contest;
mod cost;
mod deployment;
mod discard_log;
mod environments;
mod flood;
mod floors;
mod growth;
mod guards;
mod http_message;
mod load;
mod pace;
mod peers;
mod product;
mod quantiles;
mod receiver;
mod report;
mod request;
mod soak;
mod webhooks;

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use chart::Charts;
use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the product against floors, in one run.
#[derive(Debug, Parser)]
#[command(name = "stage0-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Echoes, `/check` with recording off and on, with a webhook, run state and quotas, embedded and on NATS; then
    /// deliveries
    Compare(Compare),
    /// Good traffic at a steady rate, alone and while bad keys arrive from many addresses, embedded and on NATS
    Flood(Flood),
    /// A hook and the MCP guard against a bare check and a bare tool call
    Guard(GuardArgs),
    /// What costs grow with: rules, accounts, keys, endpoints, retained decisions, processes and runs
    Growth(growth::GrowthArgs),
    /// The product beside Cerbos, which `scripts/bench-peers.sh` fetches
    Peers(peers::PeersArgs),
    /// A steady load for a long time: memory, open files, errors; then idle connections
    Soak(soak::SoakArgs),
    /// Microseconds of CPU for each check in each process, memory, and latencies at fixed rates, embedded and on NATS
    Cost(cost::CostArgs),
    /// Serves one of the floors of `cost`
    #[command(hide = true)]
    Floor {
        #[command(subcommand)]
        floor: floors::Floor,
    },
    /// Becomes another program, which ends with this one
    #[command(hide = true)]
    Child {
        parent: u32,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// The MCP server that `guard` puts behind the guard
    #[command(hide = true)]
    McpEcho,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct GuardArgs {
    /// Rounds: each measures every contestant once
    #[arg(long, default_value_t = 300)]
    calls: usize,
    /// The binary under test
    #[arg(long, value_name = "FILE", default_value = "target/dist/stage0")]
    stage0: PathBuf,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Compare {
    /// Seconds of each turn
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Turns of each contestant
    #[arg(long, default_value_t = 7)]
    repeats: usize,
    /// Connections at the same time, each with one request in flight
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Only these contestants, such as `c0,c1`; deliveries are measured only when all take part
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Writes charts into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Flood {
    /// Seconds of each turn
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Turns alone and under the flood
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Connections of good traffic
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Good checks in a second, over all connections
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Bad keys in a second
    #[arg(long, default_value_t = 200)]
    bad: u32,
    /// Addresses from which bad keys arrive; few ones are throttled after a while
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    addresses: u32,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

fn turn(seconds: u64) -> Duration {
    Duration::from_secs(seconds.max(1))
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match &cli.command {
        Command::Child { parent, command } => return deployment::run_child(*parent, command),
        Command::McpEcho => return guards::echo(),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let text = runtime.block_on(async {
        tokio::select! {
            text = run(cli.command) => text,
            // Processes and directories of a measurement are removed.
            () = stopped() => Err(anyhow::anyhow!("stopped")),
        }
    });
    // The servers of this process end with it.
    runtime.shutdown_background();
    println!("{}", text?);
    Ok(())
}

async fn run(command: Command) -> anyhow::Result<String> {
    match command {
        Command::Compare(settings) => draw(&contest::compare(&settings).await?, settings.json, settings.svg.as_deref()),
        Command::Flood(settings) => render(&flood::flood(&settings).await?, settings.json),
        Command::Guard(settings) => render(&guards::guards(&settings).await?, settings.json),
        Command::Growth(settings) => draw(&growth::growth(&settings).await?, settings.json, settings.svg.as_deref()),
        Command::Peers(settings) => render(&peers::peers(&settings).await?, settings.json),
        Command::Soak(settings) => draw(&soak::soak(&settings).await?, settings.json, settings.svg.as_deref()),
        Command::Cost(settings) => draw(&cost::cost(&settings).await?, settings.json, settings.svg.as_deref()),
        Command::Floor { floor } => floors::run_floor(&floor).await.map(|()| String::new()),
        Command::Child { .. } | Command::McpEcho => Ok(String::new()),
    }
}

async fn stopped() {
    let interrupted = tokio::signal::ctrl_c();
    let Ok(mut terminated) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = interrupted => {}
        _ = terminated.recv() => {}
    }
}

/// As [`render`], and the charts as files of this directory.
fn draw(report: &(impl Serialize + Display + Charts), json: bool, svg: Option<&Path>) -> anyhow::Result<String> {
    if let Some(directory) = svg {
        chart::write(directory, &report.charts())
            .with_context(|| format!("cannot write to {}", directory.display()))?;
    }
    render(report, json)
}

fn render(report: &(impl Serialize + Display), json: bool) -> anyhow::Result<String> {
    Ok(if json { serde_json::to_string_pretty(report)? } else { report.to_string() })
}
