//! A small simulation, of counters in the state store: what all of them grant never exceeds the limit. And the
//! simulator itself: a seed gives one run, faults do happen, and a failure says how to see it again.

use std::cell::Cell;
use std::rc::Rc;

use tokio::task::spawn_local;
use tokio::time::Instant;

use super::*;
use crate::sim::{Faults, Flaw, Node};

const TEST: Test = Test { package: "stage0-backplane", name: "no_counter_grants_more_than_its_limit_whatever_fails" };
const LIMIT: u64 = 40;
const SECOND: Duration = Duration::from_secs(1);

fn plan() -> Plan {
    let pace = Duration::from_millis(50);
    Plan { seed: 0, nodes: 3, steps: 60, pace, faults: Faults::ALL, flaw: None }
}

fn broken(flaw: Flaw) -> Plan {
    Plan { flaw: Some(flaw), ..plan() }
}

async fn add_and_subtract(sim: Sim, node: Node, granted: Rc<Cell<u64>>) {
    let state_store = node.state_store();
    let (hour, soon) = (SECOND * 3_600, || Instant::now() + SECOND);
    while sim.step() {
        tokio::time::sleep(node.moment()).await;
        let amount = node.below(5) + 1;
        let Ok(added) = state_store.add("counter", amount, LIMIT, hour, soon()).await else { continue };
        granted.set(granted.get() + added.granted);
        if added.granted > 0 && node.chance(300) {
            // What may have been given back is not counted any more, and no one uses it.
            granted.set(granted.get() - added.granted);
            drop(state_store.subtract("counter", added.granted, hour, soon()).await);
        }
    }
}

async fn counters(sim: Sim) -> Result<(), String> {
    let granted = Rc::new(Cell::new(0));
    let lives = sim.nodes().into_iter().map(|node| {
        let (sim, granted) = (sim.clone(), Rc::clone(&granted));
        spawn_local(async move { node.live(|| add_and_subtract(sim.clone(), node.clone(), Rc::clone(&granted))).await })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.map_err(|error| error.to_string())?;
    }
    sim.calm();
    sim.settle().await;
    let counted = sim.observer().state_store().count("counter", Instant::now() + SECOND).await;
    let (counted, granted) = (counted.map_err(|error| error.to_string())?, granted.get());
    if granted > counted || counted > LIMIT {
        return Err(format!("{granted} of {LIMIT} are granted, and {counted} are counted"));
    }
    Ok(())
}

#[test]
fn no_counter_grants_more_than_its_limit_whatever_fails() {
    let totals = explore(TEST, &plan(), 150, counters);
    for fault in Fault::ALL {
        assert!(totals.contains_key(fault.name()), "{} never happened: {totals:?}", fault.name());
    }
    assert!(totals.get("exchanges").is_some_and(|exchanges| *exchanges > 10_000), "{totals:?}");
}

#[test]
fn counters_on_a_store_that_breaks_its_contract_are_found_out() {
    for flaw in [Flaw::IgnoresExpected, Flaw::Forgets] {
        assert!(finds_a_violation(&broken(flaw), 100, counters).is_some(), "{flaw:?}");
    }
}

#[test]
fn a_seed_gives_the_same_run_each_time_and_another_seed_another_one() {
    let first = story(&plan(), 7, counters);
    assert!(first.len() > 100, "{}", first.join("\n"));
    assert_eq!(first, story(&plan(), 7, counters));
    assert_ne!(first, story(&plan(), 8, counters));
}

#[test]
fn a_failure_says_the_seed_the_smallest_run_and_how_to_see_it_alone() {
    let explored = catch_unwind(|| explore(TEST, &broken(Flaw::IgnoresExpected), 100, counters));
    let told = said(explored.expect_err("a violation").as_ref());
    for part in ["seed ", "smallest run of it that fails: ", "alone: STAGE0_SIM_SEED=", "becomes"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("did NOT fail again") && !told.contains("60 steps, no fault"), "{told}");
}

#[test]
fn what_never_ends_is_a_failure_and_so_is_a_panic() {
    let slow = Plan { pace: SECOND * 600, ..plan() };
    let endless = finds_a_violation(&slow, 1, |_| async {
        loop {
            tokio::time::sleep(SECOND * 600).await;
        }
    });
    assert_eq!(endless.as_deref(), Some("it has not ended after 24 hours"));
    let panics = finds_a_violation(&plan(), 1, |sim| async move {
        assert!(sim.step() && sim.below(1) > 0, "as it must");
        Ok(())
    });
    assert_eq!(panics.as_deref(), Some("as it must"));
}
