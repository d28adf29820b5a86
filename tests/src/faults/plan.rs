//! Which faults a run has: data that a seed gives, the same each time.

use std::fmt;
use std::time::Duration;

use stage0_backplane::testing::NODES;

/// Of each role but the keystore.
pub(super) const REPLICAS: usize = 2;
/// The first of the parties' process groups; the next ones follow.
const FIRST_GROUP: u32 = 7_001;

/// A process that can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Party {
    Gateway(usize),
    Evaluator(usize),
    Exporter(usize),
    Keystore,
    Nats(usize),
    /// The customer's webhook receiver, which belongs to the test.
    Receiver,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Kill,
    Freeze,
    Slow,
    Partition,
    DiskFull,
    ClockJump,
    RollingRestart,
}

/// Packets of one process do not reach another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    pub from: Party,
    pub to: Party,
}

/// One fault of a run.
#[derive(Debug, Clone)]
pub struct Fault {
    pub kind: Kind,
    /// Of a partition the side that is cut off, where there is one.
    pub target: Option<Party>,
    /// Of a partition.
    pub links: Vec<Link>,
    /// Until it is healed.
    pub hold: Duration,
    /// By how much a clock jumps, in seconds.
    pub jump: i64,
}

impl Party {
    pub fn roles() -> Vec<Self> {
        let replicas = (0..REPLICAS).flat_map(|n| [Self::Gateway(n), Self::Evaluator(n), Self::Exporter(n)]);
        replicas.chain([Self::Keystore]).collect()
    }

    pub fn nodes() -> Vec<Self> {
        (0..NODES).map(Self::Nats).collect()
    }

    /// By which the firewall knows its packets. The receiver is in the test's own process, without a group.
    pub fn group(self) -> Option<u32> {
        let own = match self {
            Self::Receiver => return None,
            Self::Keystore => 0,
            Self::Nats(n) => 1 + n,
            Self::Gateway(n) => 10 + n,
            Self::Evaluator(n) => 20 + n,
            Self::Exporter(n) => 30 + n,
        };
        Some(FIRST_GROUP + u32::try_from(own).expect("few parties"))
    }

    /// As a row of the table names it: all replicas of a role are one.
    pub fn role(self) -> &'static str {
        match self {
            Self::Gateway(_) => "gateway",
            Self::Evaluator(_) => "evaluator",
            Self::Exporter(_) => "audit-export",
            Self::Keystore => "keystore",
            Self::Nats(_) => "NATS",
            Self::Receiver => "receiver",
        }
    }
}

impl fmt::Display for Party {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(n) | Self::Evaluator(n) | Self::Exporter(n) | Self::Nats(n) => {
                write!(formatter, "{} {}", self.role(), n + 1)
            }
            Self::Keystore | Self::Receiver => formatter.write_str(self.role()),
        }
    }
}

impl Kind {
    pub const ALL: [Self; 7] =
        [Self::Kill, Self::Freeze, Self::Slow, Self::Partition, Self::DiskFull, Self::ClockJump, Self::RollingRestart];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::Slow => "slow",
            Self::Partition => "partition",
            Self::DiskFull => "disk full",
            Self::ClockJump => "clock jump",
            Self::RollingRestart => "rolling restart",
        }
    }

    fn targets(self) -> Vec<Party> {
        let (roles, nodes) = (Party::roles(), Party::nodes());
        match self {
            Self::Kill | Self::Freeze | Self::Slow => [roles, nodes, vec![Party::Receiver]].concat(),
            Self::Partition => [roles, nodes].concat(),
            Self::DiskFull => [nodes, vec![Party::Keystore]].concat(),
            // nats-server takes its clock from the kernel itself.
            Self::ClockJump => roles,
            Self::RollingRestart => vec![],
        }
    }
}

impl Fault {
    /// A row of the report's table.
    pub fn row(&self) -> String {
        let target = match (self.kind, self.target) {
            (Kind::Partition, Some(party)) => format!("{} and NATS", party.role()),
            (Kind::Partition, None) => "random links".to_owned(),
            (_, Some(party)) => party.role().to_owned(),
            (_, None) => "everything".to_owned(),
        };
        format!("{} | {target}", self.kind.name())
    }

    /// Whether notices of revoked keys and of stops may be late meanwhile.
    pub fn delays_notices(&self) -> bool {
        match self.kind {
            Kind::Partition | Kind::Slow => true,
            Kind::Freeze => matches!(self.target, Some(Party::Nats(_))),
            Kind::Kill | Kind::DiskFull | Kind::ClockJump | Kind::RollingRestart => false,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kind.name())?;
        if let Some(target) = self.target {
            write!(formatter, " {target}")?;
        }
        if self.jump != 0 {
            write!(formatter, " by {} s", self.jump)?;
        }
        for link in &self.links {
            write!(formatter, ", {} -/-> {}", link.from, link.to)?;
        }
        if !self.hold.is_zero() {
            write!(formatter, " for {:.1} s", self.hold.as_secs_f64())?;
        }
        Ok(())
    }
}

/// This number of faults, each kind at least once if there are enough; of the first seven a rolling restart is last.
pub fn plan(seed: u64, count: usize) -> Vec<Fault> {
    let mut draw = Draw::new(seed);
    let mut kinds = Kind::ALL.to_vec();
    let last = kinds.len() - 1;
    for at in (1..last).rev() {
        kinds.swap(at, draw.below(at + 1));
    }
    let fault = |number: usize| {
        // Later on a rolling restart, which takes long, is one of twenty.
        let kind = match kinds.get(number) {
            Some(kind) => *kind,
            None if draw.below(20) == 0 => Kind::RollingRestart,
            None => kinds[draw.below(last)],
        };
        draw.fault(kind, number < kinds.len())
    };
    (0..count).map(fault).collect()
}

/// Numbers that are the same in every run of a seed (SplitMix64).
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % limit as u64).expect("less than the limit")
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    fn fault(&mut self, kind: Kind, is_short: bool) -> Fault {
        let targets = kind.targets();
        let mut target = (!targets.is_empty()).then(|| self.of(&targets));
        // An event that fails twice is sent again after five minutes only.
        let longest = if is_short || target == Some(Party::Receiver) { 2_500 } else { 7_000 };
        let hold = Duration::from_millis(1_000 + self.below(longest) as u64);
        let mut links = Vec::new();
        if kind == Kind::Partition {
            if self.below(2) == 0 {
                links = self.random_links();
                target = None;
            } else if let Some(party) = target {
                links = self.cut_off(party);
            }
        }
        let jump = if kind == Kind::ClockJump { self.of(&[-200, -20, -2, 2, 20, 200]) } else { 0 };
        let hold = if kind == Kind::RollingRestart { Duration::ZERO } else { hold };
        Fault { kind, target, links, hold, jump }
    }

    /// A party and one server of NATS or all of them, in both directions or in one.
    fn cut_off(&mut self, party: Party) -> Vec<Link> {
        let others: Vec<Party> = Party::nodes().into_iter().filter(|node| *node != party).collect();
        let others = if self.below(2) == 0 { others } else { vec![self.of(&others)] };
        let way = self.below(3);
        let links = others.into_iter().flat_map(|node| {
            let (out, back) = (Link { from: party, to: node }, Link { from: node, to: party });
            match way {
                0 => vec![out, back],
                1 => vec![out],
                _ => vec![back],
            }
        });
        links.collect()
    }

    /// Any of the links that there are: between a role and a server, two servers, or an exporter and the receiver.
    fn random_links(&mut self) -> Vec<Link> {
        let nodes = Party::nodes();
        let pairs = [Party::roles(), nodes.clone()].concat();
        let pairs = pairs.into_iter().flat_map(|from| nodes.iter().map(move |to| (from, *to)));
        let exporters = (0..REPLICAS).map(|n| (Party::Exporter(n), Party::Receiver));
        let pairs = pairs.filter(|(from, to)| from != to).chain(exporters);
        let mut all: Vec<Link> = pairs.flat_map(|(a, b)| [Link { from: a, to: b }, Link { from: b, to: a }]).collect();
        all.sort();
        all.dedup();
        let share = 2 + self.below(8);
        let mut links: Vec<Link> = all.iter().copied().filter(|_| self.below(share) == 0).collect();
        if links.is_empty() {
            links.push(self.of(&all));
        }
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_each_time_and_another_seed_other_ones() {
        let told = |seed| plan(seed, 30).iter().map(Fault::to_string).collect::<Vec<_>>();
        assert_eq!(told(1), told(1));
        assert_ne!(told(1), told(2));
    }

    #[test]
    fn the_first_faults_are_one_of_each_kind() {
        for seed in 0..50 {
            let mut kinds: Vec<Kind> = plan(seed, Kind::ALL.len()).iter().map(|fault| fault.kind).collect();
            assert_eq!(kinds.last(), Some(&Kind::RollingRestart));
            kinds.sort();
            assert_eq!(kinds, Kind::ALL);
        }
    }

    #[test]
    fn every_target_of_every_kind_comes_up_and_partitions_in_one_direction_too() {
        let all = plan(7, 3_000);
        for kind in Kind::ALL {
            for target in kind.targets() {
                assert!(all.iter().any(|f| f.kind == kind && f.target == Some(target)), "{kind:?} {target}");
            }
        }
        let one_way =
            |fault: &Fault| fault.links.iter().any(|l| !fault.links.contains(&Link { from: l.to, to: l.from }));
        let partitions: Vec<_> = all.iter().filter(|fault| fault.kind == Kind::Partition).collect();
        assert!(partitions.iter().all(|fault| !fault.links.is_empty()));
        assert!(partitions.iter().any(|fault| one_way(fault)) && partitions.iter().any(|fault| !one_way(fault)));
        assert!(partitions.iter().any(|fault| fault.target.is_none()));
    }

    #[test]
    fn no_two_parties_share_a_group() {
        let all = [Party::roles(), Party::nodes()].concat();
        let groups: std::collections::BTreeSet<_> = all.iter().map(|party| party.group().unwrap()).collect();
        assert_eq!(groups.len(), all.len());
    }
}
