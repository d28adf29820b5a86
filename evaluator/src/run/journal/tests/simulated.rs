//! Simulations: evaluators share runs while the state store loses, delays and refuses what they send, and while they
//! freeze, die and start again. INVARIANT: no number of a run is given twice, none that was given is lost, what was
//! refused is not counted, and a run goes on once the faults end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use stage0_backplane::follow_store_clock;
use stage0_backplane::sim::{Faults, Flaw, Node, Plan, Sim, Test, explore, finds_a_violation, story};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::random::Given;
use super::*;

const TEST: Test = Test { package: "stage0-evaluator", name: "no_number_of_a_run_is_given_twice_or_lost" };
const RUNS: u64 = 4;
/// Checks that one evaluator decides at the same time.
const WORKERS: usize = 3;
/// A held run that rests for longer is given up.
const REST: Duration = Duration::from_secs(12);

type History = Rc<RefCell<BTreeMap<String, Given>>>;

fn plan() -> Plan {
    let pace = Duration::from_millis(40);
    Plan { seed: 0, nodes: 3, steps: 200, pace, faults: Faults::ALL, flaw: None }
}

/// Evaluators of one place, one after the other: each decides some checks, and most drain before they end.
async fn evaluators(sim: Sim, node: Node, history: History) {
    loop {
        let one = RunCoordinator::new(node.state_store(), RunConfig::default());
        let workers = join_all((0..WORKERS).map(|_| work(&sim, &node, &one, &history)));
        let is_over = tokio::select! {
            biased;
            is_over = workers => is_over.into_iter().any(|is_over| is_over),
            () = one.tend_journal() => true,
            () = follow_store_clock(one.state_store()) => true,
        };
        if node.chance(700) {
            one.drain().await;
            node.tell("has drained");
        }
        if is_over {
            return;
        }
    }
}

/// Whether there is nothing left to do.
async fn work(sim: &Sim, node: &Node, one: &RunCoordinator, history: &History) -> bool {
    for _ in 0..5 + node.below(40) {
        if !sim.step() {
            return true;
        }
        sleep(if node.chance(10) { REST } else { node.moment() / 4 }).await;
        // What a gateway takes for the store's time is right; while this process knows another one, it decides nothing.
        if one.state_store().clock().check_peer_time(sim.now()).is_err() {
            continue;
        }
        // Most checks of a run come to the same evaluator, so that it is held.
        let home = node.number() as u64;
        let run = if node.chance(800) { home } else { node.below(RUNS) };
        let key = format!("runs.acc.r{run}");
        // Until its outcome is known it may be stored: its evaluator may die.
        history.borrow_mut().entry(key.clone()).or_default().unknown += 1;
        let done = count_within(one, &key, Duration::from_millis(100 + node.below(2_000))).await;
        node.tell(format_args!("{key}: {done:?}"));
        if one.journal.lock().runs.contains_key(&key) {
            sim.count("held");
        }
        let mut history = history.borrow_mut();
        let given = history.entry(key.clone()).or_default();
        match done {
            Ok(number) => {
                sim.count("given");
                given.unknown -= 1;
                if !given.numbers.insert(number) {
                    sim.violated(format!("{key}: {number} was given twice"));
                }
            }
            Err(Undone::Conflict | Undone::Unread) => given.unknown -= 1,
            Err(Undone::Unknown) => sim.count("unknown"),
        }
    }
    false
}

async fn runs(sim: Sim) -> Result<(), String> {
    let history = History::default();
    let lives = sim.nodes().into_iter().map(|node| {
        let (sim, history) = (sim.clone(), Rc::clone(&history));
        spawn_local(async move { node.live(|| evaluators(sim.clone(), node.clone(), Rc::clone(&history))).await })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.map_err(|error| error.to_string())?;
    }
    sim.calm();
    sim.settle().await;
    let last = RunCoordinator::new(sim.observer().state_store(), RunConfig::default());
    let history = history.take();
    for (key, Given { numbers, unknown }) in &history {
        let stored = last.look(key, soon()).await.map_err(|error| format!("{key}: {error}"))?;
        let counted = stored.map_or(0, |run| run.iterations);
        let highest = numbers.last().copied().unwrap_or_default();
        if counted < highest {
            return Err(format!("{key}: {highest} was given, and {counted} are counted"));
        }
        let (known, unknown) = (i64::try_from(numbers.len()), i64::try_from(*unknown));
        let (known, unknown) = (known.unwrap_or(i64::MAX), unknown.unwrap_or(i64::MAX));
        if !(known..=known.saturating_add(unknown)).contains(&counted) {
            return Err(format!("{key}: {known} were given, of {unknown} it is unknown, and {counted} are counted"));
        }
        let next = surely_count(&last, key).await;
        if next != counted + 1 {
            return Err(format!("{key}: it goes on with {next} after {counted}"));
        }
    }
    Ok(())
}

#[test]
fn no_number_of_a_run_is_given_twice_or_lost() {
    let totals = explore(TEST, &plan(), 300, runs);
    for what in ["held", "given", "unknown", "deaths", "late requests"] {
        assert!(totals.get(what).is_some_and(|count| *count > 300), "{what}: {totals:?}");
    }
}

#[test]
fn a_run_on_a_store_that_breaks_its_contract_is_found_out() {
    for flaw in [Flaw::IgnoresExpected, Flaw::Forgets] {
        assert!(finds_a_violation(&Plan { flaw: Some(flaw), ..plan() }, 50, runs).is_some(), "{flaw:?}");
    }
}

#[test]
fn a_seed_of_the_simulation_of_runs_gives_the_same_story_each_time() {
    for seed in 1..=5 {
        assert_eq!(story(&plan(), seed, runs), story(&plan(), seed, runs), "seed {seed}");
    }
}
