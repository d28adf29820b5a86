//! Verdicts, severities and the codes of issues: the words that a client branches on.
//!
//! Owns their spelling on the wire. Which rule carries which code is the policy pack's business.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::IdError;

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
    pub fn signal(self) -> crate::Signal {
        match self {
            Self::Allow => crate::Signal::Go,
            Self::Defer => crate::Signal::Defer,
            Self::Deny => crate::Signal::NoGo,
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

/// A stable reason code such as `APPROVAL_REQUIRED`: upper-case letters, digits and `_`, at most 64.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IssueCode(String);

impl IssueCode {
    /// A policy failed while it was evaluated; always denies.
    pub const POLICY_ERROR: &str = "POLICY_ERROR";

    /// Parses the text, or says what it must be.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let starts = text.bytes().next().is_some_and(|b| b.is_ascii_uppercase());
        let body = text.len() <= 64 && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
        if starts && body { Ok(Self(text.to_owned())) } else { Err(IdError::code()) }
    }

    /// The code of an error in the policy itself.
    pub fn policy_error() -> Self {
        Self(Self::POLICY_ERROR.to_owned())
    }

    /// As on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IssueCode {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl From<IssueCode> for String {
    fn from(code: IssueCode) -> String {
        code.0
    }
}

impl fmt::Display for IssueCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for IssueCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
