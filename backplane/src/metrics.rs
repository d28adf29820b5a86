//! Metrics of a connection.
//!
//! Owns every name and label; a label is a subject, a stream or one of our own words, never text of a message. Without
//! an installed recorder, counting does nothing.

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};

use crate::RequestError;

const CONNECTIONS: &str = "stage0_nats_connections";
const CONNECTED: &str = "stage0_nats_connected";
pub(crate) const DISCONNECTS: &str = "stage0_nats_disconnects_total";
pub(crate) const SLOW_CONSUMERS: &str = "stage0_nats_slow_consumers_total";
pub(crate) const LAME_DUCKS: &str = "stage0_nats_lame_ducks_total";
pub(crate) const VIOLATIONS: &str = "stage0_nats_violations_total";
pub(crate) const ERRORS: &str = "stage0_nats_errors_total";
const REJECTED: &str = "stage0_backplane_rejected_messages_total";
const UNAUTHENTICATED: &str = "stage0_backplane_unauthenticated_messages_total";
const AUTH_REQUIRED: &str = "stage0_backplane_message_auth_required";
const REQUESTS: &str = "stage0_backplane_questions_total";
const STREAM_BYTES: &str = "stage0_stream_bytes";
const STREAM_MAX_BYTES: &str = "stage0_stream_max_bytes";
const STORE_CLOCK_SKEW: &str = "stage0_store_clock_skew_seconds";

/// One in this gauge, until it is dropped.
pub(crate) struct Counted(&'static str);

pub(crate) fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Questions to other services, by subject and by what came of them.");
}

pub(crate) fn describe_nats() {
    describe();
    let kept = "Connections to NATS that this process keeps, whether or not they stand.";
    describe_gauge!(CONNECTIONS, Unit::Count, kept);
    describe_gauge!(CONNECTED, Unit::Count, "Connections to NATS that stand.");
    describe_counter!(DISCONNECTS, Unit::Count, "Connections that broke.");
    let slow = "Times that messages were dropped because a queue of ours was full.";
    describe_counter!(SLOW_CONSUMERS, Unit::Count, slow);
    describe_counter!(LAME_DUCKS, Unit::Count, "Announcements of a server that it is about to stop.");
    describe_counter!(VIOLATIONS, Unit::Count, "Publishes and subscriptions that the server forbade.");
    let errors = "Other errors of server and client, failed attempts to reconnect among them.";
    describe_counter!(ERRORS, Unit::Count, errors);
    describe_gauge!(STREAM_BYTES, Unit::Bytes, "Bytes in a stream that this role uses, as last read for readiness.");
    describe_gauge!(STREAM_MAX_BYTES, Unit::Bytes, "Bytes that the stream may hold, where it has a limit.");
    let skew = "How far this host's clock is certainly ahead of the state store's; negative: behind.";
    describe_gauge!(STORE_CLOCK_SKEW, Unit::Seconds, skew);
    // From zero on: a rate does not see the first increment of a counter that did not exist.
    for name in [DISCONNECTS, SLOW_CONSUMERS, VIOLATIONS] {
        counter!(name).increment(0);
    }
}

pub(crate) fn describe_auth() {
    let rejected = "Messages, entries of the log and records that were not believed, by kind and reason.";
    describe_counter!(REJECTED, Unit::Count, rejected);
    let unproven = "Messages, entries of the log and records that were believed without being authenticated, by kind.";
    describe_counter!(UNAUTHENTICATED, Unit::Count, unproven);
    describe_gauge!(AUTH_REQUIRED, Unit::Count, "1 where what is not authenticated is refused, 0 where not yet.");
}

pub(crate) fn rejected(kind: &'static str, reason: &'static str) {
    counter!(REJECTED, "kind" => kind, "reason" => reason).increment(1);
}

pub(crate) fn unauthenticated(kind: &'static str) {
    counter!(UNAUTHENTICATED, "kind" => kind).increment(1);
}

/// `max_bytes` is not positive where the stream has no limit.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
pub(crate) fn stream_size(stream: &str, bytes: i64, max_bytes: i64) {
    gauge!(STREAM_BYTES, "stream" => stream.to_owned()).set(bytes as f64);
    if max_bytes > 0 {
        gauge!(STREAM_MAX_BYTES, "stream" => stream.to_owned()).set(max_bytes as f64);
    }
}

pub(crate) fn store_clock_skew(seconds: f64) {
    gauge!(STORE_CLOCK_SKEW).set(seconds);
}

pub(crate) fn auth_required(required: bool) {
    gauge!(AUTH_REQUIRED).set(if required { 1.0 } else { 0.0 });
}

/// Counts an open connection, connected or not.
pub(crate) fn connection_opened() -> Counted {
    Counted::one(CONNECTIONS)
}

pub(crate) fn connection_up() -> Counted {
    Counted::one(CONNECTED)
}

/// Counts what a client reports beside its messages.
pub(crate) fn problem(name: &'static str) {
    counter!(name).increment(1);
}

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

impl Counted {
    fn one(name: &'static str) -> Self {
        gauge!(name).increment(1.0);
        Self(name)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        gauge!(self.0).decrement(1.0);
    }
}
