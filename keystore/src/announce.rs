//! Telling every process that a key changed.
//!
//! Owns the notice after a durable change and before its reply, and the retry of those that could not be told. A reply never waits
//! longer than one attempt: a change that is stored but not told holds within the caches' expiry all the same. The list of what is
//! to be told again is bounded; what does not fit is left to that expiry, and logged.

use std::collections::VecDeque;
use std::time::Duration;

use stage0_backplane::Backplane;
use stage0_contract::KeyChanged;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const ATTEMPT: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_secs(1);
const UNTOLD: usize = 4_096;

/// Tells now, or hands over to the retry.
#[derive(Clone)]
pub(crate) struct Announcer {
    backplane: Backplane,
    untold: mpsc::Sender<KeyChanged>,
}

/// Tells again until told.
pub(crate) struct Retry {
    backplane: Backplane,
    untold: mpsc::Receiver<KeyChanged>,
    pause: Duration,
}

pub(crate) fn announcer(backplane: Backplane) -> (Announcer, Retry) {
    let (sender, untold) = mpsc::channel(UNTOLD);
    (Announcer { backplane: backplane.clone(), untold: sender }, Retry { backplane, untold, pause: PAUSE })
}

impl Announcer {
    pub(crate) async fn announce(&self, changed: KeyChanged) {
        if tell(&self.backplane, &changed).await {
            return;
        }
        tracing::error!(account = %changed.account, key_id = %changed.key_id, "key change could not be told; trying again");
        if let Err(error) = self.untold.try_send(changed) {
            let changed = error.into_inner();
            tracing::error!(account = %changed.account, key_id = %changed.key_id, "key change is left to the caches' expiry");
        }
    }
}

impl Retry {
    /// Ends when stopped, or when there is no announcer any more; what is left then gets one more attempt.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut waiting = VecDeque::new();
        while let Some(Some(changed)) = stop.run_until_cancelled(self.untold.recv()).await {
            waiting.push_back(changed);
            while let Some(changed) = waiting.pop_front() {
                if tell(&self.backplane, &changed).await {
                    continue;
                }
                waiting.push_front(changed);
                if stop.run_until_cancelled(tokio::time::sleep(self.pause)).await.is_none() {
                    break;
                }
            }
        }
        self.untold.close();
        while let Some(changed) = self.untold.recv().await {
            waiting.push_back(changed);
        }
        for changed in waiting {
            if !tell(&self.backplane, &changed).await {
                tracing::error!(account = %changed.account, key_id = %changed.key_id, "key change is left to the caches' expiry");
            }
        }
    }
}

async fn tell(backplane: &Backplane, changed: &KeyChanged) -> bool {
    matches!(tokio::time::timeout(ATTEMPT, backplane.notices.tell(changed)).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use stage0_backplane::{BoxFuture, Event, Hearing, Notices, ServeError, TellError};
    use stage0_contract::{AccountId, KeyId};

    /// A backplane that is away for the first few notices.
    struct Away {
        attempts: AtomicU32,
        away: u32,
        back: Backplane,
    }

    impl Notices for Away {
        fn tell_bytes<'a>(
            &'a self,
            subject: &'static str,
            notice: bytes::Bytes,
        ) -> BoxFuture<'a, Result<(), TellError>> {
            if self.attempts.fetch_add(1, Ordering::Relaxed) < self.away {
                return Box::pin(std::future::ready(Err(TellError)));
            }
            self.back.notices.tell_bytes(subject, notice)
        }

        fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, ServeError>> {
            self.back.notices.listen_bytes(subject)
        }
    }

    fn changed(key: &str) -> KeyChanged {
        KeyChanged { account: AccountId::parse("a").unwrap(), key_id: KeyId::parse(key).unwrap() }
    }

    #[tokio::test]
    async fn what_could_not_be_told_is_told_again_until_it_is() {
        let back = Backplane::embedded();
        let away = Away { attempts: AtomicU32::new(0), away: 5, back: back.clone() };
        let (announcer, mut retry) = announcer(Backplane { requests: back.requests, notices: Arc::new(away) });
        retry.pause = Duration::ZERO;
        let mut heard = announcer.backplane.notices.listen::<KeyChanged>().await.unwrap();
        announcer.announce(changed("k1")).await;
        announcer.announce(changed("k2")).await;
        let running = tokio::spawn(retry.run(CancellationToken::new()));
        assert_eq!(heard.next().await, Some(Event::Heard(changed("k1"))));
        assert_eq!(heard.next().await, Some(Event::Heard(changed("k2"))));
        drop(announcer);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_untold_when_stopped_gets_one_more_attempt() {
        let back = Backplane::embedded();
        let away = Away { attempts: AtomicU32::new(0), away: 1, back: back.clone() };
        let (announcer, retry) = announcer(Backplane { requests: back.requests, notices: Arc::new(away) });
        let mut heard = announcer.backplane.notices.listen::<KeyChanged>().await.unwrap();
        announcer.announce(changed("k")).await;
        let stopped = CancellationToken::new();
        stopped.cancel();
        retry.run(stopped).await;
        assert_eq!(heard.next().await, Some(Event::Heard(changed("k"))));
    }
}
