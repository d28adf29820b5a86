//! What is noted of a check while it is decided, so that the other policy can judge the very same.
//!
//! A check that is decided again, because another evaluator wrote its run meanwhile, overwrites what was noted: it is
//! handed on once, with its answer.

use std::cell::RefCell;
use std::sync::Arc;

use stage0_contract::{CandidateMode, EvaluateReply, EvaluateRequest, PolicyCandidate, PolicyVersion};
use stage0_policy::{RunNeeds, RunSnapshot};
use uuid::Uuid;

use super::Candidates;
use super::outcome::Judgement;
use super::queue::Job;
use crate::engines::MAX_ORDINARY_BYTES;
use crate::handler::Held;
use crate::published::Chosen;

/// What an entry of a run's counts takes beside its text.
const ENTRY_BYTES: usize = 64;

/// A check that a candidate takes.
pub(crate) struct Watched {
    candidates: Candidates,
    candidate: Uuid,
    mode: CandidateMode,
    /// The policy that does not decide; none: the evaluator's own.
    other: Option<PolicyVersion>,
    noted: RefCell<Noted>,
}

#[derive(Default)]
struct Noted {
    run: Option<RunSeen>,
    /// An attempt of this check was allowed before, and was judged then.
    is_repeat: bool,
    /// The approval that its answer was made with; none until it is decided by rules.
    decided_with: Option<Option<Held>>,
}

/// A run before a check.
pub(crate) struct RunSeen {
    /// All of it, whatever the policy that decides asks for.
    pub(crate) snapshot: RunSnapshot,
    /// What the policy that decides has counted.
    pub(crate) counted: RunNeeds,
}

impl RunSeen {
    /// Everything that a policy may ask of a run.
    pub(crate) const ALL: RunNeeds = RunNeeds { calls: true, allowed: true, verdicts: true, targets: true };

    /// Whether a policy with these needs can be judged by it. Calls are known of every run, as they are to a policy
    /// that becomes active in the midst of it; the rest is not there where the policy that decides does not ask.
    pub(super) fn suffices(&self, needs: RunNeeds) -> bool {
        let RunNeeds { allowed, verdicts, targets, .. } = self.counted;
        (allowed || !needs.allowed) && (verdicts || !needs.verdicts) && (targets || !needs.targets)
    }

    fn bytes(&self) -> usize {
        let RunSnapshot { calls, history, .. } = &self.snapshot;
        let counted = [&calls.known, &history.tools, &history.unproven].into_iter().flat_map(|counts| counts.keys());
        let targets = history.target_tools.values().flatten();
        let texts: usize = counted.chain(targets).map(|text| text.len() + ENTRY_BYTES).sum();
        texts + history.target_tools.len() * ENTRY_BYTES
    }
}

impl Watched {
    pub(super) fn new(candidates: Candidates, candidate: &PolicyCandidate, active: Option<&PolicyVersion>) -> Self {
        let PolicyCandidate { id, mode, version, .. } = candidate;
        let other = match mode {
            CandidateMode::Shadow => Some(version.clone()),
            CandidateMode::Canary => active.cloned(),
        };
        Self { candidates, candidate: *id, mode: *mode, other, noted: RefCell::default() }
    }

    /// Notes its run; none: an attempt of the check was allowed before.
    pub(crate) fn note_run(&self, run: Option<RunSeen>) {
        let mut noted = self.noted.borrow_mut();
        noted.is_repeat = run.is_none();
        noted.run = run;
    }

    /// Notes that rules decided it, with this approval.
    pub(crate) fn note_decided(&self, held: Option<Held>) {
        self.noted.borrow_mut().decided_with = Some(held);
    }

    /// Notes that something else than rules decided it.
    pub(crate) fn forget_decided(&self) {
        self.noted.borrow_mut().decided_with = None;
    }

    /// Hands it on, once its answer is on its way.
    pub(crate) fn answered(self, message: Arc<EvaluateRequest>, bytes: usize, chosen: Chosen, reply: &EvaluateReply) {
        let Self { candidates, candidate, mode, other, noted } = self;
        let Noted { run, is_repeat, decided_with } = noted.into_inner();
        let (answered, held) = match (reply, decided_with) {
            // A stop decides without rules, for every policy.
            (EvaluateReply::Decided(evaluation), Some(held)) if !is_repeat => {
                (Judgement::of(&evaluation.decision), held)
            }
            // What the active policy would have decided, a canary must not leave undecided.
            (EvaluateReply::Invalid(_) | EvaluateReply::Unable(_), _)
            | (EvaluateReply::PolicyMissing { is_loading: false, .. }, _)
                if mode == CandidateMode::Canary =>
            {
                (Judgement::refused(), None)
            }
            _ => return,
        };
        let size = bytes + run.as_ref().map_or(0, RunSeen::bytes);
        let floor = chosen.floor;
        let job = Job { message, bytes: size, candidate, mode, other, floor, run, held, answered };
        if bytes > MAX_ORDINARY_BYTES {
            candidates.not_judged(&job);
        } else {
            candidates.submit(job);
        }
    }
}
