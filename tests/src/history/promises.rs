//! What is promised, in the words of the report, and a place where it was not kept.

use std::fmt;

/// A promise that a history can break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    EveryAnswerIsRecorded,
    NothingIsRecordedTwice,
    NoVerdictAgainstThePolicy,
    NoRunOverItsLimit,
    NoAccountOverItsLimit,
    EveryAllowIsCounted,
    NoApprovalIsUsedTwice,
    AUsedApprovalSaysWhoUsedIt,
    OneAnswerForEachIdempotencyKey,
    NoAcknowledgedChangeIsLost,
    ARevokedKeyIsRefused,
    AStopHolds,
    EveryRecordIsDelivered,
    DeliveriesAreSignedAndNumbered,
    TheLogIsWhole,
    OnlyKnownRefusals,
}

impl fmt::Display for Promise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::EveryAnswerIsRecorded => "every answer is recorded as it was given",
            Self::NothingIsRecordedTwice => "no decision is recorded twice",
            Self::NoVerdictAgainstThePolicy => "no verdict is against the policy",
            Self::NoRunOverItsLimit => "no run goes over its limit",
            Self::NoAccountOverItsLimit => "no account goes over its daily limit",
            Self::EveryAllowIsCounted => "every ALLOW of a run is counted",
            Self::NoApprovalIsUsedTwice => "no approval is used twice",
            Self::AUsedApprovalSaysWhoUsedIt => "an approval that was used says which request used it",
            Self::OneAnswerForEachIdempotencyKey => "an idempotency key has one decision",
            Self::NoAcknowledgedChangeIsLost => "no acknowledged change is lost",
            Self::ARevokedKeyIsRefused => "a revoked key is refused",
            Self::AStopHolds => "a stop holds until it is resumed",
            Self::EveryRecordIsDelivered => "every record is delivered, and nothing else",
            Self::DeliveriesAreSignedAndNumbered => "deliveries are signed and numbered without a gap",
            Self::TheLogIsWhole => "the log can be verified",
            Self::OnlyKnownRefusals => "a refusal is one that the documentation names",
        })
    }
}

/// A promise that was broken, about what, and the lines that show it.
#[derive(Debug, Clone)]
pub struct Finding {
    pub promise: Promise,
    pub about: String,
    pub story: Vec<String>,
}
