//! Reading a run to change it, and writing it: its own record, or the journal that holds it.
//!
//! A held run whose state is in this process's memory is not read at all. INVARIANT: what is read may be old, and only
//! a write tells. So what is answered about a held run is answered after a write of it.

use std::time::Duration;

use bytes::Bytes;
use stage0_backplane::{CLOCK_READING_TTL, ClockError, PutError, Revision};
use tokio::time::Instant;

use super::RunState;
use super::coordinator::{RunCoordinator, RunError, reason};
use super::journal::{HELD_PART, Hold, Looked, RunRecord, TakeError, look_up, take};

/// How long the state store keeps the tombstone of an ended run.
const TOMBSTONE_TTL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct StoredRun {
    /// `None` if the run is new or was ended.
    pub(super) state: Option<RunState>,
    pub(super) place: Place,
}

/// Where a run's next state goes.
#[derive(Debug)]
pub(super) enum Place {
    /// Its own record, in place of this revision.
    Own(Option<Revision>),
    Journal(Hold),
}

impl From<TakeError> for RunError {
    fn from(error: TakeError) -> Self {
        match error {
            TakeError::Read(error) => Self::Read(error.0.to_string()),
            TakeError::Unreadable(error) => Self::Read(error.to_string()),
            TakeError::Write(error) => Self::Write(reason(&error)),
        }
    }
}

impl RunCoordinator {
    /// A run that is to be changed. If another evaluator's journal holds it, it is taken from there.
    pub(super) async fn read(&self, key: &str, deadline: Instant) -> Result<StoredRun, RunError> {
        self.require_clock(deadline).await?;
        let held = self.journal.hold(key, deadline).await.map_err(|cause| RunError::Read(cause.to_string()))?;
        match held {
            Some((state, hold)) => Ok(StoredRun { state: self.unexpired(state), place: Place::Journal(hold) }),
            None => self.read_own(key, deadline).await,
        }
    }

    /// INVARIANT: no run expires, or is kept, by this host's own time, which may be weeks off. Until the store's clock
    /// has been read, `now` is that.
    async fn require_clock(&self, deadline: Instant) -> Result<(), RunError> {
        match self.state_store.read_clock(CLOCK_READING_TTL, deadline).await {
            Err(error @ ClockError::Unknown) => Err(RunError::Read(error.to_string())),
            // A host whose own clock differs knows the store's time all the same.
            Ok(()) | Err(ClockError::Ahead(_) | ClockError::Behind(_)) => Ok(()),
        }
    }

    async fn read_own(&self, key: &str, deadline: Instant) -> Result<StoredRun, RunError> {
        let found = self.state_store.get(key, deadline).await.map_err(|error| RunError::Read(error.0.to_string()))?;
        let Some(record) = found else { return Ok(StoredRun { state: None, place: Place::Own(None) }) };
        let state = match RunRecord::parse(&record.value).map_err(|error| unparsed(&error))? {
            RunRecord::Own(state) => (!state.ended).then_some(state),
            RunRecord::Held(held) => {
                let (base, kept_for) = (record.revision, self.config.kept_for);
                let taken = take(&*self.state_store, key, base, held, kept_for, deadline).await?;
                self.unexpired(taken)
            }
        };
        Ok(StoredRun { state, place: Place::Own(Some(record.revision)) })
    }

    /// A run as it is stored, to be shown.
    pub(super) async fn look(&self, key: &str, deadline: Instant) -> Result<Option<RunState>, RunError> {
        self.require_clock(deadline).await?;
        let mut before = None;
        loop {
            let read = self.state_store.get(key, deadline).await;
            let Some(record) = read.map_err(|error| RunError::Read(error.0.to_string()))? else { return Ok(None) };
            let held = match RunRecord::parse(&record.value).map_err(|error| unparsed(&error))? {
                RunRecord::Own(state) => return Ok((!state.ended).then_some(state)),
                RunRecord::Held(held) => held,
            };
            match look_up(&*self.state_store, key, record.revision, &held, deadline).await? {
                Looked::Changed(state) => return Ok(self.unexpired(*state)),
                // Read twice the same, so the journal did not give it up in between.
                Looked::AsInItsRecord if before == Some(record.revision) => return Ok(self.unexpired(held.run)),
                Looked::AsInItsRecord => before = Some(record.revision),
            }
        }
    }

    /// In a journal a run does not expire by itself.
    fn unexpired(&self, state: RunState) -> Option<RunState> {
        (state.expires_at > self.now()).then_some(state)
    }

    /// Writes the run; false on a conflict.
    pub(super) async fn write(
        &self,
        key: &str,
        state: RunState,
        place: Place,
        deadline: Instant,
    ) -> Result<bool, RunError> {
        match place {
            Place::Own(replaced) => self.write_own(key, state, replaced, deadline).await,
            Place::Journal(hold) => {
                let (state_store, kept_for) = (&*self.state_store, self.config.kept_for);
                written(self.journal.write(state_store, key, hold, state, kept_for, deadline).await)
            }
        }
    }

    async fn write_own(
        &self,
        key: &str,
        state: RunState,
        replaced: Option<Revision>,
        deadline: Instant,
    ) -> Result<bool, RunError> {
        let kept_for = self.config.kept_for;
        let activation = replaced.and_then(|from| self.journal.activation(key, from, kept_for));
        let unwritten = |error: serde_json::Error| RunError::Write(error.to_string());
        let (value, ttl) = match &activation {
            None => (Bytes::from(serde_json::to_vec(&state).map_err(unwritten)?), kept_for),
            Some(activation) => (activation.record(state.clone()).map_err(unwritten)?, kept_for + kept_for / HELD_PART),
        };
        let put = self.state_store.put(key, value, replaced, Some(ttl), deadline).await;
        if let Ok(revision) = &put {
            self.journal.note_written(key, replaced, *revision);
            if let Some(activation) = activation {
                activation.begin(*revision, state);
            }
        }
        written(put.map(drop))
    }

    /// Whether the run is still what was read; where it is held, only a write tells.
    pub(super) async fn is_current(
        &self,
        key: &str,
        state: RunState,
        place: Place,
        deadline: Instant,
    ) -> Result<bool, RunError> {
        match place {
            Place::Journal(_) => self.write(key, state, place, deadline).await,
            Place::Own(revision) => {
                let now = self.state_store.get(key, deadline).await;
                let now = now.map_err(|error| RunError::Read(error.0.to_string()))?;
                Ok(now.map(|record| record.revision) == revision)
            }
        }
    }

    /// Replaces the run by a tombstone. None: there is no such run; false: a conflict.
    pub(super) async fn write_tombstone(
        &self,
        key: &str,
        deadline: Instant,
    ) -> Result<Option<(RunState, bool)>, RunError> {
        self.journal.release(&*self.state_store, key, deadline).await;
        let StoredRun { state: Some(state), place: Place::Own(revision) } = self.read_own(key, deadline).await? else {
            return Ok(None);
        };
        let tombstone = RunState { ended: true, ..RunState::default() };
        let value = serde_json::to_vec(&tombstone).map_err(|error| RunError::Write(error.to_string()))?;
        let put = self.state_store.put(key, value.into(), revision, Some(TOMBSTONE_TTL), deadline).await;
        Ok(Some((state, written(put.map(drop))?)))
    }
}

fn written(outcome: Result<(), PutError>) -> Result<bool, RunError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(PutError::Conflict) => Ok(false),
        Err(error @ PutError::Failed(_)) => Err(RunError::Write(reason(&error))),
    }
}

/// Without the text, which may be the caller's.
pub(super) fn unparsed(error: &serde_json::Error) -> RunError {
    RunError::Read(format!("line {} column {}", error.line(), error.column()))
}
