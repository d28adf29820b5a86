//! JetStream's requests as this backplane makes them: over the connection's own waiters, with a deadline, in JSON.
//!
//! Owns the reading of many messages by one question (batched direct get), which needs no consumer and so leaves no
//! state on the server. async-nats' own calls are not used: they wait beyond a deadline while disconnected and leak what
//! is never answered. What the streams are is told in `streams`.
//! INVARIANT: a connection holds few subscriptions at any time, since the server bounds them for each login: one message
//! is read by the connection's own inbox, many by a subscription each, of which there are at most [`MAX_READS`].

use std::sync::{Arc, Mutex, PoisonError};

use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::link::Link;
use super::streams::StreamName;
use super::waiters::Check;
use crate::{AskError, ReadError};

/// Reads of many messages at a time on one connection: each has a subscription, and may bring megabytes.
pub(super) const MAX_READS: usize = 64;

/// JetStream's own subjects lead nowhere from this account.
const NOT_IN_ACCOUNT: u64 = 10_039;
pub(super) const NO_SUCH_STREAM: u64 = 10_059;
/// Somebody else made the stream at the same time, perhaps with other settings.
pub(super) const STREAM_EXISTS: u64 = 10_058;
/// Another stream takes its subjects.
pub(super) const SUBJECTS_OVERLAP: u64 = 10_065;
/// Somebody else's message is the last, or, where there are replicas, about to be.
pub(super) const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];
/// The store failed; what it was given may be on disk all the same.
pub(super) const STORE_FAILED: u64 = 10_077;
/// The server's, the account's or the machine's limit is reached.
const NO_ROOM: [u64; 3] = [10_002, 10_023, 10_047];
/// What [`STORE_FAILED`] says of a stream at its own limit: the message was looked at and not taken.
const AT_ITS_LIMIT: [&str; 2] = ["maximum bytes exceeded", "maximum messages exceeded"];
/// The same message is being stored right now.
pub(super) const DUPLICATE_IN_PROCESS: u64 = 10_158;

/// Why JetStream did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JetError {
    /// It said no.
    #[error("{description} ({code})")]
    Refused {
        /// Of JetStream.
        code: u64,
        /// In its words.
        description: String,
    },
    /// There is no such stream, no JetStream, or no way to it from this service's account.
    #[error(
        "nobody answers: JetStream is off, the stream is missing or without a leader, or this service may not ask; is the server's file of this version's `stage0 nats-config`?"
    )]
    Absent,
    /// The server forbids the subject, in its words.
    #[error("nats refuses it: {0}")]
    Forbidden(String),
    /// The account has no JetStream of its own.
    #[error(
        "JetStream is not there for this login: give --nats-jetstream-api {0}.api, as the server's configuration by `stage0 nats-config` has it"
    )]
    NotInAccount(String),
    /// There is no such stream, and this service may not make one.
    #[error(
        "the stream `{0}` is missing and this service may not make it: run `stage0 nats-admin init`, or where an earlier version ran `stage0 nats-admin upgrade`"
    )]
    Missing(String),
    /// Its subjects are those of the ledger of an earlier version.
    #[error("the stream `{0}` is still that of an earlier version: run `stage0 nats-admin upgrade`")]
    Former(String),
    /// A stream of this name is there, and is another one.
    #[error(
        "the stream `{stream}` is not as it has to be: its `{setting}` differs; `stage0 nats-admin check` tells how, and `upgrade` sets it right"
    )]
    Foreign {
        /// Its name.
        stream: String,
        /// The first setting that differs.
        setting: String,
    },
    /// Its places have begun again: what is stored there is not found.
    #[error(
        "the stream `{0}` counts its messages from where no stream begins, as after a purge beyond its end: what is stored there cannot be read; remove it and run `stage0 nats-admin init`"
    )]
    Wrapped(String),
    /// It holds as much as it may.
    #[error("the stream `{0}` has no room: raise its `max_bytes`, or let decisions expire")]
    Full(String),
    /// Nobody waits any more, and nothing was sent.
    #[error("the deadline has passed")]
    Overdue,
    /// Not connected, and nothing was sent.
    #[error("not connected to nats")]
    NotSent,
    /// It is not known what became of it.
    #[error("{0}")]
    Unknown(AskError),
    /// The answer is not one of JetStream's.
    #[error("the answer cannot be read")]
    Unreadable,
}

impl JetError {
    /// Why there was no room, and nothing was stored.
    pub(super) fn no_room(&self) -> Option<&str> {
        match self {
            Self::Refused { code, description } if NO_ROOM.contains(code) => Some(description),
            Self::Refused { code: STORE_FAILED, description } if AT_ITS_LIMIT.contains(&description.as_str()) => {
                Some(description)
            }
            _ => None,
        }
    }
}

impl From<JetError> for ReadError {
    fn from(error: JetError) -> Self {
        Self(error.to_string())
    }
}

/// A stored message.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) at: Timestamp,
    pub(super) subject: String,
    pub(super) payload: Bytes,
    /// As it was published, and what the server said of it behind that.
    pub(super) headers: Option<HeaderMap>,
}

#[derive(Deserialize)]
struct Answer {
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

/// Asks, and takes an answer that is no refusal.
pub(super) async fn ask(link: &Link, subject: String, question: &Value, until: Instant) -> Result<Value, JetError> {
    let question = if question.is_null() { Bytes::new() } else { question.to_string().into() };
    tokio::select! {
        biased;
        why = link.forbidden(&subject) => Err(JetError::Forbidden(why)),
        answer = publish(link, subject.clone(), HeaderMap::new(), question, until) => answer,
    }
}

/// Publishes and waits for the acknowledgement.
pub(super) async fn publish(
    link: &Link,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    until: Instant,
) -> Result<Value, JetError> {
    worth_asking(link, until)?;
    let violations = link.health.violations();
    let to = subject.clone();
    let send = |reply: String| link.client.publish_with_reply_and_headers(to, reply, headers, payload);
    let answer = link.exchange(until, send).await.map_err(|error| match error {
        AskError::Absent => JetError::Absent,
        // A forbidden publish looks like silence: the event says more.
        AskError::Late if let Some(why) = link.health.violation_of(&subject, violations) => JetError::Forbidden(why),
        AskError::Late | AskError::Lost | AskError::Unreadable => JetError::Unknown(error),
        AskError::TooLarge => {
            JetError::Refused { code: 0, description: "the message is larger than the server carries".to_owned() }
        }
    })?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| JetError::Unreadable)?;
    match answer.error {
        Some(ApiError { err_code: NOT_IN_ACCOUNT, .. }) => Err(JetError::NotInAccount(link.prefix.clone())),
        Some(ApiError { err_code, description }) => Err(JetError::Refused { code: err_code, description }),
        None => Ok(answer.rest),
    }
}

/// The client would keep the question and send it after the reconnect; and a timer is late by up to a millisecond.
fn worth_asking(link: &Link, until: Instant) -> Result<(), JetError> {
    if !link.is_up() {
        Err(JetError::NotSent)
    } else if until <= Instant::now() {
        Err(JetError::Overdue)
    } else {
        Ok(())
    }
}

/// Reads stored messages: what `get` asks for, until the server says that this was all. The flag: there were more.
pub(super) async fn fetch(
    link: &Arc<Link>,
    stream: &StreamName,
    get: &Value,
    until: Instant,
) -> Result<(Vec<Stored>, bool), JetError> {
    let (subject, question) = (stream.api(link, "DIRECT.GET"), get.to_string().into());
    if get.get("batch").is_none() {
        let found = read_one(link, subject, question, until).await?;
        return Ok((found.into_iter().collect(), false));
    }
    read_many(link, subject, question, until).await
}

/// Reads the last message of a subject. The subject stands in the question's own, where the server's permissions can see it.
pub(super) async fn fetch_last(
    link: &Arc<Link>,
    stream: &StreamName,
    subject: &str,
    until: Instant,
) -> Result<Option<Stored>, JetError> {
    let question = format!("{}.{subject}", stream.api(link, "DIRECT.GET"));
    read_one(link, question, Bytes::new(), until).await
}

/// One message, which arrives where all answers do.
async fn read_one(
    link: &Arc<Link>,
    subject: String,
    question: Bytes,
    until: Instant,
) -> Result<Option<Stored>, JetError> {
    worth_asking(link, until)?;
    // An answer is its payload alone, and here its headers say what it is.
    let found = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&found);
    let check: Check = Arc::new(move |message: &Message| {
        // The server's own answers can be read; what is stored is judged by whoever asked for it.
        if !is_stored(message) && is_malformed(message.headers.as_ref()) {
            return false;
        }
        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(message.clone());
        true
    });
    let inbox = link.reply_inbox().ok_or(JetError::Unknown(AskError::Lost))?;
    let to = subject.clone();
    let send = |reply: String| link.client.publish_with_reply(to, reply, question);
    tokio::select! {
        biased;
        why = link.forbidden(&subject) => return Err(JetError::Forbidden(why)),
        answer = link.exchange_for(inbox, Some(check), until, send) => match answer {
            Ok(_) => {}
            Err(AskError::Absent) => return Err(JetError::Absent),
            Err(error) => return Err(JetError::Unknown(error)),
        },
    }
    let message = found.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(JetError::Unreadable)?;
    match status(&message) {
        // What is stored may have any status that its publisher liked.
        _ if is_stored(&message) => stored(message).map(Some).ok_or(JetError::Unreadable),
        Some(404) => Ok(None),
        Some(code) => Err(JetError::Refused { code, description: "direct get was refused".to_owned() }),
        None => Err(JetError::Unreadable),
    }
}

async fn read_many(
    link: &Arc<Link>,
    subject: String,
    question: Bytes,
    until: Instant,
) -> Result<(Vec<Stored>, bool), JetError> {
    worth_asking(link, until)?;
    // When the connection breaks, the rest never comes.
    let mut lifeline = link.waiters.enter().map_err(|_| JetError::NotSent)?;
    let answers = async {
        // The semaphore is never closed.
        let _turn = link.reads.acquire().await.map_err(|_| JetError::NotSent)?;
        tokio::select! {
            biased;
            _ = lifeline.answer() => Err(JetError::Unknown(AskError::Lost)),
            why = link.forbidden(&subject) => Err(JetError::Forbidden(why)),
            answers = answers(link, subject.clone(), question) => answers,
        }
    };
    // The subscription ends with its value, on the way out.
    timeout_at(until, answers).await.unwrap_or(Err(JetError::Unknown(AskError::Late)))
}

async fn answers(link: &Link, subject: String, question: Bytes) -> Result<(Vec<Stored>, bool), JetError> {
    let lost = || JetError::Unknown(AskError::Lost);
    let inbox = link.inbox_of_many().ok_or_else(lost)?;
    let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|_| lost())?;
    link.client.publish_with_reply(subject, inbox, question).await.map_err(|_| lost())?;
    let (mut found, mut last) = (Vec::new(), 0);
    // INVARIANT: only the server says that this was all; a subscription that ends says nothing.
    while let Some(message) = answers.next().await {
        // The client drops messages when its queue is full: the server says what it sent before this one.
        let follows = || number(&message, "Nats-Last-Sequence") == Some(last);
        match status(&message) {
            // What is stored may have any status that its publisher liked.
            _ if is_stored(&message) => {
                if !follows() {
                    return Err(lost());
                }
                let message = stored(message).ok_or(JetError::Unreadable)?;
                last = message.sequence;
                found.push(message);
            }
            // The server says nothing that cannot be read: it ends nothing.
            _ if is_malformed(message.headers.as_ref()) => {}
            Some(404) => return Ok((found, false)),
            Some(204) if follows() => {
                return Ok((found, number(&message, "Nats-Num-Pending").ok_or(JetError::Unreadable)? > 0));
            }
            Some(503) => return Err(JetError::Absent),
            None | Some(204) => return Err(lost()),
            Some(code) => return Err(JetError::Refused { code, description: "direct get was refused".to_owned() }),
        }
    }
    Err(lost())
}

fn status(message: &Message) -> Option<u64> {
    match message.status {
        None | Some(StatusCode::OK) => None,
        Some(code) => Some(u64::from(code.as_u16())),
    }
}

/// Whether it is a message of a stream: the server says its place, which it says of no status of its own.
pub(super) fn is_stored(message: &Message) -> bool {
    number(message, "Nats-Sequence").is_some()
}

/// Whether lines of its headers cannot be read. No role and no server writes such, and the server may have read them
/// differently: it is never believed.
pub(super) fn is_malformed(headers: Option<&HeaderMap>) -> bool {
    headers.is_some_and(|headers| headers.skipped_lines() > 0)
}

fn stored(message: Message) -> Option<Stored> {
    let sequence = number(&message, "Nats-Sequence")?;
    let (at, subject) = (said(&message, "Nats-Time-Stamp")?.parse().ok()?, said(&message, "Nats-Subject")?.to_owned());
    Some(Stored { sequence, at, subject, payload: message.payload, headers: message.headers })
}

fn number(message: &Message, name: &str) -> Option<u64> {
    said(message, name)?.parse().ok()
}

/// What the server says stands behind what the publisher said under the same name.
fn said<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    Some(message.headers.as_ref()?.get_last(name)?.as_str())
}

pub(super) async fn info(link: &Link, name: &StreamName, about: &Value, until: Instant) -> Result<Value, JetError> {
    ask(link, name.api(link, "STREAM.INFO"), about, until).await
}

/// Removes a subject's messages before a sequence; how many.
pub(super) async fn purge(
    link: &Link,
    name: &StreamName,
    subject: &str,
    before: u64,
    until: Instant,
) -> Result<u64, JetError> {
    let which = json!({"filter": subject, "seq": before});
    let purged = ask(link, name.api(link, "STREAM.PURGE"), &which, until).await?;
    purged.get("purged").and_then(Value::as_u64).ok_or(JetError::Unreadable)
}
