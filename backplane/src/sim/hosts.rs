//! The clocks of each simulated process: its wall clock can be set, and the kernel's clock only runs.
//!
//! The product reads its clocks as functions, so the process that is polled at this moment is kept for each thread. A
//! task that the product spawns belongs to no process: its wall clock is right.

use std::cell::RefCell;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};

use super::Sim;
use super::numbers::Numbers;
use super::plan::Fault;
use crate::clock::{Clocks, Settled};

/// What the clocks of a simulation show at its start.
const EPOCH_SECONDS: i64 = 1_800_000_000;
const UPTIME: Duration = Duration::from_secs(100_000);
/// By how much a wall clock is set, at most: around the limits that the product knows, and far beyond them.
const STEPS: [i64; 6] = [2, 15, 60, 4_000, 90_000, 40 * 86_400];

thread_local! {
    /// The simulation that runs on this thread, if one does.
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

struct Current {
    started: Instant,
    /// For delays that the product draws itself.
    numbers: Numbers,
    /// The process that is polled now.
    polled: Option<usize>,
    hosts: Vec<Host>,
}

#[derive(Default)]
struct Host {
    /// How far its wall clock is ahead.
    error: SignedDuration,
    process: Option<Process>,
}

/// What a process remembers of its clocks.
struct Process {
    started: Clocks,
    settled: Settled,
}

/// Until it is dropped, the clocks and the random delays of this thread are the simulation's.
pub(super) struct Installed;

/// Until it is dropped, the clocks of this thread are those of one process.
struct Polled(Option<usize>);

fn with<T>(read: impl FnOnce(&mut Current) -> Option<T>) -> Option<T> {
    CURRENT.with(|cell| cell.borrow_mut().as_mut().and_then(read))
}

impl Installed {
    /// The last host is the observer's.
    pub(super) fn new(seed: u64, hosts: usize) -> Self {
        let hosts = (0..hosts).map(|_| Host::default()).collect();
        let numbers = Numbers::new(seed ^ 0x5eed);
        let current = Current { started: Instant::now(), numbers, polled: None, hosts };
        CURRENT.with(|cell| *cell.borrow_mut() = Some(current));
        Self
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        CURRENT.with(|cell| *cell.borrow_mut() = None);
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        with(|current| {
            current.polled = self.0;
            Some(())
        });
    }
}

impl Current {
    fn clocks_of(&self, host: Option<usize>) -> Option<Clocks> {
        let elapsed = self.started.elapsed();
        let right = Timestamp::from_second(EPOCH_SECONDS).ok()?.checked_add(elapsed).ok()?;
        let error = host.and_then(|host| self.hosts.get(host)).map_or(SignedDuration::ZERO, |host| host.error);
        Some(Clocks { wall: right.checked_add(error).ok()?, boot: UPTIME + elapsed })
    }

    fn process(&mut self) -> Option<&mut Process> {
        let polled = self.polled?;
        let now = self.clocks_of(Some(polled))?;
        let host = self.hosts.get_mut(polled)?;
        Some(host.process.get_or_insert_with(|| Process { started: now, settled: Settled::new(now) }))
    }
}

/// Does something as this process, which reads its own clocks.
pub(super) fn polled_as<T>(host: usize, poll: impl FnOnce() -> T) -> T {
    let before = with(|current| Some(current.polled.replace(host))).flatten();
    let _polled = Polled(before);
    poll()
}

/// Another process starts here, and remembers nothing of its clocks.
pub(super) fn start(host: usize) {
    with(|current| {
        current.hosts.get_mut(host)?.process = None;
        Some(())
    });
}

/// The clocks of the process that is polled now, in the simulation that runs on this thread.
pub(crate) fn clocks() -> Option<Clocks> {
    with(|current| current.clocks_of(current.polled))
}

/// The time as it is, which no process knows.
pub(super) fn true_time() -> Timestamp {
    with(|current| current.clocks_of(None)).map_or(Timestamp::UNIX_EPOCH, |clocks| clocks.wall)
}

/// Both clocks at the start of the process that is polled now.
pub(crate) fn start_of_process() -> Option<Clocks> {
    with(|current| match current.polled {
        Some(_) => current.process().map(|process| process.started),
        None => current.clocks_of(None),
    })
}

/// The settled time of the process that is polled now.
pub(crate) fn settled(now: Clocks) -> Option<Timestamp> {
    with(|current| match current.polled {
        Some(_) => current.process().map(|process| process.settled.time(now)),
        None => Some(now.wall),
    })
}

/// What [`crate::random_fraction`] returns in the simulation that runs on this thread.
pub(crate) fn fraction() -> Option<f64> {
    with(|current| Some(current.numbers.fraction()))
}

fn set(host: usize, error: SignedDuration) {
    with(|current| {
        current.hosts.get_mut(host)?.error = error;
        Some(())
    });
}

impl Sim {
    /// Sets wall clocks until all is calm; then all of them are right.
    pub(super) async fn set_clocks(self) {
        let (nodes, seed) = {
            let world = self.lock();
            (world.plan.nodes, world.plan.seed)
        };
        // A stream of its own, so that what else happens does not depend on it.
        let mut numbers = Numbers::new(seed ^ 0xc10c_c10c);
        loop {
            let pace = self.lock().plan.pace;
            sleep(pace.mul_f64(4.0 * numbers.fraction())).await;
            let (host, strikes) = (numbers.below(nodes as u64) as usize, numbers.below(1_000));
            let most = STEPS.get(numbers.below(STEPS.len() as u64) as usize).copied().unwrap_or_default();
            let step = SignedDuration::from_secs_f64(most as f64 * (2.0 * numbers.fraction() - 1.0));
            let is_set_right = numbers.below(3) == 0;
            let mut world = self.lock();
            if world.is_calm {
                (0..nodes).for_each(|host| set(host, SignedDuration::ZERO));
                return;
            }
            if world.plan.faults.has(Fault::ClockSet) && strikes < world.plan.faults.rate(Fault::ClockSet) {
                let error = if is_set_right { SignedDuration::ZERO } else { step };
                set(host, error);
                world.count(Fault::ClockSet.name(), 1);
                world.note(host, format_args!("has its wall clock set, to {:.1} s ahead", error.as_secs_f64()));
            }
        }
    }
}

/// All wall clocks are right from now on.
pub(super) fn set_right() {
    with(|current| {
        current.hosts.iter_mut().for_each(|host| host.error = SignedDuration::ZERO);
        Some(())
    });
}
