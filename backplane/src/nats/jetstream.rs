//! JetStream's requests as this backplane makes them: over the connection's own waiters, with a deadline, in JSON.
//!
//! Owns the streams' names, their settings and the reading of many messages by one question (batched direct get), which needs no
//! consumer and so leaves no state on the server. async-nats' own calls are not used: they wait beyond a deadline while
//! disconnected and leak what is never answered.
//! Two streams: `<PREFIX>_LOG` holds `<prefix>.log.<account>.d` (decisions) and `.m` (marks); `<PREFIX>_LEDGER` holds records.

use std::sync::Arc;

use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use super::link::Link;
use crate::{AskError, ReadError};

/// How long the server remembers the id of a message.
const DUPLICATE_WINDOW_NANOS: u64 = 120_000_000_000;
/// The server keeps nothing for a shorter time.
const SHORTEST_AGE_NANOS: u64 = 100_000_000;
/// Of the log, before anybody says how long decisions are kept: beyond the longest retention by as much as
/// `expire_after` is told later.
const FIRST_MAX_AGE_NANOS: u64 = (3_650 + 365) * 86_400 * 1_000_000_000;

/// Settings of a stream without which it is not what this backplane writes to; others are the operator's.
const REQUIRED: [&str; 6] = ["subjects", "retention", "storage", "discard", "allow_direct", "allow_msg_ttl"];

const NO_SUCH_STREAM: u64 = 10_059;
/// Somebody else made the stream at the same time, perhaps with other settings.
const STREAM_EXISTS: u64 = 10_058;
/// Somebody else's message is the last, or, where there are replicas, about to be.
pub(super) const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];
/// The store failed; what it was given may be on disk all the same.
pub(super) const STORE_FAILED: u64 = 10_077;
/// The server's, the account's or the machine's limit is reached.
pub(super) const NO_ROOM: [u64; 3] = [10_002, 10_023, 10_047];
/// The same message is being stored right now.
pub(super) const DUPLICATE_IN_PROCESS: u64 = 10_158;

/// One of the two streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamName(String);

impl StreamName {
    pub(super) fn log(prefix: &str) -> Self {
        Self::of(prefix, "LOG")
    }

    pub(super) fn ledger(prefix: &str) -> Self {
        Self::of(prefix, "LEDGER")
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the server is asked to do this with it.
    fn api(&self, link: &Link, what: &str) -> String {
        format!("{}.{what}.{}", link.jetstream_api, self.0)
    }

    fn of(prefix: &str, suffix: &str) -> Self {
        // A stream's name holds no dot.
        Self(format!("{}_{suffix}", prefix.replace('.', "_").to_ascii_uppercase()))
    }
}

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
    #[error("nobody answers: JetStream is off, the stream is missing or without a leader, or this service may not ask")]
    Absent,
    /// The server forbids the subject, in its words.
    #[error("nats refuses it: {0}")]
    Forbidden(String),
    /// There is no such stream, and this service may not make one.
    #[error("the stream `{0}` is missing and this service may not make it: start audit-export, which may")]
    Missing(String),
    /// A stream of this name is there, and is another one.
    #[error("the stream `{stream}` is not as it has to be: its `{setting}` differs")]
    Foreign {
        /// Its name.
        stream: String,
        /// The first setting that differs.
        setting: &'static str,
    },
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
    let batch = get.get("batch").is_some();
    read(link, stream.api(link, "DIRECT.GET"), get.to_string().into(), batch, until).await
}

/// Reads the last message of a subject. The subject stands in the question's own, where the server's permissions can see it.
pub(super) async fn fetch_last(
    link: &Arc<Link>,
    stream: &StreamName,
    subject: &str,
    until: Instant,
) -> Result<Option<Stored>, JetError> {
    let question = format!("{}.{subject}", stream.api(link, "DIRECT.GET"));
    let (found, _) = read(link, question, Bytes::new(), false, until).await?;
    Ok(found.into_iter().next())
}

async fn read(
    link: &Arc<Link>,
    subject: String,
    question: Bytes,
    batch: bool,
    until: Instant,
) -> Result<(Vec<Stored>, bool), JetError> {
    worth_asking(link, until)?;
    // When the connection breaks, the rest never comes.
    let mut lifeline = link.waiters.enter().map_err(|_| JetError::NotSent)?;
    let answers = async {
        tokio::select! {
            biased;
            _ = lifeline.answer() => Err(JetError::Unknown(AskError::Lost)),
            why = link.forbidden(&subject) => Err(JetError::Forbidden(why)),
            answers = answers(link, subject.clone(), question, batch) => answers,
        }
    };
    // The subscription ends with its value, on the way out.
    timeout_at(until, answers).await.unwrap_or(Err(JetError::Unknown(AskError::Late)))
}

async fn answers(link: &Link, subject: String, question: Bytes, batch: bool) -> Result<(Vec<Stored>, bool), JetError> {
    let lost = || JetError::Unknown(AskError::Lost);
    let inbox = link.client.new_inbox();
    let mut answers = link.client.subscribe(inbox.clone()).await.map_err(|_| lost())?;
    link.client.publish_with_reply(subject, inbox, question).await.map_err(|_| lost())?;
    let (mut found, mut last) = (Vec::new(), 0);
    // INVARIANT: only the server says that this was all; a subscription that ends says nothing.
    while let Some(message) = answers.next().await {
        // The client drops messages when its queue is full: the server says what it sent before this one.
        let follows = || number(&message, "Nats-Last-Sequence") == Some(last);
        match status(&message) {
            // What is stored may have any status that its publisher liked.
            _ if is_stored(&message) && !batch => {
                return Ok((vec![stored(message).ok_or(JetError::Unreadable)?], false));
            }
            _ if is_stored(&message) && follows() => {
                let message = stored(message).ok_or(JetError::Unreadable)?;
                last = message.sequence;
                found.push(message);
            }
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
fn is_stored(message: &Message) -> bool {
    number(message, "Nats-Sequence").is_some()
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

/// The settings of the log's stream.
pub(super) fn log_settings(prefix: &str, replicas: usize) -> Value {
    json!({
        "name": StreamName::log(prefix).0,
        "description": "Stage0: recorded decisions",
        "subjects": [format!("{prefix}.log.*.d"), format!("{prefix}.log.*.m")],
        "retention": "limits",
        "storage": "file",
        // Full means that nothing is recorded, and so nothing released; never that the oldest goes early.
        "discard": "new",
        "num_replicas": replicas,
        "max_age": FIRST_MAX_AGE_NANOS,
        "duplicate_window": DUPLICATE_WINDOW_NANOS,
        "allow_direct": true,
    })
}

/// The settings of the ledger's stream.
pub(super) fn ledger_settings(prefix: &str, replicas: usize) -> Value {
    json!({
        "name": StreamName::ledger(prefix).0,
        "description": "Stage0: shared records",
        "subjects": [format!("{prefix}.ledger.>")],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "num_replicas": replicas,
        "max_msgs_per_subject": 1,
        "discard_new_per_subject": false,
        "duplicate_window": DUPLICATE_WINDOW_NANOS,
        "allow_msg_ttl": true,
        "allow_direct": true,
    })
}

/// Makes a stream unless it is there; returns its settings as they are.
pub(super) async fn ensure(link: &Link, settings: &Value, until: Instant) -> Result<Value, JetError> {
    let name = StreamName(settings.get("name").and_then(Value::as_str).unwrap_or_default().to_owned());
    let found = match info(link, &name, &Value::Null, until).await {
        Err(JetError::Refused { code: NO_SUCH_STREAM, .. }) => {
            match ask(link, name.api(link, "STREAM.CREATE"), settings, until).await {
                Err(JetError::Refused { code: STREAM_EXISTS, .. }) => info(link, &name, &Value::Null, until).await?,
                // In an account of its own, a service hears nobody where it may not ask.
                Err(JetError::Forbidden(_) | JetError::Absent) => return Err(JetError::Missing(name.0)),
                made => made?,
            }
        }
        found => found?,
    };
    let config = found.get("config").ok_or(JetError::Unreadable)?;
    let differs = |setting: &&str| settings.get(*setting).is_some_and(|wanted| config.get(*setting) != Some(wanted));
    match REQUIRED.into_iter().find(differs) {
        Some(setting) => Err(JetError::Foreign { stream: name.0, setting }),
        None => Ok(config.clone()),
    }
}

pub(super) async fn info(link: &Link, name: &StreamName, about: &Value, until: Instant) -> Result<Value, JetError> {
    ask(link, name.api(link, "STREAM.INFO"), about, until).await
}

/// Gives a stream another `max_age`; other settings stay. Ids are remembered no longer than messages are.
pub(super) async fn set_max_age(link: &Link, name: &StreamName, nanos: u64, until: Instant) -> Result<(), JetError> {
    // Zero would mean for ever.
    let nanos = nanos.clamp(SHORTEST_AGE_NANOS, i64::MAX.unsigned_abs());
    let info = info(link, name, &Value::Null, until).await?;
    let mut config = info.get("config").cloned().unwrap_or_default();
    if config.get("max_age").and_then(Value::as_u64) == Some(nanos) {
        return Ok(());
    }
    let Some(members) = config.as_object_mut() else { return Err(JetError::Unreadable) };
    members.insert("max_age".to_owned(), nanos.into());
    members.insert("duplicate_window".to_owned(), nanos.min(DUPLICATE_WINDOW_NANOS).into());
    ask(link, name.api(link, "STREAM.UPDATE"), &config, until).await.map(drop)
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
