//! Notices inside one process: a bounded broadcast for each subject.
//!
//! A subscriber that falls further behind than the capacity loses the oldest notices and receives a gap instead; it
//! never blocks the publisher. An echo proves here that the subscriber is not behind.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Connection;
use crate::liveness::{Echoes, Token};
use crate::{BoxFuture, Event, Liveness, MAX_MESSAGE_BYTES, Notices, PublishError, RawSubscription, ServeError};

const NOTICE_CAPACITY: usize = 1024;

/// Number of the connection: inside a process it is made once.
const CONNECTION: u64 = 1;

#[derive(Default)]
pub(super) struct Subscribers(Mutex<HashMap<&'static str, broadcast::Sender<Broadcast>>>);

#[derive(Debug, Clone)]
enum Broadcast {
    Notice(Bytes),
    Echo(Token),
}

impl Subscribers {
    fn of(&self, subject: &'static str) -> broadcast::Sender<Broadcast> {
        let mut subjects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.entry(subject).or_insert_with(|| broadcast::Sender::new(NOTICE_CAPACITY)).clone()
    }
}

impl Notices for Connection {
    fn publish_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            if self.closed.is_cancelled() || notice.len() > MAX_MESSAGE_BYTES {
                return Err(PublishError);
            }
            // An error means that there is no subscriber, which is not a failure.
            drop(self.bus.shared.subscribers.of(subject).send(Broadcast::Notice(notice)));
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), PublishError>> {
        // A published notice is already in the subscribers' queues.
        Box::pin(ready(if self.closed.is_cancelled() { Err(PublishError) } else { Ok(()) }))
    }

    fn subscribe_bytes<'a>(
        &'a self,
        subject: &'static str,
    ) -> BoxFuture<'a, Result<Box<dyn RawSubscription>, ServeError>> {
        Box::pin(async move {
            if self.closed.is_cancelled() {
                return Err(ServeError { subject: subject.to_owned(), reason: "the connection is closed".to_owned() });
            }
            let sender = self.bus.shared.subscribers.of(subject);
            let (notices, closed) = (sender.subscribe(), self.closed.clone());
            Ok(Box::new(EmbeddedSubscription { sender, notices, closed, echoes: None }) as Box<dyn RawSubscription>)
        })
    }
}

struct EmbeddedSubscription {
    sender: broadcast::Sender<Broadcast>,
    notices: broadcast::Receiver<Broadcast>,
    closed: CancellationToken,
    echoes: Option<Echoes>,
}

impl RawSubscription for EmbeddedSubscription {
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>> {
        Box::pin(async move {
            loop {
                let received = tokio::select! {
                    biased;
                    () = self.closed.cancelled() => return None,
                    received = self.notices.recv() => received,
                };
                match received {
                    Ok(Broadcast::Notice(notice)) => return Some(Event::Message(notice)),
                    Ok(Broadcast::Echo(token)) => {
                        if let Some(echoes) = &self.echoes
                            && let Some(sent) = echoes.returned(&token)
                        {
                            echoes.prove(sent);
                        }
                    }
                    Err(RecvError::Lagged(_)) => return Some(Event::Gap),
                    Err(RecvError::Closed) => return None,
                }
            }
        })
    }

    fn prove(&mut self, liveness: Arc<Liveness>) {
        let (sender, closed) = (self.sender.clone(), self.closed.clone());
        let connection = move || (!closed.is_cancelled()).then_some(CONNECTION);
        let send = move |token| {
            // The subscription itself receives the echo.
            drop(sender.send(Broadcast::Echo(token)));
            ready(())
        };
        self.echoes = Some(Echoes::start(liveness, connection, send));
    }
}
