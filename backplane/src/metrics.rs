//! Metrics of a connection.
//!
//! Owns every name and label; a label is a subject or one of our own words, never text of a message. Without an
//! installed recorder, counting does nothing.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::RequestError;

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
const REQUESTS: &str = "stage0_backplane_questions_total";

/// What a NATS client reports beside its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionProblem {
    Disconnect,
    SlowConsumer,
    LameDuck,
    Violation,
    Error,
}

/// Counts an open connection, connected or not, until it is dropped.
pub(crate) struct OpenConnection(());

/// Counts a connected connection until it is dropped.
pub(crate) struct Connected(());

/// Registers the descriptions of the metrics with the recorder.
pub(crate) fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Questions to other services, by subject and by what came of them.");
}

/// Like [`describe`], for metrics that only NATS has.
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

/// Like [`describe`], for the authentication of messages.
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

pub(crate) fn connection_opened() -> OpenConnection {
    gauge!(CONNECTIONS).increment(1.0);
    OpenConnection(())
}

pub(crate) fn connection_up() -> Connected {
    gauge!(CONNECTED).increment(1.0);
    Connected(())
}

pub(crate) fn problem(problem: ConnectionProblem) {
    let name = match problem {
        ConnectionProblem::Disconnect => DISCONNECTS,
        ConnectionProblem::SlowConsumer => SLOW_CONSUMERS,
        ConnectionProblem::LameDuck => LAME_DUCKS,
        ConnectionProblem::Violation => VIOLATIONS,
        ConnectionProblem::Error => ERRORS,
    };
    counter!(name).increment(1);
}

/// Counts a request by its outcome; `error` is why there was no reply.
pub(crate) fn request_finished(subject: &'static str, error: Option<RequestError>) {
    let outcome = match error {
        None => "answered",
        Some(RequestError::NoResponders) => "absent",
        Some(RequestError::Timeout) => "late",
        Some(RequestError::Disconnected) => "lost",
        Some(RequestError::TooLarge) => "too_large",
        Some(RequestError::Malformed) => "unreadable",
    };
    counter!(REQUESTS, "subject" => subject, "outcome" => outcome).increment(1);
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        gauge!(CONNECTIONS).decrement(1.0);
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        gauge!(CONNECTED).decrement(1.0);
    }
}
