//! Questions over NATS: the asker's checks before sending, and the server's inbox.
//!
//! A task reads each inbox's subscription as it fills, because a deadline is judged when its question arrives and not when somebody
//! has time for it.
//! Stopping: async-nats removes a draining subscription when it next wakes, without waiting for the server. A question that the
//! server hands over in that instant is dropped, and its asker is late; under load that can be one or two for each stop.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use super::auth::Asker;
use super::config::{INBOXES, OTHER_ACCOUNT};
use super::deadline::{Clocks, Sent, Standing};
use super::link::Link;
use super::waiters::Check;
use super::{Connection, MessageAuth};
use crate::{AskError, Asked, BoxFuture, Inbox, MAX_MESSAGE_BYTES, NotReady, Replier, Requests, ServeError};

/// Questions that wait, judged, for a server of ours to take them; more wait in the subscription.
const INBOX_CAPACITY: usize = 256;

/// How long a stop waits for the server; a connection that is down has no server to tell.
const STOP_WITHIN: Duration = Duration::from_secs(2);

impl Requests for Connection {
    fn ask_bytes<'a>(
        &'a self,
        subject: &'static str,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, AskError>> {
        Box::pin(async move {
            if question.len() > MAX_MESSAGE_BYTES {
                return Err(AskError::TooLarge);
            }
            // The client would keep it and send it after the reconnect, when nobody waits any more.
            if !self.link.is_up() {
                return Err(AskError::Lost);
            }
            let budget = deadline.saturating_duration_since(Instant::now());
            if budget.is_zero() {
                return Err(AskError::Late);
            }
            let sent = Sent::new(budget, SystemTime::now());
            let (mut headers, to, client) = (sent.headers(), request_subject(&self.link, subject), &self.link.client);
            let Some(auth) = self.link.auth.clone() else {
                let send = |reply| client.publish_with_reply_and_headers(to, reply, headers, question);
                return self.link.exchange(deadline, send).await;
            };
            let (id, inbox) = self.link.inbox();
            let Some(expected) = auth.question(subject, &to, &inbox, sent, &question, &mut headers) else {
                tracing::error!(subject, role = %auth.role(), "this role does not ask this question");
                return Err(AskError::Absent);
            };
            let check: Check = Arc::new(move |message| auth.is_reply(&expected, message));
            let send = |reply| client.publish_with_reply_and_headers(to, reply, headers, question);
            self.link.exchange_for(id, check, deadline, send).await
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
            let client = self.link.client.clone();
            let auth = self.link.auth.clone();
            let reader =
                Reader { subject: named, auth, questions, judged, held: None, clocks: Clocks::default(), client };
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

    fn pending(&self) -> usize {
        self.link.waiters.count()
    }
}

fn request_subject(link: &Link, subject: &str) -> String {
    format!("{}.req.{subject}", link.prefix)
}

/// Judges questions as they arrive.
struct Reader {
    /// Without the deployment's prefix.
    subject: &'static str,
    auth: Option<Arc<MessageAuth>>,
    questions: Subscriber,
    judged: mpsc::Sender<Asked>,
    held: Option<Asked>,
    clocks: Clocks,
    client: Client,
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
        while self.step().await {}
    }

    /// Takes a question or passes one on; loses none when it is given up half-way. `false` at the end.
    async fn step(&mut self) -> bool {
        if self.held.is_none() {
            let Some(message) = self.questions.next().await else { return false };
            self.held = self.judge(message);
            return true;
        }
        let Ok(permit) = self.judged.reserve().await else { return false };
        if let Some(asked) = self.held.take() {
            permit.send(asked);
        }
        true
    }

    fn judge(&mut self, message: Message) -> Option<Asked> {
        let subject = message.subject.as_str();
        // An answer could go where its asker may not publish: into the log, to JetStream.
        let inbox = |to: &Subject| to.starts_with(INBOXES) || to.starts_with(OTHER_ACCOUNT);
        let Some(to) = message.reply.clone().filter(inbox) else {
            tracing::warn!(subject, "question without an inbox for its answer dropped");
            return None;
        };
        let Some(sent) = Sent::parse(message.headers.as_ref()) else {
            tracing::warn!(subject, "question without a sensible deadline dropped");
            return None;
        };
        // Before its time is looked at: what anybody may say must not move what is thought of clocks.
        let asker = match &self.auth {
            Some(auth) => auth.judge_question(&message, self.subject, sent).ok()?,
            None => None,
        };
        let proof = self.auth.clone().zip(asker);
        let subject = message.subject.as_str();
        match self.clocks.judge(sent, Instant::now(), SystemTime::now()) {
            Standing::Until(deadline) => {
                let subject = message.subject.clone();
                let replier = Box::new(ReplyTo { client: self.client.clone(), subject, to, deadline, proof });
                Some(Asked { question: message.payload, deadline, replier })
            }
            Standing::Late => {
                tracing::warn!(subject, "question dropped: it arrived late, or its asker's clock is behind");
                None
            }
        }
    }
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
}

impl Replier for ReplyTo {
    fn reply(self: Box<Self>, answer: Bytes) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if answer.len() > MAX_MESSAGE_BYTES {
                tracing::error!(bytes = answer.len(), "reply is too large for the backplane");
                return;
            }
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
