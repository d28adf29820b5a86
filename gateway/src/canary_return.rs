//! Ends canaries that differ from the active policy more often than their own terms allow.
//!
//! Evaluators count how often; the keystore judges once more and ends it. Runs in every gateway, for the accounts whose
//! checks came with a canary in the last minute, so that no gateway has to be alive. The end is tried, recorded and
//! made. A canary of which nothing is counted any more, while it decides, is ended too: its terms could not.
//! INVARIANT: only while every process can read such lines. A line whose end surely was not made, because another
//! gateway was first, is followed by one that says so.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use stage0_backplane::RequestError;
use stage0_contract::{
    AccountId, ApprovalEvent, CandidateChanged, CandidateCounts, CandidateMode, ManageReply, PolicyCandidate,
    ReadCandidates, Request, RequestId, ReturnCanary,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::metrics;
use crate::recorder::LineGroup;
use crate::recording::{event_lines, record};
use crate::state::AppState;

const INTERVAL: Duration = Duration::from_secs(1);
/// Of one request, and of one append.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Accounts that are remembered; the one that was silent longest makes room.
const MAX_ACCOUNTS: usize = 500;
/// After its last check an account is remembered so long: what it found out is counted by then.
const MEMORY_TTL: Duration = Duration::from_secs(60);
/// Accounts that are asked about at the same time, so that one that is slow does not delay the others.
const MAX_AT_ONCE: usize = 8;
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// A canary ends where nothing was counted of it for this time, and of this many checks.
const UNCOUNTED_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_UNCOUNTED: u64 = 50;
/// After an end that failed, so that each try does not leave a line a second.
const RETRY_DELAY: Duration = Duration::from_secs(30);

/// The canaries of the accounts whose checks came with one lately.
#[derive(Default)]
pub(crate) struct Canaries(Mutex<HashMap<AccountId, Seen>>);

struct Seen {
    at: Instant,
    canaries: Vec<PolicyCandidate>,
    progress: HashMap<Uuid, Progress>,
}

/// How far the counts of a canary have come.
struct Progress {
    /// Checks that it took here.
    taken: u64,
    counted: u64,
    /// When that grew last, and how many checks it had taken then.
    grown: (Instant, u64),
    /// Until then its end is not tried again.
    retry_at: Option<Instant>,
}

impl Progress {
    fn new(now: Instant) -> Self {
        Self { taken: 0, counted: 0, grown: (now, 0), retry_at: None }
    }

    /// Whether it decides and nothing of it is counted. None: the counts cannot be read.
    fn is_uncounted(&mut self, counted: Option<u64>, now: Instant) -> bool {
        if counted.is_some_and(|counted| counted > self.counted) {
            self.counted = counted.unwrap_or_default();
            self.grown = (now, self.taken);
        }
        let (since, taken) = self.grown;
        now.saturating_duration_since(since) >= UNCOUNTED_TIMEOUT && self.taken.saturating_sub(taken) >= MAX_UNCOUNTED
    }
}

#[derive(Debug, thiserror::Error)]
enum ReturnError {
    #[error("no answer")]
    Ask(#[from] RequestError),
    #[error("{0}")]
    Refused(&'static str),
    #[error("it has too much to do")]
    Busy,
    #[error("the end could not be recorded: {0}")]
    NotRecorded(String),
}

impl Canaries {
    /// Remembers the canaries among the candidates of an account whose check comes with them, and which one takes it.
    pub(crate) fn note(
        &self,
        account: &AccountId,
        candidates: &[PolicyCandidate],
        taken: Option<&PolicyCandidate>,
        now: Instant,
    ) {
        if candidates.iter().all(|candidate| candidate.mode != CandidateMode::Canary) {
            return;
        }
        let mut all = self.lock();
        if let Some(seen) = all.get_mut(account) {
            seen.take(taken, now);
            // Checks are many, and changes are rare.
            seen.at = now;
            if !canaries(candidates).eq(&seen.canaries) {
                seen.canaries = canaries(candidates).cloned().collect();
            }
            return;
        }
        if all.len() >= MAX_ACCOUNTS {
            let oldest = all.iter().min_by_key(|(_, seen)| seen.at).map(|(account, _)| account.clone());
            oldest.iter().for_each(|account| drop(all.remove(account)));
        }
        let canaries = canaries(candidates).cloned().collect();
        let mut seen = Seen { at: now, canaries, progress: HashMap::new() };
        seen.take(taken, now);
        all.insert(account.clone(), seen);
    }

    /// Those that are remembered; others are forgotten.
    fn list(&self, now: Instant) -> Vec<(AccountId, Vec<PolicyCandidate>)> {
        let mut all = self.lock();
        all.retain(|_, seen| now.saturating_duration_since(seen.at) < MEMORY_TTL && !seen.canaries.is_empty());
        all.iter().map(|(account, seen)| (account.clone(), seen.canaries.clone())).collect()
    }

    /// It has ended. A check that still comes with it brings it back.
    fn forget(&self, account: &AccountId, candidate: Uuid) {
        if let Some(seen) = self.lock().get_mut(account) {
            seen.canaries.retain(|canary| canary.id != candidate);
            seen.progress.remove(&candidate);
        }
    }

    /// What is known of how far a canary is counted.
    fn with_progress<T>(&self, account: &AccountId, candidate: Uuid, of: impl FnOnce(&mut Progress) -> T) -> Option<T> {
        let mut all = self.lock();
        Some(of(all.get_mut(account)?.progress.entry(candidate).or_insert_with(|| Progress::new(Instant::now()))))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn take(&mut self, taken: Option<&PolicyCandidate>, now: Instant) {
        if let Some(taken) = taken {
            self.progress.retain(|id, _| *id == taken.id || self.canaries.iter().any(|canary| canary.id == *id));
            self.progress.entry(taken.id).or_insert_with(|| Progress::new(now)).taken += 1;
        }
    }
}

fn canaries(candidates: &[PolicyCandidate]) -> impl Iterator<Item = &PolicyCandidate> {
    candidates.iter().filter(|candidate| candidate.mode == CandidateMode::Canary)
}

/// Runs until the gateway drains.
pub(crate) async fn run(state: &AppState, stop: &CancellationToken) {
    let mut logged: Option<Instant> = None;
    while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
        // A round is not cut off in the middle: what it has recorded is made.
        if let Err(error) = round(state).await
            && logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL)
        {
            logged = Some(Instant::now());
            tracing::warn!(error = &error as &dyn Error, "whether a canary has to end is not known now");
        }
    }
}

/// Ends each canary whose terms say so. An account that fails does not stop the others.
async fn round(state: &AppState) -> Result<(), ReturnError> {
    if !state.can_record() {
        return Ok(());
    }
    let ended = stream::iter(state.canaries.list(Instant::now()))
        .map(|(account, canaries)| async move { end_passed(state, &account, &canaries).await })
        .buffer_unordered(MAX_AT_ONCE)
        .collect::<Vec<_>>();
    ended.await.into_iter().collect()
}

async fn end_passed(state: &AppState, account: &AccountId, canaries: &[PolicyCandidate]) -> Result<(), ReturnError> {
    let read = ReadCandidates { account: account.clone(), candidates: canaries.iter().map(|one| one.id).collect() };
    let read = match ask(state, &read).await {
        Ok(Answer::Done(read)) => Ok(read.found),
        Ok(Answer::Refused) => Err(ReturnError::Refused("the evaluator refused to say what it found")),
        Err(error) => Err(error),
    };
    let mut failed = None;
    for canary in canaries {
        let found = read.as_ref().ok().and_then(|found| found.iter().find(|found| found.candidate == canary.id));
        let counts = found.map(|found| found.findings.counts).unwrap_or_default();
        let is_passed = canary.return_at.is_some_and(|at| at.is_passed(&counts));
        let counted = read.is_ok().then(|| counts.checks.saturating_add(counts.not_judged));
        let now = Instant::now();
        let known = state.canaries.with_progress(account, canary.id, |progress| {
            let may_try = progress.retry_at.is_none_or(|at| at <= now);
            (may_try, progress.is_uncounted(counted, now))
        });
        let (may_try, is_uncounted) = known.unwrap_or((true, false));
        if !may_try || !(is_passed || is_uncounted) {
            continue;
        }
        if let Err(error) = end(state, account, canary, (counts, !is_passed)).await {
            let retry_at = Some(now + RETRY_DELAY);
            state.canaries.with_progress(account, canary.id, |progress| progress.retry_at = retry_at);
            failed = Some(error);
        }
    }
    match failed {
        Some(error) => Err(error),
        None => read.map(drop),
    }
}

/// Tries, records and makes the end of a canary.
async fn end(
    state: &AppState,
    account: &AccountId,
    canary: &PolicyCandidate,
    (counts, is_uncounted): (CandidateCounts, bool),
) -> Result<(), ReturnError> {
    let (of, candidate) = (account.clone(), canary.id);
    let trial = ReturnCanary { account: of, candidate, counts, is_uncounted, sequence: None, is_trial: true };
    let tried = match ask(state, &trial).await? {
        Answer::Done(tried) if !tried.is_outdated => tried,
        Answer::Done(_) | Answer::Refused => {
            // Another gateway or a person was first, or began another one in its place.
            state.canaries.forget(account, canary.id);
            return Ok(());
        }
    };
    let CandidateChanged { activation, retention_days, .. } = tried;
    let recorded = Uuid::now_v7();
    let event = ApprovalEvent { at: Timestamp::now(), ..activation.event(recorded) };
    record_line(state, account, retention_days, event).await?;
    let real = ReturnCanary { sequence: Some(activation.sequence), is_trial: false, ..trial };
    let made = ask(state, &real).await;
    let is_made = match &made {
        Ok(Answer::Done(done)) => !done.is_outdated,
        // It was not even begun.
        Ok(Answer::Refused) | Err(ReturnError::Busy) => false,
        Err(_) => return made.map(drop),
    };
    if is_made {
        let CandidateCounts { checks, disagreements, errors, .. } = counts;
        tracing::warn!(%account, policy_version = %canary.version, environment = canary.environment, checks,
            disagreements, errors, is_uncounted, "a canary ended by itself, what is active decides again");
        metrics::canary_returned();
    } else {
        let event = ApprovalEvent { at: Timestamp::now(), ..activation.not_made_event(Uuid::now_v7(), recorded) };
        record_line(state, account, retention_days, event).await?;
        made?;
    }
    state.canaries.forget(account, canary.id);
    state.key_cache.invalidate(account);
    Ok(())
}

async fn record_line(
    state: &AppState,
    account: &AccountId,
    retention_days: u32,
    event: ApprovalEvent,
) -> Result<(), ReturnError> {
    let not_recorded = |error: &dyn std::fmt::Display| ReturnError::NotRecorded(error.to_string());
    let id = RequestId::new(Uuid::now_v7()).map_err(|error| not_recorded(&error))?;
    let lines = event_lines(account, &[event]).map_err(|error| not_recorded(&error))?;
    let group = LineGroup { caller: None, account: account.clone(), retention_days, lines, coming: None };
    let recorded = record(state, id, group, Instant::now() + TIMEOUT).await;
    recorded.map_err(|failed| not_recorded(&failed.error))
}

enum Answer<T> {
    Done(T),
    /// There is no such candidate any more, or its terms are not passed.
    Refused,
}

async fn ask<T>(state: &AppState, message: &impl Request<Reply = ManageReply<T>>) -> Result<Answer<T>, ReturnError> {
    match state.requests().request(message, TIMEOUT).await? {
        ManageReply::Done(done) => Ok(Answer::Done(done)),
        ManageReply::Refused(_) => Ok(Answer::Refused),
        ManageReply::Busy => Err(ReturnError::Busy),
        ManageReply::Failed => Err(ReturnError::Refused("it failed")),
    }
}

#[cfg(test)]
mod tests;
