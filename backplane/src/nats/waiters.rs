//! Who waits for an answer: a map from a random token in the reply subject to the asker.
//!
//! Whoever may publish could answer a question whose reply subject it guesses, and answers of the state store carry no
//! proof: a token has 128 random bits.
//!
//! async-nats' own map keeps an entry for every request that is never answered (nats.rs #1617); here the asker's guard removes it.
//! INVARIANT: nobody can start to wait while the connection is down, and all who wait learn at once that it broke.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Message;
use bytes::Bytes;
use data_encoding::BASE64URL_NOPAD;
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::AskError;
use crate::metrics::{self, Standing};

/// Of 64 tokens.
const DRAWN_BYTES: usize = 1_024;

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
}

/// Names one question; nobody guesses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token([u8; 16]);

impl Token {
    /// None: there is no randomness.
    pub(super) fn random() -> Option<Self> {
        DRAWN.with_borrow_mut(|drawn| drawn.next(|bytes| aws_lc_rs::rand::fill(bytes).is_ok())).map(Self)
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        BASE64URL_NOPAD.decode(text.as_bytes()).ok()?.try_into().ok().map(Self)
    }

    pub(super) fn text(self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }

    pub(super) fn bytes(self) -> [u8; 16] {
        self.0
    }
}

thread_local! {
    static DRAWN: RefCell<Drawn> = const { RefCell::new(Drawn { bytes: [0; DRAWN_BYTES], used: DRAWN_BYTES }) };
}

/// Random bytes that were drawn together, for tokens of one thread; each is used once. The system's generator costs a
/// call for each draw, however small.
struct Drawn {
    bytes: [u8; DRAWN_BYTES],
    used: usize,
}

impl Drawn {
    /// The next sixteen; `fill` says whether it gave randomness.
    fn next(&mut self, fill: impl FnOnce(&mut [u8]) -> bool) -> Option<[u8; 16]> {
        if self.bytes.len() - self.used < 16 {
            // Bytes of a draw that failed half-way are never used.
            self.used = self.bytes.len();
            if !fill(&mut self.bytes) {
                return None;
            }
            self.used = 0;
        }
        let token = self.bytes.get_mut(self.used..self.used + 16)?;
        let drawn = <[u8; 16]>::try_from(&*token).ok()?;
        // What was given away is nowhere else.
        token.fill(0);
        self.used += 16;
        Some(drawn)
    }
}

#[derive(Default)]
struct Room {
    door: Door,
    /// While the door is open.
    standing: Option<Standing>,
    waiting: HashMap<Token, Waiting>,
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
    pub(super) token: Token,
    answer: oneshot::Receiver<Answer>,
    absent: oneshot::Receiver<()>,
}

impl Waiters {
    /// Starts to wait; `Lost` while the connection is down.
    pub(super) fn enter(&self) -> Result<Waiter<'_>, AskError> {
        self.enter_for(Token::random().ok_or(AskError::Lost)?, None)
    }

    /// As [`Self::enter`] under this token, and only for what passes the check.
    pub(super) fn enter_for(&self, token: Token, check: Option<Check>) -> Result<Waiter<'_>, AskError> {
        let (sender, answer) = oneshot::channel();
        let (absent, was_absent) = oneshot::channel();
        let mut room = self.room();
        if room.door != Door::Open {
            return Err(AskError::Lost);
        }
        room.waiting.insert(token, Waiting { answer: sender, absent: Some(absent), check });
        Ok(Waiter { waiters: self, token, answer, absent: was_absent })
    }

    /// What an answer must pass to end this wait.
    pub(super) fn check(&self, token: Token) -> Option<Check> {
        self.room().waiting.get(&token)?.check.clone()
    }

    /// Nobody serves the subject, it is said.
    pub(super) fn absent(&self, token: Token) {
        let absent = {
            let mut room = self.room();
            room.waiting
                .get_mut(&token)
                .filter(|waiting| waiting.check.is_some())
                .and_then(|waiting| waiting.absent.take())
        };
        match absent {
            // The asker may just have left.
            Some(absent) => drop(absent.send(())),
            None if self.check(token).is_none() => self.resolve(token, Err(AskError::Absent)),
            None => {}
        }
    }

    /// Passes an answer on; one that nobody waits for is dropped.
    pub(super) fn resolve(&self, token: Token, answer: Answer) {
        let waiting = self.room().waiting.remove(&token);
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
        self.waiters.room().waiting.remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tokens_of_every_thread_are_different_and_none_is_empty() {
        let draw = || (0..1_000).map(|_| Token::random().unwrap().bytes()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(draw)).collect();
        let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 4_000);
        assert!(!all.contains(&[0; 16]));
    }

    #[test]
    fn drawn_bytes_are_given_away_once_and_a_failed_draw_gives_none() {
        let mut drawn = Drawn { bytes: [0; DRAWN_BYTES], used: DRAWN_BYTES };
        assert_eq!(drawn.next(|_| false), None);
        let mut draws = 0_u8;
        let mut next = |drawn: &mut Drawn| {
            drawn.next(|bytes| {
                draws += 1;
                bytes
                    .chunks_mut(16)
                    .zip(0_u8..)
                    .for_each(|(token, n)| token.fill(draws.wrapping_mul(64).wrapping_add(n)));
                true
            })
        };
        let tokens: Vec<_> = (0..DRAWN_BYTES / 16 + 1).map(|_| next(&mut drawn).unwrap()).collect();
        assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), tokens.len());
        assert_eq!((drawn.used, drawn.bytes[0], draws), (16, 0, 2), "what was given away is gone from memory");
        assert_eq!(drawn.next(|_| false).map(|token| token[0]), Some(129), "nothing needs to be drawn");
        drawn.used = DRAWN_BYTES;
        assert_eq!((drawn.next(|_| false), drawn.next(|_| false)), (None, None));
    }

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
        waiters.resolve(second.token, Ok(Bytes::from_static(b"second")));
        waiters.resolve(first.token, Err(AskError::Absent));
        assert_eq!(first.answer().await, Err(AskError::Absent));
        assert_eq!(second.answer().await, Ok(Bytes::from_static(b"second")));

        let unanswered = waiters.enter().ok().unwrap();
        assert_eq!(waiters.count(), 1);
        drop(unanswered);
        assert_eq!(waiters.count(), 0);
    }
}
