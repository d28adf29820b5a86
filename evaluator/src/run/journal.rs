//! The journal of one process: the changes of many runs, stored with one synced write.
//!
//! A run whose checks come to this process in a row is *held*: its own record names the journal, its state is in
//! memory, and what changes goes into the journal's record. All that changes while one write is in flight is the next
//! write (a *round*). An evaluator that is asked about a run of another one's journal takes it (`take`).
//! INVARIANT: a run changes by compare-and-set of its own record, and while that names a journal only by
//! compare-and-set of the journal's record. An evaluator that takes a run marks it there first, by the same
//! compare-and-set, so no state can follow the one that is taken. No answer leaves before its round is stored.
//! A round whose outcome is unknown ends the journal: the next one is empty, and the runs of the old one are taken as
//! those of an evaluator that died.

mod compact;
mod hold;
mod packed;
mod record;
mod release;
mod streaks;
mod take;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::{PutError, Revision, StateStore};
use tokio::sync::{Notify, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, sleep, timeout};

use super::RunState;
use crate::metrics;
use record::{Entry, JournalId, decode, encode};
pub(super) use record::{HeldRecord, RunRecord};
pub(super) use release::HELD_PART;
use streaks::Streaks;
pub(super) use take::{Journals, Looked, TakeError, look_up, take};

/// Runs that one process holds: together with [`MAX_PACKED_BYTES`] this bounds a round.
const MAX_HELD: usize = 64;
/// A run that takes more is not held.
const MAX_PACKED_BYTES: usize = 12 * 1_024;
/// The record of a journal is kept for longer than any record that names it.
const JOURNAL_TTL_FACTOR: u32 = 2;
/// Rounds between two gaps, and how long a gap is: an evaluator that takes a run needs its read and its write to meet
/// no round.
const ROUNDS_BETWEEN_GAPS: u64 = 64;
const TAKE_GAP: Duration = Duration::from_millis(5);
/// How long a round waits for as many changes as the last one had, if it has half of them or fewer: a synced write
/// costs about as much for one run as for many.
const GATHER_TIME: Duration = Duration::from_millis(1);

/// Shared by the shards of a process; any of them stores a round for all.
#[derive(Debug)]
pub(crate) struct Journal {
    state: Mutex<State>,
    /// Locked while a round is stored.
    storing: tokio::sync::Mutex<()>,
    /// As many changes wait as the last round had.
    filled: Notify,
}

#[derive(Debug)]
struct State {
    id: JournalId,
    /// That of the journal's record; none: nothing was stored yet.
    revision: Option<Revision>,
    /// How often other evaluators may have taken runs that this process does not know of yet.
    reloads: u64,
    rounds: u64,
    /// Changes of the last round.
    last_round: usize,
    /// In an order, so that a process does the same each time that a simulation runs it.
    runs: BTreeMap<String, HeldRun>,
    /// Runs whose records are being written so that they name the journal.
    beginning: HashMap<String, Arc<tokio::sync::Mutex<()>>>,
    /// Runs that this process changes no more, until their own records surely have their states.
    left: Vec<Entry>,
    /// What the next round stores.
    waiting: Vec<Waiting>,
    streaks: Streaks,
}

#[derive(Debug)]
struct HeldRun {
    /// May be in a round that is not stored yet.
    state: RunState,
    entry: Entry,
    since: Instant,
    used: Instant,
    /// It became too large: to be taken from the journal.
    is_leaving: bool,
    /// One batch of checks of the run is decided at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A change of a run in the next round.
#[derive(Debug)]
struct Waiting {
    key: String,
    /// Which hold of the run it changes: a shard may have taken the run from here, so that it is held again.
    base: Revision,
    deadline: Instant,
    done: oneshot::Sender<Result<(), PutError>>,
}

/// The right to change a held run, until it is dropped or the change is queued.
#[derive(Debug)]
pub(super) struct Hold {
    journal: JournalId,
    base: Revision,
    _turn: OwnedMutexGuard<()>,
}

/// A round that is being stored. If it is dropped before it is settled, its outcome is unknown.
struct Round<'a> {
    journal: &'a Journal,
    waiting: Vec<Waiting>,
    is_settled: bool,
}

struct RoundRecord {
    key: String,
    value: Bytes,
    revision: Option<Revision>,
    deadline: Instant,
}

impl Journal {
    pub(crate) fn new() -> Self {
        let state = State {
            id: JournalId::new(),
            revision: None,
            reloads: 0,
            rounds: 0,
            last_round: 0,
            runs: BTreeMap::new(),
            beginning: HashMap::new(),
            left: Vec::new(),
            waiting: Vec::new(),
            streaks: Streaks::default(),
        };
        Self { state: Mutex::new(state), storing: tokio::sync::Mutex::new(()), filled: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores all that waits, if anything does. The caller has locked `storing`.
    async fn store_round(&self, state_store: &dyn StateStore, kept_for: Duration) {
        if self.is_gap() {
            sleep(TAKE_GAP).await;
        }
        self.gather().await;
        let Some((mut round, record)) = self.begin_round() else { return };
        let RoundRecord { key, value, revision, deadline } = record;
        let ttl = kept_for.saturating_mul(JOURNAL_TTL_FACTOR);
        match state_store.put(&key, value, revision, Some(ttl), deadline).await {
            Ok(revision) => {
                self.lock().revision = Some(revision);
                metrics::round_size(round.waiting.len());
                round.settle(&Ok(()));
            }
            Err(PutError::Conflict) => self.reload(state_store, &mut round, deadline).await,
            Err(error @ PutError::Failed(_)) => {
                self.abandon();
                round.settle(&Err(error));
            }
        }
    }

    fn is_gap(&self) -> bool {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            return false;
        }
        state.rounds = state.rounds.wrapping_add(1);
        state.rounds.is_multiple_of(ROUNDS_BETWEEN_GAPS)
    }

    async fn gather(&self) {
        let filled = self.filled.notified();
        let is_small = {
            let state = self.lock();
            !state.waiting.is_empty() && state.waiting.len() * 2 <= state.last_round
        };
        if is_small {
            drop(timeout(GATHER_TIME, filled).await);
        }
    }

    fn begin_round(&self) -> Option<(Round<'_>, RoundRecord)> {
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.waiting);
        let deadline = waiting.iter().map(|waiting| waiting.deadline).max()?;
        state.last_round = waiting.len();
        let changed = state.runs.values().map(|run| &run.entry).filter(|entry| entry.state.is_some());
        let value = encode(changed.chain(&state.left));
        let record = RoundRecord { key: state.id.key(), value, revision: state.revision, deadline };
        Some((Round { journal: self, waiting, is_settled: false }, record))
    }

    /// After a conflict: another evaluator has taken runs. The others go into the next round.
    async fn reload(&self, state_store: &dyn StateStore, round: &mut Round<'_>, deadline: Instant) {
        let key = self.lock().id.key();
        let found = state_store.get(&key, deadline).await.ok().flatten();
        let found = found.and_then(|found| Some((found.revision, decode(&found.value).ok()?)));
        let Some((revision, entries)) = found else {
            self.abandon();
            // The record is surely not that of this round.
            return round.settle(&Err(PutError::Conflict));
        };
        let waiting = round.take();
        let lost = self.lock().give_up_taken(revision, entries, waiting);
        answer(lost, &Err(PutError::Conflict));
    }

    /// Ends this journal and begins another one. What waits is decided again.
    fn abandon(&self) {
        let waiting = {
            let mut state = self.lock();
            tracing::warn!(runs = state.runs.len(), "journal of runs is given up, as it is unknown what it has stored");
            state.id = JournalId::new();
            state.revision = None;
            state.reloads = state.reloads.wrapping_add(1);
            state.runs.clear();
            state.left.clear();
            std::mem::take(&mut state.waiting)
        };
        answer(waiting, &Err(PutError::Conflict));
    }
}

impl State {
    /// Forgets the runs that were taken. Returns the changes of them, which are not stored; the rest waits again.
    fn give_up_taken(&mut self, revision: Revision, entries: Vec<Entry>, waiting: Vec<Waiting>) -> Vec<Waiting> {
        self.revision = Some(revision);
        self.reloads = self.reloads.wrapping_add(1);
        for entry in entries.into_iter().filter(|entry| entry.is_taken) {
            if self.runs.get(&entry.key).is_some_and(|run| run.entry.base == entry.base) {
                self.runs.remove(&entry.key);
                self.streaks.lose(&entry.key, Instant::now());
            }
            // Without a state of its own here, the run's record has the last one.
            if entry.state.is_some() && !self.left.iter().any(|left| left.is_of(&entry.key, entry.base)) {
                self.left.push(entry);
            }
        }
        let later = std::mem::take(&mut self.waiting);
        let all = waiting.into_iter().chain(later);
        let is_held = |waiting: &Waiting| self.runs.get(&waiting.key).is_some_and(|run| run.entry.base == waiting.base);
        let (held, lost): (Vec<_>, Vec<_>) = all.partition(is_held);
        self.waiting = held;
        lost
    }
}

impl Round<'_> {
    fn settle(&mut self, outcome: &Result<(), PutError>) {
        answer(self.take(), outcome);
    }

    fn take(&mut self) -> Vec<Waiting> {
        self.is_settled = true;
        std::mem::take(&mut self.waiting)
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.journal.abandon();
        }
    }
}

fn answer(waiting: Vec<Waiting>, outcome: &Result<(), PutError>) {
    for waiting in waiting {
        // The caller may have gone.
        let _ = waiting.done.send(outcome.clone());
    }
}

#[cfg(test)]
mod tests;
