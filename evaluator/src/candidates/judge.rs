//! The thread that judges: it loads the other policy, has it decide the check again, and stores what differs.
//!
//! It has a low priority, engines and a connection of its own, and none of it before the first check that a candidate
//! takes. What cannot be stored stays in memory and is tried again, at last when the evaluator has drained.

use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use stage0_backplane::{Backplane, StateStore};
use stage0_contract::{CandidateMode, EvaluateReply};
use stage0_policy::{PackSet, TimeLimit};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::outcome::{Judgement, compared, not_judged};
use super::queue::Job;
use super::{Candidates, Of, store};
use crate::handler::Handler;
use crate::metrics::{self, Comparison};
use crate::own_thread::lower_priority;
use crate::published::{Chosen, NotLoaded, Published, SharedPolicies};
use crate::worker::Connect;

/// How long one check may be judged.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a check waits for its policy to be loaded.
const LOAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Checks that wait for policies to be loaded, and those of one account.
const MAX_LOADING: usize = 64;
pub(super) const MAX_LOADING_OF_ACCOUNT: usize = 16;
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// How long storing one candidate's findings may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// How long what is queued is still judged after the evaluator has drained, and how long it is stored.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The thread; it ends once this is dropped.
pub(crate) struct JudgeThread {
    closing: DropGuard,
    thread: thread::JoinHandle<()>,
}

/// What it works with.
struct Judge {
    candidates: Candidates,
    packs: Arc<PackSet>,
    policies: Arc<SharedPolicies>,
    connect: Connect,
    /// Names this process in records.
    writer: Uuid,
    closing: CancellationToken,
}

impl JudgeThread {
    pub(crate) fn start(
        candidates: Candidates,
        packs: Arc<PackSet>,
        policies: Arc<SharedPolicies>,
        connect: Connect,
    ) -> std::io::Result<Self> {
        let closing = CancellationToken::new();
        let judge = Judge { candidates, packs, policies, connect, writer: Uuid::now_v7(), closing: closing.clone() };
        let thread = thread::Builder::new().name("evaluator-beside".to_owned()).spawn(move || judge.run())?;
        Ok(Self { closing: closing.drop_guard(), thread })
    }

    /// Has the thread judge and store what is left, once the last check was answered. Blocks for seconds at most.
    pub(crate) fn finish(self) {
        let Self { closing, thread } = self;
        drop(closing);
        if thread.join().is_err() {
            tracing::error!("the thread that judges candidates panicked");
        }
    }
}

impl Judge {
    fn run(self) {
        lower_priority();
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(self.serve()),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "candidates are not judged: a thread has no runtime");
            }
        }
    }

    async fn serve(self) {
        // What was queued right before the end is worked on all the same.
        tokio::select! {
            biased;
            () = self.candidates.wanted() => {}
            () = self.closing.cancelled() => return,
        }
        let Some(backplane) = self.connected().await else {
            tracing::warn!("what was found of candidates is lost: the backplane was not reached");
            return;
        };
        let handler = match Handler::new(Arc::clone(&self.packs)) {
            Ok(handler) => handler,
            Err(error) => {
                tracing::error!(%error, "candidates are not judged: the policies cannot be prepared");
                return;
            }
        };
        let published = Published::new(Arc::clone(&self.policies), Arc::clone(&backplane.requests));
        let judged = CancellationToken::new();
        let judging = async {
            self.judge_all(&handler, &published).await;
            judged.cancel();
        };
        tokio::join!(judging, self.flush_until(&*backplane.state_store, &judged));
        self.flush(&*backplane.state_store, Instant::now() + DRAIN_TIMEOUT).await;
        if !self.candidates.pending().is_empty() {
            tracing::warn!("what was found of candidates is lost: it could not be stored");
        }
        backplane.requests.close().await;
    }

    /// Connects as shards do, and as often as it takes.
    async fn connected(&self) -> Option<Backplane> {
        let connecting = async {
            let mut is_known = false;
            loop {
                match (self.connect)().await {
                    Ok(backplane) => return backplane,
                    Err(error) if !is_known => {
                        tracing::warn!(error = &*error as &dyn std::error::Error, "candidates are not judged yet");
                        is_known = true;
                    }
                    Err(_) => {}
                }
                sleep(RECONNECT_DELAY).await;
            }
        };
        let too_late = async {
            self.closing.cancelled().await;
            sleep(DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            biased;
            backplane = connecting => Some(backplane),
            () = too_late => None,
        }
    }

    /// Judges until the evaluator has drained, and then what is left of the queue.
    async fn judge_all(&self, handler: &Handler, published: &Published) {
        let mut loading = FuturesUnordered::new();
        // Of whom they are.
        let mut waiting: Vec<Of> = Vec::new();
        let mut end = None;
        while end.is_none_or(|end| Instant::now() < end) {
            if end.is_some() && loading.is_empty() && self.candidates.queue().is_empty() {
                return;
            }
            tokio::select! {
                biased;
                () = self.closing.cancelled(), if end.is_none() => end = Some(Instant::now() + DRAIN_TIMEOUT),
                _ = timeout_at(end.unwrap_or_else(Instant::now), pending::<()>()), if end.is_some() => {}
                Some((job, chosen)) = loading.next(), if !loading.is_empty() => {
                    if let Some(found) = waiting.iter().position(|of| *of == Job::of(&job)) {
                        waiting.swap_remove(found);
                    }
                    self.judge(handler, job, chosen);
                }
                job = self.candidates.next(), if loading.len() < MAX_LOADING => {
                    let of = job.of();
                    // So that a policy which does not load takes no room of other accounts.
                    if waiting.iter().filter(|other| other.account == of.account).count() < MAX_LOADING_OF_ACCOUNT {
                        waiting.push(of);
                        loading.push(load(published, job));
                    } else {
                        self.candidates.not_judged(&job);
                    }
                }
            }
            // What was found is stored meanwhile.
            yield_now().await;
        }
        for of in waiting {
            // Their checks are within the loads, which end here.
            let findings = not_judged(CandidateMode::Shadow, None);
            self.candidates.found(of, Comparison::NotJudged, findings);
        }
        while let Some(job) = self.candidates.pop() {
            self.candidates.not_judged(&job);
        }
    }

    fn judge(&self, handler: &Handler, job: Job, chosen: Result<Chosen, NotLoaded>) {
        let of = job.of();
        let judgement = match chosen {
            Ok(chosen) => judge(handler, &job, &chosen),
            Err(error) => {
                tracing::debug!(account = %of.account, %error, "a candidate did not judge a check");
                None
            }
        };
        match judgement {
            Some(judgement) => {
                let (comparison, findings) = compared(&job.message, job.mode, job.answered, judgement);
                self.candidates.found(of, comparison, findings);
            }
            None => self.candidates.not_judged(&job),
        }
    }

    async fn flush_until(&self, state_store: &dyn StateStore, end: &CancellationToken) {
        while end.run_until_cancelled(sleep(FLUSH_INTERVAL)).await.is_some() {
            self.flush(state_store, Instant::now() + FLUSH_TIMEOUT).await;
        }
    }

    /// Stores what was found, as far as that can be stored now.
    async fn flush(&self, state_store: &dyn StateStore, deadline: Instant) {
        let taken = self.candidates.pending().take();
        for (of, sent) in taken {
            match store::add(state_store, self.writer, (&of, &sent), deadline).await {
                Ok(()) => self.candidates.pending().stored(&of),
                Err(error) => {
                    metrics::candidates_failed();
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(account = %of.account, error, "what was found of a candidate is not stored yet");
                }
            }
        }
    }
}

/// The check with the policy that is to judge it, once that is loaded.
async fn load(published: &Published, job: Job) -> (Job, Result<Chosen, NotLoaded>) {
    let account = &job.message.account;
    let own = match &job.other {
        Some(version) => published.load(Some(account), version, Instant::now() + LOAD_TIMEOUT).await.map(Some),
        None => Ok(None),
    };
    let chosen = own.map(|own| Chosen { account: Some(account.clone()), own, floor: job.floor.clone() });
    (job, chosen)
}

/// What the other policy says; none where it does not come to a verdict.
fn judge(handler: &Handler, job: &Job, chosen: &Chosen) -> Option<Judgement> {
    let work = || {
        // The first check of a policy has its rules parsed.
        let needs = handler.run_needs_of(chosen)?;
        if job.run.as_ref().is_some_and(|run| !run.suffices(needs)) {
            return None;
        }
        let snapshot = job.run.as_ref().map(|run| &run.snapshot);
        let limit = TimeLimit::of_thread(JUDGE_TIMEOUT);
        match handler.judge(&job.message, chosen, snapshot, job.held.as_ref(), limit)?.reply {
            EvaluateReply::Decided(evaluation) => Some(Judgement::of(&evaluation.decision)),
            _ => None,
        }
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!(account = %job.message.account, "judging a check by a candidate panicked");
        None
    })
}
