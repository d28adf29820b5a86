//! The keystore's records in the state store: how they are read and written, and which terms are believed.
//!
//! A record that cannot be parsed is an error, never a missing one: a missing record means a first start. A state store
//! that answers with an older record than this process has seen went back to an earlier state.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use stage0_backplane::clock::Clocks;
use stage0_backplane::{Cause, PutError, Record, Revision, StateStore};
use tokio::time::{Instant, sleep};

use crate::errors::chain;

pub(crate) const STORE_TIMEOUT: Duration = Duration::from_secs(1);
pub(crate) const RETRY_DELAY: Duration = Duration::from_millis(200);
/// A replica of the state store that lags for longer than this is taken for one that went back.
pub(crate) const MAX_REPLICA_LAG: Duration = Duration::from_secs(2);
/// Gateways believe no term that is further ahead of their clock either.
const MAX_TERM_AHEAD_SECONDS: u64 = 86_400;

pub(crate) async fn get<T: DeserializeOwned>(
    state_store: &Arc<dyn StateStore>,
    key: &str,
) -> Result<Option<(T, Revision)>, String> {
    let found = state_store.get(key, Instant::now() + STORE_TIMEOUT).await.map_err(|error| chain(&error))?;
    let Some(Record { revision, value }) = found else { return Ok(None) };
    let value =
        serde_json::from_slice(&value).map_err(|error| format!("the record `{key}` cannot be read: {error}"))?;
    Ok(Some((value, revision)))
}

/// Writes a record if `expected` is still its revision; `None` expects that there is no record.
pub(crate) async fn put<T: Serialize>(
    state_store: &Arc<dyn StateStore>,
    key: &str,
    value: &T,
    expected: Option<Revision>,
) -> Result<Revision, PutError> {
    let value = serde_json::to_vec(value).map_err(|error| PutError::Failed(Cause::new(error)))?;
    state_store.put(key, value.into(), expected, None, Instant::now() + STORE_TIMEOUT).await
}

/// Whether the state store holds an older record than this process saw, and keeps saying so.
pub(crate) async fn went_back(state_store: &Arc<dyn StateStore>, key: &str) -> bool {
    let since = Instant::now();
    loop {
        if !state_store.was_rolled_back(key, Instant::now() + STORE_TIMEOUT).await {
            return false;
        }
        if since.elapsed() >= MAX_REPLICA_LAG {
            return true;
        }
        sleep(RETRY_DELAY).await;
    }
}

pub(crate) fn seconds() -> u64 {
    u64::try_from(Clocks::now().wall.as_second()).unwrap_or_default()
}

/// The term, or 0 for one so far ahead that no gateway would believe its keystore.
pub(crate) fn believable(term: u64, seconds: u64) -> u64 {
    if term > seconds.saturating_add(MAX_TERM_AHEAD_SECONDS) { 0 } else { term }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_more_than_a_day_ahead_counts_for_nothing() {
        assert_eq!(believable(u64::MAX, 1_000), 0);
        assert_eq!(believable(1_000 + MAX_TERM_AHEAD_SECONDS + 1, 1_000), 0);
        assert_eq!(believable(1_000 + MAX_TERM_AHEAD_SECONDS, 1_000), 1_000 + MAX_TERM_AHEAD_SECONDS);
        assert_eq!(believable(7, 1_000), 7);
    }
}
