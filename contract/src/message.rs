//! Messages between services: each owns its subject and its reply.
//!
//! A subject here is relative: the backplane puts a deployment's prefix before it. Requests are imperative, events in
//! the past tense. "Denied" is data in a reply; "could not decide" is an error or `Unable`.

#![expect(missing_docs, reason = "members whose name says all have no comment")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    AccountId, Actor, ApiKey, ApprovalEvent, ApprovalRef, ApprovalSource, CheckRequest, CostEstimate, Decision,
    FieldError, GuardrailCheck, Issue, KeptFacts, KeyId, KeyIdentity, PolicyVersion, RequestId, Verdict,
};

mod sealed {
    /// A message that the table in `traffic.rs` lists.
    pub trait Listed {}
}

pub(crate) use sealed::Listed;
/// Implemented by the messages of tests and benchmarks, which no role sends and which no table lists.
#[doc(hidden)]
pub use sealed::Listed as TestMessage;

/// A request with one reply, from any process that serves its subject. Only the table of messages implements it.
pub trait Request: Listed + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it is sent, without the deployment's prefix.
    const SUBJECT: &'static str;
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// An event that every subscribed process receives. Only the table of messages implements it.
pub trait Notice: Listed + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it is published, without the deployment's prefix.
    const SUBJECT: &'static str;
}

/// Gateway to evaluator: decide this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluateRequest {
    pub request_id: RequestId,
    pub account: AccountId,
    pub request: CheckRequest,
    /// The state store's time as the gateway knows it, in seconds since the epoch, at which windows are judged. An
    /// evaluator whose own time differs by more than 10 s decides nothing.
    pub evaluated_at: i64,
    /// The check that this one repeats, whose counts in its run are not counted again. None for a first attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<RequestId>,
    /// Texts of the caller that will be recorded: the evaluator, which knows secrets, masks them.
    #[serde(default, skip_serializing_if = "CallerTexts::is_empty")]
    pub caller: CallerTexts,
    /// Runs that the account's checks may name in a day. None, from a gateway that knows of no cap, means none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_runs: Option<u64>,
    /// Who asks, for approvals and stops. None, from a gateway that does not tell: no approval is opened or used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<Actor>,
}

/// What a caller said of itself in headers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallerTexts {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_request_id: Option<String>,
    /// `User-Agent`, at most 256 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
}

impl CallerTexts {
    fn is_empty(&self) -> bool {
        self.client_request_id.is_none() && self.user_agent.is_none()
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvaluateReply {
    Decided(Box<Evaluation>),
    /// The request asks for what the policy does not know: a window, a version.
    Invalid(Vec<FieldError>),
    /// No decision could be made; the text is for the log.
    Unable(String),
    /// The evaluator reached its deadline and gave up. Final: another one would take as long.
    TimedOut,
    /// Too many checks of the account wait here. Final: to ask the next evaluator would only move the flood.
    Busy,
    /// The check names a run that would be one too many for the account today: not decided.
    TooManyRuns {
        limit: u64,
    },
    /// The published policy that would decide is not here: it is still being loaded, or it cannot be loaded. Why not is
    /// in the evaluator's log.
    PolicyMissing {
        version: PolicyVersion,
        is_loading: bool,
    },
}

/// A decision, and what may be recorded beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "FlatEvaluation")]
pub struct Evaluation {
    #[serde(flatten)]
    pub decision: Decision,
    /// None from an evaluator that does not know of records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recordable: Option<RedactedTexts>,
    /// Where the approval that counted came from; none where none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval_source: Option<ApprovalSource>,
    /// Events of approvals that must be recorded with the decision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<ApprovalEvent>,
}

/// An [`Evaluation`] as it is read: with `flatten`, serde would keep every member in memory before it reads it, which
/// takes three times as long.
#[derive(Deserialize)]
struct FlatEvaluation {
    verdict: Verdict,
    reason: String,
    issues: Vec<Issue>,
    risk_score: u8,
    value_risk: u8,
    waste_risk: u8,
    high_risk: bool,
    clarifying_questions: Vec<String>,
    defer_questions: Vec<String>,
    guardrails: Vec<String>,
    constraints_applied: Vec<String>,
    #[serde(default)]
    constraints_ignored: Vec<String>,
    value_findings: Vec<String>,
    guardrail_checks: BTreeMap<String, BTreeMap<String, GuardrailCheck>>,
    cost_estimate: Option<CostEstimate>,
    policy_version: PolicyVersion,
    #[serde(default)]
    floor_version: Option<PolicyVersion>,
    environment: String,
    decision_trace_summary: String,
    #[serde(default)]
    approval: Option<ApprovalRef>,
    #[serde(default)]
    recordable: Option<RedactedTexts>,
    #[serde(default)]
    approval_source: Option<ApprovalSource>,
    #[serde(default)]
    events: Vec<ApprovalEvent>,
}

impl From<FlatEvaluation> for Evaluation {
    fn from(flat: FlatEvaluation) -> Self {
        let decision = Decision {
            verdict: flat.verdict,
            reason: flat.reason,
            issues: flat.issues,
            risk_score: flat.risk_score,
            value_risk: flat.value_risk,
            waste_risk: flat.waste_risk,
            high_risk: flat.high_risk,
            clarifying_questions: flat.clarifying_questions,
            defer_questions: flat.defer_questions,
            guardrails: flat.guardrails,
            constraints_applied: flat.constraints_applied,
            constraints_ignored: flat.constraints_ignored,
            value_findings: flat.value_findings,
            guardrail_checks: flat.guardrail_checks,
            cost_estimate: flat.cost_estimate,
            policy_version: flat.policy_version,
            floor_version: flat.floor_version,
            environment: flat.environment,
            decision_trace_summary: flat.decision_trace_summary,
            approval: flat.approval,
        };
        let FlatEvaluation { recordable, approval_source, events, .. } = flat;
        Self { decision, recordable, approval_source, events }
    }
}

/// Texts of a request with every secret in them masked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RedactedTexts {
    /// `context.run_id`, or that of `context.loop_state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    /// The risk classes of the declared side effects, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub effect_classes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    #[serde(default)]
    pub caller: CallerTexts,
    /// The request's text: only when it said `debug_store_input: true`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::optional_members")]
    pub input: Option<Map<String, Value>>,
    /// The facts of the decision: only where the account wants them recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Box<KeptFacts>>,
}

/// Gateway to evaluator: do these stops cover this request? For a decision that would be given again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoveredByStop {
    pub account: AccountId,
    pub request: CheckRequest,
    pub asker: Actor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoveredByStopReply {
    pub is_covered: bool,
}

/// Gateway to evaluator: this text without its secrets, for what people write beside actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskText {
    pub account: AccountId,
    pub text: String,
    /// The published versions that are active for the account: what any of them takes for a secret is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyVersion>,
    /// The operator's, beside them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<PolicyVersion>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskTextReply {
    pub text: String,
}

/// Gateway to evaluator: the request is bad already; what more does the policy find wrong?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReviewRequest {
    pub account: AccountId,
    /// The constraints, by index; bad ones are empty.
    pub constraints: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_pack_version: Option<String>,
    /// The published version that would decide it, as far as its environment is known; none: the evaluator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyVersion>,
}

/// What only the policy could know to be wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReviewReply {
    pub errors: Vec<FieldError>,
}

/// Gateway to evaluator: which words does the account's policy know?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VocabularyRequest {
    pub account: AccountId,
    /// The published version that is active for the account; none: the evaluator's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyVersion>,
}

/// What callers may write so that the policy understands it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VocabularyReply {
    pub policy_version: PolicyVersion,
    /// Words by class, constraints with aliases and forms, members of `context`, codes.
    #[serde(deserialize_with = "crate::json::members")]
    pub vocabulary: Map<String, Value>,
}

/// To an evaluator: are you there, and what would decide?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluatorStatus {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluatorStatusReply {
    pub active: PolicyVersion,
    pub loaded: Vec<PolicyVersion>,
}

/// Gateway to keystore: whose key is this? Costs a hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VerifyKey {
    pub key: ApiKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

/// Unknown, wrong, revoked and expired are one answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a reply is read once and not kept")]
pub enum VerifyKeyReply {
    Valid(KeyIdentity),
    Invalid,
    /// Too many hashes wait; ask again.
    Busy,
    Failed,
}

/// Gateway to keystore: a key that I verified before, does it still live? Costs no hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshKey {
    pub key_id: KeyId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "a reply is read once and not kept")]
pub enum RefreshKeyReply {
    /// It is active, with these rights.
    Live(KeyIdentity),
    /// It is revoked, expired or unknown.
    Gone,
    Failed,
}

/// Gateway to keystore: these keys were used in this hour. Sent at most once per key and hour, best effort.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteKeyUses {
    pub hour: Timestamp,
    /// At most [`NoteKeyUses::MAX_KEYS`].
    pub keys: Vec<KeyId>,
}

impl NoteKeyUses {
    pub const MAX_KEYS: usize = 1_000;

    pub fn hour_of(at: Timestamp) -> Timestamp {
        const HOUR: i64 = 3_600;
        Timestamp::from_second(at.as_second().div_euclid(HOUR) * HOUR).unwrap_or(at)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKeyUsesReply {
    /// It will be shown, for the keys that there are.
    Noted,
    /// The keystore has no time or no room for it now.
    Failed,
}

/// To the keystore: are you there?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeystoreStatus {}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeystoreStatusReply {
    pub writable: bool,
    /// Whether the disk is nearly full, so that only revocations and deletions are stored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disk_low: bool,
    /// The public key of this process, in base64url: requests that hold secrets are sealed to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<String>,
}

/// The keystore to all: forget what you know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeyChanged {
    /// Of this key and its account: it was revoked, its end was moved, or what the account may do was changed.
    One { account: AccountId, key_id: KeyId },
    /// Of every key: a keystore begins to serve, and an earlier one may have stored what it did not tell.
    Any {},
}
