//! The answer to a check: what the evaluator decides, and what the gateway releases around it.
//!
//! [`Decision`] is the evaluator's; [`CheckResponse`], the 200 response, adds what only the
//! gateway knows (ids, times, how it was recorded). Every field is always present.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    ApprovalRef, ApprovalSource, ClientRequestId, IssueCode, NextAction, PolicyVersion, RequestId, Severity, Verdict,
};

/// The traffic-light word that is paired with a [`Verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Issue {
    /// A stable reason code, on which clients may branch.
    #[schemars(extend("pattern" = "^[A-Z][A-Z0-9_]*$"))]
    pub code: IssueCode,
    /// How grave.
    pub severity: Severity,
    /// For people and agents; no value of the request in it.
    pub message: String,
    /// The rule's id in the policy pack.
    pub rule: String,
    /// What the caller can do.
    pub next_action: NextAction,
    /// Where the matter lies and what would settle it. An issue that no change of the request settles has no
    /// `write`. `found`, `allowed`, `write` and `did_you_mean` stand in the answer alone: records, webhooks and
    /// answers that are given again have only the rest.
    #[schemars(with = "crate::api::IssueDetails")]
    pub details: Map<String, Value>,
}

/// Whether a declared or needed guardrail holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuardrailCheck {
    /// The request or the policy asks for it.
    pub required: bool,
    /// The evidence meets it.
    pub satisfied: bool,
}

/// What the action may cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// ALLOW, DEFER or DENY.
    pub verdict: Verdict,
    /// The deciding issues as `CODE: message; …`, or why the action is allowed.
    #[schemars(extend("minLength" = 1))]
    pub reason: String,
    /// All satisfied rules, the gravest first.
    pub issues: Vec<Issue>,
    /// 0 to 100; an ALLOW has at most 99.
    #[schemars(extend("maximum" = 100))]
    pub risk_score: u8,
    /// From 0 to 100: how doubtful its worth is.
    #[schemars(extend("maximum" = 100))]
    pub value_risk: u8,
    /// From 0 to 100: how likely it is to waste effort.
    #[schemars(extend("maximum" = 100))]
    pub waste_risk: u8,
    /// `risk_score` of 61 or more.
    pub high_risk: bool,
    /// Questions that would help; on DEFER never empty.
    pub clarifying_questions: Vec<String>,
    /// On DEFER the same, non-empty list as `clarifying_questions`; else empty.
    pub defer_questions: Vec<String>,
    /// Guardrails that the request declares.
    pub guardrails: Vec<String>,
    /// Recognised constraints, normalised.
    pub constraints_applied: Vec<String>,
    /// Constraints without effect, as sent; masked where the request holds a secret. Empty in records and in
    /// answers that are given again.
    #[serde(default)]
    pub constraints_ignored: Vec<String>,
    /// What was found about the task's worth.
    pub value_findings: Vec<String>,
    /// Family → check → state.
    pub guardrail_checks: BTreeMap<String, BTreeMap<String, GuardrailCheck>>,
    /// When the request names a cost.
    pub cost_estimate: Option<CostEstimate>,
    /// `<pack>@<semver>+<digest>`: names the content that decided.
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub policy_version: PolicyVersion,
    /// The operator's pack that was evaluated beside it; absent: none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub floor_version: Option<PolicyVersion>,
    /// Empty when unknown.
    pub environment: String,
    /// Rules evaluated, matched, deciding.
    pub decision_trace_summary: String,
    /// The approval that this decision opened, waits for, or used. Null where there is none; on DEFER also where
    /// something else is missing as well, and the questions say what.
    #[serde(default)]
    pub approval: Option<ApprovalRef>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuditMode {
    /// Nothing was recorded. Only answers of earlier releases have it.
    None,
    /// Recorded before release.
    Required,
    /// Released even when recording failed.
    BestEffort,
}

/// What the answer says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseMeta {
    /// Always `stage0`.
    #[schemars(extend("enum" = ["stage0"]))]
    pub source: String,
    /// Always false: there are no simulated verdicts.
    pub test_mode: bool,
    /// The caller's `X-Request-Id`.
    pub client_request_id: Option<ClientRequestId>,
    /// How decisions are recorded here. `required`: this one was recorded before the answer left. `best-effort`:
    /// the answer left even if it could not be recorded. `none`: this deployment records nothing.
    pub audit: AuditMode,
    /// Only where `debug_store_input` was true: whether the request's text was kept. It was not when the account's
    /// `stored_bytes` of today are used up, or could not be counted; the decision is recorded all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_stored: Option<bool>,
    /// Members of the request that nothing reads, by name, sorted; `*` for a name that is no plain one, and for all
    /// of them where the request holds a secret. Absent when there are none. In the answer alone, never recorded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 20))]
    pub ignored_fields: Vec<String>,
    /// Where the approval that counted came from; absent where none counted. `caller`: only the caller says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_source: Option<ApprovalSource>,
}

/// The body of a 200 answer to `POST /check`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CheckResponse {
    /// Paired with `verdict`.
    #[serde(rename = "decision")]
    pub signal: Signal,
    /// What the policy decided, its fields at this level.
    #[serde(flatten)]
    pub decided: Decision,
    /// Ours, a UUIDv7, unique per check; also in the header `X-Request-Id`.
    pub request_id: RequestId,
    /// SHA-256 of the canonical request, in hex: equal tasks have equal hashes.
    #[schemars(extend("pattern" = "^[0-9a-f]{64}$"))]
    pub task_hash: String,
    /// The same as `policy_version`.
    #[schemars(extend("minLength" = 1, "maxLength" = 100))]
    pub policy_pack_version: PolicyVersion,
    /// Whole seconds since the epoch.
    pub timestamp: i64,
    /// Whole seconds since the epoch.
    pub evaluated_at: i64,
    /// Whether this is a recorded decision again, under its own `request_id` and times, because its
    /// `Idempotency-Key` was used before.
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
