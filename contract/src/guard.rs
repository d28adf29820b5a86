//! Guards: what enforces decisions beside an agent, and when each reported last.
//!
//! A report says how soon the next one comes; a guard that is later than that is silent. It is a sign of life and no
//! proof: a guard counts what it saw itself. INVARIANT: a report holds no text of an action.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AccountId, GuardId, KeyId};

/// The longest kind, version or host, in characters.
pub const MAX_GUARD_TEXT_CHARS: usize = 64;
/// The longest promise of a next report, in seconds: a week.
pub const MAX_NEXT_WITHIN_SECONDS: u32 = 604_800;
/// The most guards of an account.
pub const MAX_GUARDS: usize = 10_000;
/// A silent guard is forgotten after this many days.
pub const GUARD_TTL_DAYS: u32 = 30;

/// `POST /v1/guards`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReportGuard {
    #[schemars(skip)]
    pub account: AccountId,
    #[schemars(skip)]
    pub key_id: KeyId,
    /// How long the account's lines are kept.
    #[schemars(skip)]
    pub retention_days: u32,
    /// The guard's own name of itself, the same at every report: 1 to 64 letters, digits, `_` or `-`.
    pub guard_id: GuardId,
    /// What it guards, such as `claude-code`, `codex` or `mcp`: 1 to 64 letters, digits or one of `._-/@+`.
    #[schemars(extend("minLength" = 1, "maxLength" = 64))]
    pub kind: String,
    /// Its own version, in the same characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 64))]
    pub version: String,
    /// The version of the agent, in the same characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 64))]
    pub agent_version: Option<String>,
    /// The machine, in the same characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 64))]
    pub host: Option<String>,
    /// Its next report comes within this time; 0: it ends, and is not missed.
    #[schemars(extend("maximum" = crate::MAX_NEXT_WITHIN_SECONDS))]
    pub next_within_seconds: u32,
    #[serde(flatten)]
    pub counts: GuardCounts,
}

/// What a guard has counted since it was set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GuardCounts {
    /// Tool calls that it asked about.
    #[serde(default)]
    #[schemars(with = "Option<u64>", extend("maximum" = crate::UNLIMITED, "default" = 0))]
    pub asked: u64,
    /// Tool calls that were denied or deferred.
    #[serde(default)]
    #[schemars(with = "Option<u64>", extend("maximum" = crate::UNLIMITED, "default" = 0))]
    pub refused: u64,
    /// Tool calls that it refused without a decision.
    #[serde(default)]
    #[schemars(with = "Option<u64>", extend("maximum" = crate::UNLIMITED, "default" = 0))]
    pub undecided: u64,
    /// Tool calls that ran without a decision, as it saw afterwards.
    #[serde(default)]
    #[schemars(with = "Option<u64>", extend("maximum" = crate::UNLIMITED, "default" = 0))]
    pub ran_undecided: u64,
}

/// A guard, as it reported last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Guard {
    /// The guard's own name of itself.
    pub guard_id: GuardId,
    /// `alive`: its next report is not due yet. `silent`: it is overdue. `ended`: it said that it ends.
    pub state: GuardState,
    /// What it guards.
    pub kind: String,
    /// Its version.
    pub version: String,
    /// The version of the agent; null: not reported.
    pub agent_version: Option<String>,
    /// The machine; null: not reported.
    pub host: Option<String>,
    /// The key that reported last.
    pub key_id: KeyId,
    /// When it reported first.
    pub first_seen: Timestamp,
    /// When it reported last.
    pub last_seen: Timestamp,
    /// When its next report is due; null: it ended.
    pub due_at: Option<Timestamp>,
    #[serde(flatten)]
    pub counts: GuardCounts,
}

/// How a guard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuardState {
    /// Its next report is not due yet.
    Alive,
    /// It is overdue.
    Silent,
    /// It said that it ends.
    Ended,
}

impl GuardState {
    pub const ALL: [Self; 3] = [Self::Alive, Self::Silent, Self::Ended];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Silent => "silent",
            Self::Ended => "ended",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// `GET /v1/guards`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListGuards {
    #[schemars(skip)]
    pub account: AccountId,
    /// Only those.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<GuardState>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

/// `DELETE /v1/guards/{guard_id}`: gateway to evaluator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForgetGuard {
    #[schemars(skip)]
    pub account: AccountId,
    /// The guard.
    pub guard_id: GuardId,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardForgotten {}

/// Gateway to evaluator: which guards went silent, and are not recorded as such? The events are settled like those of
/// approvals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectSilentGuards {
    /// Where the page before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Whether a text can name a kind, a version or a host of a guard.
pub fn is_guard_text(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/@+".contains(&b);
    (1..=MAX_GUARD_TEXT_CHARS).contains(&text.len()) && text.bytes().all(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_a_guard_is_plain() {
        for good in ["claude-code", "2.1.332", "ci-runner_7.example", "@stage0/client+1", &"x".repeat(64)] {
            assert!(is_guard_text(good), "{good}");
        }
        for bad in ["", "a b", "a\n", "ä", "rm;", &"x".repeat(65)] {
            assert!(!is_guard_text(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_state_is_written_as_it_is_read() {
        for state in GuardState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
            assert_eq!(GuardState::parse(state.as_str()), Some(state));
        }
        assert_eq!(GuardState::parse("lost"), None);
    }
}
