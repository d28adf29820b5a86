//! Giving runs up: the run's own record gets the state, and names no journal any more.
//!
//! Done for runs that are idle, that were held for long, and at shutdown; and for runs that another evaluator has taken
//! and may have died with.
//! INVARIANT: an entry leaves the journal only once the run's own record surely does not name this hold any more: its
//! put was stored, or conflicted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use stage0_backplane::{Cause, PutError, Revision, StateStore};
use tokio::time::{Instant, sleep};

use super::super::RunState;
use super::record::Entry;
use super::{HeldRun, Journal, MAX_HELD};

const INTERVAL: Duration = Duration::from_millis(100);
/// A run without a check for this long is given up; sooner where the journal has little room left.
const IDLE_TTL: Duration = Duration::from_secs(10);
const SHORT_IDLE_TTL: Duration = Duration::from_millis(500);
/// Runs that are given up at the same time.
const MAX_CONCURRENT: usize = 16;
/// Which part of its retention a run is held at most, so that its own record does not expire meanwhile.
pub(in crate::run) const HELD_PART: u32 = 24;
const PUT_TIMEOUT: Duration = Duration::from_secs(2);

/// A held run with no change that waits or is being stored.
struct Resting {
    state: RunState,
    entry: Entry,
    _turn: tokio::sync::OwnedMutexGuard<()>,
}

impl Journal {
    /// Gives up what is idle, again and again. Never returns.
    pub(in crate::run) async fn tend(&self, state_store: &dyn StateStore, kept_for: Duration) {
        loop {
            sleep(INTERVAL).await;
            let until = Instant::now() + PUT_TIMEOUT;
            let is_roomy = self.lock().runs.len() <= MAX_HELD / 2;
            let idle_ttl = if is_roomy { IDLE_TTL } else { SHORT_IDLE_TTL };
            let is_due = |run: &HeldRun| run.used.elapsed() >= idle_ttl || run.since.elapsed() >= kept_for / HELD_PART;
            self.release_where(state_store, until, is_due).await;
            self.finish_left(state_store, until).await;
        }
    }

    /// Gives up every run of which no check is being decided.
    pub(in crate::run) async fn release_all(&self, state_store: &dyn StateStore, deadline: Instant) {
        self.release_where(state_store, deadline, |_| true).await;
        self.finish_left(state_store, deadline).await;
    }

    /// Gives up one run, if it is held and no check of it is being decided.
    pub(in crate::run) async fn release(&self, state_store: &dyn StateStore, key: &str, deadline: Instant) {
        let Some(resting) = self.rest(key).await else { return };
        let put = put_own(state_store, key, &resting.state, resting.entry.base, deadline).await;
        let mut state = self.lock();
        if state.runs.get(key).is_none_or(|run| run.entry.base != resting.entry.base) {
            // The journal was given up meanwhile.
            return;
        }
        state.runs.remove(key);
        match put {
            Ok(_) | Err(PutError::Conflict) => state.streaks.end(key),
            // Not known: the entry stays until it is. One without a state says what the run's record says.
            Err(PutError::Failed(_)) if resting.entry.state.is_some() => {
                state.left.push(Entry { is_taken: true, ..resting.entry });
            }
            Err(PutError::Failed(_)) => {}
        }
    }

    async fn release_where(&self, state_store: &dyn StateStore, deadline: Instant, which: impl Fn(&HeldRun) -> bool) {
        let keys: Vec<String> = {
            let state = self.lock();
            state.runs.iter().filter(|(_, run)| which(run)).map(|(key, _)| key.clone()).collect()
        };
        let released = stream::iter(&keys).map(|key| self.release(state_store, key, deadline));
        released.buffer_unordered(MAX_CONCURRENT).collect::<()>().await;
    }

    /// Waits until no round is being stored, so that what is in memory is what the journal's record has.
    async fn rest(&self, key: &str) -> Option<Resting> {
        let turn = Arc::clone(&self.lock().runs.get(key)?.turn);
        let guard = Arc::clone(&turn).try_lock_owned().ok()?;
        let _storing = self.storing.lock().await;
        let state = self.lock();
        let run = state.runs.get(key).filter(|run| Arc::ptr_eq(&run.turn, &turn))?;
        let is_waiting = state.waiting.iter().any(|waiting| waiting.key == key);
        (!is_waiting).then(|| Resting { state: run.state.clone(), entry: run.entry.clone(), _turn: guard })
    }

    /// Writes the own records of runs whose last state only this journal may have.
    async fn finish_left(&self, state_store: &dyn StateStore, deadline: Instant) {
        let left = self.lock().left.clone();
        for entry in left {
            let Ok(Some(run)) = entry.state() else { continue };
            let put = put_own(state_store, &entry.key, &run, entry.base, deadline).await;
            if matches!(put, Ok(_) | Err(PutError::Conflict)) {
                self.lock().left.retain(|left| !left.is_of(&entry.key, entry.base));
            }
        }
    }
}

/// Replaces the record that names the journal.
async fn put_own(
    state_store: &dyn StateStore,
    key: &str,
    run: &RunState,
    base: Revision,
    deadline: Instant,
) -> Result<Revision, PutError> {
    let value = serde_json::to_vec(run).map_err(|error| PutError::Failed(Cause::new(error)))?;
    let left = run.expires_at.saturating_sub(state_store.clock().now().as_second()).max(1);
    let ttl = Duration::from_secs(left.cast_unsigned());
    state_store.put(key, Bytes::from(value), Some(base), Some(ttl), deadline).await
}
