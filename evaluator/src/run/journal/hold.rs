//! Holding runs: from the write that makes a run held, over its changes, until it is given up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::{Cause, PutError, Revision, StateStore};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout_at};

use super::super::RunState;
use super::packed::pack;
use super::record::{self, Entry, JournalId};
use super::{HeldRun, Hold, Journal, MAX_HELD, MAX_PACKED_BYTES, State, Waiting};

/// Runs are not held where they are forgotten sooner.
const MIN_KEPT_FOR: Duration = Duration::from_secs(60);

/// A run that is to be held once its record says so. Until this is dropped, other shards wait for it.
#[derive(Debug)]
pub(in crate::run) struct Activation<'a> {
    journal: &'a Journal,
    id: JournalId,
    reloads: u64,
    key: String,
    turn: Arc<tokio::sync::Mutex<()>>,
    _turn: OwnedMutexGuard<()>,
}

impl Activation<'_> {
    /// The run's own record.
    pub(in crate::run) fn record(&self, state: RunState) -> Result<Bytes, serde_json::Error> {
        record::held(self.id.clone(), state)
    }

    /// The run's record names the journal since this revision. If another evaluator may have taken it meanwhile, it is
    /// not held: then it is taken like another journal's.
    pub(in crate::run) fn begin(self, base: Revision, run: RunState) {
        let mut state = self.journal.lock();
        if state.id == self.id && state.reloads == self.reloads {
            let entry = Entry { key: self.key.clone(), base, is_taken: false, state: None };
            let (now, turn) = (Instant::now(), Arc::clone(&self.turn));
            let held = HeldRun { state: run, entry, since: now, used: now, is_leaving: false, turn };
            state.runs.insert(self.key.clone(), held);
        }
    }
}

impl Drop for Activation<'_> {
    fn drop(&mut self) {
        self.journal.lock().beginning.remove(&self.key);
    }
}

impl Journal {
    /// Whether the run in this state is to be held from the next write on.
    pub(in crate::run) fn activation(&self, key: &str, from: Revision, kept_for: Duration) -> Option<Activation<'_>> {
        let mut state = self.lock();
        let has_room = state.runs.len() + state.left.len() + state.beginning.len() < MAX_HELD;
        let is_long = state.streaks.is_long(key, from, Instant::now());
        if !has_room || !is_long || kept_for < MIN_KEPT_FOR || state.beginning.contains_key(key) {
            return None;
        }
        let turn: Arc<tokio::sync::Mutex<()>> = Arc::default();
        let guard = Arc::clone(&turn).try_lock_owned().ok()?;
        state.beginning.insert(key.to_owned(), Arc::clone(&turn));
        let (id, reloads, key) = (state.id.clone(), state.reloads, key.to_owned());
        Some(Activation { journal: self, id, reloads, key, turn, _turn: guard })
    }

    /// This process has replaced one revision of a run's own record by another.
    pub(in crate::run) fn note_written(&self, key: &str, replaced: Option<Revision>, by: Revision) {
        self.lock().streaks.note(key, replaced, by, Instant::now());
    }

    /// A held run, once no other batch of its checks is being decided; `None`: the journal does not hold it. Its state
    /// may rest on a round that is not stored: only a write of it tells.
    pub(in crate::run) async fn hold(&self, key: &str, deadline: Instant) -> Result<Option<(RunState, Hold)>, Cause> {
        loop {
            let Some(turn) = self.lock().turn_of(key) else { return Ok(None) };
            let Ok(guard) = timeout_at(deadline, Arc::clone(&turn).lock_owned()).await else {
                return Err("other checks of the run take too long".into());
            };
            let state = self.lock();
            if let Some(run) = state.runs.get(key).filter(|run| Arc::ptr_eq(&run.turn, &turn)) {
                let hold = Hold { journal: state.id.clone(), base: run.entry.base, _turn: guard };
                return Ok(Some((run.state.clone(), hold)));
            }
        }
    }

    /// Stores a held run with the next round. `Conflict`: the run is not held any more.
    pub(in crate::run) async fn write(
        &self,
        state_store: &dyn StateStore,
        key: &str,
        hold: Hold,
        run: RunState,
        kept_for: Duration,
        deadline: Instant,
    ) -> Result<(), PutError> {
        let mut outcome = self.queue(key, hold, run, deadline)?;
        loop {
            // INVARIANT: a change that waits is stored by one of those that wait: each waits for its outcome and for
            // the right to store a round.
            tokio::select! {
                biased;
                outcome = &mut outcome => {
                    return outcome.unwrap_or_else(|_| Err(PutError::Failed("the round was not finished".into())));
                }
                _storing = self.storing.lock() => self.store_round(state_store, kept_for).await,
            }
        }
    }

    fn queue(
        &self,
        key: &str,
        hold: Hold,
        mut run: RunState,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Result<(), PutError>>, PutError> {
        let packed = pack(&mut run).map_err(|error| PutError::Failed(Cause::new(error)))?;
        let mut locked = self.lock();
        let state = &mut *locked;
        if state.id != hold.journal {
            return Err(PutError::Conflict);
        }
        let held = state.runs.get_mut(key).filter(|held| held.entry.base == hold.base);
        let held = held.ok_or(PutError::Conflict)?;
        if packed.len() > MAX_PACKED_BYTES {
            held.is_leaving = true;
            state.streaks.lose(key, Instant::now());
            return Err(PutError::Conflict);
        }
        held.entry.state = Some(packed);
        (held.state, held.used) = (run, Instant::now());
        let (done, outcome) = oneshot::channel();
        state.waiting.push(Waiting { key: key.to_owned(), base: hold.base, deadline, done });
        if state.waiting.len() >= state.last_round {
            self.filled.notify_waiters();
        }
        // The next checks of the run may rest on this change: they are stored after it or not at all.
        drop(hold);
        Ok(outcome)
    }
}

impl State {
    /// What a check of a run that is held, or is about to be, waits for.
    fn turn_of(&self, key: &str) -> Option<Arc<tokio::sync::Mutex<()>>> {
        let held = || self.runs.get(key).filter(|run| !run.is_leaving).map(|run| &run.turn);
        self.beginning.get(key).or_else(held).cloned()
    }
}
