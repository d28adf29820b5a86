//! The answer to a check: what the evaluator decides, and what the gateway releases around it.
//!
//! Owns the 200 response of contract section 3. [`Decision`] is the evaluator's; [`CheckResponse`] adds what only the gateway
//! knows (ids, times, how it was recorded). Every field is always present.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ClientRequestId, IssueCode, NextAction, PolicyVersion, RequestId, Severity, Verdict};

/// The traffic-light word that is paired with a [`Verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Signal {
    /// With ALLOW.
    Go,
    /// With DENY.
    NoGo,
    /// With DEFER.
    Defer,
}

/// One rule that was satisfied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Issue {
    /// Stable; what a client branches on.
    pub code: IssueCode,
    /// How grave.
    pub severity: Severity,
    /// For people and agents; no value of the request in it.
    pub message: String,
    /// The id of the rule in the policy pack.
    pub rule: String,
    /// What the caller can do.
    pub next_action: NextAction,
    /// More, by rule; an object, often empty.
    pub details: Map<String, Value>,
}

/// Whether a declared or needed guardrail holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardrailCheck {
    /// The request or the policy asks for it.
    pub required: bool,
    /// The evidence meets it.
    pub satisfied: bool,
}

/// What the action may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostEstimate {
    /// ISO 4217.
    pub currency: String,
    /// In units of the currency.
    pub min: f64,
    /// In units of the currency.
    pub max: f64,
    /// Where the numbers come from.
    pub assumptions: Vec<String>,
}

/// What the policy decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// ALLOW, DEFER or DENY.
    pub verdict: Verdict,
    /// The deciding issues as `CODE: message; …`, or why it may go.
    pub reason: String,
    /// All satisfied rules, the gravest first.
    pub issues: Vec<Issue>,
    /// 0–100.
    pub risk_score: u8,
    /// 0–100.
    pub value_risk: u8,
    /// 0–100.
    pub waste_risk: u8,
    /// `risk_score` ≥ 61.
    pub high_risk: bool,
    /// Questions that would help; on DEFER never empty.
    pub clarifying_questions: Vec<String>,
    /// On DEFER the same as `clarifying_questions`, else empty.
    pub defer_questions: Vec<String>,
    /// Guardrails that the request declares.
    pub guardrails: Vec<String>,
    /// Recognised constraints, normalised.
    pub constraints_applied: Vec<String>,
    /// Constraints without effect, as sent. In the answer alone: records keep how many there were.
    #[serde(default)]
    pub constraints_ignored: Vec<String>,
    /// What was found about the task's worth.
    pub value_findings: Vec<String>,
    /// Family → check → state.
    pub guardrail_checks: BTreeMap<String, BTreeMap<String, GuardrailCheck>>,
    /// When the request names a cost.
    pub cost_estimate: Option<CostEstimate>,
    /// The content that decided.
    pub policy_version: PolicyVersion,
    /// As the request names it; empty when unknown.
    pub environment: String,
    /// Rules evaluated, matched, deciding.
    pub decision_trace_summary: String,
}

/// Members of `details` that hold words of the request: they stand in the answer alone, never in a record.
const ANSWER_ALONE: [&str; 5] = ["found", "allowed", "write", "did_you_mean", "run"];

impl Decision {
    /// The decision as it is recorded; nothing where that is the decision itself.
    pub fn recorded(&self) -> Option<Self> {
        let told = |issue: &Issue| ANSWER_ALONE.iter().any(|name| issue.details.contains_key(*name));
        if self.constraints_ignored.is_empty() && !self.issues.iter().any(told) {
            return None;
        }
        let mut recorded = self.clone();
        recorded.constraints_ignored = Vec::new();
        for issue in &mut recorded.issues {
            issue.details.retain(|name, _| !ANSWER_ALONE.contains(&name.as_str()));
        }
        Some(recorded)
    }
}

/// Whether the decision was recorded before it was released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditMode {
    /// This deployment records nothing.
    None,
    /// Recorded before release.
    Required,
    /// Released even when recording failed.
    BestEffort,
}

/// What the answer says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseMeta {
    /// Always `stage0`.
    pub source: String,
    /// Always false: there are no simulated verdicts.
    pub test_mode: bool,
    /// The caller's `X-Request-Id`.
    pub client_request_id: Option<ClientRequestId>,
    /// How the decision was recorded.
    pub audit: AuditMode,
    /// Whether the request's text was kept; only where it said `debug_store_input: true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_stored: Option<bool>,
    /// Members of the request that nothing reads, by name: at most 20, `*` for what is no plain name. In the answer
    /// alone, never recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_fields: Vec<String>,
}

/// The body of a 200 answer to `POST /check`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckResponse {
    /// GO, NO_GO or DEFER: paired with `verdict`.
    #[serde(rename = "decision")]
    pub signal: Signal,
    /// What the policy decided, its fields at this level.
    #[serde(flatten)]
    pub decided: Decision,
    /// Ours, unique per check.
    pub request_id: RequestId,
    /// Hex SHA-256 of the canonical request.
    pub task_hash: String,
    /// The same as `policy_version`.
    pub policy_pack_version: PolicyVersion,
    /// Whole seconds since the epoch.
    pub timestamp: i64,
    /// Whole seconds since the epoch.
    pub evaluated_at: i64,
    /// Whether this is a recorded decision again.
    pub cached: bool,
    /// About the answer itself.
    pub meta: ResponseMeta,
}

impl CheckResponse {
    /// Puts a decision into the form in which it leaves.
    pub fn new(
        decided: Decision,
        request_id: RequestId,
        task_hash: String,
        evaluated_at: i64,
        meta: ResponseMeta,
    ) -> Self {
        Self {
            signal: decided.verdict.signal(),
            policy_pack_version: decided.policy_version.clone(),
            decided,
            request_id,
            task_hash,
            timestamp: evaluated_at,
            evaluated_at,
            cached: false,
            meta,
        }
    }
}
