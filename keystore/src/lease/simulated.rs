//! A simulation: keystores take the lease, hold it, lose it and die, while the state store fails. In some runs two of
//! them have one directory. INVARIANT: at no moment do two keystores that run both hold it, terms rise from holder to
//! holder, and once the faults end a keystore gets it.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use stage0_backplane::sim::{Fault, Faults, Flaw, Node, Plan, Sim, Test, explore, finds_a_violation, story};
use tokio::task::spawn_local;

use super::*;

const TEST: Test = Test { package: "stage0-keystore", name: "no_two_keystores_ever_hold_the_lease" };
/// With faults over, a keystore has the lease after this time: that of a dead one has to end first.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(60);

/// The keystores that run and were given the lease, and the highest term with which one has acted.
#[derive(Default)]
struct Holders {
    tenures: Vec<(u64, Tenure)>,
    acted: u64,
}

/// One holder, while its process runs.
struct Holder {
    term: u64,
    tenure: Tenure,
    all: Rc<RefCell<Holders>>,
}

impl Holder {
    fn new(lease: &Lease, all: &Rc<RefCell<Holders>>) -> Self {
        let Lease { term, tenure, .. } = lease;
        all.borrow_mut().tenures.push((*term, tenure.clone()));
        Self { term: *term, tenure: tenure.clone(), all: Rc::clone(all) }
    }

    /// What a keystore does before each write and each reply.
    fn act(&self, sim: &Sim) {
        if !self.tenure.is_valid() {
            return;
        }
        sim.count("acts");
        let mut all = self.all.borrow_mut();
        for (term, _) in all.tenures.iter().filter(|(term, tenure)| *term != self.term && tenure.is_valid()) {
            sim.violated(format!("the keystores of the terms {term} and {} hold the lease", self.term));
        }
        if all.acted > self.term {
            sim.violated(format!("the keystore of term {} acts after that of term {}", self.term, all.acted));
        }
        if all.acted < self.term {
            sim.count("holders");
        }
        all.acted = self.term;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.all.borrow_mut().tenures.retain(|(term, _)| *term != self.term);
    }
}

fn plan() -> Plan {
    // Not yet: with it, terms do not rise from holder to holder.
    let faults = Faults::ALL.without(Fault::ClockSet);
    Plan { seed: 0, nodes: 3, steps: 150, pace: Duration::from_millis(2_500), faults, flaw: None }
}

/// Keystores of one place, one after the other.
async fn keystores(sim: Sim, node: Node, dir: PathBuf, all: Rc<RefCell<Holders>>) {
    loop {
        let (state_store, health) = (node.state_store_with_keys(), Health::default());
        let (lease, directory) = match acquire(&state_store, &dir, LeaseTimes::default(), &health).await {
            Ok(acquired) => acquired,
            Err(error) => {
                node.tell(format_args!("gives up: {error}"));
                sleep(node.moment()).await;
                continue;
            }
        };
        node.tell(format_args!("has the lease, in term {}", lease.term));
        let holder = Holder::new(&lease, &all);
        let is_over = hold(&sim, &node, &holder).await;
        // Nothing acts any more, then the files are closed, then the lease is released.
        drop((holder, directory));
        lease.release().await;
        node.tell("has ended");
        if is_over {
            return;
        }
    }
}

/// Acts until it is stopped or has lost the lease. Whether there is nothing left to do.
async fn hold(sim: &Sim, node: &Node, holder: &Holder) -> bool {
    for _ in 0..5 + node.below(60) {
        if !sim.step() {
            return true;
        }
        holder.act(sim);
        if let Some(loss) = holder.tenure.loss() {
            node.tell(format_args!("has lost the lease: {loss:?}"));
            return false;
        }
        sleep(node.moment() / 8).await;
    }
    false
}

/// A data directory with a journal, whose id tells a waiting keystore whether it could lock what the holder has locked.
fn directory(dir: PathBuf) -> std::io::Result<PathBuf> {
    if !dir.exists() {
        std::fs::create_dir(&dir)?;
        std::fs::write(dir.join("journal"), "")?;
        assert!(lock::journal_id(&dir).is_some());
    }
    Ok(dir)
}

async fn leases(sim: Sim) -> Result<(), String> {
    let root = tempfile::tempdir().map_err(|error| error.to_string())?;
    let dir = |name: &str| directory(root.path().join(name)).map_err(|error| error.to_string());
    let all = Rc::<RefCell<Holders>>::default();
    // With one directory, the lock of its journal counts too. Each try takes a real thread, so few seeds have it.
    let dirs = if sim.chance(250) { ["a", "a", "b"] } else { ["a", "b", "c"] };
    let mut lives = Vec::new();
    for node in sim.nodes() {
        let (sim, dir, all) = (sim.clone(), dir(dirs[node.number() % dirs.len()])?, Rc::clone(&all));
        lives.push(spawn_local(async move {
            let start = || keystores(sim.clone(), node.clone(), dir.clone(), Rc::clone(&all));
            // Those that stand by when nothing is left to do do not end by themselves.
            node.live(start).await;
        }));
    }
    while !lives.iter().any(tokio::task::JoinHandle::is_finished) {
        sleep(Duration::from_millis(100)).await;
    }
    sim.calm();
    let (state_store, health) = (sim.observer().state_store_with_keys(), Health::default());
    lives.into_iter().for_each(|life| life.abort());
    sim.settle().await;
    let dir = dir("d")?;
    let acquired = acquire(&state_store, &dir, LeaseTimes::default(), &health);
    match timeout(TAKEOVER_TIMEOUT, acquired).await {
        Ok(Ok((lease, _directory))) => {
            Holder::new(&lease, &all).act(&sim);
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no keystore gets the lease: {:?}", health.fault())),
    }
}

#[test]
fn no_two_keystores_ever_hold_the_lease() {
    let totals = explore(TEST, &plan(), 150, leases);
    for (what, at_least) in [("acts", 5_000), ("holders", 400), ("deaths", 300)] {
        assert!(totals.get(what).is_some_and(|count| *count > at_least), "{what}: {totals:?}");
    }
}

#[test]
fn a_lease_on_a_store_that_breaks_its_contract_is_found_out() {
    assert!(finds_a_violation(&Plan { flaw: Some(Flaw::IgnoresExpected), ..plan() }, 100, leases).is_some());
}

#[test]
fn a_seed_of_the_simulation_of_leases_gives_the_same_story_each_time() {
    assert_eq!(story(&plan(), 3, leases), story(&plan(), 3, leases));
}
