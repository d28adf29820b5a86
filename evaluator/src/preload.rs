//! Loads what is active before an evaluator says that it is ready, so that no first check waits for it.
//!
//! A shard does this before it serves. Where no keystore answers it serves at once and asks again beside its checks.
//! Best effort and bounded: what is not loaded by then is loaded for the first check that needs it.

use std::time::Duration;

use stage0_backplane::Requests;
use stage0_contract::{ActiveVersion, ActiveVersions, ListActiveVersions, MAX_LISTED_POLICIES, ManageReply};
use tokio::time::{Instant, sleep};

use crate::engines::Engines;
use crate::published::Preloading;

/// For all of it, from the start of the shard.
const PRELOAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A keystore that does not answer in this time keeps no shard from serving.
const LIST_TIMEOUT: Duration = Duration::from_secs(2);
const MIN_RETRY_DELAY: Duration = Duration::from_millis(10);
const MAX_RETRY_DELAY: Duration = Duration::from_millis(500);

/// What a shard still has to load; the evaluator is not ready while it is there.
pub(crate) struct Preload {
    end: Instant,
    _preloading: Preloading,
}

impl Preload {
    pub(crate) fn new(preloading: Preloading) -> Self {
        Self { end: Instant::now() + PRELOAD_TIMEOUT, _preloading: preloading }
    }

    /// Loads what is active; gives itself back where the keystore does not say what is.
    pub(crate) async fn begin(self, requests: &dyn Requests, engines: &Engines) -> Option<Self> {
        match list(requests, self.end).await {
            Ok(ActiveVersions { versions }) => {
                load(&versions, engines, self.end).await;
                None
            }
            Err(why) => {
                tracing::debug!(why, "the keystore does not say yet what is active");
                Some(self)
            }
        }
    }

    /// Asks until the keystore answers, or the time is over.
    pub(crate) async fn finish(self, requests: &dyn Requests, engines: &Engines) {
        let mut delay = MIN_RETRY_DELAY;
        loop {
            sleep(delay).await;
            match list(requests, self.end).await {
                Ok(ActiveVersions { versions }) => return load(&versions, engines, self.end).await,
                Err(why) if Instant::now() >= self.end => {
                    tracing::warn!(why, "what is active is not known: each policy is loaded for its first check");
                    return;
                }
                Err(_) => delay = (delay * 2).min(MAX_RETRY_DELAY),
            }
        }
    }
}

async fn list(requests: &dyn Requests, end: Instant) -> Result<ActiveVersions, String> {
    let deadline = end.min(Instant::now() + LIST_TIMEOUT);
    match requests.request_until(&ListActiveVersions {}, deadline).await {
        Ok(ManageReply::Done(active)) => Ok(active),
        Ok(ManageReply::Refused(_) | ManageReply::Failed) => Err("the keystore cannot read it".to_owned()),
        Ok(ManageReply::Busy) => Err("the keystore has too much to do".to_owned()),
        Err(error) => Err(format!("the keystore does not answer: {error}")),
    }
}

/// One after the other, in the keystore's order: the deployment's decide for most accounts.
async fn load(versions: &[ActiveVersion], engines: &Engines, end: Instant) {
    for ActiveVersion { account, version } in versions.iter().take(MAX_LISTED_POLICIES) {
        if let Err(error) = engines.preload(account.as_ref(), version, end).await {
            tracing::warn!(policy_version = %version, %error, "an active policy is not loaded yet");
        }
    }
}
