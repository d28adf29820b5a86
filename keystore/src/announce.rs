//! Telling every process that a key or an endpoint changed.
//!
//! Owns the notice after a durable change and before its reply, and the retry of those that could not be told. A reply
//! never waits longer than one attempt. The list of what is to be told again is bounded; what does not fit is left to
//! the caches' expiry, and logged. A keystore that begins to serve casts doubt on every key: an earlier one may have
//! ended between a change and its notice.

use std::collections::VecDeque;
use std::time::Duration;

use stage0_backplane::Backplane;
use stage0_contract::{AccountId, KeyChanged, WebhookChanged};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const ATTEMPT: Duration = Duration::from_millis(500);
/// Short: who has the reply to a revocation counts on it within a second.
const PAUSE: Duration = Duration::from_millis(100);
const UNTOLD: usize = 4_096;

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed {
    Key(KeyChanged),
    Webhook(WebhookChanged),
}

/// Tells now, or hands over to the retry.
#[derive(Clone)]
pub(crate) struct Announcer {
    backplane: Backplane,
    untold: mpsc::Sender<Changed>,
}

/// Tells again until told.
pub(crate) struct Retry {
    backplane: Backplane,
    untold: mpsc::Receiver<Changed>,
    pause: Duration,
}

pub(crate) fn announcer(backplane: Backplane) -> (Announcer, Retry) {
    let (sender, untold) = mpsc::channel(UNTOLD);
    (Announcer { backplane: backplane.clone(), untold: sender }, Retry { backplane, untold, pause: PAUSE })
}

impl Changed {
    /// For the log: its account, and the key or the endpoint.
    fn of(&self) -> (Option<&AccountId>, Option<&str>, Option<&str>) {
        match self {
            Self::Key(KeyChanged::Any {}) => (None, None, None),
            Self::Key(KeyChanged::One { account, key_id }) => (Some(account), Some(key_id.as_str()), None),
            Self::Webhook(changed) => (Some(&changed.account), None, Some(changed.id.as_str())),
        }
    }
}

impl Announcer {
    /// Whether everybody who listens was told. What was not is told again.
    pub(crate) async fn announce(&self, changed: Changed) -> bool {
        if tell(&self.backplane, &changed).await {
            return true;
        }
        let (account, key_id, webhook) = changed.of();
        let account = account.map(AccountId::as_str);
        tracing::error!(account, key_id, webhook, "change could not be told; trying again");
        if let Err(error) = self.untold.try_send(changed) {
            left(&error.into_inner());
        }
        false
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
                left(&changed);
            }
        }
    }
}

async fn tell(backplane: &Backplane, changed: &Changed) -> bool {
    let told = async {
        match changed {
            Changed::Key(changed) => backplane.notices.tell(changed).await,
            Changed::Webhook(changed) => backplane.notices.tell(changed).await,
        }?;
        // The reply may leave by another connection than the one that the notice was lost with.
        backplane.notices.settle().await
    };
    matches!(tokio::time::timeout(ATTEMPT, told).await, Ok(Ok(())))
}

fn left(changed: &Changed) {
    let (account, key_id, webhook) = changed.of();
    let account = account.map(AccountId::as_str);
    tracing::error!(account, key_id, webhook, "change is left to the caches' expiry");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use stage0_backplane::{BoxFuture, Event, Hearing, Notices, ServeError, TellError};
    use stage0_contract::{KeyId, WebhookId};

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

        fn settle(&self) -> BoxFuture<'_, Result<(), TellError>> {
            self.back.notices.settle()
        }

        fn listen_bytes<'a>(&'a self, subject: &'static str) -> BoxFuture<'a, Result<Box<dyn Hearing>, ServeError>> {
            self.back.notices.listen_bytes(subject)
        }
    }

    fn changed(key: &str) -> KeyChanged {
        KeyChanged::One { account: AccountId::parse("a").unwrap(), key_id: KeyId::parse(key).unwrap() }
    }

    #[tokio::test]
    async fn what_could_not_be_told_is_told_again_until_it_is() {
        let back = Backplane::embedded();
        let away = Away { attempts: AtomicU32::new(0), away: 5, back: back.clone() };
        let (announcer, mut retry) = announcer(Backplane { notices: Arc::new(away), ..back });
        retry.pause = Duration::ZERO;
        let mut heard = announcer.backplane.notices.listen::<KeyChanged>().await.unwrap();
        assert!(!announcer.announce(Changed::Key(changed("k1"))).await);
        assert!(!announcer.announce(Changed::Key(changed("k2"))).await);
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
        let (announcer, retry) = announcer(Backplane { notices: Arc::new(away), ..back });
        let mut heard = announcer.backplane.notices.listen::<WebhookChanged>().await.unwrap();
        let changed = WebhookChanged { account: AccountId::parse("a").unwrap(), id: WebhookId::parse("we_1").unwrap() };
        assert!(!announcer.announce(Changed::Webhook(changed.clone())).await);
        let stopped = CancellationToken::new();
        stopped.cancel();
        retry.run(stopped).await;
        assert_eq!(heard.next().await, Some(Event::Heard(changed)));
    }
}
