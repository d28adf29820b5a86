//! Deterministic simulation: several processes over one state store and one log, on a virtual clock, with faults.
//!
//! A simulation drives the real code of a core and checks from outside what its callers got as answers. Every delay,
//! fault, freeze and death is drawn from the seed, all tasks share one thread, and time passes only while all of them
//! wait. INVARIANT: a run is a function of its [`Plan`], so that a failure can be run again and shrunk. What is drawn
//! does not depend on which faults are on: turning one off leaves the rest of the schedule as it was, until it matters.
//!
//! Owns no promise of any core. A store is as bad here as NATS may be, and no worse: see [`Fault`].

// Test code that several packages share.
#![allow(clippy::expect_used, clippy::panic)]

mod exchange;
mod explore;
mod hosts;
mod links;
mod log;
mod node;
mod numbers;
mod plan;
mod store;
mod world;

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::time::Instant;

pub use explore::{Test, Totals, explore, finds_a_violation, story};
pub(crate) use hosts::{clocks, fraction, settled, start_of_process};
pub use node::Node;
pub use plan::{Fault, Faults, Flaw, Plan};
use world::World;

/// A simulation that runs. Clones share it.
#[derive(Clone)]
pub struct Sim {
    world: Arc<Mutex<World>>,
}

impl Sim {
    fn new(plan: &Plan, keeps_story: bool) -> Self {
        Self { world: Arc::new(Mutex::new(World::new(plan, keeps_story))) }
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes of this run, in their order.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        (0..self.lock().plan.nodes).map(|number| Node::new(self.clone(), number)).collect()
    }

    /// A process that nothing ever happens to, for what is checked in the end.
    #[must_use]
    pub fn observer(&self) -> Node {
        Node::new(self.clone(), self.lock().plan.nodes)
    }

    /// A number below this one, of the simulation's own stream.
    #[must_use]
    pub fn below(&self, limit: u64) -> u64 {
        self.lock().numbers.below(limit)
    }

    /// True so many times in a thousand.
    #[must_use]
    pub fn chance(&self, per_thousand: u64) -> bool {
        self.below(1_000) < per_thousand
    }

    /// Takes one of the plan's steps; false: all are taken.
    #[must_use]
    pub fn step(&self) -> bool {
        let mut world = self.lock();
        let left = world.steps_left.checked_sub(1);
        world.steps_left = left.unwrap_or_default();
        left.is_some()
    }

    /// How long something of the plan's pace takes: from nothing to twice the pace.
    #[must_use]
    pub fn moment(&self) -> Duration {
        let mut world = self.lock();
        let pace = world.plan.pace;
        pace.mul_f64(2.0 * world.numbers.fraction())
    }

    /// What the state store has in this place now, without a request for it.
    #[must_use]
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        self.lock().version(key, Instant::now()).map(|version| version.value.clone())
    }

    /// Ends all faults. What is on its way still arrives.
    pub fn calm(&self) {
        let mut world = self.lock();
        world.tell("  ", "all faults end");
        world.calm();
        hosts::set_right();
    }

    /// The time as it is, whatever the processes' clocks say.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        hosts::true_time()
    }

    /// What the simulation checks does not hold: the run fails, with the first of these.
    pub fn violated(&self, why: String) {
        self.lock().violated(why);
    }

    /// A line of the story.
    pub fn tell(&self, what: impl Display) {
        self.lock().tell("  ", what);
    }

    /// Counts something that the simulation must have seen, over all seeds.
    pub fn count(&self, what: &'static str) {
        self.lock().count(what, 1);
    }
}
