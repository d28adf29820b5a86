//! What the probes of the gateway answer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AuditMode, PolicyVersion};

/// The answer to `GET /healthz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Liveness {
    /// Always `ok`.
    pub status: LivenessStatus,
}

/// The only state in which a process answers at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LivenessStatus {
    /// The process runs.
    #[default]
    Ok,
}

/// The answer to `GET /readyz`: 200 when ready, else 503.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Readiness")]
pub struct ReadinessReport {
    /// Whether checks can be decided and recorded.
    pub ready: bool,
    /// `required`: ready only while decisions can be recorded. `best-effort`: ready without that, and `reasons` says
    /// so. `none`: this deployment records nothing.
    pub audit: AuditMode,
    /// The policy that decides, as an evaluator reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<PolicyVersion>,
    /// What keeps it from being ready, then what is worth knowing, such as `audit: sync mode not verified`.
    pub reasons: Vec<String>,
}
