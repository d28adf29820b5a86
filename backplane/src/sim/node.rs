//! A process of the simulation: it can be frozen, cut off and killed.
//!
//! What a process awaits itself stands still while it is frozen. A task that the product spawns goes on, but its
//! exchanges with the store stand still as well, which is all that others see of it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::links::Peer;
use super::log::SimLog;
use super::plan::Fault;
use super::store::SimStore;
use super::world::{Rates, World};
use super::{Sim, hosts};
use crate::{DecisionLog, StateStore};

/// One process, or its place: another one starts where it was killed.
#[derive(Clone)]
pub struct Node {
    sim: Sim,
    number: usize,
}

impl Node {
    pub(super) fn new(sim: Sim, number: usize) -> Self {
        Self { sim, number }
    }

    /// Which one it is.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number
    }

    /// The state store as this process reaches it.
    #[must_use]
    pub fn state_store(&self) -> Arc<dyn StateStore> {
        Arc::new(SimStore::new(self.sim.clone(), self.number))
    }

    /// The same with message keys: a record older than one that this process read or wrote through it is refused.
    #[must_use]
    pub fn state_store_with_keys(&self) -> Arc<dyn StateStore> {
        Arc::new(SimStore::new(self.sim.clone(), self.number).with_keys())
    }

    /// The log as this process reaches it.
    #[must_use]
    pub fn log(&self) -> Arc<dyn DecisionLog> {
        Arc::new(SimLog { sim: self.sim.clone(), node: self.number })
    }

    /// A request to another party than the store, over the same network. `arrive` is what it does there; it must not
    /// use the simulation. None: there is no answer, and whether it arrived is unknown.
    pub async fn call<T: Send + 'static>(
        &self,
        deadline: Instant,
        arrive: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.sim.exchange(self.number, Peer::Outside, deadline, |_| arrive()).await.ok()
    }

    /// Sends something to another process, and hears that it has arrived. `arrive` is what it does there at that
    /// moment; it must not use the simulation. None: whether it has arrived is unknown.
    pub async fn send<T: Send + 'static>(
        &self,
        to: &Self,
        deadline: Instant,
        arrive: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.sim.exchange(self.number, Peer::Process(to.number), deadline, |_| arrive()).await.ok()
    }

    /// Lives until `start` has ended by itself: after each death it starts again. What the process had in memory must
    /// be inside, as it is dropped.
    pub async fn live<F: Future<Output = ()>>(&self, mut start: impl FnMut() -> F) {
        loop {
            let deaths = self.deaths();
            hosts::start(self.number);
            let mut life = pin!(hosts::polled_as(self.number, &mut start));
            let ended = poll_fn(|context| match self.is_stopped(deaths, context) {
                Some(Stopped::Dead) => Poll::Ready(false),
                Some(Stopped::Frozen) => Poll::Pending,
                None => hosts::polled_as(self.number, || life.as_mut().poll(context)).map(|()| true),
            });
            if ended.await {
                return;
            }
            self.tell("is dead");
            sleep(self.moment()).await;
            self.tell("starts again");
        }
    }

    fn deaths(&self) -> u64 {
        self.sim.lock().nodes.get(self.number).map_or(0, |node| node.deaths)
    }

    fn is_stopped(&self, deaths: u64, context: &Context<'_>) -> Option<Stopped> {
        let mut world = self.sim.lock();
        let is_frozen = world.frozen_until(self.number).is_some();
        let node = world.nodes.get_mut(self.number)?;
        if node.deaths != deaths {
            return Some(Stopped::Dead);
        }
        if !node.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            node.wakers.push(context.waker().clone());
        }
        is_frozen.then_some(Stopped::Frozen)
    }

    /// Whether it stands still now.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.sim.lock().frozen_until(self.number).is_some()
    }

    /// A number below this one, of the process's own stream.
    #[must_use]
    pub fn below(&self, limit: u64) -> u64 {
        self.sim.lock().nodes.get_mut(self.number).map_or(0, |node| node.numbers.below(limit))
    }

    /// True so many times in a thousand.
    #[must_use]
    pub fn chance(&self, per_thousand: u64) -> bool {
        self.below(1_000) < per_thousand
    }

    /// From nothing to twice the plan's pace.
    #[must_use]
    pub fn moment(&self) -> Duration {
        let mut world = self.sim.lock();
        let pace = world.plan.pace;
        world.within(self.number, 2 * pace)
    }

    /// A line of the story.
    pub fn tell(&self, what: impl std::fmt::Display) {
        self.sim.lock().note(self.number, what);
    }
}

enum Stopped {
    Dead,
    Frozen,
}

/// A fault of a process, and how long it lasts.
pub(super) type Blow = (Fault, Duration);

impl World {
    /// What strikes a process at this moment, each with how long it lasts.
    pub(super) fn blows(&mut self, node: usize, of: Rates) -> [Option<Blow>; 3] {
        [Fault::Away, Fault::Frozen, Fault::Killed].map(|fault| {
            let (strikes, spell) = (self.strikes_at(node, fault, of), self.spell(node));
            strikes.then_some((fault, spell))
        })
    }
}

impl Sim {
    /// Freezes, cuts off and kills processes until all is calm.
    pub(super) async fn strike(self) {
        loop {
            sleep(self.moment()).await;
            let (at, blows) = {
                let mut world = self.lock();
                if world.is_calm {
                    return;
                }
                let nodes = world.plan.nodes as u64;
                let at = world.numbers.below(nodes) as usize;
                (at, world.blows(at, Rates::Usual))
            };
            for blow in blows.into_iter().flatten() {
                self.hit(at, blow);
            }
        }
    }

    pub(super) fn hit(&self, at: usize, (fault, spell): Blow) {
        let until = Instant::now() + spell;
        let mut world = self.lock();
        if world.is_calm {
            return;
        }
        match fault {
            Fault::Away => world.note(at, format_args!("is cut off for {} ms", spell.as_millis())),
            Fault::Frozen => world.note(at, format_args!("stands still for {} ms", spell.as_millis())),
            _ => {}
        }
        let Some(node) = world.nodes.get_mut(at) else { return };
        match fault {
            Fault::Away => node.away_until = Some(until),
            Fault::Frozen => {
                node.frozen_until = Some(until);
                // Its task polls nothing while it is frozen, so it is woken.
                let sim = self.clone();
                drop(tokio::spawn(async move {
                    sleep(spell).await;
                    if let Some(node) = sim.lock().nodes.get_mut(at) {
                        node.wakers.drain(..).for_each(Waker::wake);
                    }
                }));
            }
            _ => {
                (node.deaths, node.frozen_until) = (node.deaths + 1, None);
                node.wakers.drain(..).for_each(Waker::wake);
            }
        }
    }
}
