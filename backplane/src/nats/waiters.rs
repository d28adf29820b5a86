//! Who waits for an answer: a map from a number in the reply subject to the asker.
//!
//! async-nats' own map keeps an entry for every request that is never answered (nats.rs #1617); here the asker's guard removes it.
//! INVARIANT: nobody can start to wait while the connection is down, and all who wait learn at once that it broke.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::AskError;
use crate::metrics::{self, Standing};

type Answer = Result<Bytes, AskError>;

/// Tells the genuine answer from others.
pub(super) type Check = Arc<dyn Fn(&Message) -> bool + Send + Sync>;

/// Anybody can say that nobody serves a subject. One who waits for a genuine answer gives it so much time to come all
/// the same.
const NO_RESPONDERS_GRACE: Duration = Duration::from_millis(250);

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
    waiting: HashMap<u64, Waiting>,
}

struct Waiting {
    answer: oneshot::Sender<Answer>,
    /// Taken when somebody says that nobody serves the subject.
    absent: Option<oneshot::Sender<()>>,
    check: Option<Check>,
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
    absent: oneshot::Receiver<()>,
}

impl Waiters {
    /// Starts to wait; `Lost` while the connection is down.
    pub(super) fn enter(&self) -> Result<Waiter<'_>, AskError> {
        self.enter_for(self.next_id(), None)
    }

    /// A number that no other waiter has.
    pub(super) fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed)
    }

    /// As [`Self::enter`] under this number, and only for what passes the check.
    pub(super) fn enter_for(&self, id: u64, check: Option<Check>) -> Result<Waiter<'_>, AskError> {
        let (sender, answer) = oneshot::channel();
        let (absent, was_absent) = oneshot::channel();
        let mut room = self.room();
        if room.door != Door::Open {
            return Err(AskError::Lost);
        }
        room.waiting.insert(id, Waiting { answer: sender, absent: Some(absent), check });
        Ok(Waiter { waiters: self, id, answer, absent: was_absent })
    }

    /// What an answer must pass to end this wait.
    pub(super) fn check(&self, id: u64) -> Option<Check> {
        self.room().waiting.get(&id)?.check.clone()
    }

    /// Nobody serves the subject, it is said.
    pub(super) fn absent(&self, id: u64) {
        let absent = {
            let mut room = self.room();
            room.waiting
                .get_mut(&id)
                .filter(|waiting| waiting.check.is_some())
                .and_then(|waiting| waiting.absent.take())
        };
        match absent {
            // The asker may just have left.
            Some(absent) => drop(absent.send(())),
            None if self.check(id).is_none() => self.resolve(id, Err(AskError::Absent)),
            None => {}
        }
    }

    /// Passes an answer on; one that nobody waits for is dropped.
    pub(super) fn resolve(&self, id: u64, answer: Answer) {
        let waiting = self.room().waiting.remove(&id);
        if let Some(waiting) = waiting {
            // The asker may just have left.
            drop(waiting.answer.send(answer));
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
        let lost = Err(AskError::Lost);
        tokio::select! {
            biased;
            answer = &mut self.answer => return answer.unwrap_or(lost),
            // Dropped with the answer's, when the connection breaks.
            Ok(()) = &mut self.absent => {}
            else => return lost,
        }
        tokio::select! {
            biased;
            answer = &mut self.answer => answer.unwrap_or(lost),
            () = sleep(NO_RESPONDERS_GRACE) => Err(AskError::Absent),
        }
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
