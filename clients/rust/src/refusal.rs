//! Why an action must not run.

use stage0_contract::{ApprovalRef, ApprovalStatus, CheckResponse, FieldError, PolicyVersion, RequestId};

use crate::action::Action;
use crate::connection::ConnectionError;
use crate::judge::NoDecision;
use crate::text::plain;

/// The action must not run. There is no third way between this and [`Allowed`](crate::Allowed).
#[derive(Debug, thiserror::Error)]
pub enum NotAllowed {
    /// The policy forbids it. The same action again has the same answer.
    #[error(transparent)]
    Denied(Box<Denied>),
    /// Evidence, an approval or time is missing.
    #[error(transparent)]
    Deferred(Box<Deferred>),
    /// There is no decision.
    #[error(transparent)]
    Undecided(Undecided),
}

/// The policy forbids the action.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("denied: {} (request {}, policy {})", plain(&.0.decided.reason), .0.request_id, .0.decided.policy_version)]
pub struct Denied(pub(crate) CheckResponse);

/// Something is missing before the policy allows the action.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("deferred: {} (request {}, policy {})", self.missing(), .response.request_id, .response.decided.policy_version)]
pub struct Deferred {
    pub(crate) response: CheckResponse,
    /// As it was asked, with the client's defaults.
    pub(crate) action: Action,
}

/// There is no decision: a broken connection, an error of the server, an answer that is not complete, a mistake in the
/// request. The text says which.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum Undecided {
    #[error("no decision, so the action must not run: {0}")]
    Connection(ConnectionError),
    #[error("no decision, so the action must not run: the answer is not a complete decision: {why}")]
    Answer {
        why: NoDecision,
        status: u16,
        /// From the answer's header.
        request_id: Option<String>,
    },
    #[error("no decision, so the action must not run: the request cannot be sent: {0}")]
    Request(String),
}

impl NotAllowed {
    /// The decision, or the answer that is none, in the server's log.
    pub fn request_id(&self) -> Option<String> {
        match self {
            Self::Denied(denied) => Some(denied.request_id().to_string()),
            Self::Deferred(deferred) => Some(deferred.request_id().to_string()),
            Self::Undecided(undecided) => undecided.request_id().map(str::to_owned),
        }
    }

    /// The policy that decided; none where there is no decision.
    pub fn policy_version(&self) -> Option<&PolicyVersion> {
        self.response().map(|response| &response.decided.policy_version)
    }

    /// The decision; none where there is none.
    pub fn response(&self) -> Option<&CheckResponse> {
        match self {
            Self::Denied(denied) => Some(denied.response()),
            Self::Deferred(deferred) => Some(deferred.response()),
            Self::Undecided(_) => None,
        }
    }

    /// What an agent should know: that the action did not run, why, and what it can do about it.
    pub fn advice(&self) -> String {
        let mut lines = vec![format!("The action did not run. {self}")];
        if let Some(response) = self.response() {
            lines.extend(response.decided.issues.iter().map(|issue| {
                let next = serde_json::to_value(issue.next_action).unwrap_or_default();
                let next = next.as_str().unwrap_or_default().to_owned();
                format!("- {}: {} (next: {next})", issue.code.as_str(), plain(&issue.message))
            }));
            lines.extend(response.decided.clarifying_questions.iter().map(|question| format!("- {}", plain(question))));
        }
        if let Self::Deferred(deferred) = self
            && let Some(ApprovalRef { status: ApprovalStatus::Pending, url, .. }) = deferred.approval()
        {
            lines.push(format!("A person must approve it: {}. Then call it again, unchanged.", plain(url)));
        }
        if matches!(self, Self::Undecided(_)) {
            lines.push("This says nothing about the action itself. Do not work around it.".to_owned());
        }
        lines.join("\n")
    }
}

impl Denied {
    /// Names the decision in the log.
    pub fn request_id(&self) -> RequestId {
        self.0.request_id
    }

    /// The whole answer, with the issues and what would settle them.
    pub fn response(&self) -> &CheckResponse {
        &self.0
    }
}

impl Deferred {
    /// Names the decision in the log.
    pub fn request_id(&self) -> RequestId {
        self.response.request_id
    }

    /// The whole answer.
    pub fn response(&self) -> &CheckResponse {
        &self.response
    }

    /// What is missing. Never empty.
    pub fn questions(&self) -> &[String] {
        &self.response.decided.clarifying_questions
    }

    /// The approval that it waits for, if only that is missing.
    pub fn approval(&self) -> Option<&ApprovalRef> {
        self.response.decided.approval.as_ref()
    }

    /// The action as it was asked, with the client's defaults.
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// With the state of its approval as it was read since.
    pub(crate) fn now(mut self, status: ApprovalStatus) -> Self {
        if let Some(approval) = &mut self.response.decided.approval {
            approval.status = status;
        }
        self
    }

    fn missing(&self) -> String {
        let reason = plain(&self.response.decided.reason);
        match self.approval() {
            Some(ApprovalRef { id: Some(id), status, .. }) => format!("{reason}; approval {id} is {}", status.as_str()),
            Some(_) | None => reason,
        }
    }
}

impl Undecided {
    /// The status of the server's answer, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Connection(ConnectionError::Refused { status, .. }) | Self::Answer { status, .. } => Some(*status),
            Self::Connection(_) | Self::Request(_) => None,
        }
    }

    /// The server's name for the request, if it answered.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            Self::Connection(ConnectionError::Refused { request_id, .. }) | Self::Answer { request_id, .. } => {
                request_id.as_deref()
            }
            Self::Connection(_) | Self::Request(_) => None,
        }
    }

    /// The members of the request that are wrong.
    pub fn fields(&self) -> &[FieldError] {
        match self {
            Self::Connection(ConnectionError::Refused { fields, .. }) => fields,
            Self::Connection(_) | Self::Answer { .. } | Self::Request(_) => &[],
        }
    }
}

impl From<Denied> for NotAllowed {
    fn from(denied: Denied) -> Self {
        Self::Denied(Box::new(denied))
    }
}

impl From<Deferred> for NotAllowed {
    fn from(deferred: Deferred) -> Self {
        Self::Deferred(Box::new(deferred))
    }
}

impl From<Undecided> for NotAllowed {
    fn from(undecided: Undecided) -> Self {
        Self::Undecided(undecided)
    }
}

impl From<ConnectionError> for NotAllowed {
    fn from(error: ConnectionError) -> Self {
        Self::Undecided(Undecided::Connection(error))
    }
}
