//! What every process says of itself, again and again, so that somebody can say which are there.
//!
//! Owns the event and the answer of `GET /v1/status`, which gateways make of what they heard. INVARIANT: nothing here decides whether a
//! check is answered; a process that is not heard of may still serve.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{PolicyVersion, Role};

/// Each process to the gateways: I am there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSeen {
    /// What it is.
    pub role: Role,
    /// Which of them: a name that no other process has.
    pub instance: String,
    /// Its version and commit.
    pub version: String,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// How it is.
    pub state: InstanceState,
    /// Why it cannot do its part, or what an operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
    /// Of an evaluator: what decides unless another is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<PolicyVersion>,
    /// Of audit-export: how far deliveries are behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<DeliveryLag>,
}

/// Of a name or a version.
const MOST_NAME_BYTES: usize = 128;
const MOST_REMARKS: usize = 16;
const MOST_REMARK_BYTES: usize = 512;

impl InstanceSeen {
    /// How often it says so.
    pub const EVERY: Duration = Duration::from_secs(2);

    /// Where a role says it: each in a place of its own, so that none can speak for another.
    #[must_use]
    pub const fn subject(role: Role) -> &'static str {
        match role {
            Role::Gateway => "notice.instance.gateway",
            Role::Evaluator => "notice.instance.evaluator",
            Role::Keystore => "notice.instance.keystore",
            Role::AuditExport => "notice.instance.audit-export",
        }
    }

    /// Whether it is of a size that somebody can keep many of.
    #[must_use]
    pub fn is_small(&self) -> bool {
        [&self.instance, &self.version].iter().all(|text| text.len() <= MOST_NAME_BYTES)
            && self.remarks.len() <= MOST_REMARKS
            && self.remarks.iter().all(|remark| remark.len() <= MOST_REMARK_BYTES)
    }

    /// Cuts remarks to what [`InstanceSeen::is_small`] lets pass.
    #[must_use]
    pub fn remarks_of(remarks: impl IntoIterator<Item = String>) -> Vec<String> {
        let cut = |remark: String| match remark.char_indices().find(|(at, c)| at + c.len_utf8() > MOST_REMARK_BYTES) {
            Some((at, _)) => remark.get(..at).unwrap_or_default().to_owned(),
            None => remark,
        };
        remarks.into_iter().take(MOST_REMARKS).map(cut).collect()
    }
}

/// How a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// It can do its part.
    Ready,
    /// It runs and cannot.
    NotReady,
    /// It finishes what is in hand, and ends.
    Stopping,
    /// Nothing was heard of it for a while. Only gateways say this.
    Lost,
}

impl InstanceState {
    /// As on the wire.
    #[must_use]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeliveryLag {
    /// Endpoints that it serves.
    pub endpoints: u32,
    /// Those with something that is not delivered after a minute.
    pub behind: u32,
    /// Age of the oldest event that is not delivered, in seconds; 0 when all are.
    pub oldest_seconds: u64,
}

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The answering gateway's clock.
    pub at: Timestamp,
    /// Everybody who was heard of in the last minutes, by role and name.
    pub instances: Vec<InstanceStatus>,
}

/// What is known of one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStatus {
    /// What it last said; `state` is `lost` when that is too long ago.
    #[serde(flatten)]
    pub seen: InstanceSeen,
    /// How long ago that was, in seconds.
    pub seconds_ago: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_are_cut_to_what_is_kept() {
        let long = "ä".repeat(MOST_REMARK_BYTES);
        let remarks = InstanceSeen::remarks_of(vec![long; MOST_REMARKS + 1]);
        let seen = |remarks| InstanceSeen {
            role: Role::Gateway,
            instance: "i".repeat(MOST_NAME_BYTES),
            version: "v".to_owned(),
            started_at: Timestamp::UNIX_EPOCH,
            state: InstanceState::Ready,
            remarks,
            policy_version: None,
            delivery: None,
        };
        assert_eq!((remarks.len(), remarks[0].len()), (MOST_REMARKS, MOST_REMARK_BYTES));
        assert!(seen(remarks).is_small());
        for bad in [vec!["x".repeat(MOST_REMARK_BYTES + 1)], vec![String::new(); MOST_REMARKS + 1]] {
            assert!(!seen(bad).is_small());
        }
        assert!(!InstanceSeen { instance: "i".repeat(MOST_NAME_BYTES + 1), ..seen(vec![]) }.is_small());
    }
}
