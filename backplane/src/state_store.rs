//! *State store*: small records that many processes share, changed by compare-and-set, with an expiry; and counters
//! made of them, as JetStream's own (`Nats-Incr`) have neither a limit nor an expiry.
//!
//! INVARIANT: of two processes that change a record from the same revision, one gets `Conflict`. What a counter grants
//! in all never exceeds its limit: an addition whose outcome is unknown grants nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{BoxFuture, Cause, ClockError, MAX_MESSAGE_BYTES, NotReady, ReadError, StoreClock, random_fraction};

/// The records of an installation.
pub trait StateStore: Send + Sync {
    /// A record, if it exists and has not expired. A replica may answer with an older one, or with none where it was
    /// put a moment ago; a put from it conflicts.
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>>;

    /// Replaces the record with this revision (none: creates it). It expires up to a second after `expires_in`.
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>>;

    /// Lists records whose keys are `under`, a dot and one more word: those of one account, for example. In no
    /// guaranteed order. A record that is put while pages are read may be listed twice; a record that stays is never
    /// missed. Looks at up to `most` records, so a page may hold fewer without being the last.
    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<RecordPage, ListError>>;

    /// Whether the store holds an older version of this record than this process read or wrote: an earlier state was
    /// put back. With replicas, one that lags may report this for a moment. False where that cannot be known.
    fn was_rolled_back<'a>(&'a self, _key: &'a str, _deadline: Instant) -> BoxFuture<'a, bool> {
        Box::pin(async { false })
    }

    /// The clock of the store, which windows shared by several processes use.
    fn clock(&self) -> &Arc<StoreClock>;

    /// Reads that clock unless it was read within `max_age`, and compares this host's with it. A store that cannot be
    /// read for a moment is no error, as the last reading is carried on.
    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>>;

    /// Whether a put of this process's records would be stored now, as far as that can be known.
    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        Box::pin(async { Ok(()) })
    }
}

/// A page of records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordPage {
    /// Each record with the last word of its key.
    pub records: Vec<(String, Record)>,
    /// Where the next page begins; none: this is the last.
    pub next: Option<String>,
}

/// Why there is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The cursor was not returned with an earlier page.
    #[error("the cursor is not of an earlier page")]
    Cursor,
    /// The state store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Pages that one connection may read at a time: each needs a subscription, and the server limits those.
pub const MAX_CONCURRENT_LISTS: usize = 2;

pub(crate) const MAX_PAGE_BYTES: usize = 256 << 10;

/// The outcome of an addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// The part of the amount that fitted below the limit.
    pub granted: u64,
    /// The counter afterwards.
    pub total: u64,
}

#[derive(Serialize, Deserialize)]
struct Counter {
    count: u64,
}

/// The longest delay after a conflict, before the counter is read again.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_millis(4);

impl dyn StateStore + '_ {
    /// Adds to a counter what fits below a limit: all, some or nothing. Each addition renews its expiry.
    pub async fn add(
        &self,
        key: &str,
        amount: u64,
        limit: u64,
        expires_in: Duration,
        deadline: Instant,
    ) -> Result<Added, PutError> {
        self.change(key, expires_in, deadline, |count| {
            let granted = amount.min(limit.saturating_sub(count));
            Added { granted, total: count.saturating_add(granted) }
        })
        .await
    }

    /// Subtracts what was granted and not used; returns the counter afterwards.
    pub async fn subtract(
        &self,
        key: &str,
        amount: u64,
        expires_in: Duration,
        deadline: Instant,
    ) -> Result<u64, PutError> {
        let change = |count: u64| Added { granted: 0, total: count.saturating_sub(amount) };
        self.change(key, expires_in, deadline, change).await.map(|added| added.total)
    }

    /// The value of a counter; zero if it does not exist.
    pub async fn count(&self, key: &str, deadline: Instant) -> Result<u64, ReadError> {
        self.counter(key, deadline).await.map(|(count, _)| count)
    }

    async fn change(
        &self,
        key: &str,
        expires_in: Duration,
        deadline: Instant,
        change: impl Fn(u64) -> Added,
    ) -> Result<Added, PutError> {
        loop {
            let found = self.counter(key, deadline).await;
            let (count, revision) = found.map_err(|ReadError(cause)| PutError::Failed(cause))?;
            let added = change(count);
            if added.total == count {
                return Ok(added);
            }
            let value = serde_json::to_vec(&Counter { count: added.total });
            let value = value.map_err(|error| PutError::Failed(Cause::new(error)))?;
            match self.put(key, value.into(), revision, Some(expires_in), deadline).await {
                Ok(_) => return Ok(added),
                // A random delay, so that the processes that met here do not meet again.
                Err(PutError::Conflict) => sleep(CONFLICT_RETRY_DELAY.mul_f64(random_fraction())).await,
                // It may have been stored, and trying again could count it twice.
                Err(error @ PutError::Failed(_)) => return Err(error),
            }
        }
    }

    async fn counter(&self, key: &str, deadline: Instant) -> Result<(u64, Option<Revision>), ReadError> {
        let Some(record) = self.get(key, deadline).await? else { return Ok((0, None)) };
        // A counter that cannot be parsed does not count as zero.
        let counter: Counter =
            serde_json::from_slice(&record.value).map_err(|_| ReadError("the counter cannot be read".into()))?;
        Ok((counter.count, Some(record.revision)))
    }
}

/// One state of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Identifies this state among those of the same key.
    pub revision: Revision,
    /// The record's content.
    pub value: Bytes,
}

/// Identifies a state of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// Why a record was not put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// It is not in the expected state.
    #[error("the record was changed meanwhile")]
    Conflict,
    /// It may or may not have been put.
    #[error("the ledger does not answer")]
    Failed(#[source] Cause),
}

/// Why there can be no such record. Keys are words of letters, digits, `-` and `_`, joined by dots.
pub(crate) fn fault(key: &str, value: &[u8]) -> Option<&'static str> {
    let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
    if key.len() > 200 || !key.split('.').all(word) {
        Some("the key is malformed")
    } else if value.len() > MAX_MESSAGE_BYTES {
        Some("the record is too large")
    } else {
        None
    }
}
