//! Verdicts, severities and the codes of issues, as they are spelled on the wire: the words that a client branches on.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Signal;
use crate::id::text_id;

/// What the check came to. Ordered by strength: DENY outranks DEFER outranks ALLOW.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// The action may run.
    Allow,
    /// Something is missing: ask, wait or provide it, then check again.
    Defer,
    /// The action must not run.
    Deny,
}

impl Verdict {
    /// The paired traffic-light word: GO, DEFER or NO_GO.
    pub fn signal(self) -> Signal {
        match self {
            Self::Allow => Signal::Go,
            Self::Defer => Signal::Defer,
            Self::Deny => Signal::NoGo,
        }
    }

    /// Reads the wire form.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Allow, Self::Defer, Self::Deny].into_iter().find(|verdict| verdict.as_str() == text)
    }

    /// As on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Defer => "DEFER",
            Self::Deny => "DENY",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a satisfied rule does. Ordered by strength.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Adds an issue and decides nothing.
    Advise,
    /// Makes the verdict at least DEFER.
    Defer,
    /// Makes the verdict DENY.
    Deny,
}

/// How grave an issue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Worth knowing.
    Low,
    /// Worth acting on; `pro` denies on it.
    Medium,
    /// Never together with an ALLOW.
    High,
    /// Never together with an ALLOW.
    Critical,
}

/// What the caller can do about an issue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NextAction {
    /// Send another request: this one will never pass.
    FixRequest,
    /// Send the missing facts.
    ProvideContext,
    /// Get a person's approval.
    RequestApproval,
    /// Try later.
    Wait,
    /// Give the task back.
    Stop,
}

text_id!(
    /// A stable reason code such as `APPROVAL_REQUIRED`: upper-case letters, digits and `_`, at most 64.
    IssueCode,
    "an issue code: upper-case letters, digits and `_`, at most 64",
    |text| {
        text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_uppercase())
            && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    }
);

impl IssueCode {
    /// A policy failed while it was evaluated; always denies.
    pub const POLICY_ERROR: &str = "POLICY_ERROR";

    /// A stop covers the check; always denies.
    pub const STOPPED: &str = "STOPPED";
    /// What came of an earlier check of the same action is not known; always defers.
    pub const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";
    /// The approval was refused; always denies.
    pub const APPROVAL_STATUS_INVALID: &str = "APPROVAL_STATUS_INVALID";

    /// The code of a check that a stop covers.
    pub fn stopped() -> Self {
        Self(Self::STOPPED.into())
    }

    /// The code of a check whose action has no known end yet.
    pub fn outcome_unknown() -> Self {
        Self(Self::OUTCOME_UNKNOWN.into())
    }

    /// The code of an action whose approval was refused.
    pub fn approval_status_invalid() -> Self {
        Self(Self::APPROVAL_STATUS_INVALID.into())
    }

    /// A member of `context` is missing or cannot be read.
    pub const CONTEXT_REQUIRED: &str = "CONTEXT_REQUIRED";

    /// The code of a member of `context` that is missing or cannot be read.
    pub fn context_required() -> Self {
        Self(Self::CONTEXT_REQUIRED.into())
    }

    /// The code of an error in the policy itself.
    pub fn policy_error() -> Self {
        Self(Self::POLICY_ERROR.into())
    }
}
