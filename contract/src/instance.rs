//! Heartbeats, and the answer of `GET /v1/status`, which gateways make of those that they received.
//!
//! INVARIANT: nothing here decides whether a check is answered; a process without heartbeats may still serve.

use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{PolicyVersion, Role};

/// Each process to the gateways: I am there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceHeartbeat {
    /// What it is.
    pub role: Role,
    /// Which of them: a name that no other process has.
    pub instance: String,
    /// Its version and commit.
    pub version: String,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// `not_ready`: it runs and cannot do its part. `stopping`: it finishes its requests in flight, and ends.
    /// `lost`: its last heartbeat is more than six seconds old.
    pub state: InstanceState,
    /// Why it cannot do its part, or what is worth knowing; absent: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Of an evaluator: what decides unless another is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<PolicyVersion>,
    /// Of audit-export alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryLag>,
    /// Which kinds of lines of the log it can read: 0, or absent, those of decisions and marks; from 1 on every kind,
    /// unknown ones too.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub log_edition: u32,
    /// Of an evaluator: whether it decides by the policies that an account activates. 0, or absent: it does not.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub policy_edition: u32,
    /// Of an evaluator: published policies that it has loaded, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64))]
    pub policies: Vec<PolicyVersion>,
    /// The protocol that it speaks with other processes; 0, or absent: that of releases before it had a number.
    #[serde(default, skip_serializing_if = "crate::json::is_zero")]
    pub protocol_version: u32,
}

/// The protocol that processes of this release speak: the messages between them, the log, and what they store for each
/// other. A release that changes it raises the number by one.
pub const PROTOCOL_VERSION: u32 = 1;

/// Whether processes that speak these protocols may run side by side: those of one release and of the next.
pub const fn may_run_together(one: u32, other: u32) -> bool {
    one.abs_diff(other) <= 1
}

/// The longest name or version.
const MAX_NAME_BYTES: usize = 128;
const MAX_REMARKS: usize = 16;
const MAX_REMARK_BYTES: usize = 512;
/// The most policies that a heartbeat lists.
pub const MAX_LISTED_POLICIES: usize = 64;

impl InstanceHeartbeat {
    /// What this version announces as `log_edition`.
    pub const LOG_EDITION: u32 = 1;

    /// What evaluators of this version announce as `policy_edition`.
    pub const POLICY_EDITION: u32 = 1;

    /// The interval of heartbeats.
    pub const INTERVAL: Duration = Duration::from_secs(2);

    /// The subject of a role's heartbeats. Each role has its own, so that none can speak for another.
    pub const fn subject(role: Role) -> &'static str {
        match role {
            Role::Gateway => "notice.instance.gateway",
            Role::Evaluator => "notice.instance.evaluator",
            Role::Keystore => "notice.instance.keystore",
            Role::AuditExport => "notice.instance.audit-export",
        }
    }

    /// Whether it is small enough to keep many of them.
    pub fn is_small(&self) -> bool {
        [&self.instance, &self.version].iter().all(|text| text.len() <= MAX_NAME_BYTES)
            && self.remarks.len() <= MAX_REMARKS
            && self.policies.len() <= MAX_LISTED_POLICIES
            && self.remarks.iter().all(|remark| remark.len() <= MAX_REMARK_BYTES)
    }

    /// Cuts remarks to what [`InstanceHeartbeat::is_small`] lets pass.
    pub fn remarks_of(remarks: impl IntoIterator<Item = String>) -> Vec<String> {
        let cut = |remark: String| match remark.char_indices().find(|(at, c)| at + c.len_utf8() > MAX_REMARK_BYTES) {
            Some((at, _)) => remark.get(..at).unwrap_or_default().to_owned(),
            None => remark,
        };
        remarks.into_iter().take(MAX_REMARKS).map(cut).collect()
    }
}

/// How a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It can do its part.
    Ready,
    /// It runs and cannot.
    NotReady,
    /// It finishes its requests in flight, and ends.
    Stopping,
    /// Its last heartbeat is too old. Only gateways report this.
    Lost,
}

impl InstanceState {
    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Stopping => "stopping",
            Self::Lost => "lost",
        }
    }
}

/// How far one exporter's deliveries are behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DeliveryLag {
    /// Endpoints that it serves.
    pub endpoints: u32,
    /// Those with an event that is not delivered after a minute.
    pub behind: u32,
    /// Age of the oldest event that is not delivered, in seconds; 0 when all are.
    pub oldest_seconds: u64,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The answering gateway's clock.
    pub at: Timestamp,
    /// By role and name.
    pub instances: Vec<InstanceStatus>,
}

/// What is known of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceStatus {
    /// What it last said; `state` is `lost` when that is too long ago.
    #[serde(flatten)]
    pub seen: InstanceHeartbeat,
    /// How long ago it said so, in seconds.
    pub seconds_ago: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_neighbouring_protocols_run_side_by_side() {
        for (one, other) in [(0, 0), (0, 1), (1, 0), (7, 8)] {
            assert!(may_run_together(one, other), "{one} {other}");
        }
        for (one, other) in [(0, 2), (2, 0), (1, 3), (u32::MAX, 0)] {
            assert!(!may_run_together(one, other), "{one} {other}");
        }
    }

    #[test]
    fn remarks_are_cut_to_what_is_kept() {
        let long = "ä".repeat(MAX_REMARK_BYTES);
        let remarks = InstanceHeartbeat::remarks_of(vec![long; MAX_REMARKS + 1]);
        let seen = |remarks| InstanceHeartbeat {
            role: Role::Gateway,
            instance: "i".repeat(MAX_NAME_BYTES),
            version: "v".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            state: InstanceState::Ready,
            remarks,
            policy_version: None,
            delivery: None,
            log_edition: 0,
            policy_edition: 0,
            policies: Vec::new(),
            protocol_version: 0,
        };
        assert_eq!((remarks.len(), remarks[0].len()), (MAX_REMARKS, MAX_REMARK_BYTES));
        assert!(seen(remarks).is_small());
        for bad in [vec!["x".repeat(MAX_REMARK_BYTES + 1)], vec![String::new(); MAX_REMARKS + 1]] {
            assert!(!seen(bad).is_small());
        }
        assert!(!InstanceHeartbeat { instance: "i".repeat(MAX_NAME_BYTES + 1), ..seen(vec![]) }.is_small());
    }
}
