//! Notices inside one process: a bounded broadcast for each subject.
//!
//! A listener that falls more than the capacity behind loses the oldest and hears a gap instead; it never holds up the teller.
//! A change is in every listener's queue before whoever made it is answered, and a freeze stops all roles at once: what
//! an echo proves here is that the listener is not behind.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Connection;
use crate::liveness::{Echoes, Token};
use crate::{BoxFuture, Event, Hearing, Liveness, MAX_MESSAGE_BYTES, Notices, ServeError, TellError};

/// Notices that a listener may be behind; one who is further behind empties its caches faster than it would read on.
const NOTICE_CAPACITY: usize = 1024;

/// A connection inside a process is made once.
const CONNECTION: u64 = 1;

/// Who hears what.
#[derive(Default)]
pub(super) struct Hearers(Mutex<HashMap<&'static str, broadcast::Sender<Told>>>);

/// What goes to all listeners of a subject.
#[derive(Debug, Clone)]
enum Told {
    Notice(Bytes),
    /// Of one listener, to itself.
    Echo(Token),
}

impl Hearers {
    fn of(&self, subject: &'static str) -> broadcast::Sender<Told> {
        let mut subjects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.entry(subject).or_insert_with(|| broadcast::Sender::new(NOTICE_CAPACITY)).clone()
    }
}

impl Notices for Connection {
    fn tell_bytes<'a>(&'a self, subject: &'static str, notice: Bytes) -> BoxFuture<'a, Result<(), TellError>> {
        Box::pin(async move {
            if self.closed.is_cancelled() || notice.len() > MAX_MESSAGE_BYTES {
                return Err(TellError);
            }
            // An error means that nobody listens: told all the same.
            drop(self.bus.shared.hearers.of(subject).send(Told::Notice(notice)));
            Ok(())
        })
    }

    fn settle(&self) -> BoxFuture<'_, Result<(), TellError>> {
        // It is with the listeners.
        Box::pin(ready(if self.closed.is_cancelled() { Err(TellError) } else { Ok(()) }))
    }

    fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, ServeError>> {
        Box::pin(async move {
            if self.closed.is_cancelled() {
                return Err(ServeError { subject: subject.to_owned(), reason: "the connection is closed".to_owned() });
            }
            let teller = self.bus.shared.hearers.of(subject);
            let (notices, closed) = (teller.subscribe(), self.closed.clone());
            Ok(Box::new(Heard { teller, notices, closed, echoes: None }) as Box<dyn Hearing>)
        })
    }
}

/// One listener's place in the broadcast.
struct Heard {
    teller: broadcast::Sender<Told>,
    notices: broadcast::Receiver<Told>,
    closed: CancellationToken,
    echoes: Option<Echoes>,
}

/// What came out of the broadcast.
enum Outcome {
    Event(Event<Bytes>),
    Echo,
    End,
}

impl Heard {
    fn event(&self, heard: Result<Told, RecvError>) -> Outcome {
        match heard {
            Ok(Told::Notice(notice)) => Outcome::Event(Event::Heard(notice)),
            Ok(Told::Echo(token)) => {
                if let Some(echoes) = &self.echoes
                    && let Some(sent) = echoes.returned(&token)
                {
                    echoes.prove(sent);
                }
                Outcome::Echo
            }
            Err(RecvError::Lagged(_)) => Outcome::Event(Event::Gap),
            Err(RecvError::Closed) => Outcome::End,
        }
    }
}

impl Hearing for Heard {
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>> {
        Box::pin(async move {
            loop {
                let heard = tokio::select! {
                    biased;
                    () = self.closed.cancelled() => return None,
                    heard = self.notices.recv() => heard,
                };
                match self.event(heard) {
                    Outcome::Event(event) => return Some(event),
                    Outcome::Echo => {}
                    Outcome::End => return None,
                }
            }
        })
    }

    fn prove(&mut self, liveness: Arc<Liveness>) {
        let (teller, closed) = (self.teller.clone(), self.closed.clone());
        let connection = move || (!closed.is_cancelled()).then_some(CONNECTION);
        let send = move |token| {
            // This listener hears it.
            drop(teller.send(Told::Echo(token)));
            ready(())
        };
        self.echoes = Some(Echoes::start(liveness, connection, send));
    }
}
