//! A simulation: workloads ask for actions at gateways, people decide, gateways record, and evaluators hold approvals
//! in a state store that fails, while processes die, freeze, are cut off and have their clocks set.
//!
//! Evaluators run their own code from the arrival of a request on; of a gateway there is what it promises to
//! evaluators (`gateway`). `book` has what callers heard, and judges it. INVARIANT: of all checks that one approval
//! would let pass one is released, in its time, for its action; what was acknowledged to people is not lost; each
//! event is in the log, in its order; and once the faults end, each action comes to its end.

mod book;
mod evaluator;
mod gateway;

use std::cell::Cell;

use stage0_backplane::sim::{Faults, Flaw, Node, Plan, Sim, Test, explore, finds_a_violation, story};
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use stage0_backplane::ClockError;
use stage0_contract::{
    AccountRules, ActionDigest, Actor, ApprovalStatus, CallerTexts, CheckRequest, EvaluateReply, EvaluateRequest,
    LineType, ManageReply, Refusal,
};

use book::Book;
use evaluator::Place;
use gateway::Gateway;

use super::record::StoredApproval;
use super::tests::AGENT;
use super::*;

const TEST: Test = Test { package: "stage0-evaluator", name: "an_approval_lets_one_check_pass_in_its_time" };
const EVALUATORS: usize = 2;
const ACTIONS: u64 = 3;
/// Real time that an evaluation may take before its deadline, which is one of the virtual clock, has passed.
const HEAD_START: Duration = Duration::from_secs(60);

/// A gateway that breaks its promise on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// It answers what it has not recorded.
    AnswersTheUnrecorded,
    /// It settles what it has collected, and never records it.
    LosesEvents,
}

/// What the processes of a run share.
#[derive(Clone)]
struct Run {
    sim: Sim,
    broken: Broken,
    evaluators: Rc<Vec<Place>>,
    book: Rc<RefCell<Book>>,
    /// Numbers of requests.
    next: Rc<Cell<u64>>,
    over: CancellationToken,
}

fn plan() -> Plan {
    let pace = Duration::from_millis(400);
    Plan { seed: 0, nodes: 5, steps: 70, pace, faults: Faults::ALL, flaw: None }
}

impl Run {
    fn next_id(&self) -> RequestId {
        self.next.set(self.next.get() + 1);
        let number = self.next.get();
        RequestId::parse(&format!("0190163d-8694-739b-aea5-{number:012x}")).unwrap()
    }
}

async fn approvals(sim: Sim, broken: Broken) -> Result<(), String> {
    sleep(HEAD_START).await;
    let nodes = sim.nodes();
    let (serving, asking) = nodes.split_at(EVALUATORS.min(nodes.len()));
    let run = Run {
        sim: sim.clone(),
        broken,
        evaluators: Rc::new(serving.iter().cloned().map(Place::new).collect()),
        book: Rc::default(),
        next: Rc::default(),
        over: CancellationToken::new(),
    };
    let lives_of = |number: usize| {
        let run = run.clone();
        async move {
            let place = &run.evaluators[number];
            place.node.live(|| evaluator::serve(run.clone(), place.clone())).await;
        }
    };
    let servers: Vec<JoinHandle<()>> = (0..serving.len()).map(|number| spawn_local(lives_of(number))).collect();
    let gateways = asking.iter().cloned().map(|node: Node| {
        let run = run.clone();
        spawn_local(async move { node.live(|| Gateway::new(run.clone(), node.clone()).live()).await })
    });
    for life in gateways.collect::<Vec<_>>() {
        life.await.map_err(|error| error.to_string())?;
    }
    sim.calm();
    sim.settle().await;
    let last = Gateway::new(run.clone(), sim.observer());
    last.follow(async {
        for action in 0..ACTIONS {
            last.bring_to_an_end(action).await?;
        }
        last.collect_all().await;
        let (log, observer) = (last.read_log().await, &sim.observer());
        // Nothing is written into it any more.
        run.book.take().judge(observer, &log).await
    })
    .await?;
    run.over.cancel();
    for life in servers {
        life.await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn sound(sim: Sim) -> Result<(), String> {
    approvals(sim, Broken::Nothing).await
}

#[test]
fn an_approval_lets_one_check_pass_in_its_time() {
    let totals = explore(TEST, &plan(), 40, sound);
    for (what, at_least) in [
        ("opened", 100),
        ("voted", 100),
        ("granted", 50),
        ("released", 50),
        ("used by another", 30),
        ("outcome unknown", 5),
        ("expired", 1),
        ("reopened", 1),
        ("cancelled", 3),
        ("denied", 3),
        ("deaths", 200),
        ("freezes", 200),
        ("partitions", 200),
        ("clocks that are set", 200),
    ] {
        assert!(totals.get(what).is_some_and(|count| *count >= at_least), "{what}: {totals:?}");
    }
}

#[test]
fn approvals_on_a_store_that_breaks_its_contract_are_found_out() {
    for flaw in [Flaw::IgnoresExpected, Flaw::Forgets, Flaw::AcknowledgesAlone, Flaw::HostClocks] {
        assert!(finds_a_violation(&Plan { flaw: Some(flaw), ..plan() }, 60, sound).is_some(), "{flaw:?}");
    }
}

#[test]
fn a_gateway_that_breaks_its_promise_about_approvals_is_found_out() {
    for broken in [Broken::AnswersTheUnrecorded, Broken::LosesEvents] {
        assert!(finds_a_violation(&plan(), 60, |sim| approvals(sim, broken)).is_some(), "{broken:?}");
    }
}

#[test]
fn a_seed_of_the_simulation_of_approvals_gives_the_same_story_each_time() {
    for seed in 1..=2 {
        assert_eq!(story(&plan(), seed, sound), story(&plan(), seed, sound), "seed {seed}");
    }
}
