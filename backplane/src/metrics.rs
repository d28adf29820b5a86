//! What a connection counts, and under which names.
//!
//! Owns every name and label; a label is a subject or a word of ours, never text of a message. Where nobody records, counting does
//! nothing.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::AskError;

const CONNECTIONS: &str = "stage0_nats_connections";
const CONNECTED: &str = "stage0_nats_connected";
const DISCONNECTS: &str = "stage0_nats_disconnects_total";
const SLOW_CONSUMERS: &str = "stage0_nats_slow_consumers_total";
const LAME_DUCKS: &str = "stage0_nats_lame_ducks_total";
const VIOLATIONS: &str = "stage0_nats_violations_total";
const ERRORS: &str = "stage0_nats_errors_total";
const REJECTED: &str = "stage0_backplane_rejected_messages_total";
const UNAUTHENTICATED: &str = "stage0_backplane_unauthenticated_messages_total";
const AUTH_REQUIRED: &str = "stage0_backplane_message_auth_required";
const QUESTIONS: &str = "stage0_backplane_questions_total";

/// What a client reports beside its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    Disconnect,
    SlowConsumer,
    LameDuck,
    Violation,
    Error,
}

/// A connection that was made and is not given up; it is when this is dropped.
pub(crate) struct Kept(());

/// A connection that stands; it no longer does when this is dropped.
pub(crate) struct Standing(());

/// Tells whoever records what the names mean.
pub(crate) fn describe() {
    describe_counter!(QUESTIONS, Unit::Count, "Questions to other services, by subject and by what came of them.");
}

/// As [`describe`], for what only NATS has.
pub(crate) fn describe_nats() {
    describe();
    describe_gauge!(
        CONNECTIONS,
        Unit::Count,
        "Connections to NATS that this process keeps, whether or not they stand."
    );
    describe_gauge!(CONNECTED, Unit::Count, "Connections to NATS that stand.");
    describe_counter!(DISCONNECTS, Unit::Count, "Connections that broke.");
    describe_counter!(
        SLOW_CONSUMERS,
        Unit::Count,
        "Times that messages were dropped because a queue of ours was full."
    );
    describe_counter!(LAME_DUCKS, Unit::Count, "Announcements of a server that it is about to stop.");
    describe_counter!(VIOLATIONS, Unit::Count, "Publishes and subscriptions that the server forbade.");
    describe_counter!(
        ERRORS,
        Unit::Count,
        "Other errors of server and client, failed attempts to reconnect among them."
    );
}

/// As [`describe`], for what authentication of messages counts.
pub(crate) fn describe_auth() {
    describe_counter!(
        REJECTED,
        Unit::Count,
        "Messages, entries of the log and records that were not believed, by kind and reason."
    );
    describe_counter!(
        UNAUTHENTICATED,
        Unit::Count,
        "Messages, entries of the log and records that were believed without being authenticated, by kind."
    );
    describe_gauge!(AUTH_REQUIRED, Unit::Count, "1 where what is not authenticated is refused, 0 where not yet.");
}

pub(crate) fn rejected(kind: &'static str, reason: &'static str) {
    counter!(REJECTED, "kind" => kind, "reason" => reason).increment(1);
}

pub(crate) fn unauthenticated(kind: &'static str) {
    counter!(UNAUTHENTICATED, "kind" => kind).increment(1);
}

pub(crate) fn auth_required(required: bool) {
    gauge!(AUTH_REQUIRED).set(if required { 1.0 } else { 0.0 });
}

pub(crate) fn kept() -> Kept {
    gauge!(CONNECTIONS).increment(1.0);
    Kept(())
}

pub(crate) fn standing() -> Standing {
    gauge!(CONNECTED).increment(1.0);
    Standing(())
}

pub(crate) fn trouble(trouble: Trouble) {
    let name = match trouble {
        Trouble::Disconnect => DISCONNECTS,
        Trouble::SlowConsumer => SLOW_CONSUMERS,
        Trouble::LameDuck => LAME_DUCKS,
        Trouble::Violation => VIOLATIONS,
        Trouble::Error => ERRORS,
    };
    counter!(name).increment(1);
}

/// `error`: why there was no answer in time.
pub(crate) fn asked(subject: &'static str, error: Option<AskError>) {
    let outcome = match error {
        None => "answered",
        Some(AskError::Absent) => "absent",
        Some(AskError::Late) => "late",
        Some(AskError::Lost) => "lost",
        Some(AskError::TooLarge) => "too_large",
        Some(AskError::Unreadable) => "unreadable",
    };
    counter!(QUESTIONS, "subject" => subject, "outcome" => outcome).increment(1);
}

impl Drop for Kept {
    fn drop(&mut self) {
        gauge!(CONNECTIONS).decrement(1.0);
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        gauge!(CONNECTED).decrement(1.0);
    }
}
