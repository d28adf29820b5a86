//! Requests that wait for a reply: a map from the random token in the reply subject to the waiting request.
//!
//! A client that guesses a reply subject could answer in the server's place, so a token has 128 random bits. The map of
//! async-nats keeps an entry for every request that is never answered (nats.rs #1617); here a guard removes it.
//! INVARIANT: no request starts to wait while the connection is down, and all waiting requests fail at once when it
//! breaks.

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

use crate::RequestError;
use crate::metrics::{self, Counted};

/// Bytes of 64 tokens.
const BATCH_BYTES: usize = 1_024;

type ReplyResult = Result<Bytes, RequestError>;

pub(super) type Check = Arc<dyn Fn(&Message) -> bool + Send + Sync>;

/// Any client can claim that there is no responder; a request with a check waits this long for a genuine reply.
const NO_RESPONDERS_DELAY: Duration = Duration::from_millis(250);

#[derive(Default)]
pub(super) struct Waiters {
    pending: Mutex<Pending>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token([u8; 16]);

impl Token {
    /// None: there is no randomness.
    pub(super) fn random() -> Option<Self> {
        RANDOM_BYTES.with_borrow_mut(|random| random.next(|bytes| aws_lc_rs::rand::fill(bytes).is_ok())).map(Self)
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
    static RANDOM_BYTES: RefCell<RandomBytes> =
        const { RefCell::new(RandomBytes { bytes: [0; BATCH_BYTES], used: BATCH_BYTES }) };
}

/// Random bytes for the tokens of one thread, drawn together: the system's generator costs a call for each draw.
struct RandomBytes {
    bytes: [u8; BATCH_BYTES],
    used: usize,
}

impl RandomBytes {
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
        let random = <[u8; 16]>::try_from(&*token).ok()?;
        // A token that was handed out is kept nowhere else.
        token.fill(0);
        self.used += 16;
        Some(random)
    }
}

#[derive(Default)]
struct Pending {
    state: ConnState,
    connection_up: Option<Counted>,
    waiting: HashMap<Token, PendingReply>,
}

struct PendingReply {
    answer: oneshot::Sender<ReplyResult>,
    /// Taken by the first report that there is no responder.
    no_responders: Option<oneshot::Sender<()>>,
    check: Option<Check>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum ConnState {
    #[default]
    Down,
    Up,
    /// There will be no connection again.
    Closed,
}

/// A waiting request; it stops waiting when dropped.
pub(super) struct Waiter<'a> {
    waiters: &'a Waiters,
    pub(super) token: Token,
    answer: oneshot::Receiver<ReplyResult>,
    no_responders: oneshot::Receiver<()>,
}

impl Waiters {
    pub(super) fn register(&self) -> Result<Waiter<'_>, RequestError> {
        self.register_as(Token::random().ok_or(RequestError::Disconnected)?, None)
    }

    /// Like [`Self::register`] under this token, for a reply that passes the check.
    pub(super) fn register_as(&self, token: Token, check: Option<Check>) -> Result<Waiter<'_>, RequestError> {
        let (sender, answer) = oneshot::channel();
        let (no_responders, no_responders_reported) = oneshot::channel();
        let mut pending = self.pending();
        if pending.state != ConnState::Up {
            return Err(RequestError::Disconnected);
        }
        pending.waiting.insert(token, PendingReply { answer: sender, no_responders: Some(no_responders), check });
        Ok(Waiter { waiters: self, token, answer, no_responders: no_responders_reported })
    }

    pub(super) fn check(&self, token: Token) -> Option<Check> {
        self.pending().waiting.get(&token)?.check.clone()
    }

    pub(super) fn no_responders(&self, token: Token) {
        if self.check(token).is_none() {
            return self.resolve(token, Err(RequestError::NoResponders));
        }
        let reported = self.pending().waiting.get_mut(&token).and_then(|waiting| waiting.no_responders.take());
        if let Some(reported) = reported {
            // The requester may just have left.
            let _ = reported.send(());
        }
    }

    pub(super) fn resolve(&self, token: Token, answer: ReplyResult) {
        let waiting = self.pending().waiting.remove(&token);
        if let Some(waiting) = waiting {
            // The requester may just have left.
            drop(waiting.answer.send(answer));
        }
    }

    pub(super) fn connected(&self) {
        let mut pending = self.pending();
        if pending.state == ConnState::Down {
            pending.state = ConnState::Up;
            pending.connection_up = Some(metrics::connection_up());
        }
    }

    pub(super) fn disconnected(&self) {
        self.fail_all(ConnState::Down);
    }

    pub(super) fn close(&self) {
        self.fail_all(ConnState::Closed);
    }

    fn fail_all(&self, state: ConnState) {
        let mut pending = self.pending();
        if pending.state != ConnState::Closed {
            pending.state = state;
        }
        pending.connection_up = None;
        let lost = std::mem::take(&mut pending.waiting);
        drop(pending);
        drop(lost);
    }

    pub(super) fn state(&self) -> ConnState {
        self.pending().state
    }

    pub(super) fn count(&self) -> usize {
        self.pending().waiting.len()
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiter<'_> {
    pub(super) async fn answer(&mut self) -> ReplyResult {
        let lost = Err(RequestError::Disconnected);
        tokio::select! {
            biased;
            answer = &mut self.answer => return answer.unwrap_or(lost),
            // Dropped together with `answer` when the connection breaks.
            Ok(()) = &mut self.no_responders => {}
            else => return lost,
        }
        tokio::select! {
            biased;
            answer = &mut self.answer => answer.unwrap_or(lost),
            () = sleep(NO_RESPONDERS_DELAY) => Err(RequestError::NoResponders),
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiters.pending().waiting.remove(&self.token);
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
    fn random_bytes_are_used_once_and_a_failed_draw_gives_none() {
        let mut random = RandomBytes { bytes: [0; BATCH_BYTES], used: BATCH_BYTES };
        assert_eq!(random.next(|_| false), None);
        let mut draws = 0_u8;
        let mut next = |random: &mut RandomBytes| {
            random.next(|bytes| {
                draws += 1;
                bytes
                    .chunks_mut(16)
                    .zip(0_u8..)
                    .for_each(|(token, n)| token.fill(draws.wrapping_mul(64).wrapping_add(n)));
                true
            })
        };
        let tokens: Vec<_> = (0..BATCH_BYTES / 16 + 1).map(|_| next(&mut random).unwrap()).collect();
        assert_eq!(tokens.iter().collect::<HashSet<_>>().len(), tokens.len());
        assert_eq!((random.used, random.bytes[0], draws), (16, 0, 2), "what was given away is gone from memory");
        assert_eq!(random.next(|_| false).map(|token| token[0]), Some(129), "nothing needs to be drawn");
        random.used = BATCH_BYTES;
        assert_eq!((random.next(|_| false), random.next(|_| false)), (None, None));
    }

    #[tokio::test]
    async fn waiting_requests_fail_when_the_connection_breaks_and_none_starts_until_it_is_up() {
        let waiters = Waiters::default();
        assert_eq!(waiters.register().err(), Some(RequestError::Disconnected));
        waiters.connected();
        let mut waiter = waiters.register().ok().unwrap();
        waiters.disconnected();
        assert_eq!(waiter.answer().await, Err(RequestError::Disconnected));
        assert_eq!(waiters.register().err(), Some(RequestError::Disconnected));
    }

    #[test]
    fn no_request_starts_once_the_connection_is_closed() {
        let waiters = Waiters::default();
        waiters.close();
        waiters.disconnected();
        waiters.connected();
        assert_eq!(waiters.register().err(), Some(RequestError::Disconnected));
    }

    #[tokio::test]
    async fn each_waiting_request_gets_its_own_reply_and_leaves_nothing_behind() {
        let waiters = Waiters::default();
        waiters.connected();
        let (mut first, mut second) = (waiters.register().ok().unwrap(), waiters.register().ok().unwrap());
        waiters.resolve(second.token, Ok(Bytes::from_static(b"second")));
        waiters.resolve(first.token, Err(RequestError::NoResponders));
        assert_eq!(first.answer().await, Err(RequestError::NoResponders));
        assert_eq!(second.answer().await, Ok(Bytes::from_static(b"second")));

        let unanswered = waiters.register().ok().unwrap();
        assert_eq!(waiters.count(), 1);
        drop(unanswered);
        assert_eq!(waiters.count(), 0);
    }
}
