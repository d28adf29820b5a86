//! What recording, run state and quotas cost, as ratios against floors of the same run: `cargo run --profile dist -p
//! stage0-bench -- compare`. What a flood of bad keys costs good traffic: `… -- flood`.
//!
//! All contestants are started and then take turns, so that a drift of the machine affects all of them. Uses real parts
//! only. Load and servers share the machine's cores: only ratios within one run mean something.

// A program for people at a terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod contest;
mod discard_log;
mod environments;
mod flood;
mod floors;
mod guards;
mod http_message;
mod load;
mod product;
mod quantiles;
mod receiver;
mod report;
mod request;
mod webhooks;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let text = match &cli.command {
        Command::Compare(settings) => render(&runtime.block_on(contest::compare(settings))?, settings.json),
        Command::Guard(settings) => render(&runtime.block_on(guards::guards(settings))?, settings.json),
        Command::McpEcho => return guards::echo(),
        Command::Flood(settings) => render(&runtime.block_on(flood::flood(settings))?, settings.json),
    };
    // The servers of this process end with it.
    runtime.shutdown_background();
    println!("{}", text?);
    Ok(())
}

fn render(report: &(impl Serialize + Display), json: bool) -> Result<String, serde_json::Error> {
    if json { serde_json::to_string_pretty(report) } else { Ok(report.to_string()) }
}
