//! A simulation: shards of many processes open and end runs of one account while the state store fails. INVARIANT: the
//! runs that count on a day are never more than the account's cap, whatever is unknown.

use std::rc::Rc;

use futures_util::future::join_all;
use stage0_backplane::sim::{Faults, Flaw, Node, Plan, Sim, Test, explore, finds_a_violation, story};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::*;

const TEST: Test = Test { package: "stage0-evaluator", name: "no_account_opens_more_runs_than_its_cap" };
const CAP: u64 = 200;
const NOW: i64 = 20_000 * DAY_SECONDS + 100;

fn plan() -> Plan {
    Plan { seed: 0, nodes: 3, steps: 400, pace: Duration::from_millis(40), faults: Faults::ALL, flaw: None }
}

fn account() -> AccountId {
    AccountId::parse("acc").unwrap()
}

fn soon(node: &Node) -> Instant {
    Instant::now() + Duration::from_millis(100 + node.below(2_000))
}

/// Shards of one place, one after the other; some return what they leased and did not use.
async fn shards(sim: Sim, node: Node, open: Rc<Cell<u64>>) {
    loop {
        let quota = RunQuota::new(node.state_store());
        let is_over = join_all((0..3).map(|_| work(&sim, &node, &quota, &open))).await.into_iter().any(|over| over);
        if node.chance(700) {
            quota.drain(NOW).await;
        }
        if is_over {
            return;
        }
    }
}

/// Whether there is nothing left to do.
async fn work(sim: &Sim, node: &Node, quota: &RunQuota, open: &Cell<u64>) -> bool {
    for _ in 0..10 + node.below(40) {
        if !sim.step() {
            return true;
        }
        sleep(node.moment() / 4).await;
        let Ok(Some(slot)) = quota.take(&account(), CAP, NOW, soon(node)).await else { continue };
        open.set(open.get() + 1);
        if open.get() > CAP {
            sim.violated(format!("{} runs are open, and {CAP} may be", open.get()));
        }
        sim.count("opened");
        let day = slot.day;
        match node.below(10) {
            // It was not written after all.
            0 => {
                open.set(open.get() - 1);
                quota.put_back(slot);
            }
            // It is ended: where that is unknown, its slot may be free.
            1 => {
                open.set(open.get() - 1);
                drop(quota.free(&account(), day, NOW, soon(node)).await);
            }
            _ => {}
        }
    }
    false
}

async fn opened(sim: Sim) -> Result<(), String> {
    let open = Rc::new(Cell::new(0));
    let lives = sim.nodes().into_iter().map(|node| {
        let (sim, open) = (sim.clone(), Rc::clone(&open));
        spawn_local(async move { node.live(|| shards(sim.clone(), node.clone(), Rc::clone(&open))).await })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.map_err(|error| error.to_string())?;
    }
    sim.calm();
    sim.settle().await;
    // What was lost counts as used.
    let (state_store, key) = (sim.observer().state_store(), counter(&account(), day_of(NOW)));
    let counted = state_store.count(&key, Instant::now() + RETRY_DELAY).await;
    let (counted, open) = (counted.map_err(|error| error.to_string())?, open.get());
    if open > counted || counted > CAP {
        return Err(format!("{open} runs are open, {counted} are counted, and {CAP} may be"));
    }
    Ok(())
}

#[test]
fn no_account_opens_more_runs_than_its_cap() {
    let totals = explore(TEST, &plan(), 150, opened);
    assert!(totals.get("opened").is_some_and(|opened| *opened > 10_000), "{totals:?}");
}

#[test]
fn a_cap_on_a_store_that_breaks_its_contract_is_found_out() {
    for flaw in [Flaw::IgnoresExpected, Flaw::Forgets] {
        assert!(finds_a_violation(&Plan { flaw: Some(flaw), ..plan() }, 50, opened).is_some(), "{flaw:?}");
    }
}

#[test]
fn a_seed_of_the_simulation_of_a_cap_gives_the_same_story_each_time() {
    assert_eq!(story(&plan(), 3, opened), story(&plan(), 3, opened));
}
