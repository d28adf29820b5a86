//! Notices inside one process: a bounded broadcast for each subject.
//!
//! A listener that falls more than the capacity behind loses the oldest and hears a gap instead; it never holds up the teller.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Connection;
use crate::{BoxFuture, Event, Hearing, MAX_MESSAGE_BYTES, Notices, ServeError, TellError};

/// Notices that a listener may be behind; one who is further behind empties its caches faster than it would read on.
const NOTICE_CAPACITY: usize = 1024;

/// Who hears what.
#[derive(Default)]
pub(super) struct Hearers(Mutex<HashMap<&'static str, broadcast::Sender<Bytes>>>);

impl Hearers {
    fn of(&self, subject: &'static str) -> broadcast::Sender<Bytes> {
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
            drop(self.bus.shared.hearers.of(subject).send(notice));
            Ok(())
        })
    }

    fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, ServeError>> {
        Box::pin(async move {
            if self.closed.is_cancelled() {
                return Err(ServeError { subject: subject.to_owned(), reason: "the connection is closed".to_owned() });
            }
            let notices = self.bus.shared.hearers.of(subject).subscribe();
            Ok(Box::new(Heard { notices, closed: self.closed.clone() }) as Box<dyn Hearing>)
        })
    }
}

/// One listener's place in the broadcast.
struct Heard {
    notices: broadcast::Receiver<Bytes>,
    closed: CancellationToken,
}

impl Hearing for Heard {
    fn next(&mut self) -> BoxFuture<'_, Option<Event<Bytes>>> {
        Box::pin(async move {
            tokio::select! {
                biased;
                () = self.closed.cancelled() => None,
                heard = self.notices.recv() => match heard {
                    Ok(notice) => Some(Event::Heard(notice)),
                    Err(RecvError::Lagged(_)) => Some(Event::Gap),
                    Err(RecvError::Closed) => None,
                },
            }
        })
    }
}
