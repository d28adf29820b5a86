//! *Requests*: ask a question of whoever serves its subject; serve a subject together with others.
//!
//! The traits speak bytes, so that they are object-safe; the typed methods on top own the JSON framing. A question carries an
//! absolute deadline: a server drops what is late instead of working for nobody.

use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{BoxFuture, metrics};
use stage0_contract::Request;

/// Request-reply between services.
pub trait Requests: Send + Sync {
    /// Asks one question. Resolves by `deadline`, whatever the connection does.
    fn ask_bytes<'a>(
        &'a self,
        subject: &'static str,
        question: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, AskError>>;

    /// Joins those who serve a subject: each question goes to one of them.
    fn serve_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Inbox>, ServeError>>;

    /// A round trip to oneself: proves that this connection carries questions now.
    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>>;

    /// Sends what is queued and closes. Stop the inboxes and finish their work first.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// From now on answers say of which keystore they are: its term, and the lineage of its directory. Where nothing is
    /// authenticated, or in one process, they do not.
    fn serve_in_term(&self, _term: u64, _lineage: &str) {}

    /// The public key of this connection, for the answer to those who must seal questions to it; none where nothing
    /// crosses a wire.
    fn sealing_key(&self) -> Option<String> {
        None
    }

    /// Questions that somebody waits for now: a gauge. One that was answered, was late or was given up is not among them.
    fn pending(&self) -> usize;
}

/// Questions that arrive at one server.
pub trait Inbox: Send {
    /// The next question that is not yet late; `None` once stopped and emptied, or when the connection is closed for good.
    fn next(&mut self) -> BoxFuture<'_, Option<Asked>>;

    /// Takes no new questions; `next` still yields those that had arrived.
    fn stop(&mut self) -> BoxFuture<'_, ()>;
}

/// Where an answer goes.
pub trait Replier: Send {
    /// Sends the answer. An asker who is gone is not an error.
    fn reply(self: Box<Self>, answer: Bytes) -> BoxFuture<'static, ()>;
}

/// One question in hand.
pub struct Asked {
    /// Its body.
    pub question: Bytes,
    /// From then on nobody waits for the answer.
    pub deadline: Instant,
    /// Where the answer goes.
    pub replier: Box<dyn Replier>,
}

/// Why there is no answer. Every one of them means: not decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody serves the subject.
    #[error("nobody serves the subject")]
    Absent,
    /// The deadline passed.
    #[error("no reply within the deadline")]
    Late,
    /// Not connected, or the connection broke while waiting.
    #[error("the connection to the backplane is lost")]
    Lost,
    /// The question is larger than the backplane carries.
    #[error("the question is too large for the backplane")]
    TooLarge,
    /// The reply is not what the message says.
    #[error("the reply cannot be read")]
    Unreadable,
}

/// A subject cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot serve `{subject}`: {reason}")]
pub struct ServeError {
    /// The full subject.
    pub subject: String,
    /// Lower case, for the log.
    pub reason: String,
}

/// Why no question could be asked now; for `/readyz` and the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(pub String);

impl dyn Requests + '_ {
    /// Asks a typed question and waits at most `within`.
    pub async fn ask<R: Request>(&self, question: &R, within: Duration) -> Result<R::Reply, AskError> {
        self.ask_until(question, Instant::now() + within).await
    }

    /// Asks a typed question and waits until `deadline`.
    pub async fn ask_until<R: Request>(&self, question: &R, deadline: Instant) -> Result<R::Reply, AskError> {
        let answer = self.exchange(question, deadline).await;
        metrics::asked(R::SUBJECT, answer.as_ref().err().copied());
        answer
    }

    async fn exchange<R: Request>(&self, question: &R, deadline: Instant) -> Result<R::Reply, AskError> {
        let bytes = serde_json::to_vec(question).map_err(|_| AskError::Unreadable)?;
        let reply = self.ask_bytes(R::SUBJECT, bytes.into(), deadline).await?;
        serde_json::from_slice(&reply).map_err(|_| AskError::Unreadable)
    }

    /// Joins those who serve `R`.
    pub async fn serve<R: Request>(&self) -> Result<Served<R>, ServeError> {
        Ok(Served { inbox: self.serve_bytes(R::SUBJECT).await?, message: PhantomData })
    }
}

/// Typed questions of one kind.
pub struct Served<R> {
    inbox: Box<dyn Inbox>,
    message: PhantomData<fn() -> R>,
}

/// One typed question in hand: what it says, until when, and where the answer goes.
pub struct Question<R> {
    /// What is asked.
    pub request: R,
    /// From then on nobody waits for the answer.
    pub deadline: Instant,
    pending: Pending<R>,
}

/// One question as it arrived: its bytes, for a server that decides by them when and where it is read.
pub struct Unread<R> {
    /// The message.
    pub bytes: Bytes,
    /// From then on nobody waits for the answer.
    pub deadline: Instant,
    /// Where the answer goes.
    pub pending: Pending<R>,
}

/// Where the answer to one question goes. Dropped without one, its asker fails closed when it is late.
pub struct Pending<R> {
    replier: Box<dyn Replier>,
    message: PhantomData<fn() -> R>,
}

impl<R: Request> Served<R> {
    /// The next question; one that cannot be read is logged and skipped, its asker fails closed when it is late.
    pub async fn next(&mut self) -> Option<Question<R>> {
        loop {
            let Unread { bytes, deadline, pending } = self.next_unread().await?;
            if let Some(request) = read_question::<R>(&bytes) {
                return Some(Question { request, deadline, pending });
            }
        }
    }

    /// The next question as it arrived; see [`read_question`].
    pub async fn next_unread(&mut self) -> Option<Unread<R>> {
        let Asked { question, deadline, replier } = self.inbox.next().await?;
        Some(Unread { bytes: question, deadline, pending: Pending { replier, message: PhantomData } })
    }

    /// Takes no new questions; [`Served::next`] still yields those that had arrived, then `None`.
    pub async fn stop(&mut self) {
        self.inbox.stop().await;
    }
}

/// What a question says; one that cannot be read is logged.
pub fn read_question<R: Request>(bytes: &[u8]) -> Option<R> {
    match serde_json::from_slice(bytes) {
        Ok(request) => Some(request),
        Err(error) => {
            // The error names a position and a type, never the content.
            tracing::error!(
                subject = R::SUBJECT,
                line = error.line(),
                column = error.column(),
                "question cannot be read"
            );
            None
        }
    }
}

impl<R: Request> Question<R> {
    /// Sends the answer.
    pub async fn answer(self, reply: &R::Reply) {
        self.pending.answer(reply).await;
    }

    /// What is asked, until when, and where the answer goes.
    pub fn into_parts(self) -> (R, Instant, Pending<R>) {
        (self.request, self.deadline, self.pending)
    }
}

impl<R: Request> Pending<R> {
    /// Sends the answer.
    pub async fn answer(self, reply: &R::Reply) {
        match serde_json::to_vec(reply) {
            Ok(bytes) => self.replier.reply(bytes.into()).await,
            Err(error) => tracing::error!(subject = R::SUBJECT, %error, "reply cannot be written"),
        }
    }
}
