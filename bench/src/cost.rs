//! What a check costs: microseconds of CPU of each process, memory of each, and latencies at rates below the maximum.
//!
//! The product runs as processes of its own, and so do the floors. Each contestant first answers as fast as it can.
//! Then it gets fractions of that rate, and its floor gets the same rate in the next turn. All of them take turns.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;

use crate::deployment::Usage;
use crate::load::Turn;
use crate::pace::Pace;
use crate::turn;

mod contestants;
mod report;

use contestants::{Connected, Contestant};
pub(crate) use report::Report;
use report::Row;

#[derive(Debug, Clone, Args)]
pub(crate) struct CostArgs {
    /// The binary under test
    #[arg(long, value_name = "FILE", default_value = "target/dist/stage0")]
    stage0: PathBuf,
    /// Seconds of each turn
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Turns of each kind
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Numbers of connections, each with one request in flight
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    connections: Vec<usize>,
    /// Fixed rates, as fractions of each contestant's maximum
    #[arg(long, value_delimiter = ',', default_value = "0.25,0.5,0.75")]
    fractions: Vec<f64>,
    /// Only these contestants, such as `b,d1`; a rate has no floor beside it unless its floor takes part
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Prints JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Writes charts into this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) svg: Option<PathBuf>,
}

/// What one turn took.
struct Spent {
    turn: Turn,
    /// Of the contestant's processes by name, and of the load last.
    cpu: Vec<(String, Duration)>,
}

pub(crate) async fn cost(settings: &CostArgs) -> anyhow::Result<Report> {
    ensure!(settings.repeats > 0, "--repeats must be at least 1");
    ensure!(settings.fractions.iter().all(|part| *part > 0.0 && *part <= 1.0), "--fractions must be in 0 to 1");
    let contestants = contestants::start(settings).await?;
    eprintln!("{} contestants are started", contestants.len());
    let mut rows = Vec::new();
    for &connections in &settings.connections {
        let mut connected = Vec::new();
        for contestant in &contestants {
            connected.push(contestant.connect(connections).await.with_context(|| contestant.name.clone())?);
        }
        let mut of_connections: Vec<_> =
            contestants.iter().map(|of| Row::new(&of.name, of.floor.as_deref(), connections)).collect();
        maximum(settings, &contestants, &mut connected, &mut of_connections).await?;
        for (row, contestant) in of_connections.iter_mut().zip(&contestants) {
            row.memory = contestant.usage()?;
        }
        fixed(settings, &contestants, &mut connected, &mut of_connections).await?;
        eprintln!("{connections} connections are done");
        rows.extend(of_connections);
    }
    let at_rest = contestants.into_iter().map(|contestant| (contestant.name, contestant.at_rest)).collect();
    Ok(Report::new(settings, &rows, at_rest))
}

async fn maximum(
    settings: &CostArgs,
    contestants: &[Contestant],
    connected: &mut [Connected],
    rows: &mut [Row],
) -> anyhow::Result<()> {
    for _ in 0..settings.repeats {
        for ((contestant, connected), row) in contestants.iter().zip(connected.iter_mut()).zip(rows.iter_mut()) {
            let spent = spend(contestant, connected, Pace::AsAnswered, turn(settings.seconds)).await?;
            row.maximum.add(&spent)?;
        }
    }
    Ok(())
}

/// Each contestant at fractions of its maximum, then its floor at the same rate.
async fn fixed(
    settings: &CostArgs,
    contestants: &[Contestant],
    connected: &mut [Connected],
    rows: &mut [Row],
) -> anyhow::Result<()> {
    let time = turn(settings.seconds);
    for _ in 0..settings.repeats {
        for &fraction in &settings.fractions {
            for (index, contestant) in contestants.iter().enumerate() {
                let Some(row) = rows.get_mut(index) else { continue };
                let fixed = row.fixed(fraction)?;
                let pace = Pace::PerSecond(fixed.rate);
                let Some(own) = connected.get_mut(index) else { continue };
                fixed.spent.add(&spend(contestant, own, pace, time).await?)?;
                let is_floor =
                    |other: &Contestant| contestant.floor.as_ref().is_some_and(|of| other.name.starts_with(of));
                let floor = contestants.iter().position(is_floor);
                let Some((at, floor)) = floor.and_then(|at| Some((at, contestants.get(at)?))) else { continue };
                let Some(line) = connected.get_mut(at) else { continue };
                let spent = spend(floor, line, pace, time).await?;
                if let Some(fixed) = rows.get_mut(index).map(|row| row.fixed(fraction)).transpose()? {
                    fixed.floor.add(&spent)?;
                }
            }
        }
    }
    Ok(())
}

async fn spend(
    contestant: &Contestant,
    connected: &mut Connected,
    pace: Pace,
    time: Duration,
) -> anyhow::Result<Spent> {
    let before = with_load(contestant)?;
    let turn = connected.target.turn(pace, time).await.with_context(|| contestant.name.clone())?;
    let after = with_load(contestant)?;
    let mut cpu: Vec<(String, Duration)> = Vec::new();
    for (before, after) in before.into_iter().zip(after) {
        let spent = after.cpu.saturating_sub(before.cpu);
        // The servers of a cluster have one name.
        match cpu.iter_mut().find(|(known, _)| *known == after.process) {
            Some((_, all)) => *all += spent,
            None => cpu.push((after.process, spent)),
        }
    }
    Ok(Spent { turn, cpu })
}

fn with_load(contestant: &Contestant) -> anyhow::Result<Vec<Usage>> {
    let mut usage = contestant.usage()?;
    usage.push(Usage::of_load()?);
    Ok(usage)
}
