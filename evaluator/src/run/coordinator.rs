//! Runs in the state store: read the run, decide, write it with compare-and-set, then answer.
//!
//! Checks of one run that are in flight together are decided one after the other in memory and written at once; changes
//! of several runs share a write where the journal holds them (`journal`). If two evaluators change the same run, one
//! of them conflicts and reads again.
//! INVARIANT: an ALLOW of a run is answered only after the state store has its counts. If the state store fails, the
//! check is not decided.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use stage0_backplane::{MAX_CONCURRENT_LISTS, PutError, StateStore, random_fraction};
use stage0_contract::{
    AccountId, EndRun, EvaluateReply, EvaluateRequest, ManageReply, RUN_RECORDS, Refusal, RequestId, RunEnded, RunId,
    RunSettled, RunView, SettleRun, ShowRun, UNLIMITED,
};
use stage0_policy::RunSnapshot;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::journal::Journal;
use super::queues::{Full, RunQueues};
use super::quota::{RunQuota, RunSlot, day_of};
use super::records::{Place, StoredRun};
use super::{CheckRef, RunState};
use crate::approval::Approvals;
use crate::candidates::RunSeen;
use crate::config::RunConfig;
use crate::engines::Engines;
use crate::in_flight::InFlightCheck;
use crate::metrics;

/// The shortest delay after a conflict, and the random part of it, so that many evaluators do not collide again.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_micros(500);
const CONFLICT_RETRY_SPREAD: Duration = Duration::from_millis(1);
/// How long giving up all held runs may take at shutdown.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// Decides one shard's checks of runs.
pub(crate) struct RunCoordinator {
    pub(super) state_store: Arc<dyn StateStore>,
    pub(super) config: RunConfig,
    /// One permit per list request: a page may hold a quarter of a megabyte.
    pub(super) lists: Semaphore,
    /// Shared with the other shards of the process.
    pub(super) journal: Arc<Journal>,
    quota: RunQuota,
    queues: RefCell<RunQueues<InFlightCheck>>,
}

/// Whether a run fits into its account's daily limit.
enum Counted {
    Already,
    /// It is counted once it is written.
    Now(RunSlot),
    TooMany(u64),
}

/// Why a run could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error("the run cannot be read: {0}")]
    Read(String),
    #[error("the run cannot be counted: {0}")]
    Count(String),
    #[error("the run cannot be written: {0}")]
    Write(String),
}

impl RunCoordinator {
    pub(crate) fn new(state_store: Arc<dyn StateStore>, config: RunConfig) -> Self {
        let queues = RefCell::new(RunQueues::new());
        let lists = Semaphore::new(MAX_CONCURRENT_LISTS);
        let (quota, journal) = (RunQuota::new(Arc::clone(&state_store)), Arc::new(Journal::new()));
        Self { quota, journal, state_store, config, lists, queues }
    }

    /// With the journal of the process.
    pub(crate) fn with_journal(self, journal: Arc<Journal>) -> Self {
        Self { journal, ..self }
    }

    /// The state store's key of the run that a check names.
    pub(crate) fn key(message: &EvaluateRequest) -> Option<String> {
        let run_id = RunId::of(&message.request).ok().flatten()?;
        Some(key(&message.account, &run_id))
    }

    /// Decides a check of a run together with all checks that are queued meanwhile. If the run is in flight already,
    /// the check is queued and the task that has the run decides it.
    pub(crate) async fn evaluate(&self, engines: &Engines, approvals: &Approvals, key: String, check: InFlightCheck) {
        let joined = self.queues.borrow_mut().join(&key, check);
        match joined {
            Ok(None) => {}
            Ok(Some(first)) => {
                let mut batch = vec![first];
                while !batch.is_empty() {
                    self.decide(engines, approvals, &key, batch).await;
                    batch = self.queues.borrow_mut().next_batch(&key);
                }
            }
            Err(Full::OfAccount(check)) => check.decided(EvaluateReply::Busy).await,
            Err(Full::OfAll(check)) => {
                let reason = "too many checks of runs wait for the state store".to_owned();
                check.decided(EvaluateReply::Unable(reason)).await;
            }
        }
    }

    async fn decide(&self, engines: &Engines, approvals: &Approvals, key: &str, mut batch: Vec<InFlightCheck>) {
        let began = Instant::now();
        loop {
            let now = Instant::now();
            // All deadlines have passed, so nothing may be counted.
            if batch.iter().all(|check| check.deadline() <= now) {
                for check in batch {
                    approvals.finish(check, None).await;
                }
                return;
            }
            let deadline = batch.iter().map(|check| check.deadline()).max().unwrap_or(now);
            let replies = match self.attempt(engines, approvals, key, &batch, deadline).await {
                Ok(Some(replies)) => {
                    metrics::batch_size(batch.len());
                    replies
                }
                Ok(None) => {
                    metrics::conflict();
                    self.queues.borrow_mut().requeue_half(key, &mut batch);
                    pause().await;
                    continue;
                }
                Err(error) => {
                    // Each check is logged under its own id.
                    metrics::ledger_failed();
                    batch.iter().map(|_| Some(EvaluateReply::Unable(error.to_string()))).collect()
                }
            };
            metrics::observe_run(began.elapsed());
            for (check, reply) in batch.into_iter().zip(replies) {
                approvals.finish(check, reply).await;
            }
            return;
        }
    }

    /// Decides a batch on one state of the run; `None` on a conflict with another evaluator.
    async fn attempt(
        &self,
        engines: &Engines,
        approvals: &Approvals,
        key: &str,
        batch: &[InFlightCheck],
        deadline: Instant,
    ) -> Result<Option<Vec<Option<EvaluateReply>>>, RunError> {
        let StoredRun { state, place } = self.read(key, deadline).await?;
        let latest = batch.iter().map(|check| check.request().evaluated_at).max().unwrap_or_default();
        let before = state.unwrap_or_else(|| RunState::new(latest));
        let mut state = before.clone();
        let slot = match self.count(&mut state, batch, latest, deadline).await? {
            Counted::Already => None,
            Counted::Now(slot) => Some(slot),
            Counted::TooMany(limit) => {
                // Another evaluator may have created this run meanwhile.
                if !self.is_current(key, before, place, deadline).await? {
                    return Ok(None);
                }
                return Ok(Some(batch.iter().map(|_| Some(EvaluateReply::TooManyRuns { limit })).collect()));
            }
        };
        state.expire(latest, seconds(self.config.reserved_for));
        let started = Instant::now();
        let mut replies = Vec::with_capacity(batch.len());
        for check in batch {
            if check.deadline() <= started {
                replies.push(None);
                continue;
            }
            let message = check.request();
            let check_ref = CheckRef {
                now: message.evaluated_at,
                request_id: message.request_id,
                operation: message.operation.unwrap_or(message.request_id),
            };
            let snapshot = match snapshot(engines, check, &state, check_ref).await {
                Ok(snapshot) => snapshot,
                Err(reply) => {
                    replies.push(Some(*reply));
                    continue;
                }
            };
            if let Some(watched) = &check.watched {
                let counted = engines.handler().run_needs(&message.request, &check.chosen);
                let seen = || RunSeen { snapshot: state.snapshot(check_ref, RunSeen::ALL), counted };
                watched.note_run((!state.is_repeat(check_ref)).then(seen));
            }
            let (reply, update) = approvals.decide(engines, check, Some(&snapshot)).await;
            if let Some(update) = update {
                state.apply(check_ref, &update);
                state.apply_name(&update, RunId::of(&message.request).ok().flatten());
            }
            replies.push(Some(reply));
        }
        let must_write = state.extend_expiry(&before, latest, seconds(self.config.kept_for));
        if !must_write && matches!(place, Place::Own(_)) {
            return Ok(Some(replies));
        }
        let written = self.write(key, state, place, deadline).await?;
        if let (false, Some(slot)) = (written, slot) {
            self.quota.put_back(slot);
        }
        Ok(written.then_some(replies))
    }

    /// Counts the run against its account's daily limit before anything is decided.
    async fn count(
        &self,
        state: &mut RunState,
        batch: &[InFlightCheck],
        now: i64,
        deadline: Instant,
    ) -> Result<Counted, RunError> {
        // All checks of a run belong to one account.
        let Some(message) = batch.last().map(|check| check.request()) else { return Ok(Counted::Already) };
        // A gateway that sends no cap cannot parse `TooManyRuns` either. One of its checks in the batch lifts the cap.
        let capped = batch.iter().all(|check| check.request().max_runs.is_some());
        let limit = message.max_runs.filter(|_| capped).unwrap_or(UNLIMITED);
        if limit >= UNLIMITED || state.is_counted_on(day_of(now)) {
            return Ok(Counted::Already);
        }
        let taken = self.quota.take(&message.account, limit, now, deadline).await;
        Ok(match taken.map_err(|error| RunError::Count(reason(&error)))? {
            Some(slot) => {
                state.counted_on = slot.day;
                Counted::Now(slot)
            }
            None => Counted::TooMany(limit),
        })
    }

    pub(crate) async fn drain(&self) {
        self.journal.release_all(&*self.state_store, Instant::now() + RELEASE_TIMEOUT).await;
        self.quota.drain(self.now()).await;
    }

    /// Gives up held runs that are idle. Never returns.
    pub(crate) async fn tend_journal(&self) {
        self.journal.tend(&*self.state_store, self.config.kept_for).await;
    }

    /// The store whose clock decides the time of runs and windows.
    pub(crate) fn state_store(&self) -> &dyn StateStore {
        &*self.state_store
    }

    /// Why the time that a check carries cannot be right, by the state store's clock. A wrong time would make the run
    /// older or younger than it is.
    pub(crate) fn clock_fault(&self, message: &EvaluateRequest) -> Option<String> {
        let Ok(reported) = Timestamp::from_second(message.evaluated_at) else {
            return Some("the gateway's time is none".to_owned());
        };
        let judged = self.state_store.clock().check_peer_time(reported);
        judged.err().map(|error| format!("the gateway's time is {error}"))
    }

    pub(super) fn now(&self) -> i64 {
        self.state_store.clock().now().as_second()
    }

    /// `GET /v1/runs/{run_id}`.
    pub(crate) async fn show(&self, message: &ShowRun, deadline: Instant) -> ManageReply<RunView> {
        let key = key(&message.account, &message.run_id);
        match self.look(&key, deadline).await {
            Ok(Some(mut state)) => {
                let (now, reserved_for) = (self.now(), seconds(self.config.reserved_for));
                state.expire(now, reserved_for);
                ManageReply::Done(state.view(message.run_id.clone(), now, reserved_for))
            }
            Ok(None) => ManageReply::Refused(Refusal::NotFound),
            Err(error) => failed(&message.account, None, &error),
        }
    }

    /// `DELETE /v1/runs/{run_id}`.
    pub(crate) async fn end(&self, message: &EndRun, deadline: Instant) -> ManageReply<RunEnded> {
        let key = key(&message.account, &message.run_id);
        loop {
            let ended = async {
                let Some((state, written)) = self.write_tombstone(&key, deadline).await? else { return Ok(None) };
                if written
                    && let Err(error) = self.quota.free(&message.account, state.counted_on, self.now(), deadline).await
                {
                    // It counts until the day ends.
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(account = %message.account, error, "a run that was ended counts on");
                }
                Ok(Some(written))
            };
            match ended.await {
                Ok(Some(true)) => {
                    tracing::info!(account = %message.account, "run ended");
                    return ManageReply::Done(RunEnded {});
                }
                Ok(Some(false)) => pause().await,
                Ok(None) => return ManageReply::Refused(Refusal::NotFound),
                Err(error) => return failed(&message.account, None, &error),
            }
        }
    }

    /// `POST /v1/runs/{run_id}/settle`.
    pub(crate) async fn settle(&self, message: &SettleRun, deadline: Instant) -> ManageReply<RunSettled> {
        self.settle_by(message, |_| None, deadline).await
    }

    /// As [`RunCoordinator::settle`], for a report that may come again: what was settled with this very cost is fine.
    pub(crate) async fn settle_reported(&self, message: &SettleRun, deadline: Instant) -> ManageReply<RunSettled> {
        let SettleRun { request_id, actual_micros, .. } = message;
        self.settle_by(message, |state| state.settled_with(*request_id, *actual_micros), deadline).await
    }

    /// `is_settled` returns the estimate where nothing is left to do.
    async fn settle_by(
        &self,
        message: &SettleRun,
        is_settled: impl Fn(&RunState) -> Option<i64>,
        deadline: Instant,
    ) -> ManageReply<RunSettled> {
        let SettleRun { account, run_id, request_id, actual_micros, may_lower } = message;
        let key = key(account, run_id);
        loop {
            let StoredRun { state, place } = match self.read(&key, deadline).await {
                Ok(found) => found,
                Err(error) => return failed(account, Some(request_id), &error),
            };
            let Some(before) = state else { return ManageReply::Refused(Refusal::NotFound) };
            let (mut state, now) = (before.clone(), self.now());
            state.expire(now, seconds(self.config.reserved_for));
            if let Some(estimate) = is_settled(&state) {
                return ManageReply::Done(state.settled(run_id.clone(), *request_id, estimate, *actual_micros));
            }
            let settled = state.settle(*request_id, *actual_micros, *may_lower);
            state.extend_expiry(&before, now, seconds(self.config.kept_for));
            // A refusal rests on what was read, too.
            let (written, reply) = match settled {
                Ok(estimate) => {
                    let settled = state.settled(run_id.clone(), *request_id, estimate, *actual_micros);
                    (self.write(&key, state, place, deadline).await, ManageReply::Done(settled))
                }
                Err(refusal) => (self.is_current(&key, before, place, deadline).await, ManageReply::Refused(refusal)),
            };
            match written {
                Ok(true) => return reply,
                Ok(false) => pause().await,
                Err(error) => return failed(account, Some(request_id), &error),
            }
        }
    }
}

/// What the rules may see of a run before this check, or why the check cannot be read.
async fn snapshot(
    engines: &Engines,
    check: &InFlightCheck,
    state: &RunState,
    check_ref: CheckRef,
) -> Result<RunSnapshot, Box<EvaluateReply>> {
    let needs = engines.handler().run_needs(&check.request().request, &check.chosen);
    let mut snapshot = state.snapshot(check_ref, needs);
    if (needs.calls || needs.targets) && state.is_repeat(check_ref) {
        // Only the policy can read which calls and targets are the check's own, so it is decided once for nothing.
        let read = engines.evaluate(check, Some(&snapshot), None).await;
        match read.update {
            Some(update) => state.leave_out_own(&mut snapshot, &update),
            None => return Err(Box::new(read.reply)),
        }
    }
    Ok(snapshot)
}

/// The key of a run in the state store. The name is hashed, because it may be any text and must not show in a subject.
fn key(account: &AccountId, run_id: &RunId) -> String {
    let hash = HEXLOWER.encode(&Sha256::digest(run_id.canonical().as_bytes()));
    format!("{RUN_RECORDS}.{account}.{}", hash.get(..40).unwrap_or_default())
}

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// The text of the cause, which the gateway logs as well.
pub(super) fn reason(error: &PutError) -> String {
    match error {
        PutError::Conflict => error.to_string(),
        PutError::Failed(cause) => cause.to_string(),
    }
}

/// Logs a failure; `request_id` names the check that the request is about, if any.
fn failed<T>(account: &AccountId, request_id: Option<&RequestId>, error: &RunError) -> ManageReply<T> {
    metrics::ledger_failed();
    let request_id = request_id.map(tracing::field::display);
    tracing::warn!(request_id, %account, error = error as &dyn std::error::Error, "run state failed");
    ManageReply::Failed
}

/// Waits for a randomised moment after a conflict.
async fn pause() {
    let spread = CONFLICT_RETRY_SPREAD.mul_f64(random_fraction());
    tokio::time::sleep(CONFLICT_RETRY_DELAY + spread).await;
}
