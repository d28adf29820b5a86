//! JetStream's API as this backplane uses it: over the connection's own waiters, with a deadline, in JSON.
//!
//! Many messages are read with one request (batched direct get), which leaves no state on the server. The calls of
//! async-nats are not used: they wait beyond a deadline while disconnected and leak requests that are never answered.
//! INVARIANT: a connection holds few subscriptions at any time, since the server limits them for each login: one
//! message is read through the connection's own inbox, many through one of at most [`MAX_READS`] subscriptions.

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep, timeout_at};

use super::link::Link;
use super::streams::StreamName;
use super::waiters::Check;
use crate::{Cause, MarkError, PutError, ReadError, RequestError};

/// Concurrent reads of many messages on one connection; each may bring megabytes.
pub(super) const MAX_READS: usize = 64;

/// JetStream's API subjects lead nowhere from this account.
const NOT_IN_ACCOUNT: u64 = 10_039;
pub(super) const NO_SUCH_STREAM: u64 = 10_059;
pub(super) const STREAM_EXISTS: u64 = 10_058;
pub(super) const SUBJECTS_OVERLAP: u64 = 10_065;
/// Another message is the last one.
const WRONG_LAST_SEQUENCE: u64 = 10_071;
/// Where there are replicas: another message of the subject is about to be stored, or to be lost with its leader.
const LAST_SEQUENCE_UNDECIDED: u64 = 10_164;
/// The store failed; the message may be on disk all the same.
pub(super) const STORE_FAILED: u64 = 10_077;
/// The server's, the account's or the machine's limit is reached.
const NO_SPACE: [u64; 3] = [10_002, 10_023, 10_047];
/// How [`STORE_FAILED`] describes a stream at its own limit: the message was checked and not stored.
const AT_ITS_LIMIT: [&str; 2] = ["maximum bytes exceeded", "maximum messages exceeded"];
/// The same message is being stored right now.
pub(super) const DUPLICATE_IN_PROCESS: u64 = 10_158;
/// The cluster, or the stream, has no leader.
const NO_LEADER: u64 = 10_008;
/// Replicas store a message within a few milliseconds of each other.
pub(super) const REPLICA_RETRY_DELAY: Duration = Duration::from_millis(2);
/// A replica that lags for longer is treated like a server whose data was put back to an earlier state.
pub(super) const REPLICA_LAG_TIMEOUT: Duration = Duration::from_millis(500);
/// A server that has no leader yet may not answer at all.
const LEADER_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const LEADER_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Why JetStream did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JetError {
    #[error("{description} ({code})")]
    Refused { code: u64, description: String },
    #[error(
        "nobody answers: JetStream is off, the stream is missing or without a leader, or this service may not ask; \
         is the server's file of this version's `stage0 nats-config`?"
    )]
    NoResponders,
    /// The server forbids the subject; its text.
    #[error("nats refuses it: {0}")]
    Forbidden(String),
    /// The account has no JetStream of its own; the deployment's prefix.
    #[error(
        "JetStream is not there for this login: give --nats-jetstream-api {0}.api, as the server's configuration by \
         `stage0 nats-config` has it"
    )]
    NotInAccount(String),
    #[error(
        "the stream `{0}` is missing and this service may not make it: run `stage0 nats-admin init`, or where an \
         earlier version ran `stage0 nats-admin upgrade`"
    )]
    Missing(String),
    #[error("the stream `{0}` is still that of an earlier version: run `stage0 nats-admin upgrade`")]
    OldLayout(String),
    /// The first setting that differs.
    #[error(
        "the stream `{stream}` is not as it has to be: its `{setting}` differs; `stage0 nats-admin check` tells how, \
         and `upgrade` sets it right"
    )]
    WrongSettings { stream: String, setting: String },
    #[error(
        "the stream `{0}` counts its messages from where no stream begins, as after a purge beyond its end: what is \
         stored there cannot be read; remove it and run `stage0 nats-admin init`"
    )]
    Wrapped(String),
    #[error("the stream `{0}` has no room: raise its `max_bytes`, or let decisions expire")]
    Full(String),
    /// Nothing was sent.
    #[error("the deadline has passed")]
    DeadlinePassed,
    /// Nothing was sent.
    #[error("not connected to nats")]
    NotConnected,
    /// It is not known whether it was done.
    #[error(transparent)]
    Unacknowledged(RequestError),
    #[error("the answer cannot be read")]
    Malformed,
}

impl JetError {
    /// The connection broke, or there is no randomness for a new address.
    pub(super) const LOST: Self = Self::Unacknowledged(RequestError::Disconnected);

    fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: WRONG_LAST_SEQUENCE, .. })
    }

    /// Whether an election may be under way, and would end this.
    fn may_lack_a_leader(&self) -> bool {
        matches!(self, Self::Refused { code: NO_LEADER, .. } | Self::Unacknowledged(RequestError::Timeout))
    }

    /// Whether the same request may succeed later although no setting changes.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            Self::NoResponders | Self::DeadlinePassed | Self::NotConnected | Self::Unacknowledged(_) => true,
            Self::Refused { code, .. } => *code == NO_LEADER,
            Self::Forbidden(_)
            | Self::NotInAccount(_)
            | Self::Missing(_)
            | Self::OldLayout(_)
            | Self::WrongSettings { .. }
            | Self::Wrapped(_)
            | Self::Full(_)
            | Self::Malformed => false,
        }
    }

    /// Why there was no space, if that is why nothing was stored.
    pub(super) fn no_space(&self) -> Option<&str> {
        match self {
            Self::Refused { code, description } if NO_SPACE.contains(code) => Some(description),
            Self::Refused { code: STORE_FAILED, description } if AT_ITS_LIMIT.contains(&description.as_str()) => {
                Some(description)
            }
            _ => None,
        }
    }
}

impl From<JetError> for Cause {
    fn from(error: JetError) -> Self {
        Self::new(error)
    }
}

impl From<JetError> for ReadError {
    fn from(error: JetError) -> Self {
        Self(error.into())
    }
}

impl From<JetError> for MarkError {
    fn from(error: JetError) -> Self {
        if error.is_conflict() { Self::Conflict } else { Self::Failed(error.into()) }
    }
}

impl From<JetError> for PutError {
    fn from(error: JetError) -> Self {
        if error.is_conflict() { Self::Conflict } else { Self::Failed(error.into()) }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) at: Timestamp,
    pub(super) subject: String,
    pub(super) payload: Bytes,
    /// As published; what the server added comes last.
    pub(super) headers: Option<HeaderMap>,
}

#[derive(Deserialize)]
struct ApiAnswer {
    error: Option<ApiError>,
    #[serde(flatten)]
    rest: Value,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Sends an API request and returns the answer, unless that is an error.
pub(super) async fn api_request(
    link: &Link,
    subject: String,
    request: &Value,
    until: Instant,
) -> Result<Value, JetError> {
    let request = if request.is_null() { Bytes::new() } else { request.to_string().into() };
    tokio::select! {
        biased;
        why = link.wait_for_violation(&subject) => Err(JetError::Forbidden(why)),
        answer = publish(link, subject.clone(), HeaderMap::new(), request, until) => answer,
    }
}

pub(super) async fn publish(
    link: &Link,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    until: Instant,
) -> Result<Value, JetError> {
    check_sendable(link, until)?;
    let violations = link.health.violations();
    let to = subject.clone();
    let send = |reply: String| link.client.publish_with_reply_and_headers(to, reply, headers, payload);
    let address = link.reply_inbox.new_address().ok_or(JetError::LOST)?;
    let answer = link.reply_inbox.request(address, None, until, send).await.map_err(|error| match error {
        RequestError::NoResponders => JetError::NoResponders,
        // A forbidden publish looks like a timeout; the event tells.
        RequestError::Timeout if let Some(why) = link.health.violation_of(&subject, violations) => {
            JetError::Forbidden(why)
        }
        RequestError::Timeout | RequestError::Disconnected | RequestError::Malformed => JetError::Unacknowledged(error),
        RequestError::TooLarge => {
            JetError::Refused { code: 0, description: "the message is larger than the server carries".to_owned() }
        }
    })?;
    let answer: ApiAnswer = serde_json::from_slice(&answer).map_err(|_| JetError::Malformed)?;
    match answer.error {
        Some(ApiError { err_code: NOT_IN_ACCOUNT, .. }) => Err(JetError::NotInAccount(link.prefix.clone())),
        Some(ApiError { err_code, description }) => Err(JetError::Refused { code: err_code, description }),
        None => Ok(answer.rest),
    }
}

/// Publishes a message that names the last one of its subject. INVARIANT: a conflict means that another message *is*
/// the last one. While one is about to be stored this waits, as it may still be lost: it could be this caller's own,
/// whose acknowledgement did not come.
pub(super) async fn publish_expecting(
    link: &Link,
    subject: &str,
    headers: &HeaderMap,
    payload: &Bytes,
    until: Instant,
) -> Result<Value, JetError> {
    loop {
        match publish(link, subject.to_owned(), headers.clone(), payload.clone(), until).await {
            Err(JetError::Refused { code: LAST_SEQUENCE_UNDECIDED, .. })
                if Instant::now() + REPLICA_RETRY_DELAY < until =>
            {
                sleep(REPLICA_RETRY_DELAY).await;
            }
            published => return published,
        }
    }
}

/// The client would queue the request and send it after a reconnect. A timer may fire up to a millisecond late.
fn check_sendable(link: &Link, until: Instant) -> Result<(), JetError> {
    if !link.is_up() {
        Err(JetError::NotConnected)
    } else if until <= Instant::now() {
        Err(JetError::DeadlinePassed)
    } else {
        Ok(())
    }
}

/// Reads the stored messages that `get` asks for. The flag: the server stopped at a limit.
pub(super) async fn fetch(
    link: &Arc<Link>,
    stream: &StreamName,
    get: &Value,
    until: Instant,
) -> Result<(Vec<Stored>, bool), JetError> {
    let (subject, request) = (stream.api(link, "DIRECT.GET"), get.to_string().into());
    if get.get("batch").is_some() {
        return read_many(link, subject, request, until).await;
    }
    Ok((read_one(link, subject, request, until).await?.into_iter().collect(), false))
}

/// The subject is part of the request's subject, so that the server's permissions can restrict it.
pub(super) async fn fetch_last(
    link: &Arc<Link>,
    stream: &StreamName,
    subject: &str,
    until: Instant,
) -> Result<Option<Stored>, JetError> {
    let request = format!("{}.{subject}", stream.api(link, "DIRECT.GET"));
    read_one(link, request, Bytes::new(), until).await
}

async fn read_one(
    link: &Arc<Link>,
    subject: String,
    request: Bytes,
    until: Instant,
) -> Result<Option<Stored>, JetError> {
    check_sendable(link, until)?;
    // A reply is only its payload, and here the headers tell what it is.
    let found = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&found);
    let check: Check = Arc::new(move |message: &Message| {
        // The server's own answers can always be parsed; what is stored is judged by the caller.
        if !is_stored(message) && is_malformed(message.headers.as_ref()) {
            return false;
        }
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.clone());
        true
    });
    let inbox = link.reply_inbox.new_address().ok_or(JetError::LOST)?;
    let to = subject.clone();
    let send = |reply: String| link.client.publish_with_reply(to, reply, request);
    tokio::select! {
        biased;
        why = link.wait_for_violation(&subject) => return Err(JetError::Forbidden(why)),
        answer = link.reply_inbox.request(inbox, Some(check), until, send) => match answer {
            Ok(_) => {}
            Err(RequestError::NoResponders) => return Err(JetError::NoResponders),
            Err(error) => return Err(JetError::Unacknowledged(error)),
        },
    }
    let message = found.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(JetError::Malformed)?;
    match status(&message) {
        _ if is_stored(&message) => stored(message).map(Some).ok_or(JetError::Malformed),
        Some(404) => Ok(None),
        Some(code) => Err(JetError::Refused { code, description: "direct get was refused".to_owned() }),
        None => Err(JetError::Malformed),
    }
}

async fn read_many(
    link: &Arc<Link>,
    subject: String,
    request: Bytes,
    until: Instant,
) -> Result<(Vec<Stored>, bool), JetError> {
    check_sendable(link, until)?;
    // If the connection breaks, the rest never comes.
    let mut waiter = link.waiters.register().map_err(|_| JetError::NotConnected)?;
    let answers = async {
        // The semaphore is never closed.
        let _turn = link.reads.acquire().await.map_err(|_| JetError::NotConnected)?;
        tokio::select! {
            biased;
            _ = waiter.answer() => Err(JetError::LOST),
            why = link.wait_for_violation(&subject) => Err(JetError::Forbidden(why)),
            answers = read_batch(link, subject.clone(), request) => answers,
        }
    };
    // Dropping the future ends the subscription.
    timeout_at(until, answers).await.unwrap_or(Err(JetError::Unacknowledged(RequestError::Timeout)))
}

async fn read_batch(link: &Link, subject: String, request: Bytes) -> Result<(Vec<Stored>, bool), JetError> {
    let inbox = link.new_stream_inbox().ok_or(JetError::LOST)?;
    let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|_| JetError::LOST)?;
    link.client.publish_with_reply(subject, inbox, request).await.map_err(|_| JetError::LOST)?;
    let (mut found, mut last) = (Vec::new(), 0);
    // INVARIANT: only the server's end message completes a read; a subscription that ends proves nothing.
    while let Some(message) = answers.next().await {
        // The client drops messages when its queue is full; the server names the message that it sent before this one.
        let follows = || number(&message, "Nats-Last-Sequence") == Some(last);
        match status(&message) {
            // A publisher can give a stored message any status.
            _ if is_stored(&message) => {
                if !follows() {
                    return Err(JetError::LOST);
                }
                let message = stored(message).ok_or(JetError::Malformed)?;
                last = message.sequence;
                found.push(message);
            }
            // The server sends nothing that cannot be parsed, so this does not end the read.
            _ if is_malformed(message.headers.as_ref()) => {}
            Some(404) => return Ok((found, false)),
            Some(204) if follows() => {
                return Ok((found, number(&message, "Nats-Num-Pending").ok_or(JetError::Malformed)? > 0));
            }
            Some(503) => return Err(JetError::NoResponders),
            None | Some(204) => return Err(JetError::LOST),
            Some(code) => return Err(JetError::Refused { code, description: "direct get was refused".to_owned() }),
        }
    }
    Err(JetError::LOST)
}

fn status(message: &Message) -> Option<u64> {
    match message.status {
        None | Some(StatusCode::OK) => None,
        Some(code) => Some(u64::from(code.as_u16())),
    }
}

/// Whether it is a message of a stream: the server adds its sequence, which it does for none of its own statuses.
pub(super) fn is_stored(message: &Message) -> bool {
    number(message, "Nats-Sequence").is_some()
}

/// The server may read lines that cannot be parsed differently, so such a message is never trusted.
pub(super) fn is_malformed(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|headers| headers.skipped_lines() > 0)
}

fn stored(message: Message) -> Option<Stored> {
    let sequence = number(&message, "Nats-Sequence")?;
    let (at, subject) =
        (last_header(&message, "Nats-Time-Stamp")?.parse().ok()?, last_header(&message, "Nats-Subject")?.to_owned());
    Some(Stored { sequence, at, subject, payload: message.payload, headers: message.headers })
}

fn number(message: &Message, name: &str) -> Option<u64> {
    last_header(message, name)?.parse().ok()
}

/// The server appends its own value after any that the publisher set under the same name.
fn last_header<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    Some(message.headers.as_ref()?.get_last(name)?.as_str())
}

pub(super) async fn info(link: &Link, name: &StreamName, about: &Value, until: Instant) -> Result<Value, JetError> {
    api_request(link, name.api(link, "STREAM.INFO"), about, until).await
}

/// Like [`info`] without a filter, and waits for a leader where there is none yet.
pub(super) async fn info_once_led(link: &Link, name: &StreamName, until: Instant) -> Result<Value, JetError> {
    loop {
        let attempt = until.min(Instant::now() + LEADER_ATTEMPT_TIMEOUT);
        match info(link, name, &Value::Null, attempt).await {
            Err(error) if error.may_lack_a_leader() && Instant::now() + LEADER_RETRY_DELAY < until => {
                sleep(LEADER_RETRY_DELAY).await;
            }
            found => return found,
        }
    }
}

/// Removes a subject's messages before a sequence; returns how many.
pub(super) async fn purge(
    link: &Link,
    name: &StreamName,
    subject: &str,
    before: u64,
    until: Instant,
) -> Result<u64, JetError> {
    let which = json!({"filter": subject, "seq": before});
    let purged = api_request(link, name.api(link, "STREAM.PURGE"), &which, until).await?;
    purged.get("purged").and_then(Value::as_u64).ok_or(JetError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_about_to_be_stored_is_no_conflict_yet() {
        let refused = |code| JetError::Refused { code, description: String::new() };
        assert_eq!(PutError::from(refused(WRONG_LAST_SEQUENCE)), PutError::Conflict);
        assert_eq!(MarkError::from(refused(WRONG_LAST_SEQUENCE)), MarkError::Conflict);
        assert!(matches!(PutError::from(refused(LAST_SEQUENCE_UNDECIDED)), PutError::Failed(_)));
        assert!(matches!(MarkError::from(refused(LAST_SEQUENCE_UNDECIDED)), MarkError::Failed(_)));
    }
}
