//! Runs a simulation for many seeds, and tells of a failure: the seed, the smallest run that fails, and its story.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::timeout;

use super::Sim;
use super::hosts::Installed;
use super::plan::{Fault, Plan};

/// Runs this one seed only.
const SEED_VARIABLE: &str = "STAGE0_SIM_SEED";
/// How many seeds each simulation runs.
const SEEDS_VARIABLE: &str = "STAGE0_SIM_SEEDS";
/// A run that takes longer, by its own clock, has something in it that never ends.
const MAX_DURATION: Duration = Duration::from_secs(86_400);
/// Runs that shrinking may take.
const MAX_SHRINKS: usize = 200;
/// Lines of a story that are shown.
const MAX_LINES: usize = 80;

/// What the simulations of all seeds counted.
pub type Totals = BTreeMap<&'static str, u64>;

/// Names the test that explores, so that its failure can say how to run it again.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    /// The package of the test.
    pub package: &'static str,
    /// As `cargo test` takes it.
    pub name: &'static str,
}

#[derive(Debug)]
struct Run {
    outcome: Result<(), String>,
    totals: Totals,
    story: Vec<String>,
}

/// Runs `simulate` for as many seeds, or as the environment says. Panics at the first seed that fails, with the
/// smallest run of it that fails and how to run it alone. Returns what was counted in all.
pub fn explore<F>(test: Test, plan: &Plan, seeds: u64, simulate: impl Fn(Sim) -> F) -> Totals
where
    F: Future<Output = Result<(), String>>,
{
    let mut totals = Totals::new();
    for seed in seeds_of(seeds) {
        let plan = of_seed(plan, seed);
        let run = run(&plan, false, &simulate);
        if let Err(why) = run.outcome {
            panic!("{}", told(test, &plan, &why, &simulate));
        }
        for (what, count) in run.totals {
            *totals.entry(what).or_default() += count;
        }
    }
    totals
}

/// Whether some of the seeds violates what the simulation checks: on a store that is broken on purpose, one must. What
/// the first one violates.
pub fn finds_a_violation<F>(plan: &Plan, seeds: u64, simulate: impl Fn(Sim) -> F) -> Option<String>
where
    F: Future<Output = Result<(), String>>,
{
    (1..=seeds).find_map(|seed| run(&of_seed(plan, seed), false, &simulate).outcome.err())
}

/// All that happens with one seed, line by line: the same each time.
pub fn story<F>(plan: &Plan, seed: u64, simulate: impl Fn(Sim) -> F) -> Vec<String>
where
    F: Future<Output = Result<(), String>>,
{
    run(&of_seed(plan, seed), true, &simulate).story
}

fn of_seed(plan: &Plan, seed: u64) -> Plan {
    Plan { seed, faults: plan.faults.of_seed(seed), ..plan.clone() }
}

fn seeds_of(usual: u64) -> Vec<u64> {
    let number = |variable: &str| {
        let text = std::env::var(variable).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not `{text}`")))
    };
    match number(SEED_VARIABLE) {
        Some(seed) => vec![seed],
        None => (1..=number(SEEDS_VARIABLE).unwrap_or(usual)).collect(),
    }
}

fn run<F>(plan: &Plan, keeps_story: bool, simulate: &impl Fn(Sim) -> F) -> Run
where
    F: Future<Output = Result<(), String>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let (tasks, mut sim) = (LocalSet::new(), None);
    let whole = async {
        let _installed = Installed::new(plan.seed, plan.nodes + 1);
        let sim = sim.insert(Sim::new(plan, keeps_story)).clone();
        tasks.spawn_local(sim.clone().strike());
        tasks.spawn_local(sim.clone().set_clocks());
        tasks.spawn_local(sim.clone().partition());
        let ended = tasks.run_until(timeout(MAX_DURATION, simulate(sim))).await;
        ended.unwrap_or_else(|_| Err(format!("it has not ended after {} hours", MAX_DURATION.as_secs() / 3_600)))
    };
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(whole)));
    let outcome = ended.unwrap_or_else(|panic| Err(said(panic.as_ref())));
    let Some(sim) = sim else { return Run { outcome, totals: Totals::new(), story: Vec::new() } };
    let mut world = sim.lock();
    // What comes after a violation may follow from it.
    let outcome = world.violation.take().map_or(outcome, Err);
    Run { outcome, totals: std::mem::take(&mut world.totals), story: world.take_story() }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
}

/// The smallest plan that was found to fail too, and why it does.
fn shrunk<F>(plan: &Plan, why: &str, simulate: &impl Fn(Sim) -> F) -> (Plan, String)
where
    F: Future<Output = Result<(), String>>,
{
    let (mut smallest, mut why) = (plan.clone(), why.to_owned());
    let mut runs = 0;
    loop {
        let smaller = smaller_plans(&smallest).into_iter().find_map(|plan| {
            runs += 1;
            let failed = (runs <= MAX_SHRINKS).then(|| run(&plan, false, simulate).outcome.err()).flatten()?;
            Some((plan, failed))
        });
        match smaller {
            Some(smaller) => (smallest, why) = smaller,
            None => return (smallest, why),
        }
    }
}

/// Those to try, in this order.
fn smaller_plans(plan: &Plan) -> Vec<Plan> {
    let mut all = Vec::new();
    for steps in [plan.steps / 4, plan.steps / 2, plan.steps * 3 / 4, plan.steps.saturating_sub(1)] {
        if (1..plan.steps).contains(&steps) {
            all.push(Plan { steps, ..plan.clone() });
        }
    }
    for fault in Fault::ALL {
        let faults = plan.faults.without(fault);
        if faults != plan.faults {
            all.push(Plan { faults, ..plan.clone() });
        }
    }
    if plan.nodes > 1 {
        all.push(Plan { nodes: plan.nodes - 1, ..plan.clone() });
    }
    all
}

fn told<F>(test: Test, plan: &Plan, why: &str, simulate: &impl Fn(Sim) -> F) -> String
where
    F: Future<Output = Result<(), String>>,
{
    let (smallest, why_smallest) = shrunk(plan, why, simulate);
    let Run { outcome, story, .. } = run(&smallest, true, simulate);
    let again =
        if outcome.is_err() { "" } else { "\n  it did NOT fail again: something in it is not drawn from the seed" };
    let from = story.len().saturating_sub(MAX_LINES);
    let lines = story.get(from..).unwrap_or_default().join("\n");
    let (Test { package, name }, seed) = (test, plan.seed);
    let alone = format!("{SEED_VARIABLE}={seed} cargo test -p {package} {name}");
    format!(
        "seed {seed}: {why}\n  with {plan}\n  smallest run of it that fails: {smallest}\n  which says: {why_smallest}\
         {again}\n  alone: {alone}\n\n{lines}\n"
    )
}

#[cfg(test)]
mod tests;
