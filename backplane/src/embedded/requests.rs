//! Requests inside one process: each server has a bounded queue, and the requests of a subject go to its servers in
//! turn.
//!
//! A full queue is passed over; when all are full the requester waits for one until its deadline. A request that no
//! server answers ends at its deadline and not before, as on NATS.

use std::any::Any;
use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Bus, Connection, Waiting};
use crate::{
    BoxFuture, Content, LocalRequests, MAX_MESSAGE_BYTES, NotReady, NotTaken, RawRequest, Replier, Reply, RequestError,
    RequestQueue, Requests, ServeError, SharedValue,
};

/// Requests that one queue holds. When more wait, each requester's own deadline decides how long.
const QUEUE_CAPACITY: usize = 256;

struct QueuedRequest {
    body: Content,
    deadline: Instant,
    reply: oneshot::Sender<Reply>,
    takes_value: bool,
}

/// The servers of each subject.
#[derive(Default)]
pub(super) struct Servers(Mutex<HashMap<&'static str, SubjectQueues>>);

#[derive(Default)]
struct SubjectQueues {
    senders: Vec<mpsc::Sender<QueuedRequest>>,
    turn: usize,
}

enum Offered {
    Taken,
    NoServer,
    AllFull(mpsc::Sender<QueuedRequest>, QueuedRequest),
}

impl SubjectQueues {
    fn offer(&mut self, mut request: QueuedRequest) -> Offered {
        let mut full = None;
        for _ in 0..self.senders.len() {
            self.turn = (self.turn + 1) % self.senders.len();
            let Some(inbox) = self.senders.get(self.turn) else { break };
            match inbox.try_send(request) {
                Ok(()) => return Offered::Taken,
                Err(mpsc::error::TrySendError::Full(back)) => {
                    full = Some(inbox.clone());
                    request = back;
                }
                Err(mpsc::error::TrySendError::Closed(back)) => request = back,
            }
        }
        full.map_or(Offered::NoServer, |inbox| Offered::AllFull(inbox, request))
    }
}

impl Servers {
    fn lock(&self) -> MutexGuard<'_, HashMap<&'static str, SubjectQueues>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, subject: &'static str) -> mpsc::Receiver<QueuedRequest> {
        let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
        self.lock().entry(subject).or_default().senders.push(sender);
        receiver
    }

    fn remove_closed(&self, subject: &'static str) {
        if let Some(queues) = self.lock().get_mut(subject) {
            queues.senders.retain(|sender| !sender.is_closed());
        }
    }

    fn offer(&self, subject: &'static str, request: QueuedRequest) -> Offered {
        match self.lock().get_mut(subject) {
            Some(queues) => queues.offer(request),
            None => Offered::NoServer,
        }
    }

    async fn hand_over(&self, subject: &'static str, mut request: QueuedRequest) -> Result<(), RequestError> {
        loop {
            match self.offer(subject, request) {
                Offered::Taken => return Ok(()),
                Offered::NoServer => return Err(RequestError::NoResponders),
                Offered::AllFull(inbox, back) => match inbox.send(back).await {
                    Ok(()) => return Ok(()),
                    // That server stopped meanwhile, so try the others.
                    Err(mpsc::error::SendError(back)) => request = back,
                },
            }
        }
    }
}

impl LocalRequests for Connection {
    fn request_value<'a>(
        &'a self,
        subject: &'static str,
        request: SharedValue,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Reply, RequestError>> {
        Box::pin(self.exchange(subject, Content::Value(request), deadline))
    }
}

impl Connection {
    async fn exchange(&self, subject: &'static str, body: Content, deadline: Instant) -> Result<Reply, RequestError> {
        let (bytes, takes_value) = match &body {
            Content::Bytes(bytes) => (bytes.len(), false),
            Content::Value(value) => (value.bytes, true),
        };
        if bytes > MAX_MESSAGE_BYTES {
            return Err(RequestError::TooLarge);
        }
        if self.closed.is_cancelled() {
            return Err(RequestError::Disconnected);
        }
        if deadline <= Instant::now() {
            return Err(RequestError::Timeout);
        }
        let _waiting = Waiting::below(usize::MAX, &self.waiting);
        let (reply, replied) = oneshot::channel();
        let exchange = async {
            let request = QueuedRequest { body, deadline, reply, takes_value };
            self.bus.shared.servers.hand_over(subject, request).await?;
            match replied.await {
                Ok(answer) => Ok(answer),
                // Dropped without a reply. On NATS the requester would not learn of that either.
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            biased;
            outcome = timeout_at(deadline, exchange) => outcome.unwrap_or(Err(RequestError::Timeout)),
            () = self.closed.cancelled() => Err(RequestError::Disconnected),
        }
    }
}

impl Requests for Connection {
    fn request_bytes<'a>(
        &'a self,
        subject: &'static str,
        body: Bytes,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Bytes, RequestError>> {
        Box::pin(async move {
            match self.exchange(subject, Content::Bytes(body), deadline).await? {
                Reply::Bytes(bytes) => Ok(bytes),
                Reply::Value(_) => Err(RequestError::Malformed),
            }
        })
    }

    fn local(&self) -> Option<&dyn LocalRequests> {
        Some(self)
    }

    fn serve_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn RequestQueue>, ServeError>> {
        Box::pin(async move {
            if self.closed.is_cancelled() {
                return Err(ServeError { subject: subject.to_owned(), reason: "the connection is closed".to_owned() });
            }
            let queue = self.bus.shared.servers.join(subject);
            let inbox = EmbeddedQueue { bus: self.bus.clone(), subject, queue, closed: self.closed.clone() };
            Ok(Box::new(inbox) as Box<dyn RequestQueue>)
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        Box::pin(async move {
            if self.closed.is_cancelled() { Err(NotReady("the connection is closed".into())) } else { Ok(()) }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.closed.cancel() })
    }

    fn pending(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

struct EmbeddedQueue {
    bus: Bus,
    subject: &'static str,
    queue: mpsc::Receiver<QueuedRequest>,
    closed: CancellationToken,
}

impl RequestQueue for EmbeddedQueue {
    fn next(&mut self) -> BoxFuture<'_, Option<RawRequest>> {
        Box::pin(async move {
            loop {
                let request = tokio::select! {
                    biased;
                    () = self.closed.cancelled() => return None,
                    received = self.queue.recv() => received?,
                };
                if request.deadline > Instant::now() {
                    let QueuedRequest { body, deadline, reply, takes_value } = request;
                    return Some(RawRequest {
                        body,
                        deadline,
                        replier: Box::new(OneshotReplier { reply, takes_value }),
                    });
                }
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.leave() })
    }
}

impl EmbeddedQueue {
    fn leave(&mut self) {
        self.queue.close();
        self.bus.shared.servers.remove_closed(self.subject);
    }
}

impl Drop for EmbeddedQueue {
    fn drop(&mut self) {
        self.leave();
    }
}

struct OneshotReplier {
    reply: oneshot::Sender<Reply>,
    takes_value: bool,
}

impl Replier for OneshotReplier {
    fn reply(self: Box<Self>, answer: Bytes) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if answer.len() > MAX_MESSAGE_BYTES {
                tracing::error!(bytes = answer.len(), "reply is too large for the backplane");
                return;
            }
            // A requester that has gone is not an error.
            drop(self.reply.send(Reply::Bytes(answer)));
        })
    }

    fn reply_value(self: Box<Self>, value: Box<dyn Any + Send>) -> Result<(), NotTaken> {
        if !self.takes_value {
            return Err((self, value));
        }
        drop(self.reply.send(Reply::Value(value)));
        Ok(())
    }
}
