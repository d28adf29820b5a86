//! Requests over NATS: the requester's checks before sending, and the server's queue.
//!
//! A task reads each subscription as it fills, because a deadline is checked when its request arrives and not when a
//! handler has time for it. Secrets are sealed (`sealing`): to the keystore, whose status has its key, and back to the
//! requester, whose key is in its reply subject.
//! Stopping: a request that the server hands over while async-nats drains the subscription is dropped, and its
//! requester times out; under load that can be one or two for each stop.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::connection::State;
use async_nats::{Client, HeaderMap, HeaderValue, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use stage0_contract::{KeystoreStatus, Request as _, Sealing};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::auth::{REPLY_TO, Requester};
use super::config::{INBOXES, OTHER_ACCOUNT};
use super::deadline::{ClockOffset, Timing};
use super::jetstream::is_malformed;
use super::link::Link;
use super::sealing::{Context, MessagePart, Opening, PublicKey, SealingKeys, seal};
use super::waiters::{Check, Token};
use super::{Connection, MessageAuth};
use crate::{
    BoxFuture, Content, MAX_MESSAGE_BYTES, NotReady, NotTaken, RawRequest, Replier, RequestError, RequestQueue,
    Requests, ServeError,
};

const DROPPED_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Checked requests that wait for a handler; more wait in the subscription.
const QUEUE_CAPACITY: usize = 256;

const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long arrived requests may take to be picked up; no requester waits longer for a reply.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// A sealed request is tried twice: the keystore may have been replaced since its key was read.
const MAX_SEALED_ATTEMPTS: usize = 2;

/// The keystore's public key, as last reported. Every connection asks for it itself.
#[derive(Debug, Default)]
pub(super) struct KeystoreKey(Mutex<Option<PublicKey>>);

enum OpenedReply {
    Body(Bytes),
    /// The request was sealed to a process that has gone; this is the key of the current one.
    Unopened(PublicKey),
}

#[derive(Deserialize)]
struct StatusKey {
    sealing_key: Option<String>,
}

impl Requests for Connection {
    fn request_bytes<'a>(
        &'a self,
        subject: &'static str,
        request: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, RequestError>> {
        Box::pin(async move {
            let sealing = sealing_of(subject);
            if sealing == Sealing::Both {
                return self.send_sealed(subject, request, deadline).await;
            }
            match self.send_once(subject, request, sealing, None, deadline).await? {
                OpenedReply::Body(body) => Ok(body),
                OpenedReply::Unopened(_) => Err(RequestError::Malformed),
            }
        })
    }

    fn serve_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn RequestQueue>, ServeError>> {
        Box::pin(async move {
            let short_subject = subject;
            let subject = request_subject(&self.link, subject);
            let refuse = |reason| ServeError { subject: subject.clone(), reason };
            if !self.link.is_up() {
                return Err(refuse(RequestError::Disconnected.to_string()));
            }
            let group = self.link.prefix.clone();
            let requests = self.link.client.queue_subscribe(subject.clone(), group).await;
            let requests = requests.map_err(|error| refuse(error.to_string()))?;
            self.link.confirm_subscription(&subject).await?;
            let (checked, arrived) = mpsc::channel(QUEUE_CAPACITY);
            let (stop, unsubscribed) = (CancellationToken::new(), CancellationToken::new());
            let reader = Reader {
                subject: short_subject,
                sealing: sealing_of(short_subject),
                keys: self.link.sealing.clone(),
                auth: self.link.auth.clone(),
                requests,
                checked,
                current: None,
                clock_offset: ClockOffset::default(),
                client: self.link.client.clone(),
                dropped: DroppedLog::default(),
            };
            let reader = reader.run(stop.clone(), unsubscribed.clone().drop_guard());
            let reader = AbortOnDropHandle::new(tokio::spawn(reader));
            let inbox = NatsQueue { link: self.link.clone(), arrived, stop, unsubscribed, _reader: reader };
            Ok(Box::new(inbox) as Box<dyn RequestQueue>)
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        Box::pin(async move {
            if !self.link.is_up() {
                return Err(NotReady("not connected to nats".into()));
            }
            let round_trip = self.link.round_trip().await;
            if let Some(violation) = self.link.health.violation() {
                return Err(NotReady(violation.into()));
            }
            round_trip.map_err(|error| NotReady(format!("a request to itself over nats: {error}").into()))
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.link.close())
    }

    fn serve_in_term(&self, term: u64, lineage: &str) {
        if let Some(auth) = &self.link.auth {
            auth.serve_in_term(term, lineage);
        }
    }

    fn sealing_key(&self) -> Option<String> {
        Some(self.link.sealing.public().text())
    }

    fn pending(&self) -> usize {
        self.link.waiters.count()
    }
}

impl Connection {
    /// Sends a request that only the keystore may read. A keystore that was just replaced asks once for another seal.
    async fn send_sealed(
        &self,
        subject: &'static str,
        request: Bytes,
        deadline: Instant,
    ) -> Result<Bytes, RequestError> {
        for _ in 0..MAX_SEALED_ATTEMPTS {
            let to = self.keystore_key(deadline).await?;
            match self.send_once(subject, request.clone(), Sealing::Both, to, deadline).await {
                Ok(OpenedReply::Body(body)) => return Ok(body),
                Ok(OpenedReply::Unopened(key)) => self.link.keystore.set(Some(key)),
                Err(error) => {
                    // An older version in its place could not even say that it cannot read the request.
                    self.link.keystore.set(None);
                    return Err(error);
                }
            }
        }
        Err(RequestError::Malformed)
    }

    /// None: its version opens none. Where messages are authenticated, no other role can answer.
    async fn keystore_key(&self, deadline: Instant) -> Result<Option<PublicKey>, RequestError> {
        if let Some(key) = self.link.keystore.get() {
            return Ok(Some(key));
        }
        let request = serde_json::to_vec(&KeystoreStatus {}).map_err(|_| RequestError::Malformed)?;
        let asked = self.send_once(KeystoreStatus::SUBJECT, request.into(), Sealing::Nothing, None, deadline);
        let OpenedReply::Body(body) = asked.await? else { return Err(RequestError::Malformed) };
        let offer = serde_json::from_slice::<StatusKey>(&body).map_err(|_| RequestError::Malformed)?;
        let Some(text) = offer.sealing_key else { return Ok(None) };
        let key = PublicKey::parse(&text).ok_or(RequestError::Malformed)?;
        self.link.keystore.set(Some(key));
        Ok(Some(key))
    }

    async fn send_once(
        &self,
        subject: &'static str,
        request: Bytes,
        sealing: Sealing,
        to_key: Option<PublicKey>,
        deadline: Instant,
    ) -> Result<OpenedReply, RequestError> {
        let link = &self.link;
        if request.len() > MAX_MESSAGE_BYTES {
            return Err(RequestError::TooLarge);
        }
        // The client would queue it and send it after the reconnect, when the requester no longer waits.
        if !link.is_up() {
            return Err(RequestError::Disconnected);
        }
        let budget = deadline.saturating_duration_since(Instant::now());
        if budget.is_zero() {
            return Err(RequestError::Timeout);
        }
        let sent = Timing::new(budget, SystemTime::now());
        let (mut headers, to, client) = (sent.headers(), request_subject(link, subject), &link.client);
        let inbox = link.reply_inbox.new_address().ok_or(RequestError::Disconnected)?;
        let request = match to_key {
            Some(key) => {
                let context = Context { part: MessagePart::Request, subject: &to, inbox: &inbox.subject };
                seal(key, &context, &request).ok_or(RequestError::Malformed)?
            }
            None => request,
        };
        let mut check = None;
        if let Some(auth) = link.auth.clone() {
            let Some(expected) = auth.sign_request(subject, &to, &inbox, sent, &request, &mut headers) else {
                tracing::error!(subject, role = %auth.role(), "this role does not ask this request");
                return Err(RequestError::NoResponders);
            };
            check = Some(Arc::new(move |message: &Message| auth.is_reply(&expected, message)) as Check);
        }
        if sealing == Sealing::Nothing {
            let send = |reply| client.publish_with_reply_and_headers(to, reply, headers, request);
            return link.reply_inbox.request(inbox, check, deadline, send).await.map(OpenedReply::Body);
        }
        // Also where messages are not authenticated: the reply is sealed to the key in it.
        headers.insert(REPLY_TO, HeaderValue::from(inbox.subject.as_str()));
        let reply_subject = inbox.subject.clone();
        let send = |reply| client.publish_with_reply_and_headers(to.clone(), reply, headers, request);
        let answer = link.reply_inbox.request(inbox, check, deadline, send).await?;
        let context = Context { part: MessagePart::Answer, subject: &to, inbox: &reply_subject };
        match link.sealing.open(&context, &answer) {
            Opening::Plain => Ok(OpenedReply::Body(answer)),
            Opening::Opened(body) => Ok(OpenedReply::Body(body)),
            Opening::Unopened(key) => Ok(OpenedReply::Unopened(key)),
            Opening::ForAnother | Opening::Broken => Err(RequestError::Malformed),
        }
    }
}

impl KeystoreKey {
    fn get(&self) -> Option<PublicKey> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: Option<PublicKey>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }
}

fn sealing_of(subject: &str) -> Sealing {
    stage0_contract::request_route(subject).map_or(Sealing::Nothing, |known| known.sealing)
}

fn request_subject(link: &Link, subject: &str) -> String {
    format!("{}.req.{subject}", link.prefix)
}

struct Reader {
    /// Without the deployment's prefix.
    subject: &'static str,
    sealing: Sealing,
    keys: Arc<SealingKeys>,
    auth: Option<Arc<MessageAuth>>,
    requests: Subscriber,
    checked: mpsc::Sender<RawRequest>,
    current: Option<Checked>,
    clock_offset: ClockOffset,
    client: Client,
    dropped: DroppedLog,
}

/// Number of dropped requests, logged at a limited rate: a flood must not fill the log.
#[derive(Default)]
struct DroppedLog {
    since: u64,
    logged: Option<Instant>,
}

impl DroppedLog {
    /// Returns what became of the request: nothing.
    fn log(&mut self, subject: &'static str, why: &'static str) -> Option<Checked> {
        self.since += 1;
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= DROPPED_LOG_INTERVAL) {
            tracing::warn!(subject, since = self.since, "request dropped: {why}");
            *self = Self { since: 0, logged: Some(now) };
        }
        None
    }
}

impl Reader {
    /// Runs until the subscription ends: drained after a stop, or with the connection.
    async fn run(mut self, stop: CancellationToken, unsubscribed: DropGuard) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                more = self.step() => if !more { return },
            }
        }
        if let Err(error) = self.requests.drain().await {
            tracing::debug!(%error, "inbox ended with its connection");
        }
        drop(unsubscribed);
        // A connection that is down ends no subscription.
        let is_up = self.client.connection_state() == State::Connected;
        let within = if is_up { DRAIN_TIMEOUT } else { STOP_TIMEOUT };
        let rest = async { while self.step().await {} };
        if timeout(within, rest).await.is_err() {
            tracing::warn!("inbox ended with requests in it, or without the server's knowledge");
        }
    }

    /// Cancel safe: no request is lost when the future is dropped. `false` at the end.
    async fn step(&mut self) -> bool {
        if self.current.is_none() {
            let Some(message) = self.requests.next().await else { return false };
            self.current = self.check(message);
            return true;
        }
        if let Some(Checked::Unopened(replier)) =
            self.current.take_if(|checked| matches!(checked, Checked::Unopened(_)))
        {
            // If this is cancelled, the requester times out and asks for the key again.
            replier.reply(self.keys.unopened()).await;
            return true;
        }
        let Ok(permit) = self.checked.reserve().await else { return false };
        if let Some(Checked::Good(asked)) = self.current.take() {
            permit.send(asked);
        }
        true
    }

    fn check(&mut self, message: Message) -> Option<Checked> {
        let subject = message.subject.as_str();
        // Otherwise a reply could go where its requester may not publish: into the log, or to JetStream.
        let inbox = |to: &Subject| to.starts_with(INBOXES) || to.starts_with(OTHER_ACCOUNT);
        let Some(to) = message.reply.clone().filter(inbox) else {
            return self.dropped.log(self.subject, "it names no inbox for its answer");
        };
        let Some(sent) = Timing::parse(message.headers.as_ref()) else {
            return self.dropped.log(self.subject, "it has no sensible deadline");
        };
        // Before its timing is used: an unauthenticated message must not influence the clock offset.
        let requester = match &self.auth {
            Some(auth) => auth.check_request(&message, self.subject, sent).ok()?,
            None if is_malformed(message.headers.as_ref()) => {
                return self.dropped.log(self.subject, "its headers cannot be read");
            }
            None => None,
        };
        let Some(deadline) = self.clock_offset.local_deadline(sent, Instant::now(), SystemTime::now()) else {
            return self.dropped.log(self.subject, "it arrived late, or its asker's clock is behind");
        };
        let named = message.headers.as_ref().and_then(|headers| headers.get(REPLY_TO)).map(HeaderValue::as_str);
        let inbox = named.unwrap_or(&to).to_owned();
        let context = Context { part: MessagePart::Request, subject, inbox: &inbox };
        let opened = match self.sealing {
            Sealing::Both => self.keys.open(&context, &message.payload),
            Sealing::Answer | Sealing::Nothing => Opening::Plain,
        };
        let to_key = if self.sealing == Sealing::Nothing { None } else { PublicKey::of_inbox(&inbox) };
        let replier = ReplyTo {
            client: self.client.clone(),
            subject: message.subject.clone(),
            to,
            deadline,
            proof: self.auth.clone().zip(requester),
            seal: to_key.map(|key| SealTo { key, inbox }),
        };
        let body = match opened {
            Opening::Plain => message.payload,
            // A sealed request belongs to its requester: another process of the same role cannot replay it as its own.
            Opening::Opened(body) if replier.is_for_this_request() => body,
            Opening::ForAnother => return Some(Checked::Unopened(Box::new(ReplyTo { seal: None, ..replier }))),
            Opening::Opened(_) | Opening::Unopened(_) | Opening::Broken => {
                return self.dropped.log(self.subject, "it was not sealed for here and for this asker");
            }
        };
        Some(Checked::Good(RawRequest { body: Content::Bytes(body), deadline, replier: Box::new(replier) }))
    }
}

enum Checked {
    Good(RawRequest),
    /// Sealed to another process; the requester is sent our key.
    Unopened(Box<ReplyTo>),
}

struct NatsQueue {
    link: Arc<Link>,
    arrived: mpsc::Receiver<RawRequest>,
    stop: CancellationToken,
    unsubscribed: CancellationToken,
    _reader: AbortOnDropHandle<()>,
}

impl RequestQueue for NatsQueue {
    fn next(&mut self) -> BoxFuture<'_, Option<RawRequest>> {
        Box::pin(async move {
            loop {
                let asked = self.arrived.recv().await?;
                if asked.deadline > Instant::now() {
                    return Some(asked);
                }
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.stop.cancel();
            let server_knows = async {
                self.unsubscribed.cancelled().await;
                self.link.round_trip().await
            };
            if let Ok(Ok(())) = timeout(STOP_TIMEOUT, server_knows).await {
                return;
            }
            tracing::debug!("inbox stopped without the server's knowledge");
        })
    }
}

struct ReplyTo {
    client: Client,
    subject: Subject,
    to: Subject,
    deadline: Instant,
    proof: Option<(Arc<MessageAuth>, Requester)>,
    /// The key that the reply is sealed to, if it may hold secrets and its requester can open it.
    seal: Option<SealTo>,
}

struct SealTo {
    key: PublicKey,
    inbox: String,
}

impl ReplyTo {
    /// Whether the reply subject was made for this request: its token is the request's id.
    fn is_for_this_request(&self) -> bool {
        let token = self.seal.as_ref().and_then(|seal| Token::parse(seal.inbox.rsplit('.').next()?));
        match &self.proof {
            Some((_, requester)) => token.is_some_and(|token| requester.id == token.bytes()),
            None => token.is_some(),
        }
    }
}

impl Replier for ReplyTo {
    fn reply_value(self: Box<Self>, value: Box<dyn Any + Send>) -> Result<(), NotTaken> {
        Err((self, value))
    }

    fn reply(self: Box<Self>, mut answer: Bytes) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if answer.len() > MAX_MESSAGE_BYTES {
                tracing::error!(bytes = answer.len(), "reply is too large for the backplane");
                return;
            }
            if let Some(SealTo { key, inbox }) = &self.seal {
                let context = Context { part: MessagePart::Answer, subject: &self.subject, inbox };
                let Some(sealed) = seal(*key, &context, &answer) else {
                    tracing::warn!(subject = %self.subject, "reply is not sent: it cannot be sealed to its asker");
                    return;
                };
                answer = sealed;
            }
            let mut headers = HeaderMap::new();
            if let Some((auth, requester)) = &self.proof
                && auth.reply(*requester, &self.subject, &answer, &mut headers).is_none()
            {
                tracing::warn!(subject = %self.subject, "reply is not sent: the keys of its request were retired");
                return;
            }
            let Self { client, to, deadline, .. } = *self;
            let sent = async {
                match headers.is_empty() {
                    true => client.publish(to, answer).await,
                    false => client.publish_with_headers(to, headers, answer).await,
                }
            };
            // A requester that has gone is not an error.
            match timeout_at(deadline, sent).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::error!(%error, "reply cannot be sent"),
            }
        })
    }
}
