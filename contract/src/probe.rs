//! The may-ever question: which of these tools can the policy never allow the caller?
//!
//! For guards that hide what is of no use from a model. INVARIANT: a probe allows nothing, counts nothing, advances no
//! run and uses no approval; what is not surely denied is `maybe`, and each call is decided again.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{AccountId, Actor, IssueCode, PolicyVersion, RequestId};

/// The most tools of one probe.
pub const MAX_PROBED_TOOLS: usize = 200;

/// `POST /v1/probes`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeTools {
    #[schemars(skip)]
    pub request_id: RequestId,
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub asker: Actor,
    /// As the evaluation of a check: the state store's time as the gateway knows it.
    #[schemars(skip)]
    pub evaluated_at: i64,
    /// Where the tools would run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 1000))]
    pub environment: Option<String>,
    /// Members that every call would have, such as `actor_role` or `active_mcp_servers`.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "crate::json::optional_members")]
    #[schemars(with = "Option<BTreeMap<String, Value>>")]
    pub context: Option<Map<String, Value>>,
    /// Constraints that every call would declare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>", extend("maxItems" = 200))]
    pub constraints: Vec<String>,
    /// 1 to 200 tools.
    #[schemars(extend("minItems" = 1, "maxItems" = 200))]
    pub tools: Vec<ProbedTool>,
}

/// A tool, with the effects that a call of it would declare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbedTool {
    /// Its name, as a check would send it.
    #[schemars(extend("minLength" = 1, "maxLength" = 1000))]
    pub tool: String,
    /// What a call would declare.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Option<Vec<String>>", extend("maxItems" = 200))]
    pub side_effects: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeReply {
    Probed(ProbeFindings),
    /// Not decided; the text is for the log. The gateway answers 503.
    Unable(String),
    Busy,
    PolicyMissing {
        version: PolicyVersion,
        is_loading: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFindings {
    pub policy_version: PolicyVersion,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_version: Option<PolicyVersion>,
    pub environment: String,
    /// In the order of the request.
    pub tools: Vec<ToolFinding>,
    /// Names of the tools that are never allowed, normalised, secrets masked, at most 20: for the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recordable: Vec<String>,
}

/// What the policy says of one tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolFinding {
    /// As asked.
    pub tool: String,
    /// `never`: rules deny it whatever its arguments, its run and its approvals are. `maybe`: ask at each call.
    pub may: MayEver,
    /// Why never: the codes of those rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<IssueCode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MayEver {
    /// Ask at each call.
    Maybe,
    /// Denied whatever the call says.
    Never,
}

/// The answer to `POST /v1/probes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    /// Of this probe: its line in the log has it.
    pub request_id: RequestId,
    /// The policy that answered.
    pub policy_version: PolicyVersion,
    /// The operator's pack beside it; null: none.
    pub floor_version: Option<PolicyVersion>,
    /// Empty when unknown.
    pub environment: String,
    /// In the order of the request.
    pub tools: Vec<ToolFinding>,
}
