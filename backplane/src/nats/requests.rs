//! Questions over NATS: the asker's checks before sending, and the server's inbox.
//!
//! A task reads each inbox's subscription as it fills, because a deadline is judged when its question arrives and not when somebody
//! has time for it.
//! What holds secrets is sealed on the way (`sealing`): to the keystore, whose key its status tells, and back to the
//! process that asked, whose key stands in its reply subject.
//! Stopping: async-nats removes a draining subscription when it next wakes, without waiting for the server. A question that the
//! server hands over in that instant is dropped, and its asker is late; under load that can be one or two for each stop.

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

use super::auth::{Asker, REPLY_TO};
use super::config::{INBOXES, OTHER_ACCOUNT};
use super::deadline::{Clocks, Sent, Standing};
use super::jetstream::is_malformed;
use super::link::Link;
use super::sealing::{Arrived, Context, Part, PublicKey, SealingKeys, seal};
use super::waiters::{Check, Token};
use super::{Connection, MessageAuth};
use crate::{AskError, Asked, BoxFuture, Inbox, MAX_MESSAGE_BYTES, NotReady, Replier, Requests, ServeError};

const DROPPED_LOG_INTERVAL: Duration = Duration::from_secs(1);
/// Questions that wait, judged, for a server of ours to take them; more wait in the subscription.
const INBOX_CAPACITY: usize = 256;

/// How long a stop waits for the server; a connection that is down has no server to tell.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// For what has arrived to be taken: nobody waits longer for an answer.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// A sealed question is asked again once: its server may have been replaced since its key was heard.
const SEALED_TRIES: usize = 2;

/// The keystore's public key, as it last said. Every connection asks for it itself.
#[derive(Debug, Default)]
pub(super) struct KeystoreKey(Mutex<Option<PublicKey>>);

/// An answer, once it could be read.
enum Answered {
    Body(Bytes),
    /// The question was sealed to a process that is gone; this is the key of the one that is there.
    Unopened(PublicKey),
}

/// The one member of the keystore's status that matters here.
#[derive(Deserialize)]
struct Offer {
    sealing_key: Option<String>,
}

impl Requests for Connection {
    fn ask_bytes<'a>(
        &'a self,
        subject: &'static str,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, AskError>> {
        Box::pin(async move {
            let sealing = sealing_of(subject);
            if sealing == Sealing::Both {
                return self.ask_sealed(subject, question, deadline).await;
            }
            match self.ask_once(subject, question, sealing, None, deadline).await? {
                Answered::Body(body) => Ok(body),
                Answered::Unopened(_) => Err(AskError::Unreadable),
            }
        })
    }

    fn serve_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Inbox>, ServeError>> {
        Box::pin(async move {
            let named = subject;
            let subject = request_subject(&self.link, subject);
            let refuse = |reason| ServeError { subject: subject.clone(), reason };
            if !self.link.is_up() {
                return Err(refuse(AskError::Lost.to_string()));
            }
            let group = self.link.prefix.clone();
            let questions = self
                .link
                .client
                .queue_subscribe(subject.clone(), group)
                .await
                .map_err(|error| refuse(error.to_string()))?;
            self.link.confirm(&subject).await?;
            let (judged, arrived) = mpsc::channel(INBOX_CAPACITY);
            let (stop, unsubscribed) = (CancellationToken::new(), CancellationToken::new());
            let (client, auth) = (self.link.client.clone(), self.link.auth.clone());
            let (sealing, keys) = (sealing_of(named), self.link.sealing.clone());
            let clocks = Clocks::default();
            let dropped = Dropped::default();
            let reader =
                Reader { subject: named, sealing, keys, auth, questions, judged, held: None, clocks, client, dropped };
            let reader = reader.run(stop.clone(), unsubscribed.clone().drop_guard());
            let reader = AbortOnDropHandle::new(tokio::spawn(reader));
            let inbox = Subscribed { link: self.link.clone(), arrived, stop, unsubscribed, _reader: reader };
            Ok(Box::new(inbox) as Box<dyn Inbox>)
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        Box::pin(async move {
            if !self.link.is_up() {
                return Err(NotReady("not connected to nats".to_owned()));
            }
            let trip = self.link.round_trip().await;
            if let Some(violation) = self.link.health.violation() {
                return Err(NotReady(violation));
            }
            trip.map_err(|error| NotReady(format!("a question to oneself over nats: {error}")))
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
    /// Asks a question that only the keystore may read. One that was just replaced says so once.
    async fn ask_sealed(&self, subject: &'static str, question: Bytes, deadline: Instant) -> Result<Bytes, AskError> {
        for _ in 0..SEALED_TRIES {
            let to = self.keystore_key(deadline).await?;
            match self.ask_once(subject, question.clone(), Sealing::Both, to, deadline).await {
                Ok(Answered::Body(body)) => return Ok(body),
                Ok(Answered::Unopened(key)) => self.link.keystore.set(Some(key)),
                Err(error) => {
                    // An older version that took the place of this one would not even say that it cannot read.
                    self.link.keystore.set(None);
                    return Err(error);
                }
            }
        }
        Err(AskError::Unreadable)
    }

    /// To whom questions are sealed; none where the keystore is of a version that opens none. Its answer is
    /// authenticated where messages are: nobody else can say so in its place.
    async fn keystore_key(&self, deadline: Instant) -> Result<Option<PublicKey>, AskError> {
        if let Some(key) = self.link.keystore.get() {
            return Ok(Some(key));
        }
        let question = serde_json::to_vec(&KeystoreStatus {}).map_err(|_| AskError::Unreadable)?;
        let asked = self.ask_once(KeystoreStatus::SUBJECT, question.into(), Sealing::Nothing, None, deadline);
        let Answered::Body(body) = asked.await? else { return Err(AskError::Unreadable) };
        let offer = serde_json::from_slice::<Offer>(&body).map_err(|_| AskError::Unreadable)?;
        let Some(text) = offer.sealing_key else { return Ok(None) };
        let key = PublicKey::parse(&text).ok_or(AskError::Unreadable)?;
        self.link.keystore.set(Some(key));
        Ok(Some(key))
    }

    async fn ask_once(
        &self,
        subject: &'static str,
        question: Bytes,
        sealing: Sealing,
        to_key: Option<PublicKey>,
        deadline: Instant,
    ) -> Result<Answered, AskError> {
        let link = &self.link;
        if question.len() > MAX_MESSAGE_BYTES {
            return Err(AskError::TooLarge);
        }
        // The client would keep it and send it after the reconnect, when nobody waits any more.
        if !link.is_up() {
            return Err(AskError::Lost);
        }
        let budget = deadline.saturating_duration_since(Instant::now());
        if budget.is_zero() {
            return Err(AskError::Late);
        }
        let sent = Sent::new(budget, SystemTime::now());
        let (mut headers, to, client) = (sent.headers(), request_subject(link, subject), &link.client);
        let inbox = link.reply_inbox().ok_or(AskError::Lost)?;
        let question = match to_key {
            Some(key) => {
                let context = Context { part: Part::Question, subject: &to, inbox: &inbox.subject };
                seal(key, &context, &question).ok_or(AskError::Unreadable)?
            }
            None => question,
        };
        let check = match &link.auth {
            Some(auth) => {
                let Some(expected) = auth.question(subject, &to, &inbox, sent, &question, &mut headers) else {
                    tracing::error!(subject, role = %auth.role(), "this role does not ask this question");
                    return Err(AskError::Absent);
                };
                let auth = auth.clone();
                Some(Arc::new(move |message: &Message| auth.is_reply(&expected, message)) as Check)
            }
            None => None,
        };
        if sealing == Sealing::Nothing {
            let send = |reply| client.publish_with_reply_and_headers(to, reply, headers, question);
            return link.exchange_for(inbox, check, deadline, send).await.map(Answered::Body);
        }
        // Also where messages are not authenticated: the answer is sealed to the key in it.
        headers.insert(REPLY_TO, HeaderValue::from(inbox.subject.as_str()));
        let heard_at = inbox.subject.clone();
        let send = |reply| client.publish_with_reply_and_headers(to.clone(), reply, headers, question);
        let answer = link.exchange_for(inbox, check, deadline, send).await?;
        let context = Context { part: Part::Answer, subject: &to, inbox: &heard_at };
        match link.sealing.open(&context, &answer) {
            Arrived::Plain => Ok(Answered::Body(answer)),
            Arrived::Opened(body) => Ok(Answered::Body(body)),
            Arrived::Unopened(key) => Ok(Answered::Unopened(key)),
            Arrived::ForAnother | Arrived::Broken => Err(AskError::Unreadable),
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
    stage0_contract::question(subject).map_or(Sealing::Nothing, |known| known.sealing)
}

fn request_subject(link: &Link, subject: &str) -> String {
    format!("{}.req.{subject}", link.prefix)
}

/// Judges questions as they arrive.
struct Reader {
    /// Without the deployment's prefix.
    subject: &'static str,
    sealing: Sealing,
    keys: Arc<SealingKeys>,
    auth: Option<Arc<MessageAuth>>,
    questions: Subscriber,
    judged: mpsc::Sender<Asked>,
    held: Option<Judged>,
    clocks: Clocks,
    client: Client,
    dropped: Dropped,
}

/// Questions that were dropped, and when it was last logged: whoever floods must not fill the log.
#[derive(Default)]
struct Dropped {
    since: u64,
    logged: Option<Instant>,
}

impl Dropped {
    fn log(&mut self, subject: &'static str, why: &'static str) {
        self.since += 1;
        let now = Instant::now();
        if self.logged.is_none_or(|logged| now.duration_since(logged) >= DROPPED_LOG_INTERVAL) {
            tracing::warn!(subject, since = self.since, "question dropped: {why}");
            *self = Self { since: 0, logged: Some(now) };
        }
    }
}

impl Reader {
    /// Until the subscription ends: drained after a stop, or with the connection.
    async fn run(mut self, stop: CancellationToken, unsubscribed: DropGuard) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                more = self.step() => if !more { return },
            }
        }
        if let Err(error) = self.questions.drain().await {
            tracing::debug!(%error, "inbox ended with its connection");
        }
        drop(unsubscribed);
        // A connection that is down ends no subscription.
        let is_up = self.client.connection_state() == State::Connected;
        let within = if is_up { DRAIN_WITHIN } else { STOP_WITHIN };
        let rest = async { while self.step().await {} };
        if timeout(within, rest).await.is_err() {
            tracing::warn!("inbox ended with questions in it, or without the server's knowledge");
        }
    }

    /// Takes a question or passes one on; loses none when it is given up half-way. `false` at the end.
    async fn step(&mut self) -> bool {
        if self.held.is_none() {
            let Some(message) = self.questions.next().await else { return false };
            self.held = self.judge(message);
            return true;
        }
        if let Some(Judged::Unopened(_)) = &self.held {
            // Given up half-way, its asker is late and asks for the key again.
            if let Some(Judged::Unopened(replier)) = self.held.take() {
                replier.reply(self.keys.unopened()).await;
            }
            return true;
        }
        let Ok(permit) = self.judged.reserve().await else { return false };
        if let Some(Judged::Good(asked)) = self.held.take() {
            permit.send(asked);
        }
        true
    }

    fn judge(&mut self, message: Message) -> Option<Judged> {
        let subject = message.subject.as_str();
        // An answer could go where its asker may not publish: into the log, to JetStream.
        let inbox = |to: &Subject| to.starts_with(INBOXES) || to.starts_with(OTHER_ACCOUNT);
        let Some(to) = message.reply.clone().filter(inbox) else {
            self.dropped.log(self.subject, "it names no inbox for its answer");
            return None;
        };
        let Some(sent) = Sent::parse(message.headers.as_ref()) else {
            self.dropped.log(self.subject, "it has no sensible deadline");
            return None;
        };
        // Before its time is looked at: what anybody may say must not move what is thought of clocks.
        let asker = match &self.auth {
            Some(auth) => auth.judge_question(&message, self.subject, sent).ok()?,
            None if is_malformed(message.headers.as_ref()) => {
                self.dropped.log(self.subject, "its headers cannot be read");
                return None;
            }
            None => None,
        };
        let deadline = match self.clocks.judge(sent, Instant::now(), SystemTime::now()) {
            Standing::Until(deadline) => deadline,
            Standing::Late => {
                self.dropped.log(self.subject, "it arrived late, or its asker's clock is behind");
                return None;
            }
        };
        let named = message.headers.as_ref().and_then(|headers| headers.get(REPLY_TO)).map(HeaderValue::as_str);
        let inbox = named.unwrap_or(&to).to_owned();
        let context = Context { part: Part::Question, subject, inbox: &inbox };
        let opened = match self.sealing {
            Sealing::Both => self.keys.open(&context, &message.payload),
            Sealing::Answer | Sealing::Nothing => Arrived::Plain,
        };
        let to_key = if self.sealing == Sealing::Nothing { None } else { PublicKey::of_inbox(&inbox) };
        let proof = self.auth.clone().zip(asker);
        let seal = to_key.map(|key| SealTo { key, inbox });
        let replier =
            ReplyTo { client: self.client.clone(), subject: message.subject.clone(), to, deadline, proof, seal };
        let question = match opened {
            Arrived::Plain => message.payload,
            // A sealed question is its asker's alone: another process of its role cannot ask it once more as its own.
            Arrived::Opened(question) if replier.is_of_asker() => question,
            Arrived::ForAnother => return Some(Judged::Unopened(Box::new(ReplyTo { seal: None, ..replier }))),
            Arrived::Opened(_) | Arrived::Unopened(_) | Arrived::Broken => {
                self.dropped.log(self.subject, "it was not sealed for here and for this asker");
                return None;
            }
        };
        Some(Judged::Good(Asked { question, deadline, replier: Box::new(replier) }))
    }
}

/// A question that was judged.
enum Judged {
    Good(Asked),
    /// It was sealed to another process; the asker is told our key.
    Unopened(Box<ReplyTo>),
}

/// One server's subscription, in the queue group of all who serve the subject.
struct Subscribed {
    link: Arc<Link>,
    arrived: mpsc::Receiver<Asked>,
    stop: CancellationToken,
    unsubscribed: CancellationToken,
    _reader: AbortOnDropHandle<()>,
}

impl Inbox for Subscribed {
    fn next(&mut self) -> BoxFuture<'_, Option<Asked>> {
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
            let seen_by_the_server = async {
                self.unsubscribed.cancelled().await;
                self.link.round_trip().await
            };
            if let Ok(Ok(())) = timeout(STOP_WITHIN, seen_by_the_server).await {
                return;
            }
            tracing::debug!("inbox stopped without the server's knowledge");
        })
    }
}

/// Where the asker waits.
struct ReplyTo {
    client: Client,
    /// Of the question.
    subject: Subject,
    to: Subject,
    deadline: Instant,
    /// How the answer is authenticated, where the question was.
    proof: Option<(Arc<MessageAuth>, Asker)>,
    /// To whom the answer is sealed, where it may hold secrets and its asker can open them.
    seal: Option<SealTo>,
}

/// The asker's key, and its reply subject as it said it.
struct SealTo {
    key: PublicKey,
    inbox: String,
}

impl ReplyTo {
    /// Whether the reply subject was made for this question: its token is the question's id.
    fn is_of_asker(&self) -> bool {
        let token = self.seal.as_ref().and_then(|seal| Token::parse(seal.inbox.rsplit('.').next()?));
        match &self.proof {
            Some((_, asker)) => token.is_some_and(|token| asker.is_of(token)),
            None => token.is_some(),
        }
    }
}

impl Replier for ReplyTo {
    fn reply(self: Box<Self>, answer: Bytes) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if answer.len() > MAX_MESSAGE_BYTES {
                tracing::error!(bytes = answer.len(), "reply is too large for the backplane");
                return;
            }
            let answer = match &self.seal {
                Some(SealTo { key, inbox }) => {
                    let context = Context { part: Part::Answer, subject: &self.subject, inbox };
                    let Some(sealed) = seal(*key, &context, &answer) else {
                        tracing::warn!(subject = %self.subject, "reply is not sent: it cannot be sealed to its asker");
                        return;
                    };
                    sealed
                }
                None => answer,
            };
            let mut headers = HeaderMap::new();
            if let Some((auth, asker)) = &self.proof
                && auth.reply(*asker, &self.subject, &answer, &mut headers).is_none()
            {
                tracing::warn!(subject = %self.subject, "reply is not sent: the keys of its question were retired");
                return;
            }
            let Self { client, to, deadline, .. } = *self;
            let sent = async {
                match headers.is_empty() {
                    true => client.publish(to, answer).await,
                    false => client.publish_with_headers(to, headers, answer).await,
                }
            };
            // An asker who is gone is not an error.
            match timeout_at(deadline, sent).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(error)) => tracing::error!(%error, "reply cannot be sent"),
            }
        })
    }
}
