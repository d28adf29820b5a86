//! Stops: what denies every check in its scope until a person resumes it.
//!
//! The keystore keeps stops, and gateways learn of them as they learn of a revoked key, with the caller's identity: a
//! gateway that cannot know whether a stop holds does not answer. Which checks a stop covers is judged by the policy.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AccountId, Caller, KeyId, MemberId, StopId};

/// The most stops that hold at the same time in an account.
pub const MAX_STOPS: usize = 100;

/// What a stop covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopScope {
    /// Every check of the account.
    Account,
    /// Checks in this environment, by any of its names, and checks that name none.
    Environment,
    /// Checks that propose this tool, by every reading of its name.
    Tool,
    /// Checks of this key, and of the keys that it was rotated to or from.
    Key,
    /// Every check of every account: the operator's.
    All,
}

/// A stop that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stop {
    /// The stop's id.
    pub id: StopId,
    /// The account; null where it covers all of them.
    pub account: Option<AccountId>,
    /// What it covers.
    pub scope: StopScope,
    /// The environment, tool or key id; null for `account` and `all`.
    pub value: Option<String>,
    /// Why, for people; secrets masked.
    pub reason: String,
    /// RFC 3339.
    pub created_at: Timestamp,
    /// It ends by itself then; null: when somebody resumes it.
    pub until: Option<Timestamp>,
    /// The key that made it.
    pub key_id: KeyId,
    /// The member that made it; null where it was no member's key.
    pub member_id: Option<MemberId>,
}

/// `POST /v1/stops`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateStop {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// What it covers; `all` is the operator's alone.
    pub scope: StopScope,
    /// The environment, tool or key id; absent for `account` and `all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1, "maxLength" = 1000))]
    pub value: Option<String>,
    /// Why: 1 to 500 characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: String,
    /// When it ends by itself; absent or null: when somebody resumes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

/// `GET /v1/stops`: those that hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListStops {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

/// `POST /v1/stops/{id}/resume`: by a member's key with `stops:manage`, or the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResumeStop {
    #[schemars(skip)]
    pub caller: Caller,
    /// The stop.
    pub id: StopId,
    /// Why: 1 to 500 characters.
    #[schemars(extend("minLength" = 1, "maxLength" = 500))]
    pub reason: String,
}

/// The stop as it was while it held.
pub type Resumed = Stop;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scope_of_a_stop_has_its_word() {
        for (scope, word) in [
            (StopScope::Account, "account"),
            (StopScope::Environment, "environment"),
            (StopScope::Tool, "tool"),
            (StopScope::Key, "key"),
            (StopScope::All, "all"),
        ] {
            assert_eq!(serde_json::to_value(scope).unwrap(), word);
            assert_eq!(serde_json::from_value::<StopScope>(word.into()).unwrap(), scope);
        }
        for bad in ["", "Account", "everything"] {
            assert!(serde_json::from_value::<StopScope>(bad.into()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_stop_without_an_end_says_so() {
        let text = include_str!("../fixtures/stop_reply_done.json");
        let mut stop = serde_json::from_str::<serde_json::Value>(text).unwrap()["done"].take();
        for member in ["account", "value", "until", "member_id"] {
            stop[member] = serde_json::Value::Null;
        }
        let read: Stop = serde_json::from_value(stop.clone()).unwrap();
        assert_eq!((&read.account, &read.value, read.until, &read.member_id), (&None, &None, None, &None));
        assert_eq!(serde_json::to_value(&read).unwrap(), stop, "null and not absent");
    }
}
