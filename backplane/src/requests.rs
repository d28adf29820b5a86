//! *Requests*: send a request to one of the processes that serve its subject; serve a subject together with others.
//!
//! The traits carry bytes, so that they are object-safe; the typed methods on top own the JSON framing. A request
//! carries an absolute deadline: a server drops a late request, as its requester no longer waits.

use std::future::Future;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{BoxFuture, Cause, metrics};
use stage0_contract::Request;

/// Request/reply between services.
pub trait Requests: Send + Sync {
    /// Sends one request. Resolves by `deadline`, whatever the connection does.
    fn request_bytes<'a>(
        &'a self,
        subject: &'static str,
        request: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, RequestError>>;

    /// Joins the servers of a subject: each request goes to one of them.
    fn serve_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn RequestQueue>, ServeError>>;

    /// A self-ping, which proves that this connection carries requests now.
    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>>;

    /// Sends what is queued and closes. Stop the queues and finish their work first.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// From now on replies carry this term of the keystore and the lineage of its directory.
    fn serve_in_term(&self, _term: u64, _lineage: &str) {}

    /// The public key that requests are sealed to; none where nothing crosses a wire.
    fn sealing_key(&self) -> Option<String> {
        None
    }

    /// Gauge of requests that wait for a reply now. One that was answered, timed out or was dropped does not count.
    fn pending(&self) -> usize;
}

/// The requests that arrive at one server.
pub trait RequestQueue: Send {
    /// The next request that is not late; `None` once stopped and empty, or when the connection is closed for good.
    fn next(&mut self) -> BoxFuture<'_, Option<RawRequest>>;

    /// Takes no new requests; `next` still returns those that had arrived.
    fn stop(&mut self) -> BoxFuture<'_, ()>;
}

/// Sends the reply to one request.
pub trait Replier: Send {
    /// Sends the reply. A requester that has gone is not an error.
    fn reply(self: Box<Self>, reply: Bytes) -> BoxFuture<'static, ()>;
}

/// One request as bytes.
pub struct RawRequest {
    /// The request's body.
    pub body: Bytes,
    /// From then on the requester no longer waits.
    pub deadline: Instant,
    /// Sends the reply.
    pub replier: Box<dyn Replier>,
}

/// Why a request got no reply. Each of them means: not decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No process serves the subject.
    #[error("no process serves the subject")]
    NoResponders,
    /// The deadline passed.
    #[error("no reply within the deadline")]
    Timeout,
    /// Not connected, or the connection broke before the reply came.
    #[error("the connection to the backplane is lost")]
    Disconnected,
    /// The request is larger than the backplane carries.
    #[error("the request is too large for the backplane")]
    TooLarge,
    /// The reply does not parse as the message's reply type.
    #[error("the reply cannot be parsed")]
    Malformed,
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

/// Why no request could be sent now; for `/readyz` and the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct NotReady(pub Cause);

impl dyn Requests + '_ {
    /// Sends a typed request and waits at most `within`.
    pub async fn request<R: Request>(&self, request: &R, within: Duration) -> Result<R::Reply, RequestError> {
        self.request_until(request, Instant::now() + within).await
    }

    /// Sends a typed request and waits until `deadline`.
    pub async fn request_until<R: Request>(&self, request: &R, deadline: Instant) -> Result<R::Reply, RequestError> {
        let reply = async {
            let bytes = serde_json::to_vec(request).map_err(|_| RequestError::Malformed)?;
            let reply = self.request_bytes(R::SUBJECT, bytes.into(), deadline).await?;
            serde_json::from_slice(&reply).map_err(|_| RequestError::Malformed)
        }
        .await;
        metrics::request_finished(R::SUBJECT, reply.as_ref().err().copied());
        reply
    }

    /// Joins the servers of `R`.
    pub async fn serve<R: Request>(&self) -> Result<RequestStream<R>, ServeError> {
        Ok(RequestStream { queue: self.serve_bytes(R::SUBJECT).await?, message: PhantomData })
    }
}

/// The typed requests that arrive at one server.
pub struct RequestStream<R> {
    queue: Box<dyn RequestQueue>,
    message: PhantomData<fn() -> R>,
}

/// One typed request: its content, its deadline, and the responder for the reply.
pub struct IncomingRequest<R> {
    /// The request's content.
    pub request: R,
    /// From then on the requester no longer waits.
    pub deadline: Instant,
    responder: Responder<R>,
}

/// A request that is not parsed yet, for a server that decides by its bytes when and where to parse it.
pub struct UnparsedRequest<R> {
    /// The request's bytes.
    pub bytes: Bytes,
    /// From then on the requester no longer waits.
    pub deadline: Instant,
    /// Sends the reply.
    pub responder: Responder<R>,
}

/// Sends the reply to one request. If it is dropped, the requester fails closed at its deadline.
pub struct Responder<R> {
    replier: Box<dyn Replier>,
    message: PhantomData<fn() -> R>,
}

impl<R: Request> RequestStream<R> {
    /// The next request. One that cannot be parsed is logged and skipped; its requester fails closed at its deadline.
    pub async fn next(&mut self) -> Option<IncomingRequest<R>> {
        loop {
            let UnparsedRequest { bytes, deadline, responder } = self.next_unparsed().await?;
            if let Some(request) = parse_request::<R>(&bytes) {
                return Some(IncomingRequest { request, deadline, responder });
            }
        }
    }

    /// The next request without parsing it; see [`parse_request`].
    pub async fn next_unparsed(&mut self) -> Option<UnparsedRequest<R>> {
        let RawRequest { body, deadline, replier } = self.queue.next().await?;
        Some(UnparsedRequest { bytes: body, deadline, responder: Responder { replier, message: PhantomData } })
    }

    /// Takes no new requests; [`RequestStream::next`] still returns those that had arrived, then `None`.
    pub async fn stop(&mut self) {
        self.queue.stop().await;
    }

    /// Handles requests until `stop`, then those that had arrived before it. At most `concurrency` handlers run at a
    /// time, all of them on the calling task; the backplane queues the requests beyond that.
    pub async fn run<Handled: Future<Output = ()>>(
        mut self,
        stop: &CancellationToken,
        concurrency: usize,
        handler: impl Fn(IncomingRequest<R>) -> Handled,
    ) {
        let mut in_flight = FuturesUnordered::new();
        let mut stopping = false;
        let mut drained = false;
        while !(drained && in_flight.is_empty()) {
            tokio::select! {
                biased;
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.stop().await;
                }
                Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
                request = self.next(), if !drained && in_flight.len() < concurrency => match request {
                    Some(request) => in_flight.push(handler(request)),
                    None => {
                        if !stopping {
                            let subject = R::SUBJECT;
                            tracing::error!(subject, "subject is no longer served: the backplane is closed");
                        }
                        drained = true;
                    }
                },
            }
        }
    }
}

/// Parses a request; one that cannot be parsed is logged.
pub fn parse_request<R: Request>(bytes: &[u8]) -> Option<R> {
    let parsed = serde_json::from_slice(bytes);
    let logged = parsed.inspect_err(|error| {
        // The error names a position and a type, never the content.
        let (subject, line, column) = (R::SUBJECT, error.line(), error.column());
        tracing::error!(subject, line, column, "request cannot be read");
    });
    logged.ok()
}

impl<R: Request> IncomingRequest<R> {
    /// Sends the reply.
    pub async fn answer(self, reply: &R::Reply) {
        self.responder.answer(reply).await;
    }

    /// The request, its deadline, and the responder for the reply.
    pub fn into_parts(self) -> (R, Instant, Responder<R>) {
        (self.request, self.deadline, self.responder)
    }
}

impl<R: Request> Responder<R> {
    /// Sends the reply.
    pub async fn answer(self, reply: &R::Reply) {
        match serde_json::to_vec(reply) {
            Ok(bytes) => self.replier.reply(bytes.into()).await,
            Err(error) => tracing::error!(subject = R::SUBJECT, %error, "reply cannot be written"),
        }
    }
}
