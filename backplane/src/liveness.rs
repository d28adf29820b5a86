//! How a listener proves that notices still reach it: by an echo of its own.
//!
//! A listener sends a fresh token to the very subject that it hears, and when the token comes back through its
//! subscription, everything that was told before the token was sent has come out before it. Owns the tokens and the
//! time of the last proof, which counts from *sending*, by a clock that runs while the process is stopped and the host
//! sleeps (ADR 0013). Refuses to say how old a proof may be: whoever caches says that.
//! INVARIANT: a proof is recorded after every earlier notice of the same subscription was handed to its listener and
//! handled, as `next` was called again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::boottime;

/// How often a process proves that notices arrive, by one of its listeners.
pub const ECHO_INTERVAL: Duration = Duration::from_millis(150);
/// A proof this old is due for renewal. A little less than the interval, so that a lone listener does not skip turns.
const RENEW_AFTER: Duration = Duration::from_millis(110);
/// How long handing an echo to the connection may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);
/// Echoes that may be on their way; of older ones a newer one tells more.
const MAX_ECHOES: usize = 8;
/// No proof yet.
const NEVER: u64 = 0;

/// What is in an echo. Nobody can guess one that was not sent yet.
pub(crate) type Token = [u8; 16];

/// When notices were last proven to arrive. Shared by all listeners that feed one cache: a notice that one of them
/// missed and another heard is heard.
#[derive(Debug, Default)]
pub struct Liveness {
    /// When the echo was sent that came back last, in nanoseconds of boottime; [`NEVER`]: none did.
    proven: AtomicU64,
    changed: Notify,
}

impl Liveness {
    /// Not proven yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The boottime until which all that was told is known to have arrived; none before the first proof.
    #[must_use]
    pub fn proven_at(&self) -> Option<Duration> {
        match self.proven.load(Ordering::Acquire) {
            NEVER => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// How old the proof is at this boottime; none before the first.
    #[must_use]
    pub fn age(&self, now: Duration) -> Option<Duration> {
        self.proven_at().map(|proven| now.saturating_sub(proven))
    }

    /// Waits until `holds`, and looks again at each proof.
    pub async fn wait_until(&self, mut holds: impl FnMut() -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before the look: a proof in between is not missed.
            changed.as_mut().enable();
            if holds() {
                return;
            }
            changed.await;
        }
    }

    /// All that was told before `sent` has arrived.
    pub(crate) fn prove(&self, sent: Duration) {
        let nanos = u64::try_from(sent.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.proven.fetch_max(nanos, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    fn is_due(&self, now: Duration) -> bool {
        self.age(now).is_none_or(|age| age >= RENEW_AFTER)
    }
}

/// Echoes of one listener that are on their way.
#[derive(Debug, Default)]
struct Outstanding(VecDeque<Sent>);

/// One echo as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    token: Token,
    /// By boottime.
    pub(crate) at: Duration,
    /// On which connection of the listener; it counts up when the connection is made again.
    pub(crate) connection: u64,
}

impl Outstanding {
    fn add(&mut self, sent: Sent) {
        if self.0.len() >= MAX_ECHOES {
            self.0.pop_front();
        }
        self.0.push_back(sent);
    }

    /// The echo with this token, which counts once; those before it are forgotten.
    fn take(&mut self, token: &[u8]) -> Option<Sent> {
        let at = self.0.iter().position(|sent| sent.token == token)?;
        self.0.drain(..=at).next_back()
    }
}

/// One listener's echoes, sent for as long as this lives.
pub(crate) struct Echoes {
    liveness: Arc<Liveness>,
    outstanding: Arc<Mutex<Outstanding>>,
    _sending: AbortOnDropHandle<()>,
}

impl Echoes {
    /// `connection` is the number of the connection that stands now, none while none does; `send` sends a token to the
    /// subject that is heard.
    pub(crate) fn start<F: Future<Output = ()> + Send>(
        liveness: Arc<Liveness>,
        connection: impl Fn() -> Option<u64> + Send + 'static,
        send: impl Fn(Token) -> F + Send + 'static,
    ) -> Self {
        let outstanding = Arc::new(Mutex::default());
        let sending = {
            let (liveness, outstanding) = (Arc::clone(&liveness), Arc::clone(&outstanding));
            tokio::spawn(async move {
                let mut ticks = interval(ECHO_INTERVAL);
                ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    ticks.tick().await;
                    if !liveness.is_due(boottime()) {
                        continue;
                    }
                    let (Some(connection), Some(token)) = (connection(), new_token()) else { continue };
                    // Before it is sent: what comes in between makes the proof seem older, never younger.
                    lock(&outstanding).add(Sent { token, at: boottime(), connection });
                    drop(timeout(SEND_TIMEOUT, send(token)).await);
                }
            })
        };
        Self { liveness, outstanding, _sending: AbortOnDropHandle::new(sending) }
    }

    /// A token came out of the subscription; none: it is another listener's, or was forgotten.
    pub(crate) fn returned(&self, token: &[u8]) -> Option<Sent> {
        lock(&self.outstanding).take(token)
    }

    /// Records the proof.
    pub(crate) fn prove(&self, sent: Sent) {
        self.liveness.prove(sent.at);
    }
}

fn lock(outstanding: &Mutex<Outstanding>) -> MutexGuard<'_, Outstanding> {
    // Each use is one step: a panic elsewhere cannot leave it half done.
    outstanding.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_token() -> Option<Token> {
    let mut token = Token::default();
    aws_lc_rs::rand::fill(&mut token).ok().map(|()| token)
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
        let mut outstanding = Outstanding::default();
        (1..=3).for_each(|number| outstanding.add(sent(number)));
        assert_eq!(outstanding.take(&[9; 16]), None);
        assert_eq!(outstanding.take(&[2; 15]), None);
        assert_eq!(outstanding.take(&[2; 16]), Some(sent(2)));
        assert_eq!(outstanding.take(&[2; 16]), None);
        assert_eq!(outstanding.take(&[1; 16]), None, "a newer one was heard");
        assert_eq!(outstanding.take(&[3; 16]), Some(sent(3)));
    }

    #[test]
    fn echoes_that_never_return_are_forgotten() {
        let mut outstanding = Outstanding::default();
        (0..100).for_each(|number| outstanding.add(sent(number)));
        assert_eq!(outstanding.0.len(), MAX_ECHOES);
        assert_eq!(outstanding.take(&[0; 16]), None);
        assert_eq!(outstanding.take(&[99; 16]), Some(sent(99)));
    }

    #[tokio::test]
    async fn one_who_waits_for_a_proof_looks_at_once_and_after_each() {
        let liveness = Liveness::new();
        liveness.wait_until(|| true).await;
        let proven = liveness.wait_until(|| liveness.proven_at() >= Some(millis(7)));
        let proves = async {
            liveness.prove(millis(5));
            tokio::task::yield_now().await;
            liveness.prove(millis(7));
        };
        tokio::join!(proven, proves);
    }
}
