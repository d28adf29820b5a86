//! Policies that are tried: each check of an account with a candidate is judged by the other policy too, beside.
//!
//! Owns the way from an answered check to the counts in the state store: a bounded queue, one thread that judges
//! ([`judge`]), and what was found, in memory ([`pending`]) and in the state store ([`store`]). A check that no
//! candidate takes costs nothing.
//! INVARIANT: an answer neither waits for the other policy nor depends on it, and no run or approval changes by it.
//! What it did not judge, for whatever reason, is counted as such.

mod judge;
mod outcome;
mod pending;
mod queue;
pub(crate) mod store;
#[cfg(test)]
mod tests;
mod watched;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stage0_contract::{AccountId, CandidateFindings, EvaluateRequest};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::metrics::{self, Comparison};

pub(crate) use judge::JudgeThread;
use pending::{Pending, Sent};
use queue::{Job, Queue};
pub(crate) use watched::{RunSeen, Watched};

/// What is counted separately: a candidate of an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Of {
    pub(crate) account: AccountId,
    pub(crate) candidate: Uuid,
}

/// The candidates of a process. All shards share it with the thread that judges.
#[derive(Clone)]
pub(crate) struct Candidates(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    pending: Mutex<Pending>,
    /// Something was queued or counted. The thread that judges is the only one that waits for it.
    changed: Notify,
}

impl Candidates {
    pub(crate) fn new() -> Self {
        let (queue, pending) = (Mutex::new(Queue::new()), Mutex::new(Pending::new()));
        Self(Arc::new(Shared { queue, pending, changed: Notify::new() }))
    }

    /// What has to be noted of a check while it is decided; none if no candidate takes it.
    pub(crate) fn watch(&self, message: &EvaluateRequest) -> Option<Box<Watched>> {
        let rules = &message.asker.as_ref()?.rules;
        if rules.candidates.is_empty() {
            return None;
        }
        let candidate = rules.candidate_of(&message.request)?;
        Some(Box::new(Watched::new(self.clone(), candidate, rules.active_policy_of(&message.request))))
    }

    /// Has a check judged beside, or counts it as not judged where there is no room for it.
    fn submit(&self, job: Job) {
        let refused = self.queue().push(job).err();
        match refused {
            None => self.0.changed.notify_one(),
            Some(job) => self.not_judged(&job),
        }
    }

    fn not_judged(&self, job: &Job) {
        let findings = outcome::not_judged(job.mode, Some(&job.answered));
        self.found(job.of(), Comparison::NotJudged, findings);
    }

    fn found(&self, of: Of, comparison: Comparison, findings: CandidateFindings) {
        metrics::candidate_judged(comparison);
        if self.pending().add(of, findings) {
            self.0.changed.notify_one();
        } else {
            tracing::debug!("findings of a candidate are dropped: too many wait for the state store");
        }
    }

    /// Waits until there is something to judge or to store.
    async fn wanted(&self) {
        while self.queue().is_empty() && self.pending().is_empty() {
            self.0.changed.notified().await;
        }
    }

    /// The next check to judge.
    async fn next(&self) -> Job {
        loop {
            match self.pop() {
                Some(job) => return job,
                None => self.0.changed.notified().await,
            }
        }
    }

    fn pop(&self) -> Option<Job> {
        self.queue().pop()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
