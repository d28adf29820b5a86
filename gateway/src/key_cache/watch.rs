//! Watches the age of the proof that notices arrive, for the metric, the log and `/readyz`.
//!
//! Logs when cached keys stop being used without asking, and when they are used again. No request waits for it.

use std::time::Duration;

use stage0_backplane::clock::boottime;
use tokio::time::{MissedTickBehavior, interval};

use super::{KeyCache, MAX_PROOF_AGE};
use crate::metrics;

const WATCH_INTERVAL: Duration = Duration::from_millis(250);

impl KeyCache {
    /// Why every request asks the keystore now, for the operator; none if cached keys are used.
    pub(crate) fn remark(&self) -> Option<String> {
        let age = self.liveness.age(boottime());
        match age {
            Some(age) if age < MAX_PROOF_AGE => None,
            Some(age) => Some(format!(
                "keys: notices of revocations were last proven to arrive {} ms ago, \
                 the keystore is asked at every request",
                age.as_millis()
            )),
            None => Some(
                "keys: notices of revocations are not proven to arrive, the keystore is asked at every request".into(),
            ),
        }
    }

    /// Never returns.
    pub(crate) async fn watch(&self) {
        let mut ticks = interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_proven = true;
        loop {
            ticks.tick().await;
            // Before the first proof no key is cached.
            let Some(age) = self.liveness.age(boottime()) else { continue };
            metrics::notices_proven(age);
            let is_proven = age < MAX_PROOF_AGE;
            if was_proven && !is_proven {
                let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(
                    age_ms,
                    "notices of revocations are not proven to arrive, every request asks the keystore"
                );
            } else if is_proven && !was_proven {
                tracing::info!("notices of revocations arrive, cached keys are believed again");
            }
            was_proven = is_proven;
        }
    }
}
