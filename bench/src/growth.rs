//! How costs grow with what the product holds: `cargo run --profile dist -p stage0-bench -- growth`.
//!
//! Each curve starts parts of its own and measures at each size. Sizes are as wide as the product is meant for; the
//! whole takes hours, so curves are chosen with `--only` and cut with `--largest`.

mod curve;
mod decisions;
mod endpoints;
mod policy;
mod population;
mod processes;
mod rules;
mod runs;
mod seed;
mod traffic;

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::chart::{Chart, Charts};
use crate::turn;
use curve::Curve;
use processes::Role;

#[derive(Debug, Clone, Args)]
pub(crate) struct GrowthArgs {
    /// Only these curves
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<What>,
    /// Leaves out sizes below this one
    #[arg(long, value_name = "N")]
    smallest: Option<u64>,
    /// Leaves out sizes above this one
    #[arg(long, value_name = "N")]
    largest: Option<u64>,
    /// Seconds of each measurement under load
    #[arg(long, default_value_t = 5)]
    seconds: u64,
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
enum What {
    Rules,
    Accounts,
    Keys,
    Endpoints,
    Decisions,
    Evaluators,
    Gateways,
    Runs,
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    curves: Vec<Curve>,
}

pub(crate) async fn growth(args: &GrowthArgs) -> anyhow::Result<Report> {
    let mut curves = Vec::new();
    for &what in What::value_variants() {
        if args.only.is_empty() || args.only.contains(&what) {
            curves.extend(args.curves(what).await?);
            eprintln!("{what:?} is done");
        }
    }
    Ok(Report { curves })
}

impl GrowthArgs {
    async fn curves(&self, what: What) -> anyhow::Result<Vec<Curve>> {
        let (stage0, time) = (self.stage0.as_path(), turn(self.seconds));
        Ok(match what {
            What::Rules => {
                let (sizes, cut) = (self.sizes(&rules::SIZES), self.sizes(&rules::SIZES));
                let alone = tokio::task::spawn_blocking(move || rules::curve(&sizes)).await??;
                vec![alone, policy::curve(stage0, &cut, time).await?]
            }
            What::Accounts => vec![population::accounts(stage0, &self.sizes(&population::ACCOUNTS), time).await?],
            What::Keys => vec![population::keys(stage0, &self.sizes(&population::KEYS), time).await?],
            What::Endpoints => vec![endpoints::curve(stage0, &self.sizes(&endpoints::SIZES)).await?],
            What::Decisions => decisions::curves(&self.sizes(&decisions::SIZES)).await?,
            What::Evaluators => vec![self.processes(Role::Evaluator).await?],
            What::Gateways => vec![self.processes(Role::Gateway).await?],
            What::Runs => runs::curves(stage0, &self.sizes(&runs::SIZES), time).await?,
        })
    }

    async fn processes(&self, role: Role) -> anyhow::Result<Curve> {
        processes::curve(role, &self.stage0, &self.sizes(&processes::SIZES), turn(self.seconds)).await
    }

    fn sizes(&self, sizes: &[u64]) -> Vec<u64> {
        let (least, most) = (self.smallest.unwrap_or(0), self.largest.unwrap_or(u64::MAX));
        sizes.iter().copied().filter(|size| (least..=most).contains(size)).collect()
    }
}

impl Charts for Report {
    fn charts(&self) -> Vec<Chart> {
        self.curves.iter().flat_map(Curve::charts).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for curve in &self.curves {
            writeln!(f, "{curve}")?;
        }
        Ok(())
    }
}
