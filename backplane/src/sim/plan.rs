//! What one run is made from: the seed, how much happens, and what goes wrong.

use std::fmt;
use std::time::Duration;

use super::numbers::Numbers;

/// What may go wrong. A store that is slower or lies more than this is not simulated.
// New ones go to the end: what a seed draws for those before them stays as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A request or its answer takes up to twice the pace.
    Slow,
    /// The store answers with an error at once, and has done nothing.
    Refused,
    /// The request never reaches the store.
    RequestLost,
    /// It is done, and the caller does not hear of it.
    AnswerLost,
    /// It is done after its caller has given up.
    Late,
    /// A replica answers a read with an older state.
    Lagging,
    /// A process is cut off from the store for a while.
    Away,
    /// A process stands still for a while, and time passes.
    Frozen,
    /// A process dies with all that it has in memory, and another one starts in its place.
    Killed,
    /// Somebody sets a process's wall clock, forwards or back, by seconds or by weeks.
    ClockSet,
    /// Some processes and servers of the store cannot send to some others for a while, in one direction or both.
    Partition,
}

/// The faults of a run. A seed has some of them off, and some seeds are rougher than others: a fault that is always on
/// hides what only happens without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Faults {
    on: u16,
    /// In percent of each fault's usual rate.
    roughness: u64,
}

/// A store that is broken on purpose, so that a test can show that its simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// A put replaces the record, whatever revision it expects.
    IgnoresExpected,
    /// Now and then a write is acknowledged and not kept.
    Forgets,
    /// The log stores a batch again that it has.
    StoresTwice,
    /// A server acknowledges what it could not pass on to a majority, and forgets it.
    AcknowledgesAlone,
    /// A process takes its own wall clock for the store's.
    HostClocks,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Everything that is drawn comes from it.
    pub seed: u64,
    /// Processes that share the store.
    pub nodes: usize,
    /// What the processes do in all, as the simulation counts it.
    pub steps: u64,
    /// How far apart freezes, deaths and outages are, and a measure of how long they and slow exchanges take.
    pub pace: Duration,
    /// What may go wrong. Of these, a seed has some.
    pub faults: Faults,
    /// How the store is broken; none: it keeps its contract.
    pub flaw: Option<Flaw>,
}

impl Fault {
    pub(super) const ALL: [Self; 11] = [
        Self::Slow,
        Self::Refused,
        Self::RequestLost,
        Self::AnswerLost,
        Self::Late,
        Self::Lagging,
        Self::Away,
        Self::Frozen,
        Self::Killed,
        Self::ClockSet,
        Self::Partition,
    ];

    fn bit(self) -> u16 {
        1 << self as u16
    }

    /// Of a thousand exchanges, reads or moments of a process. A process is also struck in the middle of an exchange.
    pub(super) fn rate(self) -> u64 {
        match self {
            Self::Slow => 60,
            Self::Refused | Self::RequestLost => 12,
            Self::AnswerLost => 20,
            Self::Late => 10,
            Self::Lagging | Self::Away | Self::Frozen => 120,
            Self::Killed => 80,
            Self::ClockSet | Self::Partition => 150,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Slow => "slow exchanges",
            Self::Refused => "refusals",
            Self::RequestLost => "lost requests",
            Self::AnswerLost => "lost answers",
            Self::Late => "late requests",
            Self::Lagging => "lagging replicas",
            Self::Away => "outages",
            Self::Frozen => "freezes",
            Self::Killed => "deaths",
            Self::ClockSet => "clocks that are set",
            Self::Partition => "partitions",
        }
    }
}

impl Faults {
    /// No fault at all.
    pub const NONE: Self = Self { on: 0, roughness: 100 };

    /// Every fault.
    pub const ALL: Self = Self { on: (1 << Fault::ALL.len()) - 1, roughness: 100 };

    /// Those of these that a seed has, and how rough it is.
    pub(super) fn of_seed(self, seed: u64) -> Self {
        let mut numbers = Numbers::new(seed ^ 0xfa_017);
        let drawn = Fault::ALL.iter().filter(|_| numbers.below(4) > 0).fold(0, |on, fault| on | fault.bit());
        let roughness = [30, 100, 100, 300].get(numbers.below(4) as usize).copied().unwrap_or(100);
        Self { on: self.on & drawn, roughness }
    }

    /// The same without one.
    #[must_use]
    pub fn without(self, fault: Fault) -> Self {
        Self { on: self.on & !fault.bit(), ..self }
    }

    pub(super) fn has(self, fault: Fault) -> bool {
        self.on & fault.bit() != 0
    }

    pub(super) fn rate(self, fault: Fault) -> u64 {
        fault.rate() * self.roughness / 100
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on: Vec<&str> = Fault::ALL.into_iter().filter(|fault| self.has(*fault)).map(Fault::name).collect();
        f.write_str(if on.is_empty() { "no fault" } else { "" })?;
        f.write_str(&on.join(", "))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} processes, {} steps, {}", self.nodes, self.steps, self.faults)
    }
}
