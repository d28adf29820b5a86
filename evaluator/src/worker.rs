//! The evaluator as a service: shards that serve side by side until they are stopped.
//!
//! Owns the threads. A shard that ends early ends the whole service, because a service without a shard would look
//! alive.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use stage0_backplane::{Backplane, BoxFuture};
use stage0_contract::PolicyVersion;
use stage0_policy::Pack;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::candidates::{Candidates, JudgeThread};
use crate::checks::ShardLimits;
use crate::compare::Comparer;
use crate::config::EvaluatorConfig;
use crate::differences;
use crate::metrics;
use crate::published::{LoadedPolicies, SharedPolicies};
use crate::replay::Replayer;
use crate::run::Journal;
use crate::shard::{self, ShardError, ShardParts};
use crate::validate::Validator;

/// Why a connection was not made.
pub type ConnectError = Box<dyn std::error::Error + Send + Sync>;

/// Makes one shard's connection, on that shard's runtime.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<Backplane, ConnectError>> + Send + Sync>;

/// An evaluator that serves.
pub struct Evaluator {
    active: PolicyVersion,
    policies: LoadedPolicies,
    shards: Vec<thread::JoinHandle<()>>,
    /// None once it has finished.
    judge: Option<JudgeThread>,
    ended: mpsc::Receiver<()>,
    stop: CancellationToken,
}

/// Why an evaluator does not start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A thread cannot be started.
    #[error("cannot start a worker thread")]
    Thread(#[source] std::io::Error),
    /// A shard cannot serve.
    #[error("a worker thread does not serve")]
    Shard(#[source] ShardError),
    /// A shard ended before it reported anything.
    #[error("a worker thread ended while it started")]
    Ended,
}

/// A shard ended before it was stopped: its connection is closed for good, or it panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread ended before it was told to")]
pub struct RunError;

/// Sends a message when it is dropped, however its thread ends.
struct Ending(mpsc::Sender<()>);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.try_send(());
    }
}

/// Starts every shard and waits until all of them serve.
pub async fn build(config: EvaluatorConfig, connect: Connect) -> Result<Evaluator, BuildError> {
    metrics::describe();
    let cores = || thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let count = config.shards.unwrap_or_else(cores).get();
    let (packs, runs) = (Arc::new(config.packs), config.runs);
    let (policies, validator) = (SharedPolicies::new(), Validator::new());
    let (comparer, replayer) = (Comparer::new(Arc::clone(packs.active())), Replayer::new(Arc::clone(packs.active())));
    let (candidates, journal) = (Candidates::new(), Arc::new(Journal::new()));
    let parts = (Arc::clone(&packs), Arc::clone(&policies));
    let judge = JudgeThread::start(candidates.clone(), parts.0, parts.1, Arc::clone(&connect));
    let judge = Some(judge.map_err(BuildError::Thread)?);
    let limits = ShardLimits::of(count);
    let stop = CancellationToken::new();
    let stop_on_error = stop.clone().drop_guard();
    let mut shards = Vec::with_capacity(count);
    let mut started = Vec::with_capacity(count);
    let (ending, ended) = mpsc::channel(1);
    for index in 0..count {
        let (ready, reported) = oneshot::channel();
        let ending = Ending(ending.clone());
        let (connect, stop) = (Arc::clone(&connect), stop.clone());
        let (packs, policies, validator) = (Arc::clone(&packs), Arc::clone(&policies), Arc::clone(&validator));
        let preload = policies.preloading();
        let (comparer, replayer, candidates) = (Arc::clone(&comparer), Arc::clone(&replayer), candidates.clone());
        let journal = Arc::clone(&journal);
        let parts = ShardParts { packs, policies, preload, validator, comparer, replayer, candidates, runs, journal };
        let work = move || {
            let _ending = ending;
            shard::run(parts, &connect, limits, ready, &stop);
        };
        let named = thread::Builder::new().name(format!("evaluator-{index}"));
        shards.push(named.spawn(work).map_err(BuildError::Thread)?);
        started.push(reported);
    }
    for reported in started {
        reported.await.map_err(|_| BuildError::Ended)?.map_err(BuildError::Shard)?;
    }
    let active = packs.active().version().clone();
    metrics::policies(&active, &packs.versions());
    for pack in packs.packs() {
        log_parents(pack);
        differences::found_by_cases(pack);
    }
    tracing::info!(policy_version = %active, shards = count, "evaluator serves");
    stop_on_error.disarm();
    Ok(Evaluator { active, policies: LoadedPolicies::new(policies), shards, judge, ended, stop })
}

/// Logs which packs decide with a pack that extends others. A pack in the same folder can be among them.
fn log_parents(pack: &Pack) {
    let parents: Vec<&str> = pack.parents().map(|parent| parent.version().as_str()).collect();
    if !parents.is_empty() {
        tracing::info!(policy_version = %pack.version(), extends = parents.join(", "), "policy pack extends others");
    }
}

impl Evaluator {
    /// The version that decides checks which name none.
    pub fn active(&self) -> &PolicyVersion {
        &self.active
    }

    /// The published policies that it has loaded.
    pub fn policies(&self) -> LoadedPolicies {
        self.policies.clone()
    }

    /// Serves until `stop` resolves, then drains.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> Result<(), RunError> {
        let stopped = tokio::select! {
            () = stop => true,
            _ = self.ended.recv() => false,
        };
        self.stop.cancel();
        let (shards, judge) = (std::mem::take(&mut self.shards), self.judge.take());
        let joined = tokio::task::spawn_blocking(move || {
            let ends: Vec<_> = shards.into_iter().map(thread::JoinHandle::join).collect();
            // No check is answered any more.
            judge.into_iter().for_each(JudgeThread::finish);
            ends.iter().all(Result::is_ok)
        });
        let whole = joined.await.unwrap_or(false);
        tracing::info!("evaluator drained");
        if stopped && whole { Ok(()) } else { Err(RunError) }
    }
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
