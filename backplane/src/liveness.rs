//! How a subscriber proves that notices still reach it: by an echo to itself.
//!
//! A subscriber publishes a fresh token to its own subject. When the token comes back through its subscription, every
//! notice published before the token has come out too. A proof counts from *sending*, by a clock that runs while the
//! process is stopped and the host sleeps (ADR 0013). How old it may be is decided by each cache.
//! INVARIANT: a proof is recorded only after `next` was called again, that is after every earlier notice of the same
//! subscription was handed to its subscriber and handled.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::boottime;
use crate::random;

/// How often a process proves that notices arrive, through one of its subscribers.
pub const ECHO_INTERVAL: Duration = Duration::from_millis(150);
/// A little less than the interval, so that a lone subscriber does not skip turns.
const RENEW_AFTER: Duration = Duration::from_millis(110);
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Echoes that may be under way; an old one proves less than a newer one.
const MAX_ECHOES: usize = 8;
const NEVER: u64 = 0;

pub(crate) type Token = [u8; 16];

/// When notices were last proven to arrive. All subscribers that feed one cache share it: a notice that one of them
/// missed and another received has been received.
#[derive(Debug, Default)]
pub struct Liveness {
    /// Boottime in nanoseconds at which the last echo that came back was sent; [`NEVER`]: none did.
    proven: AtomicU64,
    changed: Notify,
}

impl Liveness {
    /// A liveness without a proof.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The boottime up to which all published notices are known to have arrived; none before the first proof.
    pub fn proven_at(&self) -> Option<Duration> {
        Some(self.proven.load(Ordering::Acquire)).filter(|nanos| *nanos != NEVER).map(Duration::from_nanos)
    }

    /// How old the proof is at this boottime; none before the first.
    pub fn age(&self, now: Duration) -> Option<Duration> {
        self.proven_at().map(|proven| now.saturating_sub(proven))
    }

    /// Waits until `holds` returns true; it is checked again at each proof.
    pub async fn wait_for_proof(&self, mut holds: impl FnMut() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Enabled before the check, so that a proof in between is not missed.
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn prove(&self, sent: Duration) {
        let nanos = u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.proven.fetch_max(nanos, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    fn is_due(&self, now: Duration) -> bool {
        self.age(now).is_none_or(|age| age >= RENEW_AFTER)
    }
}

#[derive(Debug, Default)]
struct EchoesInFlight(VecDeque<Sent>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    token: Token,
    /// Boottime at which it was sent.
    pub(crate) at: Duration,
    /// Number of the subscriber's connection at that time; it increases with each reconnect.
    pub(crate) connection: u64,
}

impl EchoesInFlight {
    fn add(&mut self, sent: Sent) {
        if self.0.len() >= MAX_ECHOES {
            self.0.pop_front();
        }
        self.0.push_back(sent);
    }

    /// Takes the echo with this token; those before it are dropped, as it proves more.
    fn take(&mut self, token: &[u8]) -> Option<Sent> {
        let at = self.0.iter().position(|sent| sent.token == token)?;
        self.0.drain(..=at).next_back()
    }
}

/// One subscriber's echoes, sent until this is dropped.
pub(crate) struct Echoes {
    liveness: Arc<Liveness>,
    in_flight: Arc<Mutex<EchoesInFlight>>,
    _sending: AbortOnDropHandle<()>,
}

impl Echoes {
    /// `connection` returns the number of the current connection; `send` publishes to the subscription's subject.
    pub(crate) fn start<F: Future<Output = ()> + Send>(
        liveness: Arc<Liveness>,
        connection: impl Fn() -> Option<u64> + Send + 'static,
        send: impl Fn(Token) -> F + Send + 'static,
    ) -> Self {
        let in_flight = Arc::default();
        let (due, sent) = (Arc::clone(&liveness), Arc::clone(&in_flight));
        let sending = tokio::spawn(async move {
            let mut ticks = interval(ECHO_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if !due.is_due(boottime()) {
                    continue;
                }
                let (Some(connection), Some(token)) = (connection(), random()) else { continue };
                // Recorded before it is sent: a delay in between makes the proof seem older, never younger.
                lock(&sent).add(Sent { token, at: boottime(), connection });
                drop(timeout(SEND_TIMEOUT, send(token)).await);
            }
        });
        Self { liveness, in_flight, _sending: AbortOnDropHandle::new(sending) }
    }

    /// Takes a token that came out of the subscription; none if it is another subscriber's or was dropped.
    pub(crate) fn returned(&self, token: &[u8]) -> Option<Sent> {
        lock(&self.in_flight).take(token)
    }

    pub(crate) fn prove(&self, sent: Sent) {
        self.liveness.prove(sent.at);
    }
}

fn lock(in_flight: &Mutex<EchoesInFlight>) -> MutexGuard<'_, EchoesInFlight> {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn sent(number: u8) -> Sent {
        Sent { token: [number; 16], at: millis(u64::from(number)), connection: 1 }
    }

    #[test]
    fn a_proof_counts_from_sending_and_an_older_one_takes_nothing_away() {
        let liveness = Liveness::new();
        assert_eq!((liveness.proven_at(), liveness.age(millis(100))), (None, None));
        liveness.prove(millis(1_000));
        assert_eq!(liveness.age(millis(1_400)), Some(millis(400)));
        liveness.prove(millis(900));
        assert_eq!(liveness.proven_at(), Some(millis(1_000)));
        liveness.prove(millis(1_200));
        assert_eq!(liveness.age(millis(1_400)), Some(millis(200)));
    }

    #[test]
    fn an_echo_is_due_before_the_proof_is_as_old_as_the_interval() {
        let liveness = Liveness::new();
        assert!(liveness.is_due(millis(1)));
        liveness.prove(millis(1_000));
        assert!(!liveness.is_due(millis(1_050)));
        assert!(liveness.is_due(millis(1_150)));
    }

    #[test]
    fn a_token_counts_once_and_only_where_it_was_sent() {
        let mut in_flight = EchoesInFlight::default();
        (1..=3).for_each(|number| in_flight.add(sent(number)));
        assert_eq!(in_flight.take(&[9; 16]), None);
        assert_eq!(in_flight.take(&[2; 15]), None);
        assert_eq!(in_flight.take(&[2; 16]), Some(sent(2)));
        assert_eq!(in_flight.take(&[2; 16]), None);
        assert_eq!(in_flight.take(&[1; 16]), None, "a newer one was heard");
        assert_eq!(in_flight.take(&[3; 16]), Some(sent(3)));
    }

    #[test]
    fn echoes_that_never_return_are_forgotten() {
        let mut in_flight = EchoesInFlight::default();
        (0..100).for_each(|number| in_flight.add(sent(number)));
        assert_eq!(in_flight.0.len(), MAX_ECHOES);
        assert_eq!(in_flight.take(&[0; 16]), None);
        assert_eq!(in_flight.take(&[99; 16]), Some(sent(99)));
    }

    #[tokio::test]
    async fn a_wait_for_a_proof_checks_at_once_and_after_each_proof() {
        let liveness = Liveness::new();
        liveness.wait_for_proof(|| true).await;
        let proven = liveness.wait_for_proof(|| liveness.proven_at() >= Some(millis(7)));
        let proves = async {
            liveness.prove(millis(5));
            tokio::task::yield_now().await;
            liveness.prove(millis(7));
        };
        tokio::join!(proven, proves);
    }
}
