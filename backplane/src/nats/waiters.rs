//! Who waits for an answer: a map from a number in the reply subject to the asker.
//!
//! async-nats' own map keeps an entry for every request that is never answered (nats.rs #1617); here the asker's guard removes it.
//! INVARIANT: nobody can start to wait while the connection is down, and all who wait learn at once that it broke.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::AskError;
use crate::metrics::{self, Standing};

type Answer = Result<Bytes, AskError>;

/// Those who wait on one connection.
#[derive(Default)]
pub(super) struct Waiters {
    room: Mutex<Room>,
    last_id: AtomicU64,
}

#[derive(Default)]
struct Room {
    door: Door,
    /// While the door is open.
    standing: Option<Standing>,
    waiting: HashMap<u64, oneshot::Sender<Answer>>,
}

/// Whether one may start to wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Door {
    /// The connection is down.
    #[default]
    Shut,
    /// The connection stands.
    Open,
    /// There will be no connection again.
    Locked,
}

/// One who waits; leaves when dropped.
pub(super) struct Waiter<'a> {
    waiters: &'a Waiters,
    pub(super) id: u64,
    answer: oneshot::Receiver<Answer>,
}

impl Waiters {
    /// Starts to wait; `Lost` while the connection is down.
    pub(super) fn enter(&self) -> Result<Waiter<'_>, AskError> {
        let id = self.last_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        let mut room = self.room();
        if room.door != Door::Open {
            return Err(AskError::Lost);
        }
        room.waiting.insert(id, sender);
        Ok(Waiter { waiters: self, id, answer })
    }

    /// Passes an answer on; one that nobody waits for is dropped.
    pub(super) fn resolve(&self, id: u64, answer: Answer) {
        let waiting = self.room().waiting.remove(&id);
        if let Some(waiting) = waiting {
            // The asker may just have left.
            drop(waiting.send(answer));
        }
    }

    /// The connection stands.
    pub(super) fn open(&self) {
        let mut room = self.room();
        if room.door == Door::Shut {
            room.door = Door::Open;
            room.standing = Some(metrics::standing());
        }
    }

    /// The connection broke: all who wait are lost.
    pub(super) fn lose_all(&self) {
        self.turn_out(Door::Shut);
    }

    /// The connection is closed for good.
    pub(super) fn lock(&self) {
        self.turn_out(Door::Locked);
    }

    fn turn_out(&self, door: Door) {
        let lost = {
            let mut room = self.room();
            if room.door != Door::Locked {
                room.door = door;
            }
            room.standing = None;
            std::mem::take(&mut room.waiting)
        };
        drop(lost);
    }

    pub(super) fn door(&self) -> Door {
        self.room().door
    }

    pub(super) fn count(&self) -> usize {
        self.room().waiting.len()
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter<'_> {
    /// Waits for as long as the caller lets it.
    pub(super) async fn answer(&mut self) -> Answer {
        (&mut self.answer).await.unwrap_or(Err(AskError::Lost))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiters.room().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_wait_when_the_connection_breaks_are_lost_and_nobody_enters_until_it_stands() {
        let waiters = Waiters::default();
        assert_eq!(waiters.enter().err(), Some(AskError::Lost));
        waiters.open();
        let mut waiter = waiters.enter().ok().unwrap();
        waiters.lose_all();
        assert_eq!(waiter.answer().await, Err(AskError::Lost));
        assert_eq!(waiters.enter().err(), Some(AskError::Lost));
    }

    #[test]
    fn nobody_enters_once_the_connection_is_closed_for_good() {
        let waiters = Waiters::default();
        waiters.lock();
        waiters.lose_all();
        waiters.open();
        assert_eq!(waiters.enter().err(), Some(AskError::Lost));
    }

    #[tokio::test]
    async fn each_waiter_gets_its_own_answer_and_leaves_nothing() {
        let waiters = Waiters::default();
        waiters.open();
        let (mut first, mut second) = (waiters.enter().ok().unwrap(), waiters.enter().ok().unwrap());
        waiters.resolve(second.id, Ok(Bytes::from_static(b"second")));
        waiters.resolve(first.id, Err(AskError::Absent));
        assert_eq!(first.answer().await, Err(AskError::Absent));
        assert_eq!(second.answer().await, Ok(Bytes::from_static(b"second")));

        let unanswered = waiters.enter().ok().unwrap();
        assert_eq!(waiters.count(), 1);
        drop(unanswered);
        assert_eq!(waiters.count(), 0);
    }
}
