//! *Ledger*: small records that many processes share, changed by compare-and-set, with an end of their own; and counters made of them.
//!
//! A counter is a record and not JetStream's own (`Nats-Incr`): that one has neither a limit nor an end, and takes a stream for itself.
//! INVARIANT: of two who change a record from the same revision, one hears `Conflict`. What is granted of a counter in all never
//! exceeds its limit: an addition whose fate is unknown grants nothing.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{BoxFuture, ClockError, MAX_MESSAGE_BYTES, NotReady, ReadError, StoreClock};

/// The records of an installation.
pub trait Ledger: Send + Sync {
    /// A record, if it is there and has not ended. Where the store has replicas it may be a moment old: a put from it then conflicts.
    fn get<'a>(&'a self, key: &'a str, deadline: Instant) -> BoxFuture<'a, Result<Option<Record>, ReadError>>;

    /// Puts a record in the place of the one with this revision (none: where there is none). It ends by itself after `expires_in`,
    /// or up to a second later.
    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Bytes,
        expected: Option<Revision>,
        expires_in: Option<Duration>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Revision, PutError>>;

    /// Records whose keys are `under`, a dot and one word more: of one account, say. In no promised order; a record that
    /// is put while pages are read may be seen twice, and none that stays is missed. Looks at `most` records, so that a
    /// page may hold fewer and still not be the last.
    fn list<'a>(
        &'a self,
        under: &'a str,
        after: Option<&'a str>,
        most: usize,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Listed, ListError>>;

    /// Whether the store holds an older record under this key than this process saw or wrote: an earlier state of it was
    /// put back. Where the store has replicas, one that lags may say so for a moment. False where nobody can tell.
    fn went_back<'a>(&'a self, _key: &'a str, _deadline: Instant) -> BoxFuture<'a, bool> {
        Box::pin(async { false })
    }

    /// The clock of the store, by which windows go that several processes share.
    fn clock(&self) -> &Arc<StoreClock>;

    /// Reads that clock unless it was read within `max_age`, and judges this host's by it. A store that cannot be read
    /// for a moment is no error: the clock goes on.
    fn read_clock(&self, max_age: Duration, deadline: Instant) -> BoxFuture<'_, Result<(), ClockError>>;

    /// Whether a put of this process's records would be stored now, as far as it can be told before.
    fn ready(&self) -> BoxFuture<'_, Result<(), NotReady>> {
        Box::pin(async { Ok(()) })
    }
}

/// A page of records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// Each with the last word of its key.
    pub records: Vec<(String, Record)>,
    /// Where the next page begins; none: this is the last.
    pub next: Option<String>,
}

/// There is no page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Where it should begin is nowhere that an earlier page ended.
    #[error("the cursor is not of an earlier page")]
    Cursor,
    /// The ledger cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Pages that one connection may read at a time: each needs a subscription, and the server bounds those.
pub const MAX_LISTS: usize = 2;

/// A page ends once its records take so many bytes.
pub(crate) const MAX_PAGE_BYTES: usize = 256 << 10;

/// What became of an addition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Added {
    /// Of what was asked for, as much as fitted below the limit.
    pub granted: u64,
    /// The counter afterwards.
    pub total: u64,
}

/// What a counter's record holds.
#[derive(Serialize, Deserialize)]
struct Counter {
    count: u64,
}

/// How long a conflict is waited out at most, before the counter is read again.
const CONFLICT_PAUSE: Duration = Duration::from_millis(4);

impl dyn Ledger + '_ {
    /// Adds to a counter what fits below a limit: all, some or nothing. Its end moves with each addition.
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

    /// Takes back what was granted and not used; the counter afterwards.
    pub async fn give_back(
        &self,
        key: &str,
        amount: u64,
        expires_in: Duration,
        deadline: Instant,
    ) -> Result<u64, PutError> {
        let change = |count: u64| Added { granted: 0, total: count.saturating_sub(amount) };
        self.change(key, expires_in, deadline, change).await.map(|added| added.total)
    }

    /// What a counter says; nothing was added to one that is absent.
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
            let found = self.counter(key, deadline).await.map_err(|error| PutError::Failed(error.0))?;
            let (count, revision) = found;
            let added = change(count);
            if added.total == count {
                return Ok(added);
            }
            let value = serde_json::to_vec(&Counter { count: added.total });
            let value = value.map_err(|error| PutError::Failed(error.to_string()))?;
            match self.put(key, value.into(), revision, Some(expires_in), deadline).await {
                Ok(_) => return Ok(added),
                // Who met here once should not meet again at the same moment.
                Err(PutError::Conflict) => sleep(CONFLICT_PAUSE.mul_f64(fraction())).await,
                // It may be there: asking again could count it twice.
                Err(error @ PutError::Failed(_)) => return Err(error),
            }
        }
    }

    async fn counter(&self, key: &str, deadline: Instant) -> Result<(u64, Option<Revision>), ReadError> {
        let Some(record) = self.get(key, deadline).await? else { return Ok((0, None)) };
        // What nobody can read is no zero.
        let counter: Counter =
            serde_json::from_slice(&record.value).map_err(|_| ReadError("the counter cannot be read".to_owned()))?;
        Ok((counter.count, Some(record.revision)))
    }
}

/// Between 0 and 1, another one each time.
fn fraction() -> f64 {
    f64::from(jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() % 1_000) / 1e3
}

/// One state of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Names this state among those of the same key.
    pub revision: Revision,
    /// Its content.
    pub value: Bytes,
}

/// Names a state of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A record was not put.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PutError {
    /// It is not in the expected state.
    #[error("the record was changed meanwhile")]
    Conflict,
    /// It may or may not have been put.
    #[error("the ledger does not answer: {0}")]
    Failed(String),
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
