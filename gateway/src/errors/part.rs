//! Which part of the installation an answer was missing, as far as it is known: for the text of a 503.
//!
//! Owns the names under which an operator finds the part (`stage0 status` shows the same roles) and nothing of the
//! cause: that is in the log, and may name hosts.

use std::fmt;

use stage0_backplane::AskError;
use stage0_contract::{Request, Role, question};

/// What did not do its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A service.
    Service(Role, How),
    /// The way to all services.
    Backplane,
    /// The log, of which a decision's record is a line.
    LogUnwritten,
    /// The log, where it is read.
    LogUnread,
    /// Where runs, counters and idempotency keys are kept.
    Ledger,
}

/// How a service failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// There is none.
    Absent,
    /// It did not answer in time.
    Silent,
    /// It has too much to do.
    Busy,
    /// It answered that it could not, or what cannot be read.
    Failed,
}

impl Part {
    /// The service that was asked, after it gave no answer.
    pub(crate) fn asked<M: Request>(error: &AskError) -> Self {
        Self::of_service(role_of::<M>(), error)
    }

    /// The service that was asked, which answered so.
    pub(crate) fn answered<M: Request>(how: How) -> Self {
        Self::Service(role_of::<M>(), how)
    }

    pub(crate) fn of_service(role: Role, error: &AskError) -> Self {
        match error {
            AskError::Absent => Self::Service(role, How::Absent),
            AskError::Late => Self::Service(role, How::Silent),
            AskError::Lost => Self::Backplane,
            AskError::TooLarge | AskError::Unreadable => Self::Service(role, How::Failed),
        }
    }
}

/// Who answers this question. INVARIANT: every question has a line in the contract's table of traffic.
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
            Self::Ledger => f.write_str("the state store does not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::{EvaluateRequest, QUESTIONS, VerifyKey};

    #[test]
    fn a_part_is_named_as_its_role() {
        let absent = Part::asked::<EvaluateRequest>(&AskError::Absent);
        assert_eq!(absent.to_string(), "no evaluator serves");
        let silent = Part::asked::<VerifyKey>(&AskError::Late);
        assert_eq!(silent.to_string(), "the keystore does not answer");
        let lost = Part::asked::<VerifyKey>(&AskError::Lost);
        assert!(!lost.to_string().contains("keystore"), "nobody knows whether it serves");
        assert!(QUESTIONS.iter().all(|question| !question.subject.is_empty()));
    }
}
