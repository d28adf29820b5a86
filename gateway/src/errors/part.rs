//! The part of the installation that a 503 names, as far as it is known.
//!
//! Owns the names under which an operator finds the part (`stage0 status` shows the same roles). The cause is only
//! logged, because it may name hosts.

use std::fmt;

use stage0_backplane::RequestError;
use stage0_contract::{Request, Role, question};

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Service(Role, How),
    /// The connection to all services.
    Backplane,
    /// The decision log, when a decision is recorded.
    LogUnwritten,
    /// The decision log, when it is read.
    LogUnread,
    /// Where runs, counters and idempotency keys are kept.
    StateStore,
}

/// How a service failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// No instance of it serves.
    Absent,
    /// It did not answer in time.
    Silent,
    /// It refused the request because it is overloaded.
    Busy,
    /// It answered with a failure or unintelligibly.
    Failed,
}

impl Part {
    /// The service that serves `M`, which gave no answer.
    pub(crate) fn asked<M: Request>(error: &RequestError) -> Self {
        Self::of_service(role_of::<M>(), error)
    }

    /// The service that serves `M`, which answered.
    pub(crate) fn answered<M: Request>(how: How) -> Self {
        Self::Service(role_of::<M>(), how)
    }

    pub(crate) fn of_service(role: Role, error: &RequestError) -> Self {
        match error {
            RequestError::NoResponders => Self::Service(role, How::Absent),
            RequestError::Timeout => Self::Service(role, How::Silent),
            RequestError::Disconnected => Self::Backplane,
            RequestError::TooLarge | RequestError::Malformed => Self::Service(role, How::Failed),
        }
    }
}

/// INVARIANT: every request has a row in the contract's table of messages.
fn role_of<M: Request>() -> Role {
    question(M::SUBJECT).map_or(Role::Keystore, |question| question.to)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(role, How::Absent) => write!(f, "no {role} serves"),
            Self::Service(role, How::Silent) => write!(f, "the {role} does not answer"),
            Self::Service(role, How::Busy) => write!(f, "the {role} has too much to do"),
            Self::Service(role, How::Failed) => write!(f, "the {role} failed"),
            Self::Backplane => f.write_str("the connection to the other services is lost"),
            Self::LogUnwritten => f.write_str("the decision log cannot be written"),
            Self::LogUnread => f.write_str("the decision log cannot be read"),
            Self::StateStore => f.write_str("the state store does not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::{EvaluateRequest, REQUESTS, VerifyKey};

    #[test]
    fn a_503_names_the_role_that_failed() {
        let absent = Part::asked::<EvaluateRequest>(&RequestError::NoResponders);
        assert_eq!(absent.to_string(), "no evaluator serves");
        let silent = Part::asked::<VerifyKey>(&RequestError::Timeout);
        assert_eq!(silent.to_string(), "the keystore does not answer");
        let lost = Part::asked::<VerifyKey>(&RequestError::Disconnected);
        assert!(!lost.to_string().contains("keystore"), "it is unknown whether it serves");
        assert!(REQUESTS.iter().all(|question| !question.subject.is_empty()));
    }
}
