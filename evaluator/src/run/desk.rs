//! Runs on the ledger: read, decide, write if nobody else wrote meanwhile, answer.
//!
//! Owns the order. Checks of one run that are in hand together are decided one after the other in memory and written at once; those
//! of different runs do not wait for each other. Two evaluators that see the same run meet in the ledger: one of them reads again.
//! INVARIANT: no ALLOW of a run is answered before the ledger has what it counts. A ledger that fails means: not
//! decided.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use stage0_backplane::{Ledger, MAX_LISTS, PutError, Revision};
use stage0_contract::{
    AccountId, EndRun, EvaluateReply, EvaluateRequest, ManageReply, RUN_RECORDS, Refusal, RequestId, RunEnded, RunId,
    RunSettled, RunView, SettleRun, ShowRun, UNLIMITED,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::quota::{Room, RunQuota, day_of};
use super::waiting::{Full, WaitingRuns};
use super::{Occasion, RunState, refused};
use crate::in_hand::Check;
use crate::lanes::Lanes;
use crate::metrics::{self, Step};

/// After a conflict the others' write is there; many at once should not meet again at the same moment.
const CONFLICT_PAUSE_MICROS: u64 = 500;
/// The ledger forgets a tombstone by itself.
const TOMBSTONE_LIVES: Duration = Duration::from_secs(1);

/// How long runs are remembered.
#[derive(Debug, Clone, Copy)]
pub struct RunConfig {
    /// After its last change a run is forgotten.
    pub kept_for: Duration,
    /// An estimate that nobody settles counts as spent afterwards.
    pub reserved_for: Duration,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { kept_for: Duration::from_secs(24 * 3_600), reserved_for: Duration::from_secs(3_600) }
    }
}

/// One shard's way to the runs.
pub(crate) struct Runs {
    pub(super) ledger: Arc<dyn Ledger>,
    pub(super) config: RunConfig,
    /// One permit for each list that is read: its pages may hold a quarter of a megabyte.
    pub(super) lists: Semaphore,
    quota: RunQuota,
    /// Runs that are in hand, and the checks that wait for their turn.
    waiting: RefCell<WaitingRuns<Check>>,
}

/// Whether a run may be one of its account's today.
enum Counted {
    Already,
    /// From now on, once it is written.
    Now(Room),
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

/// A run as it stands in the ledger.
struct Found {
    /// None: nobody has seen it, or it was ended.
    state: Option<RunState>,
    revision: Option<Revision>,
}

impl Runs {
    pub(crate) fn new(ledger: Arc<dyn Ledger>, config: RunConfig) -> Self {
        let waiting = RefCell::new(WaitingRuns::new());
        let lists = Semaphore::new(MAX_LISTS);
        Self { quota: RunQuota::new(Arc::clone(&ledger)), ledger, config, lists, waiting }
    }

    /// The place of the run that a check names; none for one without a run.
    pub(crate) fn place(question: &EvaluateRequest) -> Option<String> {
        let run_id = RunId::of(&question.request).ok().flatten()?;
        Some(place(&question.account, &run_id))
    }

    /// Answers a check of a run, and all that join it meanwhile; or leaves it to whoever has the run in hand.
    pub(crate) async fn evaluate(&self, lanes: &Lanes, place: String, check: Check) {
        let Some(first) = self.join(&place, check).await else { return };
        let mut batch = vec![first];
        while !batch.is_empty() {
            self.decide(lanes, &place, batch).await;
            batch = self.waiting.borrow_mut().next_batch(&place);
        }
    }

    /// The check comes back, and its run is in the caller's hand, when nobody had it.
    async fn join(&self, place: &str, check: Check) -> Option<Check> {
        let joined = self.waiting.borrow_mut().join(place, check);
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

    async fn decide(&self, lanes: &Lanes, place: &str, mut batch: Vec<Check>) {
        let began = Instant::now();
        loop {
            let now = Instant::now();
            // Nobody waits any more: nothing may be counted.
            if batch.iter().all(|check| check.deadline() <= now) {
                batch.into_iter().for_each(Check::late);
                return;
            }
            let deadline = batch.iter().map(|check| check.deadline()).max().unwrap_or(now);
            let replies = match self.attempt(lanes, place, &batch, deadline).await {
                Ok(Some(replies)) => {
                    metrics::together(batch.len());
                    replies
                }
                Ok(None) => {
                    metrics::conflict();
                    self.waiting.borrow_mut().put_back_half(place, &mut batch);
                    pause().await;
                    continue;
                }
                Err(error) => {
                    // Each check says so in the log, under its own id.
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

    /// Decides all of them on one state of the run; none when somebody else wrote it meanwhile.
    async fn attempt(
        &self,
        lanes: &Lanes,
        place: &str,
        batch: &[Check],
        deadline: Instant,
    ) -> Result<Option<Vec<Option<EvaluateReply>>>, RunError> {
        let Found { state, revision } = self.read(place, deadline).await?;
        let latest = batch.iter().map(|check| check.request().evaluated_at).max().unwrap_or_default();
        let before = state.unwrap_or_else(|| RunState::new(latest));
        let mut state = before.clone();
        let room = match self.count(&mut state, batch, latest, deadline).await? {
            Counted::Already => None,
            Counted::Now(room) => Some(room),
            Counted::TooMany { limit } => {
                // Another evaluator may have opened this very run meanwhile.
                if self.read(place, deadline).await?.revision != revision {
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
            let occasion = Occasion {
                now: question.evaluated_at,
                request_id: question.request_id,
                operation: question.operation.unwrap_or(question.request_id),
            };
            let past = Some(state.past(occasion));
            let (reply, lesson) = lanes.evaluate(question, check.bytes, past, check.limit).await;
            if let Some(lesson) = lesson {
                state.learn(occasion, &lesson);
                state.learn_name(&lesson, RunId::of(&question.request).ok().flatten());
            }
            replies.push(Some(reply));
        }
        if !state.keep(&before, latest, seconds(self.config.kept_for)) {
            return Ok(Some(replies));
        }
        let written = self.write(place, &state, revision, self.config.kept_for, deadline).await?;
        if let (false, Some(room)) = (written, room) {
            self.quota.put_back(room);
        }
        Ok(written.then_some(replies))
    }

    /// Counts the run as one of its account's today, before anything is decided: what cannot be counted is not.
    async fn count(
        &self,
        state: &mut RunState,
        batch: &[Check],
        now: i64,
        deadline: Instant,
    ) -> Result<Counted, RunError> {
        // One run is of one account.
        let Some(question) = batch.last().map(|check| check.request()) else { return Ok(Counted::Already) };
        // A gateway that knows of no cap cannot read `TooManyRuns` either. One of its checks lifts the cap for those
        // beside it.
        let capped = batch.iter().all(|check| check.request().max_runs.is_some());
        let limit = question.max_runs.filter(|_| capped).unwrap_or(UNLIMITED);
        if limit >= UNLIMITED || state.counts_on(day_of(now)) {
            return Ok(Counted::Already);
        }
        let taken = self.quota.take(&question.account, limit, now, deadline).await;
        Ok(match taken.map_err(|error| RunError::Count(error.to_string()))? {
            Some(room) => {
                state.counted_on = room.day;
                Counted::Now(room)
            }
            None => Counted::TooMany { limit },
        })
    }

    /// Gives back what was leased and not used.
    pub(crate) async fn drain(&self) {
        self.quota.drain(self.now()).await;
    }

    /// Whose clock runs and windows go by.
    pub(crate) fn ledger(&self) -> &dyn Ledger {
        &*self.ledger
    }

    /// Why the time of a check cannot be that of its gateway's clock, or of ours: a run would be older or younger than
    /// it is.
    pub(crate) fn fault_of_time(&self, question: &EvaluateRequest) -> Option<String> {
        let Ok(said) = Timestamp::from_second(question.evaluated_at) else {
            return Some("the gateway's time is none".to_owned());
        };
        let judged = self.ledger.clock().judge_of_another(said);
        judged.err().map(|error| format!("the gateway's time is {error}"))
    }

    pub(super) fn now(&self) -> i64 {
        self.ledger.clock().now().as_second()
    }

    async fn read(&self, place: &str, deadline: Instant) -> Result<Found, RunError> {
        let found = self.ledger.get(place, deadline).await.map_err(|error| RunError::Read(error.to_string()))?;
        let Some(record) = found else { return Ok(Found { state: None, revision: None }) };
        let state: RunState = serde_json::from_slice(&record.value)
            .map_err(|error| RunError::Read(format!("line {} column {}", error.line(), error.column())))?;
        Ok(Found { state: (!state.has_ended()).then_some(state), revision: Some(record.revision) })
    }

    /// Whether it was written; somebody else's write is no error.
    async fn write(
        &self,
        place: &str,
        state: &RunState,
        revision: Option<Revision>,
        lives: Duration,
        deadline: Instant,
    ) -> Result<bool, RunError> {
        let value = serde_json::to_vec(state).map_err(|error| RunError::Write(error.to_string()))?;
        match self.ledger.put(place, Bytes::from(value), revision, Some(lives), deadline).await {
            Ok(_) => Ok(true),
            Err(PutError::Conflict) => Ok(false),
            Err(PutError::Failed(reason)) => Err(RunError::Write(reason)),
        }
    }

    /// `GET /v1/runs/{run_id}`.
    pub(crate) async fn show(&self, question: &ShowRun, deadline: Instant) -> ManageReply<RunView> {
        let place = place(&question.account, &question.run_id);
        match self.read(&place, deadline).await {
            Ok(Found { state: Some(mut state), .. }) => {
                let (now, reserved_for) = (self.now(), seconds(self.config.reserved_for));
                state.expire(now, reserved_for);
                ManageReply::Done(state.view(question.run_id.clone(), now, reserved_for))
            }
            Ok(Found { state: None, .. }) => refused(Refusal::NotFound),
            Err(error) => failed(&question.account, None, &error),
        }
    }

    /// `DELETE /v1/runs/{run_id}`.
    pub(crate) async fn end(&self, question: &EndRun, deadline: Instant) -> ManageReply<RunEnded> {
        let place = place(&question.account, &question.run_id);
        loop {
            let ended = async {
                let found = self.read(&place, deadline).await?;
                let Some(state) = found.state else { return Ok(None) };
                let tombstone = RunState::tombstone();
                let written = self.write(&place, &tombstone, found.revision, TOMBSTONE_LIVES, deadline).await?;
                if written {
                    self.make_room(&question.account, &state, deadline).await;
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

    /// A run less. Where that cannot be told, it counts until the day ends.
    async fn make_room(&self, account: &AccountId, ended: &RunState, deadline: Instant) {
        let freed = self.quota.free(account, ended.counted_on, self.now(), deadline).await;
        if let Err(error) = freed {
            tracing::warn!(%account, error = &error as &dyn std::error::Error, "a run that was ended counts on");
        }
    }

    /// `POST /v1/runs/{run_id}/settle`.
    pub(crate) async fn settle(&self, question: &SettleRun, deadline: Instant) -> ManageReply<RunSettled> {
        let SettleRun { account, run_id, request_id, actual_micros, may_lower } = question;
        let place = place(account, run_id);
        loop {
            let Found { state, revision } = match self.read(&place, deadline).await {
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
            state.keep(&before, now, seconds(self.config.kept_for));
            match self.write(&place, &state, revision, self.config.kept_for, deadline).await {
                Ok(true) => {
                    return ManageReply::Done(state.settled(run_id.clone(), *request_id, estimate, *actual_micros));
                }
                Ok(false) => pause().await,
                Err(error) => return failed(account, Some(request_id), &error),
            }
        }
    }
}

/// Where a run stands: its name may be any text, and is nobody else's to read in a subject.
fn place(account: &AccountId, run_id: &RunId) -> String {
    let hash = Sha256::digest(run_id.canonical().as_bytes());
    let hash = HEXLOWER.encode(&hash);
    format!("{RUN_RECORDS}.{account}.{}", hash.get(..40).unwrap_or_default())
}

pub(super) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

/// `request_id` is the check's that the question is about, where it is about one.
fn failed<T>(account: &AccountId, request_id: Option<&RequestId>, error: &RunError) -> ManageReply<T> {
    metrics::ledger_failed();
    let request_id = request_id.map(tracing::field::display);
    tracing::warn!(request_id, %account, error = error as &dyn std::error::Error, "run state failed");
    ManageReply::Failed
}

/// A moment, not the same one for everybody.
async fn pause() {
    let spread = u64::from(Timestamp::now().subsec_nanosecond().unsigned_abs() % 1_000);
    tokio::time::sleep(Duration::from_micros(CONFLICT_PAUSE_MICROS + spread)).await;
}
