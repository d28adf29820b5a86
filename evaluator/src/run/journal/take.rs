//! Taking a run from the journal of another evaluator, which may be dead, frozen or busy; and looking at it.
//!
//! INVARIANT: when a run is taken, its entry in the journal is marked, and the evaluator of that journal can store
//! nothing any more without having read the mark. What was taken is the last state then. Until the run's own record has
//! it, the mark stays, so that an evaluator that dies in between loses nothing.

use std::collections::HashMap;
use std::time::Duration;

use stage0_backplane::{PutError, ReadError, RecordPage, Revision, StateStore};
use tokio::time::{Instant, sleep};

use super::record::{Entry, JournalId, Unreadable, decode, encode, journal_of};
use super::{HeldRecord, JOURNAL_TTL_FACTOR};
use crate::metrics;
use crate::run::RunState;

/// After a conflict with a round of the journal. Far shorter than the gap between rounds.
const RETRY_DELAY: Duration = Duration::from_millis(1);

/// Why a run was not taken from its journal.
#[derive(Debug, thiserror::Error)]
pub(in crate::run) enum TakeError {
    #[error("the run's journal cannot be read")]
    Read(#[source] ReadError),
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("the run cannot be taken from its journal")]
    Write(#[source] PutError),
}

/// A held run as its journal has it.
pub(in crate::run) enum Looked {
    Changed(Box<RunState>),
    /// The journal has not changed it, or does not hold it any more: then its own record is another one by now.
    AsInItsRecord,
}

/// Ends the hold of a run; the state that none can follow.
pub(in crate::run) async fn take(
    state_store: &dyn StateStore,
    key: &str,
    base: Revision,
    held: HeldRecord,
    kept_for: Duration,
    deadline: Instant,
) -> Result<RunState, TakeError> {
    let HeldRecord { journal, run, .. } = held;
    let journal = journal.key();
    loop {
        let found = state_store.get(&journal, deadline).await.map_err(TakeError::Read)?;
        let revision = found.as_ref().map(|found| found.revision);
        let mut entries = found.map_or_else(|| Ok(Vec::new()), |found| decode(&found.value))?;
        let is_new = match entries.iter_mut().find(|entry| entry.is_of(key, base)) {
            Some(entry) => !std::mem::replace(&mut entry.is_taken, true),
            None => {
                // Not changed since the journal holds it; the mark keeps the journal from changing it now.
                entries.push(Entry { key: key.to_owned(), base, is_taken: true, state: None });
                true
            }
        };
        let last = entries.iter().find(|entry| entry.is_of(key, base)).map(Entry::state).transpose()?.flatten();
        if !is_new {
            return Ok(last.unwrap_or(run));
        }
        let ttl = kept_for.saturating_mul(JOURNAL_TTL_FACTOR);
        match state_store.put(&journal, encode(&entries), revision, Some(ttl), deadline).await {
            Ok(_) => {
                metrics::run_taken();
                return Ok(last.unwrap_or(run));
            }
            Err(PutError::Conflict) => sleep(RETRY_DELAY).await,
            Err(error @ PutError::Failed(_)) => return Err(TakeError::Write(error)),
        }
    }
}

/// The journals of the held runs of a page.
#[derive(Debug, Default)]
pub(in crate::run) struct Journals(HashMap<JournalId, Vec<Entry>>);

impl Journals {
    pub(in crate::run) async fn read(
        state_store: &dyn StateStore,
        page: &RecordPage,
        deadline: Instant,
    ) -> Result<Self, TakeError> {
        let mut journals = Self::default();
        for (_, record) in &page.records {
            let Some(journal) = journal_of(&record.value) else { continue };
            if journals.0.contains_key(&journal) {
                continue;
            }
            let found = state_store.get(&journal.key(), deadline).await.map_err(TakeError::Read)?;
            let entries = found.map_or_else(|| Ok(Vec::new()), |found| decode(&found.value))?;
            journals.0.insert(journal, entries);
        }
        Ok(journals)
    }

    /// None: as in the run's own record.
    pub(in crate::run) fn state(
        &self,
        key: &str,
        base: Revision,
        held: &HeldRecord,
    ) -> Result<Option<RunState>, Unreadable> {
        let entries = self.0.get(&held.journal).into_iter().flatten();
        Ok(entries.filter(|entry| entry.is_of(key, base)).map(Entry::state).next().transpose()?.flatten())
    }
}

/// What the journal has of a run, without taking it.
pub(in crate::run) async fn look_up(
    state_store: &dyn StateStore,
    key: &str,
    base: Revision,
    held: &HeldRecord,
    deadline: Instant,
) -> Result<Looked, TakeError> {
    let found = state_store.get(&held.journal.key(), deadline).await.map_err(TakeError::Read)?;
    let entries = found.map_or_else(|| Ok(Vec::new()), |found| decode(&found.value))?;
    let last = entries.iter().find(|entry| entry.is_of(key, base)).map(Entry::state).transpose()?.flatten();
    Ok(last.map_or(Looked::AsInItsRecord, |run| Looked::Changed(Box::new(run))))
}
