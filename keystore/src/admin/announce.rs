//! Notices to every process that a key, an endpoint or what decides changed.
//!
//! A notice is published after the change is durable and before its reply is sent. One that fails is retried in the
//! background; what exceeds the bounded queue is logged and left to the caches' expiry. A keystore that begins to serve
//! invalidates every cached key, because an earlier one may have ended between a change and its notice.

use std::time::Duration;

use stage0_backplane::Backplane;
use stage0_contract::{AccountId, KeyChanged, PolicyChanged, WebhookChanged};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);
/// Short, because a revocation that was acknowledged must take effect within a second.
const RETRY_DELAY: Duration = Duration::from_millis(100);
const MAX_UNSENT: usize = 4_096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed {
    Key(KeyChanged),
    Webhook(WebhookChanged),
    /// A hint to evaluators.
    Policy(PolicyChanged),
    /// What is active changed: first the hint, then what gateways rely on.
    Activation(KeyChanged, PolicyChanged),
}

#[derive(Clone)]
pub(crate) struct Announcer {
    backplane: Backplane,
    unsent: mpsc::Sender<Changed>,
}

pub(crate) struct Retry {
    backplane: Backplane,
    unsent: mpsc::Receiver<Changed>,
    retry_delay: Duration,
}

pub(crate) fn announcer(backplane: Backplane) -> (Announcer, Retry) {
    let (sender, unsent) = mpsc::channel(MAX_UNSENT);
    (Announcer { backplane: backplane.clone(), unsent: sender }, Retry { backplane, unsent, retry_delay: RETRY_DELAY })
}

impl Changed {
    fn log_fields(&self) -> (Option<&str>, Option<&str>, Option<&str>) {
        match self {
            Self::Key(KeyChanged::Any {}) | Self::Activation(KeyChanged::Any {}, _) => (None, None, None),
            Self::Key(KeyChanged::One { account, key_id })
            | Self::Activation(KeyChanged::One { account, key_id }, _) => {
                (Some(account.as_str()), Some(key_id.as_str()), None)
            }
            Self::Policy(changed) => (changed.account.as_ref().map(AccountId::as_str), None, None),
            Self::Webhook(changed) => (Some(changed.account.as_str()), None, Some(changed.id.as_str())),
        }
    }
}

impl Announcer {
    /// Whether the notice was published. If not, it is retried.
    pub(crate) async fn announce(&self, changed: Changed) -> bool {
        if publish(&self.backplane, &changed).await {
            return true;
        }
        let (account, key_id, webhook) = changed.log_fields();
        tracing::error!(account, key_id, webhook, "change could not be told; trying again");
        if let Err(error) = self.unsent.try_send(changed) {
            log_dropped(&error.into_inner());
        }
        false
    }
}

impl Retry {
    /// Runs until stopped or until every announcer is dropped. What is left then gets one more attempt.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while let Some(Some(changed)) = stop.run_until_cancelled(self.unsent.recv()).await {
            while !publish(&self.backplane, &changed).await {
                if stop.run_until_cancelled(tokio::time::sleep(self.retry_delay)).await.is_none() {
                    self.try_once(&changed).await;
                    break;
                }
            }
        }
        self.unsent.close();
        while let Some(changed) = self.unsent.recv().await {
            self.try_once(&changed).await;
        }
    }

    async fn try_once(&self, changed: &Changed) {
        if !publish(&self.backplane, changed).await {
            log_dropped(changed);
        }
    }
}

async fn publish(backplane: &Backplane, changed: &Changed) -> bool {
    let told = async {
        match changed {
            Changed::Key(changed) => backplane.notices.publish(changed).await,
            Changed::Webhook(changed) => backplane.notices.publish(changed).await,
            Changed::Policy(changed) => backplane.notices.publish(changed).await,
            Changed::Activation(keys, policies) => {
                backplane.notices.publish(policies).await?;
                backplane.notices.publish(keys).await
            }
        }?;
        // Flushed, because the reply may leave by another connection than the one that the notice was lost with.
        backplane.notices.flush().await
    };
    matches!(tokio::time::timeout(ATTEMPT_TIMEOUT, told).await, Ok(Ok(())))
}

fn log_dropped(changed: &Changed) {
    let (account, key_id, webhook) = changed.log_fields();
    tracing::error!(account, key_id, webhook, "change is left to the caches' expiry");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use stage0_backplane::{BoxFuture, Event, Notices, PublishError, RawSubscription, ServeError};
    use stage0_contract::{AccountId, KeyId, WebhookId};

    /// A backplane that fails the first few notices.
    struct FailingNotices {
        attempts: AtomicU32,
        away: u32,
        back: Backplane,
    }

    impl Notices for FailingNotices {
        fn publish_bytes<'a>(
            &'a self,
            subject: &'static str,
            notice: bytes::Bytes,
        ) -> BoxFuture<'a, Result<(), PublishError>> {
            if self.attempts.fetch_add(1, Ordering::Relaxed) < self.away {
                return Box::pin(std::future::ready(Err(PublishError)));
            }
            self.back.notices.publish_bytes(subject, notice)
        }

        fn flush(&self) -> BoxFuture<'_, Result<(), PublishError>> {
            self.back.notices.flush()
        }

        fn subscribe_bytes<'a>(
            &'a self,
            subject: &'static str,
        ) -> BoxFuture<'a, Result<Box<dyn RawSubscription>, ServeError>> {
            self.back.notices.subscribe_bytes(subject)
        }
    }

    fn changed(key: &str) -> KeyChanged {
        KeyChanged::One { account: AccountId::parse("a").unwrap(), key_id: KeyId::parse(key).unwrap() }
    }

    #[tokio::test]
    async fn a_notice_that_failed_is_published_again_until_it_succeeds() {
        let back = Backplane::embedded();
        let away = FailingNotices { attempts: AtomicU32::new(0), away: 5, back: back.clone() };
        let (announcer, mut retry) = announcer(Backplane { notices: Arc::new(away), ..back });
        retry.retry_delay = Duration::ZERO;
        let mut notices = announcer.backplane.notices.subscribe::<KeyChanged>().await.unwrap();
        assert!(!announcer.announce(Changed::Key(changed("k1"))).await);
        assert!(!announcer.announce(Changed::Key(changed("k2"))).await);
        let running = tokio::spawn(retry.run(CancellationToken::new()));
        assert_eq!(notices.next().await, Some(Event::Message(changed("k1"))));
        assert_eq!(notices.next().await, Some(Event::Message(changed("k2"))));
        drop(announcer);
        running.await.unwrap();
    }

    #[tokio::test]
    async fn notices_that_are_unsent_at_the_stop_get_one_more_attempt() {
        let back = Backplane::embedded();
        let away = FailingNotices { attempts: AtomicU32::new(0), away: 1, back: back.clone() };
        let (announcer, retry) = announcer(Backplane { notices: Arc::new(away), ..back });
        let mut notices = announcer.backplane.notices.subscribe::<WebhookChanged>().await.unwrap();
        let changed = WebhookChanged { account: AccountId::parse("a").unwrap(), id: WebhookId::parse("we_1").unwrap() };
        assert!(!announcer.announce(Changed::Webhook(changed.clone())).await);
        let stopped = CancellationToken::new();
        stopped.cancel();
        retry.run(stopped).await;
        assert_eq!(notices.next().await, Some(Event::Message(changed)));
    }
}
