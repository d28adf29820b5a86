//! Records of the state store as JSON: read, and changed by compare-and-set.
//!
//! Owns no keys and no rules. INVARIANT: a record that cannot be parsed is an error, never an absent one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stage0_backplane::{ListError, PutError, ReadError, Revision, StateStore, random_fraction};
use tokio::time::Instant;

/// The shortest delay after a conflict, and the random part of it, so that many evaluators do not collide again.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_micros(500);
const CONFLICT_RETRY_SPREAD: Duration = Duration::from_millis(2);
/// The shortest time that anything is kept.
pub(crate) const MIN_TTL: Duration = Duration::from_secs(1);

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the record cannot be read")]
    Read(#[source] ReadError),
    #[error("records cannot be listed")]
    List(#[source] ListError),
    #[error("the record cannot be written")]
    Write(#[source] PutError),
    #[error("a record is malformed, or stands where it does not belong")]
    Malformed,
    #[error("the record is changed by too many at once")]
    Contended,
}

/// One shard's access to records.
#[derive(Clone)]
pub(crate) struct Records {
    pub(crate) state_store: Arc<dyn StateStore>,
}

/// A record and its state in the store.
#[derive(Debug)]
pub(crate) struct Found<T> {
    pub(crate) value: Option<T>,
    pub(crate) revision: Option<Revision>,
}

impl Records {
    /// The store's time in milliseconds, which every JSON reader can represent.
    pub(crate) fn now(&self) -> Timestamp {
        let now = self.state_store.clock().now();
        Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        key: &str,
        deadline: Instant,
    ) -> Result<Found<T>, RecordError> {
        let found = self.state_store.get(key, deadline).await.map_err(RecordError::Read)?;
        let Some(record) = found else { return Ok(Found { value: None, revision: None }) };
        let value = serde_json::from_slice(&record.value).map_err(|_| RecordError::Malformed)?;
        Ok(Found { value: Some(value), revision: Some(record.revision) })
    }

    /// Writes a record; false on a conflict.
    pub(crate) async fn write<T: Serialize>(
        &self,
        key: &str,
        value: &T,
        expected: Option<Revision>,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<bool, RecordError> {
        let bytes = serde_json::to_vec(value).map_err(|_| RecordError::Malformed)?;
        match self.state_store.put(key, Bytes::from(bytes), expected, Some(ttl.max(MIN_TTL)), deadline).await {
            Ok(_) => Ok(true),
            Err(PutError::Conflict) => Ok(false),
            Err(error @ PutError::Failed(_)) => Err(RecordError::Write(error)),
        }
    }
}

/// Waits for a randomised moment after a conflict.
pub(crate) async fn pause() {
    let spread = CONFLICT_RETRY_SPREAD.mul_f64(random_fraction());
    tokio::time::sleep(CONFLICT_RETRY_DELAY + spread).await;
}

/// How long until a time; zero if it has come.
pub(crate) fn until(now: Timestamp, time: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(now)).unwrap_or_default()
}

pub(crate) fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.saturating_add(by).unwrap_or(time)
}
