//! Runs in the state store: read the run, decide, write it with compare-and-set, then answer.
//!
//! Checks of one run that are in flight together are decided one after the other in memory and written at once; checks
//! of different runs do not wait for each other. If two evaluators change the same run, one of them conflicts and reads
//! again.
//! INVARIANT: an ALLOW of a run is answered only after the state store has its counts. If the state store fails, the
//! check is not decided.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use stage0_backplane::{MAX_CONCURRENT_LISTS, PutError, Revision, StateStore};
use stage0_contract::{
    AccountId, EndRun, EvaluateReply, EvaluateRequest, ManageReply, RUN_RECORDS, Refusal, RequestId, RunEnded, RunId,
    RunSettled, RunView, SettleRun, ShowRun, UNLIMITED,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::queues::{Full, RunQueues};
use super::quota::{RunQuota, RunSlot, day_of};
use super::{CheckRef, RunState, refused};
use crate::config::RunConfig;
use crate::engines::Engines;
use crate::in_flight::InFlightCheck;
use crate::metrics::{self, Step};

/// The shortest delay after a conflict. A random part is added, so that many evaluators do not collide again.
const CONFLICT_RETRY_MICROS: u64 = 500;
/// How long the state store keeps the tombstone of an ended run.
const TOMBSTONE_TTL: Duration = Duration::from_secs(1);

/// Decides one shard's checks of runs.
pub(crate) struct RunCoordinator {
    pub(super) state_store: Arc<dyn StateStore>,
    pub(super) config: RunConfig,
    /// One permit per list request: a page may hold a quarter of a megabyte.
    pub(super) lists: Semaphore,
    quota: RunQuota,
    /// Runs in flight, and the checks queued for them.
    queues: RefCell<RunQueues<InFlightCheck>>,
}

/// Whether a run fits into its account's daily limit.
enum Counted {
    Already,
    /// It will be counted once it is written.
    Now(RunSlot),
    TooMany {
        limit: u64,
    },
}

/// Why a run could not be read or written.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("the run cannot be read: {0}")]
    Read(String),
    #[error("the run cannot be counted: {0}")]
    Count(String),
    #[error("the run cannot be written: {0}")]
    Write(String),
}

/// A run as the state store holds it.
struct StoredRun {
    /// `None` if the run is new or was ended.
    state: Option<RunState>,
    revision: Option<Revision>,
}

impl RunCoordinator {
    pub(crate) fn new(state_store: Arc<dyn StateStore>, config: RunConfig) -> Self {
        let queues = RefCell::new(RunQueues::new());
        let lists = Semaphore::new(MAX_CONCURRENT_LISTS);
        Self { quota: RunQuota::new(Arc::clone(&state_store)), state_store, config, lists, queues }
    }

    /// The state store's key of the run that a check names; `None` for a check without a run.
    pub(crate) fn key(question: &EvaluateRequest) -> Option<String> {
        let run_id = RunId::of(&question.request).ok().flatten()?;
        Some(key(&question.account, &run_id))
    }

    /// Decides a check of a run together with all checks that are queued meanwhile. If the run is in flight already,
    /// the check is queued and the task that has the run decides it.
    pub(crate) async fn evaluate(&self, engines: &Engines, key: String, check: InFlightCheck) {
        let Some(first) = self.join(&key, check).await else { return };
        let mut batch = vec![first];
        while !batch.is_empty() {
            self.decide(engines, &key, batch).await;
            batch = self.queues.borrow_mut().next_batch(&key);
        }
    }

    /// Queues a check, or returns it if its run was not in flight: the caller then owns the run.
    async fn join(&self, key: &str, check: InFlightCheck) -> Option<InFlightCheck> {
        let joined = self.queues.borrow_mut().join(key, check);
        match joined {
            Ok(first) => return first,
            Err(Full::OfAccount(check)) => check.decided(&EvaluateReply::Busy).await,
            Err(Full::OfAll(check)) => {
                let reason = "too many checks of runs wait for the ledger".to_owned();
                check.decided(&EvaluateReply::Unable(reason)).await;
            }
        }
        None
    }

    async fn decide(&self, engines: &Engines, key: &str, mut batch: Vec<InFlightCheck>) {
        let began = Instant::now();
        loop {
            let now = Instant::now();
            // All deadlines have passed, so nothing may be counted.
            if batch.iter().all(|check| check.deadline() <= now) {
                batch.into_iter().for_each(InFlightCheck::late);
                return;
            }
            let deadline = batch.iter().map(|check| check.deadline()).max().unwrap_or(now);
            let replies = match self.attempt(engines, key, &batch, deadline).await {
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
            metrics::took(Step::Run, began.elapsed());
            for (check, reply) in batch.into_iter().zip(replies) {
                match reply {
                    Some(reply) => check.decided(&reply).await,
                    None => check.late(),
                }
            }
            return;
        }
    }

    /// Decides a batch on one state of the run; `None` on a conflict with another evaluator.
    async fn attempt(
        &self,
        engines: &Engines,
        key: &str,
        batch: &[InFlightCheck],
        deadline: Instant,
    ) -> Result<Option<Vec<Option<EvaluateReply>>>, RunError> {
        let StoredRun { state, revision } = self.read(key, deadline).await?;
        let latest = batch.iter().map(|check| check.request().evaluated_at).max().unwrap_or_default();
        let before = state.unwrap_or_else(|| RunState::new(latest));
        let mut state = before.clone();
        let slot = match self.count(&mut state, batch, latest, deadline).await? {
            Counted::Already => None,
            Counted::Now(slot) => Some(slot),
            Counted::TooMany { limit } => {
                // Another evaluator may have created this run meanwhile.
                if self.read(key, deadline).await?.revision != revision {
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
            let question = check.request();
            let check_ref = CheckRef {
                now: question.evaluated_at,
                request_id: question.request_id,
                operation: question.operation.unwrap_or(question.request_id),
            };
            let snapshot = Some(state.snapshot(check_ref));
            let (reply, update) = engines.evaluate(question, check.bytes, snapshot, check.limit).await;
            if let Some(update) = update {
                state.apply(check_ref, &update);
                state.apply_name(&update, RunId::of(&question.request).ok().flatten());
            }
            replies.push(Some(reply));
        }
        if !state.extend_expiry(&before, latest, seconds(self.config.kept_for)) {
            return Ok(Some(replies));
        }
        let written = self.write(key, &state, revision, self.config.kept_for, deadline).await?;
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
        let Some(question) = batch.last().map(|check| check.request()) else { return Ok(Counted::Already) };
        // A gateway that sends no cap cannot parse `TooManyRuns` either. One of its checks in the batch lifts the cap.
        let capped = batch.iter().all(|check| check.request().max_runs.is_some());
        let limit = question.max_runs.filter(|_| capped).unwrap_or(UNLIMITED);
        if limit >= UNLIMITED || state.is_counted_on(day_of(now)) {
            return Ok(Counted::Already);
        }
        let taken = self.quota.take(&question.account, limit, now, deadline).await;
        Ok(match taken.map_err(|error| RunError::Count(error.to_string()))? {
            Some(slot) => {
                state.counted_on = slot.day;
                Counted::Now(slot)
            }
            None => Counted::TooMany { limit },
        })
    }

    /// Returns leases that were not used.
    pub(crate) async fn drain(&self) {
        self.quota.drain(self.now()).await;
    }

    /// The store whose clock decides the time of runs and windows.
    pub(crate) fn state_store(&self) -> &dyn StateStore {
        &*self.state_store
    }

    /// Why the time that a check carries cannot be right, by the state store's clock. A wrong time would make the run
    /// older or younger than it is.
    pub(crate) fn clock_fault(&self, question: &EvaluateRequest) -> Option<String> {
        let Ok(reported) = Timestamp::from_second(question.evaluated_at) else {
            return Some("the gateway's time is none".to_owned());
        };
        let judged = self.state_store.clock().check_peer_time(reported);
        judged.err().map(|error| format!("the gateway's time is {error}"))
    }

    pub(super) fn now(&self) -> i64 {
        self.state_store.clock().now().as_second()
    }

    async fn read(&self, key: &str, deadline: Instant) -> Result<StoredRun, RunError> {
        let found = self.state_store.get(key, deadline).await.map_err(|error| RunError::Read(error.to_string()))?;
        let Some(record) = found else { return Ok(StoredRun { state: None, revision: None }) };
        let state: RunState = serde_json::from_slice(&record.value)
            .map_err(|error| RunError::Read(format!("line {} column {}", error.line(), error.column())))?;
        Ok(StoredRun { state: (!state.has_ended()).then_some(state), revision: Some(record.revision) })
    }

    /// Writes the run; false on a conflict.
    async fn write(
        &self,
        key: &str,
        state: &RunState,
        revision: Option<Revision>,
        lives: Duration,
        deadline: Instant,
    ) -> Result<bool, RunError> {
        let value = serde_json::to_vec(state).map_err(|error| RunError::Write(error.to_string()))?;
        match self.state_store.put(key, Bytes::from(value), revision, Some(lives), deadline).await {
            Ok(_) => Ok(true),
            Err(PutError::Conflict) => Ok(false),
            Err(PutError::Failed(reason)) => Err(RunError::Write(reason)),
        }
    }

    /// `GET /v1/runs/{run_id}`.
    pub(crate) async fn show(&self, question: &ShowRun, deadline: Instant) -> ManageReply<RunView> {
        let key = key(&question.account, &question.run_id);
        match self.read(&key, deadline).await {
            Ok(StoredRun { state: Some(mut state), .. }) => {
                let (now, reserved_for) = (self.now(), seconds(self.config.reserved_for));
                state.expire(now, reserved_for);
                ManageReply::Done(state.view(question.run_id.clone(), now, reserved_for))
            }
            Ok(StoredRun { state: None, .. }) => refused(Refusal::NotFound),
            Err(error) => failed(&question.account, None, &error),
        }
    }

    /// `DELETE /v1/runs/{run_id}`.
    pub(crate) async fn end(&self, question: &EndRun, deadline: Instant) -> ManageReply<RunEnded> {
        let key = key(&question.account, &question.run_id);
        loop {
            let ended = async {
                let found = self.read(&key, deadline).await?;
                let Some(state) = found.state else { return Ok(None) };
                let tombstone = RunState::tombstone();
                let written = self.write(&key, &tombstone, found.revision, TOMBSTONE_TTL, deadline).await?;
                if written {
                    self.free_quota(&question.account, &state, deadline).await;
                }
                Ok(Some(written))
            };
            match ended.await {
                Ok(Some(true)) => {
                    tracing::info!(account = %question.account, "run ended");
                    return ManageReply::Done(RunEnded {});
                }
                Ok(Some(false)) => pause().await,
                Ok(None) => return refused(Refusal::NotFound),
                Err(error) => return failed(&question.account, None, &error),
            }
        }
    }

    /// Takes an ended run out of the daily count. If that fails, it counts until the day ends.
    async fn free_quota(&self, account: &AccountId, ended: &RunState, deadline: Instant) {
        let freed = self.quota.free(account, ended.counted_on, self.now(), deadline).await;
        if let Err(error) = freed {
            tracing::warn!(%account, error = &error as &dyn std::error::Error, "a run that was ended counts on");
        }
    }

    /// `POST /v1/runs/{run_id}/settle`.
    pub(crate) async fn settle(&self, question: &SettleRun, deadline: Instant) -> ManageReply<RunSettled> {
        let SettleRun { account, run_id, request_id, actual_micros, may_lower } = question;
        let key = key(account, run_id);
        loop {
            let StoredRun { state, revision } = match self.read(&key, deadline).await {
                Ok(found) => found,
                Err(error) => return failed(account, Some(request_id), &error),
            };
            let Some(before) = state else { return refused(Refusal::NotFound) };
            let (mut state, now) = (before.clone(), self.now());
            state.expire(now, seconds(self.config.reserved_for));
            let estimate = match state.settle(*request_id, *actual_micros, *may_lower) {
                Ok(estimate) => estimate,
                Err(refusal) => return refused(refusal),
            };
            state.extend_expiry(&before, now, seconds(self.config.kept_for));
            match self.write(&key, &state, revision, self.config.kept_for, deadline).await {
                Ok(true) => {
                    return ManageReply::Done(state.settled(run_id.clone(), *request_id, estimate, *actual_micros));
                }
                Ok(false) => pause().await,
                Err(error) => return failed(account, Some(request_id), &error),
            }
        }
    }
}

/// The key of a run in the state store. The name is hashed, because it may be any text and must not show in a subject.
fn key(account: &AccountId, run_id: &RunId) -> String {
    let hash = Sha256::digest(run_id.canonical().as_bytes());
    let hash = HEXLOWER.encode(&hash);
    format!("{RUN_RECORDS}.{account}.{}", hash.get(..40).unwrap_or_default())
}

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
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
    let spread = u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs() % 1_000);
    tokio::time::sleep(Duration::from_micros(CONFLICT_RETRY_MICROS + spread)).await;
}
