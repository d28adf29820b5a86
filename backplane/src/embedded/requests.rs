//! Questions inside one process: a bounded queue for each inbox, questions go round the inboxes of a subject.
//!
//! A full inbox is passed over; when all are full the asker waits for one, until its deadline. A question that nobody answers is
//! late at its deadline and not before, even where this process knows better: callers must not learn to rely on it.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{Bus, Connection, Waiting};
use crate::{AskError, Asked, BoxFuture, Inbox, MAX_MESSAGE_BYTES, NotReady, Replier, Requests, ServeError};

/// Questions that one inbox holds; more than this waiting means that the asker's deadline is the better judge.
const INBOX_CAPACITY: usize = 256;

/// A question on its way.
struct Envelope {
    question: Bytes,
    deadline: Instant,
    answer: oneshot::Sender<Bytes>,
}

/// Who serves which subject.
#[derive(Default)]
pub(super) struct Servers(Mutex<Rosters>);

#[derive(Default)]
struct Rosters {
    by_subject: HashMap<&'static str, Roster>,
    last_id: u64,
}

/// The inboxes of one subject, and whose turn it is.
#[derive(Default)]
struct Roster {
    inboxes: Vec<(u64, mpsc::Sender<Envelope>)>,
    turn: usize,
}

/// What became of an attempt to hand a question over without waiting.
enum Offered {
    Taken,
    Absent,
    AllFull(mpsc::Sender<Envelope>, Envelope),
}

impl Roster {
    fn offer(&mut self, mut envelope: Envelope) -> Offered {
        let mut full = None;
        for _ in 0..self.inboxes.len() {
            self.turn = (self.turn + 1) % self.inboxes.len();
            let Some((_, inbox)) = self.inboxes.get(self.turn) else { break };
            match inbox.try_send(envelope) {
                Ok(()) => return Offered::Taken,
                Err(mpsc::error::TrySendError::Full(back)) => {
                    full = Some(inbox.clone());
                    envelope = back;
                }
                Err(mpsc::error::TrySendError::Closed(back)) => envelope = back,
            }
        }
        full.map_or(Offered::Absent, |inbox| Offered::AllFull(inbox, envelope))
    }
}

impl Servers {
    fn lock(&self) -> MutexGuard<'_, Rosters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, subject: &'static str) -> (u64, mpsc::Receiver<Envelope>) {
        let (sender, receiver) = mpsc::channel(INBOX_CAPACITY);
        let mut rosters = self.lock();
        rosters.last_id += 1;
        let id = rosters.last_id;
        rosters.by_subject.entry(subject).or_default().inboxes.push((id, sender));
        (id, receiver)
    }

    fn leave(&self, subject: &'static str, id: u64) {
        if let Some(roster) = self.lock().by_subject.get_mut(subject) {
            roster.inboxes.retain(|(other, _)| *other != id);
        }
    }

    fn offer(&self, subject: &'static str, envelope: Envelope) -> Offered {
        match self.lock().by_subject.get_mut(subject) {
            Some(roster) => roster.offer(envelope),
            None => Offered::Absent,
        }
    }

    /// Waits for room as long as the caller lets it.
    async fn hand_over(&self, subject: &'static str, mut envelope: Envelope) -> Result<(), AskError> {
        loop {
            match self.offer(subject, envelope) {
                Offered::Taken => return Ok(()),
                Offered::Absent => return Err(AskError::Absent),
                Offered::AllFull(inbox, back) => match inbox.send(back).await {
                    Ok(()) => return Ok(()),
                    // It stopped meanwhile: ask the others.
                    Err(mpsc::error::SendError(back)) => envelope = back,
                },
            }
        }
    }
}

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
            if self.closed.is_cancelled() {
                return Err(AskError::Lost);
            }
            if deadline <= Instant::now() {
                return Err(AskError::Late);
            }
            let _waiting = Waiting::new(&self.waiting);
            let (answer, answered) = oneshot::channel();
            let exchange = async {
                self.bus.shared.servers.hand_over(subject, Envelope { question, deadline, answer }).await?;
                match answered.await {
                    Ok(answer) => Ok(answer),
                    // Dropped without an answer: on NATS nobody would know.
                    Err(_) => pending().await,
                }
            };
            tokio::select! {
                biased;
                outcome = timeout_at(deadline, exchange) => outcome.unwrap_or(Err(AskError::Late)),
                () = self.closed.cancelled() => Err(AskError::Lost),
            }
        })
    }

    fn serve_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Inbox>, ServeError>> {
        Box::pin(async move {
            if self.closed.is_cancelled() {
                return Err(ServeError { subject: subject.to_owned(), reason: "the connection is closed".to_owned() });
            }
            let (id, queue) = self.bus.shared.servers.join(subject);
            let inbox = QueuedInbox { bus: self.bus.clone(), subject, id, queue, closed: self.closed.clone() };
            Ok(Box::new(inbox) as Box<dyn Inbox>)
        })
    }

    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        Box::pin(async move {
            if self.closed.is_cancelled() { Err(NotReady("the connection is closed".to_owned())) } else { Ok(()) }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.closed.cancel() })
    }

    fn pending(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// One server's queue.
struct QueuedInbox {
    bus: Bus,
    subject: &'static str,
    id: u64,
    queue: mpsc::Receiver<Envelope>,
    closed: CancellationToken,
}

impl Inbox for QueuedInbox {
    fn next(&mut self) -> BoxFuture<'_, Option<Asked>> {
        Box::pin(async move {
            loop {
                let envelope = tokio::select! {
                    biased;
                    () = self.closed.cancelled() => return None,
                    received = self.queue.recv() => received?,
                };
                if envelope.deadline > Instant::now() {
                    let Envelope { question, deadline, answer } = envelope;
                    return Some(Asked { question, deadline, replier: Box::new(Slot(answer)) });
                }
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.bus.shared.servers.leave(self.subject, self.id);
            self.queue.close();
        })
    }
}

impl Drop for QueuedInbox {
    fn drop(&mut self) {
        self.bus.shared.servers.leave(self.subject, self.id);
    }
}

/// Where the asker waits.
struct Slot(oneshot::Sender<Bytes>);

impl Replier for Slot {
    fn reply(self: Box<Self>, answer: Bytes) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if answer.len() > MAX_MESSAGE_BYTES {
                tracing::error!(bytes = answer.len(), "reply is too large for the backplane");
                return;
            }
            // An asker who is gone is not an error.
            drop(self.0.send(answer));
        })
    }
}
