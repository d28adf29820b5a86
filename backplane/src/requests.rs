//! *Requests*: send a request to one of the processes that serve its subject; serve a subject together with others.
//!
//! The traits carry bytes, so that they are object-safe; the typed methods on top own the JSON framing. Between two
//! ends of one process a request and its reply can go over as they are ([`LocalRequests`]). A request carries an
//! absolute deadline: a server drops a late request, as its requester no longer waits.

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
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

    /// The way of values to a server in the same process; none where requests cross a wire.
    fn local(&self) -> Option<&dyn LocalRequests> {
        None
    }

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

/// Requests and replies that are not written as bytes, because both ends are in one process.
pub trait LocalRequests: Send + Sync {
    /// Sends one request. Resolves by `deadline`.
    fn request_value<'a>(
        &'a self,
        subject: &'static str,
        request: SharedValue,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Reply, RequestError>>;
}

/// A request as its requester has it.
pub struct SharedValue {
    /// The request.
    pub value: Arc<dyn Any + Send + Sync>,
    /// About what it would take as bytes, for the limits of its server.
    pub bytes: usize,
}

/// What a request is made of.
pub enum Content {
    /// As it came over a wire.
    Bytes(Bytes),
    /// From a requester in the same process.
    Value(SharedValue),
}

impl Content {
    /// What came over a wire.
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Value(_) => None,
        }
    }
}

/// What a reply is made of.
pub enum Reply {
    /// As it came over a wire.
    Bytes(Bytes),
    /// From a server in the same process.
    Value(Box<dyn Any + Send>),
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

    /// Hands a value to a requester that takes one; otherwise it comes back, to be sent as bytes.
    fn reply_value(self: Box<Self>, value: Box<dyn Any + Send>) -> Result<(), NotTaken>;
}

/// A replier that takes no values, and the value.
pub type NotTaken = (Box<dyn Replier>, Box<dyn Any + Send>);

/// One request that is not typed yet.
pub struct RawRequest {
    /// The request's body.
    pub body: Content,
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

    /// As `request_until`. To a server in the same process the request goes as it is; `bytes` is about what it
    /// would take written down.
    pub async fn request_shared<R: Request>(
        &self,
        request: &Arc<R>,
        bytes: usize,
        deadline: Instant,
    ) -> Result<R::Reply, RequestError> {
        let Some(local) = self.local() else { return self.request_until(&**request, deadline).await };
        let value = SharedValue { value: Arc::clone(request) as Arc<dyn Any + Send + Sync>, bytes };
        let reply = match local.request_value(R::SUBJECT, value, deadline).await {
            Ok(Reply::Value(value)) => value.downcast().map(|reply| *reply).map_err(|_| RequestError::Malformed),
            Ok(Reply::Bytes(bytes)) => serde_json::from_slice(&bytes).map_err(|_| RequestError::Malformed),
            Err(error) => Err(error),
        };
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
    /// The request.
    pub content: Unparsed<R>,
    /// From then on the requester no longer waits.
    pub deadline: Instant,
    /// Sends the reply.
    pub responder: Responder<R>,
}

/// A request that may still have to be parsed.
pub enum Unparsed<R> {
    /// As it came over a wire.
    Bytes(Bytes),
    /// From a requester in the same process.
    Value {
        /// The request, which its requester has too.
        request: Arc<R>,
        /// About what it would take as bytes.
        bytes: usize,
    },
}

impl<R> Unparsed<R> {
    /// How large it is as bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Value { bytes, .. } => *bytes,
        }
    }
}

impl<R: Request> Unparsed<R> {
    /// The request; one that cannot be parsed is logged.
    pub fn parse(&self) -> Option<Arc<R>> {
        match self {
            Self::Bytes(bytes) => parse_request::<R>(bytes).map(Arc::new),
            Self::Value { request, .. } => Some(Arc::clone(request)),
        }
    }
}

impl<R> Clone for Unparsed<R> {
    fn clone(&self) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.clone()),
            Self::Value { request, bytes } => Self::Value { request: Arc::clone(request), bytes: *bytes },
        }
    }
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
            let RawRequest { body, deadline, replier } = self.queue.next().await?;
            let request = match body {
                Content::Bytes(bytes) => parse_request::<R>(&bytes),
                Content::Value(shared) => written::<R>(&shared).and_then(|bytes| parse_request::<R>(&bytes)),
            };
            if let Some(request) = request {
                let responder = Responder { replier, message: PhantomData };
                return Some(IncomingRequest { request, deadline, responder });
            }
        }
    }

    /// The next request without parsing it; see [`Unparsed::parse`].
    pub async fn next_unparsed(&mut self) -> Option<UnparsedRequest<R>> {
        loop {
            let RawRequest { body, deadline, replier } = self.queue.next().await?;
            let content = match body {
                Content::Bytes(bytes) => Unparsed::Bytes(bytes),
                Content::Value(SharedValue { value, bytes }) => {
                    let Ok(request) = value.downcast::<R>() else {
                        tracing::error!(subject = R::SUBJECT, "a request of another type came to this subject");
                        continue;
                    };
                    Unparsed::Value { request, bytes }
                }
            };
            let responder = Responder { replier, message: PhantomData };
            return Some(UnparsedRequest { content, deadline, responder });
        }
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

/// A value as bytes, for a server that takes its requests typed.
fn written<R: Request>(shared: &SharedValue) -> Option<Vec<u8>> {
    serde_json::to_vec(shared.value.downcast_ref::<R>()?).ok()
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

    /// Hands the reply over as it is to a requester in the same process, and sends it to any other.
    pub async fn hand_over(self, reply: R::Reply) {
        let Err((replier, value)) = self.replier.reply_value(Box::new(reply)) else { return };
        if let Ok(reply) = value.downcast::<R::Reply>() {
            Self { replier, message: PhantomData }.answer(&reply).await;
        }
    }
}
