//! The decision about a check of an action whose earlier check has no known end: DEFER `OUTCOME_UNKNOWN`, without a
//! rule of the pack.
//!
//! Whether such a check is open is the evaluator's to know; here is which checks it matters to, and their decisions.
//! INVARIANT: an ALLOW that is held up is a DEFER with a question, and a DENY stays as it is.

use serde_json::{Map, Value};
use stage0_contract::{Evaluation, Issue, IssueCode, NextAction, OpenAction, Severity, Verdict};

use super::{rank, score};
use crate::facts::Facts;
use crate::pack::Pack;

/// The rule that such an issue names.
const RULE: &str = "outcome.unknown";
const MESSAGE: &str = "an earlier check of the same action was allowed, and what came of it is not known";
/// How the trace of an ALLOW ends.
const NONE_DECIDED: &str = "deciding: none";

/// What the packs that decide say of actions whose outcome is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutcomeHold {
    /// A pack holds up actions with an unknown outcome.
    is_wanted: bool,
    /// The action has an effect, so that to repeat it is not the same as to do it once.
    has_effect: bool,
}

impl OutcomeHold {
    pub(crate) fn of(pack: &Pack, facts: &Facts) -> Self {
        Self { is_wanted: pack.outcomes.hold_unknown, has_effect: facts.effects.any }
    }

    /// That of two packs: what one of them holds up, and what one of them takes for an effect.
    #[must_use]
    pub(crate) fn with(self, other: Self) -> Self {
        Self { is_wanted: self.is_wanted || other.is_wanted, has_effect: self.has_effect || other.has_effect }
    }

    /// Whether the action must not be allowed again while its outcome is unknown.
    pub fn holds(self) -> bool {
        self.is_wanted && self.has_effect
    }
}

impl Pack {
    /// Holds up a check until the outcome of an earlier one is known: an ALLOW becomes a DEFER, and a DEFER asks for
    /// the outcome as well.
    pub fn hold_up(&self, evaluation: &mut Evaluation, open: &OpenAction) {
        let decision = &mut evaluation.decision;
        let reason = format!("{}: {MESSAGE}", IssueCode::OUTCOME_UNKNOWN);
        match decision.verdict {
            Verdict::Deny => return,
            Verdict::Defer => decision.reason = format!("{}; {reason}", decision.reason),
            Verdict::Allow => {
                decision.verdict = Verdict::Defer;
                decision.reason = reason;
                let trace = &decision.decision_trace_summary;
                decision.decision_trace_summary = trace.replacen(NONE_DECIDED, &format!("deciding: {RULE}"), 1);
                // Questions of an ALLOW need no answer.
                decision.defer_questions.clear();
            }
        }
        let question =
            format!("What came of request {}? Report its outcome: succeeded, failed or skipped.", open.request_id);
        decision.defer_questions.insert(0, question.clone());
        decision.clarifying_questions.insert(0, question);
        decision.issues.push(issue(open));
        decision.issues.sort_by(rank);
        decision.risk_score = decision.risk_score.max(self.scores.floor.defer);
        decision.high_risk |= decision.risk_score >= score::HIGH_RISK;
        if let Some(recordable) = &mut evaluation.recordable {
            // The facts alone would decide something else.
            recordable.facts = None;
        }
    }
}

fn issue(open: &OpenAction) -> Issue {
    let details = match serde_json::to_value(open) {
        Ok(Value::Object(details)) => details,
        _ => Map::new(),
    };
    Issue {
        code: IssueCode::outcome_unknown(),
        severity: Severity::High,
        message: MESSAGE.to_owned(),
        rule: RULE.to_owned(),
        next_action: NextAction::ProvideContext,
        details,
    }
}
