//! *Ledger*: small records that many processes share, changed by compare-and-set, with an end of their own.
//!
//! INVARIANT: of two who change a record from the same revision, one hears `Conflict`.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{BoxFuture, MAX_MESSAGE_BYTES, ReadError};

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
