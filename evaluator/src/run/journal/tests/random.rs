//! Random histories: evaluators change, take, give up and lose runs at the same time, and some are replaced as if
//! killed. INVARIANT: no number of a run is given twice, and none that was given is lost.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const RUNS: u64 = 5;
const STEPS: usize = 120;
const SEEDS: u64 = 12;

/// Numbers that are the same in every run of the test (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// What became of the changes of one run.
#[derive(Default)]
pub(super) struct Given {
    pub(super) numbers: BTreeSet<i64>,
    pub(super) unknown: usize,
}

struct History {
    stores: Vec<Arc<Faulty>>,
    evaluators: Vec<RunCoordinator>,
    given: BTreeMap<String, Given>,
}

impl History {
    fn new(bus: &Bus) -> Self {
        let stores: Vec<_> = (0..3).map(|_| store(bus)).collect();
        Self { evaluators: stores.iter().map(evaluator).collect(), stores, given: BTreeMap::new() }
    }

    async fn step(&mut self, numbers: &mut Numbers) {
        let at = usize::try_from(numbers.next(3)).unwrap();
        match numbers.next(20) {
            0 => self.stores[at].fail_next("runs.", Fault::LoseAcknowledgement),
            1 => self.stores[at].fail_next("runs.", Fault::Fail),
            // It died, and another one starts.
            2 => self.evaluators[at] = evaluator(&self.stores[at]),
            3 => self.evaluators[at].journal.release_all(&*self.stores[at], soon()).await,
            _ => {}
        }
        // Most come to the same evaluator, so that runs are held; some at the same time to others.
        let home = |run: u64| usize::try_from(run % 3).unwrap();
        let changes: Vec<(usize, String)> = (0..6)
            .map(|_| {
                let run = numbers.next(RUNS);
                let at = if numbers.next(12) == 0 { at } else { home(run) };
                (at, format!("runs.acc.r{run}"))
            })
            .collect();
        let done = join_all(changes.iter().map(|(at, key)| count(&self.evaluators[*at], key))).await;
        for ((_, key), done) in changes.into_iter().zip(done) {
            let given = self.given.entry(key.clone()).or_default();
            match done {
                Ok(number) => assert!(given.numbers.insert(number), "{key}: {number} was given twice"),
                Err(Undone::Unknown) => given.unknown += 1,
                Err(Undone::Conflict | Undone::Unread) => {}
            }
        }
    }
}

#[tokio::test]
async fn in_no_history_is_a_number_given_twice_or_lost() {
    let (mut held, mut given) = (0, 0);
    for seed in 1..=SEEDS {
        let (bus, mut numbers) = (Bus::new(), Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut history = History::new(&bus);
        for _ in 0..STEPS {
            history.step(&mut numbers).await;
            held += history.evaluators.iter().map(|one| one.journal.lock().runs.len()).sum::<usize>();
        }
        let last = evaluator(&store(&bus));
        for (key, Given { numbers, unknown }) in &history.given {
            let counted = last.look(key, soon()).await.unwrap().unwrap().iterations;
            let known = i64::try_from(numbers.len()).unwrap();
            let unknown = i64::try_from(*unknown).unwrap();
            let highest = numbers.last().copied().unwrap_or_default();
            assert!(counted >= highest, "seed {seed}, {key}: {highest} was given and {counted} are counted");
            assert!((known..=known + unknown).contains(&counted), "seed {seed}, {key}: {known} + {unknown}, {counted}");
            given += numbers.len();
        }
    }
    assert!(held > STEPS && given > STEPS, "the histories hold runs: {held}, {given}");
}
