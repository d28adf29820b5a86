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
}

pub(crate) fn announcer(backplane: Backplane) -> (Announcer, Retry) {
    let (sender, untold) = mpsc::channel(UNTOLD);
    (Announcer { backplane: backplane.clone(), untold: sender }, Retry { backplane, untold })
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
                if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
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
