//! What came of allowed actions, as their workloads report it: a status word, never output.
//!
//! Evaluators keep outcomes beside the decision's id for as long as the decision is kept; gateways record each as a
//! line of the log. INVARIANT: an outcome is reported once. Only `unknown` may be replaced, by what it turned out to
//! be.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    AccountId, ActionDigest, ApprovalId, DecisionRecord, EventActor, KeyId, OutcomeStatus, RequestId, RunId,
    RunSettled, Unrecorded,
};

/// The longest `tool_call_id`, in characters.
pub const MAX_TOOL_CALL_ID_CHARS: usize = 256;
/// The longest time that an action may have taken, in milliseconds: a year.
pub const MAX_DURATION_MS: u64 = 31_536_000_000;
/// A report that comes later than this after the decision is late, in seconds.
pub const LATE_AFTER_SECONDS: i64 = 3_600;
/// The most decisions whose outcomes one request reads.
pub const MAX_OUTCOMES_READ: usize = 1_000;

/// `POST /v1/decisions/{request_id}/outcome`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportDecisionOutcome {
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub actor: EventActor,
    /// The decision's `request_id`.
    pub request_id: RequestId,
    /// How the action ended. `unknown`: its workload cannot tell, which is not the same as `failed`. `skipped`: it did
    /// not run.
    pub status: OutcomeStatus,
    /// The tool call as the agent names it: 1 to 256 characters. Secrets in it are masked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 256))]
    pub tool_call_id: Option<String>,
    /// How long the action took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = crate::MAX_DURATION_MS))]
    pub duration_ms: Option<u64>,
    /// What the action cost, in US dollars: settles the check in its run. Less than was estimated takes `runs:manage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(rename = "cost_usd", with = "Option<f64>", extend("minimum" = 0, "maximum" = 1_000_000_000))]
    pub actual_micros: Option<i64>,
    /// Whether the caller may settle for less than was estimated (scope `runs:manage`).
    #[schemars(skip)]
    pub may_lower: bool,
    /// Of the decision's record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub run_id: Option<RunId>,
    /// Of the decision's record: the approval that it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub approval_id: Option<ApprovalId>,
    /// When the decision was recorded.
    #[schemars(skip)]
    pub decided_at: Timestamp,
    /// From this second on the decision is not shown any more, and neither is its outcome. Where it is not after
    /// `decided_at`, the log has no such decision: then the report only frees an action that waits for its outcome.
    #[schemars(skip)]
    pub expires_at: i64,
}

/// What came of an allowed action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionOutcome {
    /// The decision.
    pub request_id: RequestId,
    /// How the action ended.
    pub status: OutcomeStatus,
    /// When it was reported.
    pub reported_at: Timestamp,
    /// Reported more than an hour after the decision.
    pub late: bool,
    /// The key that reported it.
    pub key_id: KeyId,
    /// The tool call as the agent names it; null: not reported.
    pub tool_call_id: Option<String>,
    /// How long the action took, in milliseconds; null: not reported.
    pub duration_ms: Option<u64>,
    /// What it cost, in US dollars; null: not reported.
    pub cost_usd: Option<f64>,
}

/// An outcome that is kept, and what must be recorded before the answer leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomeReported {
    pub outcome: DecisionOutcome,
    /// The run's money, where the report settled the check now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<RunSettled>,
    pub unrecorded: Unrecorded,
}

/// The answer to a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReportedOutcome {
    /// What is kept.
    #[serde(flatten)]
    pub outcome: DecisionOutcome,
    /// The run's money, where this report settled the check; null: it did not.
    pub settled: Option<RunSettled>,
}

/// A decision, with what came of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ShownDecision {
    /// The line.
    #[serde(flatten)]
    pub record: DecisionRecord,
    /// What came of the action; null: nothing was reported. Absent: it was not looked up. A list that does not filter
    /// by `outcome` never looks it up; one record is shown without it where no evaluator answers at the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = null))]
    pub outcome: Option<DecisionOutcome>,
}

/// Which decisions a list shows, by their outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeFilter {
    /// It did what it was to do.
    Succeeded,
    /// It did not.
    Failed,
    /// Its workload cannot tell.
    Unknown,
    /// It was allowed, and did not run.
    Skipped,
    /// Allowed, and nothing was reported.
    None,
    /// All decisions, each with its outcome.
    Any,
}

impl OutcomeFilter {
    pub const ALL: [Self; 6] = [Self::Succeeded, Self::Failed, Self::Unknown, Self::Skipped, Self::None, Self::Any];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Skipped => "skipped",
            Self::None => "none",
            Self::Any => "any",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|filter| filter.as_str() == text)
    }

    /// Whether a decision is shown: of one that was not allowed, no outcome is expected.
    pub fn shows(self, is_allowed: bool, outcome: Option<OutcomeStatus>) -> bool {
        let is = |status| outcome == Some(status);
        match self {
            Self::Succeeded => is(OutcomeStatus::Succeeded),
            Self::Failed => is(OutcomeStatus::Failed),
            Self::Unknown => is(OutcomeStatus::Unknown),
            Self::Skipped => is(OutcomeStatus::Skipped),
            Self::None => is_allowed && outcome.is_none(),
            Self::Any => true,
        }
    }
}

/// Gateway to evaluator: what came of these decisions?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadOutcomes {
    pub account: AccountId,
    /// At most [`MAX_OUTCOMES_READ`].
    pub request_ids: Vec<RequestId>,
}

/// Those that were reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutcomesRead {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<DecisionOutcome>,
}

/// `details` of an issue `OUTCOME_UNKNOWN`: which earlier check of the same action has no known end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAction {
    pub request_id: RequestId,
    pub action_digest: ActionDigest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_shows_what_it_names_and_nothing_of_what_was_not_allowed_is_missing() {
        let shown = |filter: OutcomeFilter| {
            let statuses = OutcomeStatus::ALL.map(Some).into_iter().chain([None]);
            statuses.filter(|outcome| filter.shows(true, *outcome)).collect::<Vec<_>>()
        };
        for status in OutcomeStatus::ALL {
            let filter = OutcomeFilter::parse(status.as_str()).unwrap();
            assert_eq!(shown(filter), [Some(status)]);
        }
        assert_eq!(shown(OutcomeFilter::None), [None]);
        assert_eq!(shown(OutcomeFilter::Any).len(), 5);
        assert!(!OutcomeFilter::None.shows(false, None) && OutcomeFilter::Any.shows(false, None));
        assert_eq!(OutcomeFilter::parse("late"), None);
    }

    #[test]
    fn filters_and_statuses_are_written_as_they_are_read() {
        for filter in OutcomeFilter::ALL {
            assert_eq!(serde_json::to_value(filter).unwrap(), filter.as_str());
        }
        for status in OutcomeStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
            assert_eq!(OutcomeStatus::parse(status.as_str()), Some(status));
        }
    }
}
