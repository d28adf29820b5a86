//! A simulation: gateways admit checks of one account while the state store fails, and while their wall clocks are set
//! by seconds and by weeks. INVARIANT: in no minute, as it truly is, are more checks admitted than its limit, and none
//! is lost to a clock: once the faults end, a new minute has the whole limit.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use futures_util::future::join_all;
use stage0_backplane::sim::{Faults, Flaw, Node, Plan, Sim, Test, explore, finds_a_violation, story};
use stage0_backplane::{CLOCK_READING_TTL, ClockError, follow_store_clock};
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::tests::identity;
use super::*;

const TEST: Test =
    Test { package: "stage0-gateway", name: "no_minute_admits_more_than_its_limit_whatever_clocks_show" };
const LIMIT: u64 = 20;
/// Checks that one gateway admits at the same time.
const CALLERS: usize = 3;
const BUDGET: Duration = Duration::from_millis(1_900);
/// How far a gateway's reading of the store's clock may be off.
const CLOCK_ERROR: i64 = 1;

type Admitted = Rc<RefCell<BTreeMap<i64, u64>>>;

fn plan() -> Plan {
    Plan { seed: 0, nodes: 3, steps: 500, pace: Duration::from_secs(2), faults: Faults::ALL, flaw: None }
}

fn limited() -> KeyIdentity {
    identity(Limits { per_minute: Some(LIMIT), ..Limits::NONE })
}

/// Admits a check as a gateway does. None: it is not decided whether it may pass.
async fn admitted(quotas: &Quotas, state_store: &dyn StateStore) -> Option<bool> {
    let deadline = Instant::now() + BUDGET;
    let is_clock_wrong = state_store.clock().check().is_err_and(|error| error != ClockError::Unknown);
    if is_clock_wrong || state_store.read_clock(CLOCK_READING_TTL, deadline).await.is_err() {
        return None;
    }
    match quotas.admit(&limited(), StoreCall { state_store, deadline }).await {
        Ok(()) => Some(true),
        Err(ApiError::RateLimited { .. }) => Some(false),
        Err(_) => None,
    }
}

/// Gateways of one place, one after the other.
async fn gateways(sim: Sim, node: Node, all: Admitted) {
    loop {
        let (state_store, stop) = (node.state_store(), CancellationToken::new());
        let quotas = Quotas::new(OnFailure::Closed, state_store.clock());
        let callers = async {
            let callers = (0..CALLERS).map(|_| call(&sim, &node, &quotas, &*state_store, &all));
            let is_over = join_all(callers).await.into_iter().any(|is_over| is_over);
            stop.cancel();
            is_over
        };
        let following = stop.run_until_cancelled(follow_store_clock(&*state_store));
        let (is_over, (), _) = tokio::join!(callers, quotas.run(&*state_store, stop.clone()), following);
        node.tell("has drained");
        if is_over {
            return;
        }
    }
}

/// Whether there is nothing left to do.
async fn call(sim: &Sim, node: &Node, quotas: &Quotas, state_store: &dyn StateStore, all: &Admitted) -> bool {
    for _ in 0..20 + node.below(40) {
        if !sim.step() {
            return true;
        }
        sleep(node.moment()).await;
        let minute = |shift: i64| (sim.now().as_second() + shift).div_euclid(60);
        let began = minute(-CLOCK_ERROR);
        let is_admitted = admitted(quotas, state_store).await;
        node.tell(format_args!("admitted: {is_admitted:?}"));
        sim.count(match is_admitted {
            Some(true) => "admitted",
            Some(false) => "refused",
            None => "not decided",
        });
        // Near its ends it may belong to either minute.
        if is_admitted == Some(true) && began == minute(CLOCK_ERROR) {
            let mut all = all.borrow_mut();
            let count = all.entry(began).or_default();
            *count += 1;
            if *count > LIMIT {
                sim.violated(format!("{count} checks are admitted in one minute, and {LIMIT} may be"));
            }
        }
    }
    false
}

async fn windows(sim: Sim) -> Result<(), String> {
    let all = Admitted::default();
    let lives = sim.nodes().into_iter().map(|node| {
        let (sim, all) = (sim.clone(), Rc::clone(&all));
        spawn_local(async move { node.live(|| gateways(sim.clone(), node.clone(), Rc::clone(&all))).await })
    });
    for life in lives.collect::<Vec<_>>() {
        life.await.map_err(|error| error.to_string())?;
    }
    sim.calm();
    sim.settle().await;
    let state_store = sim.observer().state_store();
    let quotas = Quotas::new(OnFailure::Closed, state_store.clock());
    // Into the middle of a minute in which no other check came.
    let into = u64::try_from(sim.now().as_second().rem_euclid(60)).map_err(|error| error.to_string())?;
    sleep(Duration::from_secs(60 - into + 5)).await;
    for number in 0..=LIMIT {
        let is_admitted = admitted(&quotas, &*state_store).await;
        if is_admitted != Some(number < LIMIT) {
            return Err(format!("check {number} of a new minute: {is_admitted:?}"));
        }
    }
    Ok(())
}

#[test]
fn no_minute_admits_more_than_its_limit_whatever_clocks_show() {
    let totals = explore(TEST, &plan(), 60, windows);
    for what in ["admitted", "refused", "not decided", "clocks that are set", "partitions"] {
        assert!(totals.get(what).is_some_and(|count| *count > 100), "{what}: {totals:?}");
    }
}

#[test]
fn a_window_on_a_store_or_a_clock_that_is_broken_is_found_out() {
    for flaw in [Flaw::IgnoresExpected, Flaw::Forgets, Flaw::HostClocks] {
        assert!(finds_a_violation(&Plan { flaw: Some(flaw), ..plan() }, 60, windows).is_some(), "{flaw:?}");
    }
}

#[test]
fn a_seed_of_the_simulation_of_windows_gives_the_same_story_each_time() {
    assert_eq!(story(&plan(), 3, windows), story(&plan(), 3, windows));
}
