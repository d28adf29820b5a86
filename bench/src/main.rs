//! What recording costs, as ratios against floors of the same run: `cargo run --release -p stage0-bench -- compare`.
//!
//! Owns the comparison: every contestant is started, then they take turns, so that a machine that drifts drifts under all of them.
//! Real parts only: TLS, a real nats-server that syncs each message, real files, a real receiver. Load and servers share the machine's
//! cores, which is part of every number; only ratios within one run mean something.

// A program for people at a terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod contest;
mod floors;
mod load;
mod product;
mod receiver;
mod report;
mod webhooks;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures the product against floors, in one run.
#[derive(Debug, Parser)]
#[command(name = "stage0-bench")]
struct Cli {
    #[command(subcommand)]
    command: Do,
}

#[derive(Debug, Subcommand)]
enum Do {
    /// Echoes, `/check` with recording off, on and with a webhook, embedded and on NATS; then deliveries
    Compare(Compare),
}

/// How long and how hard.
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

impl Compare {
    fn turn(&self) -> Duration {
        Duration::from_secs(self.seconds.max(1))
    }
}

fn main() -> anyhow::Result<()> {
    let Cli { command: Do::Compare(settings) } = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(contest::compare(&settings))?;
    // Servers of this process end with it.
    runtime.shutdown_background();
    if settings.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}
