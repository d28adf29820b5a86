//! What every process says of itself, again and again, so that somebody can say which are there.
//!
//! Owns the event and the answer of `GET /v1/status`, which gateways make of what they heard. INVARIANT: nothing here decides whether a
//! check is answered; a process that is not heard of may still serve.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Notice, PolicyVersion, Role};

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

impl InstanceSeen {
    /// How often it says so.
    pub const EVERY: Duration = Duration::from_secs(2);
}

impl Notice for InstanceSeen {
    const SUBJECT: &'static str = "notice.instance.seen";
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
