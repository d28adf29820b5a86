//! Approvals as inputs of a decision: whose word counts, and what the server itself holds.
//!
//! A held approval takes the place of everything that the caller says of one, except a rejection. In an account of the
//! mode `verified` a caller's own "approved" counts as nothing said.
//! INVARIANT: no input can turn a rejection, by the caller or by a person here, into an approval.

mod terms;

use stage0_contract::{ApprovalMode, ApprovalTerms, EvaluateRequest, Evaluation};

pub(crate) use terms::{DAY, Terms, group, joined, quorum, within_seconds};

use crate::decision::OutcomeHold;
use crate::evaluation::Difference;
use crate::facts::RunFacts;

/// What people decided here about this very action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldApproval<'a> {
    /// It is approved.
    Approved {
        /// Who approved it.
        by: &'a str,
        /// When, in seconds since the epoch.
        at: i64,
    },
    /// A person said no.
    Denied,
}

/// A decision, what it teaches about the run, and what it demands of an approval.
#[derive(Debug)]
pub struct Answer {
    /// The decision, with the texts that may be recorded.
    pub evaluation: Evaluation,
    /// What the check adds to its run. Of no use where `stopped` is true.
    pub run: RunFacts,
    /// On DEFER: what the rules that deferred demand of an approval, taken together.
    pub terms: Option<ApprovalTerms>,
    /// Whether a stop covers the check. No rule was evaluated then, and the check does not count in its run.
    pub stopped: bool,
    /// Whether it may be held up while an outcome is unknown.
    pub hold: OutcomeHold,
    /// Rules that were evaluated in two ways and differed, by pack. The check is denied for them.
    pub differences: Vec<Difference>,
}

/// Which approvals count in a decision. The default is the caller's word alone.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Approvals<'a> {
    pub(crate) mode: ApprovalMode,
    pub(crate) held: Option<HeldApproval<'a>>,
}

impl<'a> Approvals<'a> {
    pub(crate) fn of(check: &EvaluateRequest, held: Option<HeldApproval<'a>>) -> Self {
        let mode = check.asker.as_ref().map(|asker| asker.rules.approvals).unwrap_or_default();
        Self { mode, held }
    }
}
