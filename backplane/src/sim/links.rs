//! Who can send to whom: the processes, and the servers that replicate the store.
//!
//! A process reaches the store through one server, and goes to the next one where that does not answer. A write needs
//! the leader and a majority that hears it and answers. A read is answered by the process's own server, with what that
//! one has: a server which the leader cannot reach is as old as the moment since when it cannot.
//! INVARIANT: what the store has acknowledged is never lost: a leader has the majority, and so all that was stored.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Sim;
use super::numbers::Numbers;
use super::plan::Fault;
use super::world::World;

const SERVERS: usize = 3;
const MAJORITY: usize = 2;

/// A process, or a server of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Process(usize),
    Server(usize),
}

/// What an exchange needs of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    /// A read of the store.
    Replica,
    /// A write to it.
    Leader,
    /// Another process.
    Process(usize),
    /// Somebody to whom no link is ever cut.
    Outside,
}

pub(super) struct Links {
    /// From the first end to the second one.
    cut: BTreeSet<(End, End)>,
    leader: usize,
    /// Since when each server hears nothing of the leader.
    behind_since: [Option<Instant>; SERVERS],
    /// The server through which each process reaches the store.
    homes: Vec<usize>,
}

impl Links {
    /// The observer is one of the processes.
    pub(super) fn new(processes: usize) -> Self {
        let homes = (0..processes).map(|process| process % SERVERS).collect();
        Self { cut: BTreeSet::new(), leader: 0, behind_since: [None; SERVERS], homes }
    }

    fn is_cut(&self, from: End, to: End) -> bool {
        self.cut.contains(&(from, to))
    }

    fn home(&self, process: usize) -> usize {
        self.homes.get(process).copied().unwrap_or_default()
    }

    fn has_majority(&self, server: usize) -> bool {
        let both = |other: &usize| {
            let (own, other) = (End::Server(server), End::Server(*other));
            own == other || !self.is_cut(own, other) && !self.is_cut(other, own)
        };
        (0..SERVERS).filter(both).count() >= MAJORITY
    }

    pub(super) fn set(&mut self, cut: BTreeSet<(End, End)>) {
        self.cut = cut;
        if !self.has_majority(self.leader) {
            self.leader = (0..SERVERS).find(|server| self.has_majority(*server)).unwrap_or(self.leader);
        }
        let now = Instant::now();
        for server in 0..SERVERS {
            let hears = server == self.leader || !self.is_cut(End::Server(self.leader), End::Server(server));
            let since = if hears { None } else { self.behind_since.get(server).copied().flatten().or(Some(now)) };
            if let Some(behind) = self.behind_since.get_mut(server) {
                *behind = since;
            }
        }
    }

    /// The last one: no link of it is cut, and it reaches whatever server leads.
    fn is_observer(&self, process: usize) -> bool {
        process + 1 >= self.homes.len()
    }

    /// Whether something that this process sends arrives where it is worked on.
    pub(super) fn arrives(&self, process: usize, peer: Peer) -> bool {
        if self.is_observer(process) {
            return true;
        }
        let (own, home) = (End::Process(process), End::Server(self.home(process)));
        match peer {
            Peer::Replica => !self.is_cut(own, home),
            Peer::Leader => {
                !self.is_cut(own, home)
                    && !self.is_cut(home, End::Server(self.leader))
                    && self.has_majority(self.leader)
            }
            Peer::Process(other) => !self.is_cut(own, End::Process(other)),
            Peer::Outside => true,
        }
    }

    pub(super) fn is_answered(&self, process: usize, peer: Peer) -> bool {
        if self.is_observer(process) {
            return true;
        }
        let (own, home) = (End::Process(process), End::Server(self.home(process)));
        match peer {
            Peer::Replica => !self.is_cut(home, own),
            Peer::Leader => !self.is_cut(home, own) && !self.is_cut(End::Server(self.leader), home),
            Peer::Process(other) => !self.is_cut(End::Process(other), own),
            Peer::Outside => true,
        }
    }

    /// The process has noticed that its server does not answer.
    pub(super) fn go_on(&mut self, process: usize) {
        if let Some(home) = self.homes.get_mut(process) {
            *home = (*home + 1) % SERVERS;
        }
    }

    /// Since when the server of this process has heard nothing.
    pub(super) fn behind_since(&self, process: usize) -> Option<Instant> {
        self.behind_since.get(self.home(process)).copied().flatten().filter(|_| !self.is_observer(process))
    }
}

impl World {
    pub(super) fn heal(&mut self) {
        self.links.set(BTreeSet::new());
    }
}

/// Any pairs: a side of some against all others, or pairs one by one; in both directions, or in one.
fn drawn(numbers: &mut Numbers, processes: usize) -> BTreeSet<(End, End)> {
    let ends: Vec<End> = (0..processes).map(End::Process).chain((0..SERVERS).map(End::Server)).collect();
    let (is_split, is_one_way, of_ten) = (numbers.below(2) == 0, numbers.below(3) == 0, numbers.below(5) + 1);
    let sides: Vec<bool> = ends.iter().map(|_| numbers.below(2) == 0).collect();
    let mut cut = BTreeSet::new();
    for (from, side) in ends.iter().zip(&sides) {
        for (to, other) in ends.iter().zip(&sides) {
            let is_drawn = numbers.below(10) < of_ten;
            let is_cut = if is_split { side != other } else { is_drawn };
            if from == to || !is_cut {
                continue;
            }
            if !is_one_way {
                cut.insert((*to, *from));
            }
            if !is_one_way || !is_split || *side {
                cut.insert((*from, *to));
            }
        }
    }
    cut
}

impl Sim {
    /// Cuts links and heals them until all is calm.
    pub(super) async fn partition(self) {
        let (processes, seed) = {
            let world = self.lock();
            (world.plan.nodes, world.plan.seed)
        };
        // A stream of its own, so that what else happens does not depend on it.
        let mut numbers = Numbers::new(seed ^ 0x11_4b5);
        let mut wait = Duration::ZERO;
        loop {
            sleep(wait).await;
            let strikes = numbers.below(1_000);
            let (cut, is_long) = (drawn(&mut numbers, processes), numbers.below(8) == 0);
            let (fraction, rest) = (numbers.fraction(), numbers.fraction());
            let spell = {
                let mut world = self.lock();
                if world.is_calm {
                    return;
                }
                let pace = world.plan.pace;
                wait = pace.mul_f64(4.0 * rest);
                if strikes >= world.plan.faults.rate(Fault::Partition) || !world.plan.faults.has(Fault::Partition) {
                    continue;
                }
                let spell = (pace * if is_long { 20 } else { 5 }).mul_f64(fraction);
                world.count(Fault::Partition.name(), 1);
                world.tell("  ", format_args!("for {} ms these links are cut: {}", spell.as_millis(), told(&cut)));
                world.links.set(cut);
                spell
            };
            sleep(spell).await;
            let mut world = self.lock();
            if !world.is_calm {
                world.tell("  ", "all links are whole");
            }
            world.heal();
        }
    }
}

fn told(cut: &BTreeSet<(End, End)>) -> String {
    let name = |end: &End| match end {
        End::Process(number) => format!("p{number}"),
        End::Server(number) => format!("s{number}"),
    };
    let pairs = cut.iter().map(|(from, to)| format!("{}>{}", name(from), name(to)));
    pairs.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(cut: &[(End, End)]) -> Links {
        let mut links = Links::new(5);
        links.set(cut.iter().copied().collect());
        links
    }

    use End::{Process, Server};

    #[tokio::test]
    async fn a_leader_that_no_majority_hears_is_replaced_and_falls_behind() {
        let links = links(&[(Server(0), Server(1)), (Server(0), Server(2))]);
        assert_eq!(links.leader, 1);
        assert!(links.behind_since(0).is_none(), "one that hears the leader is not behind, though it answers nobody");
        let both = [(Server(0), Server(1)), (Server(1), Server(0)), (Server(0), Server(2)), (Server(2), Server(0))];
        let links = super::tests::links(&both);
        assert!(links.behind_since(0).is_some() && links.behind_since(1).is_none());
        assert!(links.arrives(0, Peer::Replica) && !links.arrives(0, Peer::Leader) && links.arrives(1, Peer::Leader));
    }

    #[tokio::test]
    async fn a_link_is_cut_in_one_direction_alone_and_a_process_goes_to_the_next_server() {
        let mut links = links(&[(Process(0), Server(0)), (Server(1), Process(1)), (Process(2), Process(3))]);
        assert!(!links.arrives(0, Peer::Replica) && links.is_answered(0, Peer::Replica));
        assert!(links.arrives(1, Peer::Leader) && !links.is_answered(1, Peer::Leader));
        assert!(!links.arrives(2, Peer::Process(3)) && links.arrives(3, Peer::Process(2)));
        assert!(links.arrives(0, Peer::Process(1)) && links.arrives(0, Peer::Outside));
        links.go_on(0);
        assert!(links.arrives(0, Peer::Leader));
        links.set(BTreeSet::new());
        assert!(links.is_answered(1, Peer::Leader) && links.arrives(2, Peer::Process(3)));
    }

    #[tokio::test]
    async fn without_a_majority_nothing_is_written_and_what_is_drawn_has_all_kinds() {
        let whole = [(0, 1), (1, 2), (2, 0)].map(|(a, b)| (Server(a), Server(b)));
        let links = links(&whole);
        assert!((0..3).all(|process| !links.arrives(process, Peer::Leader)));
        let mut numbers = Numbers::new(1);
        let all: Vec<_> = (0..200).map(|_| drawn(&mut numbers, 3)).collect();
        let is_one_way = |cut: &BTreeSet<(End, End)>| cut.iter().any(|(from, to)| !cut.contains(&(*to, *from)));
        assert!(all.iter().any(is_one_way) && all.iter().any(|cut| !cut.is_empty() && !is_one_way(cut)));
        assert!(all.iter().flatten().any(|pair| matches!(pair, (Process(_), Process(_)))));
        assert!(all.iter().flatten().any(|pair| matches!(pair, (Server(_), Server(_)))));
    }
}
