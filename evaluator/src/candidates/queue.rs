//! Checks that wait to be judged beside: bounded by number and bytes, in all and for each account, and fair between
//! accounts.

use std::collections::HashMap;
use std::sync::Arc;

use stage0_contract::{AccountId, CandidateMode, EvaluateRequest, PolicyVersion};
use stage0_policy::Pack;
use uuid::Uuid;

use super::outcome::Judgement;
use super::{Of, RunSeen};
use crate::fair_queue::{FairQueue, Queued};
use crate::handler::Held;

/// Checks that wait in a process, and of one account.
pub(super) const MAX_WAITING: usize = 2_048;
pub(super) const MAX_WAITING_OF_ACCOUNT: usize = 512;
/// Bytes of their messages and of what was counted of their runs. In memory they take several times as many.
pub(super) const MAX_BYTES: usize = 8 << 20;
pub(super) const MAX_BYTES_OF_ACCOUNT: usize = 2 << 20;

/// A check that was answered, and is to be judged by the policy that did not decide it.
pub(super) struct Job {
    pub(super) message: Arc<EvaluateRequest>,
    pub(super) bytes: usize,
    pub(super) candidate: Uuid,
    pub(super) mode: CandidateMode,
    /// The policy that judges; none: the evaluator's own.
    pub(super) other: Option<PolicyVersion>,
    pub(super) floor: Option<Arc<Pack>>,
    /// Its run as it was when the check was decided.
    pub(super) run: Option<RunSeen>,
    pub(super) held: Option<Held>,
    /// What it was answered.
    pub(super) answered: Judgement,
}

impl Job {
    pub(super) fn of(&self) -> Of {
        Of { account: self.message.account.clone(), candidate: self.candidate }
    }
}

impl Queued for Job {
    fn account(&self) -> &AccountId {
        &self.message.account
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

pub(super) struct Queue {
    jobs: FairQueue<Job>,
    waiting: usize,
    /// Number and bytes.
    of_accounts: HashMap<AccountId, (usize, usize)>,
}

impl Queue {
    pub(super) fn new() -> Self {
        Self { jobs: FairQueue::new(MAX_BYTES), waiting: 0, of_accounts: HashMap::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// Queues a check, or returns it where there is no room.
    pub(super) fn push(&mut self, job: Job) -> Result<(), Box<Job>> {
        let (number, bytes) = self.of_accounts.get(job.account()).copied().unwrap_or_default();
        let is_full = self.waiting >= MAX_WAITING
            || number >= MAX_WAITING_OF_ACCOUNT
            || bytes.saturating_add(job.bytes) > MAX_BYTES_OF_ACCOUNT;
        if is_full {
            return Err(Box::new(job));
        }
        let (account, added) = (job.account().clone(), job.bytes);
        self.jobs.push(job).map_err(Box::new)?;
        self.waiting += 1;
        self.of_accounts.insert(account, (number + 1, bytes + added));
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Job> {
        let job = self.jobs.pop()?;
        self.waiting = self.waiting.saturating_sub(1);
        if let Some((number, bytes)) = self.of_accounts.get_mut(job.account()) {
            (*number, *bytes) = (number.saturating_sub(1), bytes.saturating_sub(job.bytes));
            if *number == 0 {
                self.of_accounts.remove(job.account());
            }
        }
        Some(job)
    }
}
