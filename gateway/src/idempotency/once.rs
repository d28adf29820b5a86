//! `Idempotency-Key` on calls that create: the same call asked for again gets the answer that it got before.
//!
//! Owns one record of the caller's account, key and header in the ledger, for ten minutes after its first use: a hash
//! of the call and its body, and the answer, sealed with a key that is made of the caller's API key (ADR 0025). Neither
//! the header nor the body nor a secret is kept in the clear, and whoever reads the ledger opens nothing.
//! INVARIANT: under one header nothing is created twice. Where nobody knows whether it was created, a repeat is
//! refused, as a secret that nobody holds is worse than a question.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use bytes::Bytes;
use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use stage0_backplane::{Ledger, PutError, Revision};
use stage0_contract::{ApiKey, Caller, ClientRequestId, FieldError, IDEMPOTENCY_RECORDS, canonical_hash};
use tokio::time::{Instant, sleep};

use super::{LIVES, LOOK_EVERY, SLACK};
use crate::errors::{ApiError, Part};

/// The header.
pub(crate) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// Of a body, in bytes: its answer must fit into a record of the ledger, which has 16 KiB.
pub(crate) const MAX_BODY_BYTES: usize = 6_000;
/// Before everything that is hashed here: checks with the same header have another place.
const DOMAIN: &str = "stage0 control call v1";
/// For noting how a call ended: its answer waits for it.
const NOTE_TIMEOUT: Duration = Duration::from_secs(1);

/// A call with the header.
pub(crate) struct Once {
    place: String,
    /// Hash of the call and its body.
    call: String,
    /// With which its answer is sealed.
    key: Option<[u8; 32]>,
}

/// Why a call has not done anything.
#[derive(Debug)]
pub(crate) enum NotDone {
    /// It surely has not.
    Surely(ApiError),
    /// It may have, all the same.
    Perhaps(ApiError),
}

/// An answer, in JSON.
pub(crate) struct Answer {
    pub(crate) json: Vec<u8>,
    /// It was made now, and not before.
    pub(crate) is_new: bool,
}

/// What the ledger has of a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    call: String,
    /// Milliseconds since the epoch until which the call may be under way.
    until: i64,
    /// Seconds since the epoch at which the header is forgotten.
    ends: i64,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    UnderWay,
    /// Nothing was done.
    Free,
    /// Nobody knows whether it was.
    Unknown,
    /// With the answer, sealed.
    Answered(String),
}

/// What an entry says to a call.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Free,
    Otherwise,
    UnderWay,
    Unknown,
    Answered(String),
}

impl Entry {
    fn judge(&self, call: &str, now: Timestamp) -> Judgement {
        if self.state == State::Free || now.as_second() >= self.ends {
            Judgement::Free
        } else if self.call != call {
            Judgement::Otherwise
        } else {
            match &self.state {
                State::Answered(sealed) => Judgement::Answered(sealed.clone()),
                State::UnderWay if now.as_millisecond() < self.until => Judgement::UnderWay,
                State::UnderWay | State::Unknown | State::Free => Judgement::Unknown,
            }
        }
    }
}

impl Once {
    /// Of a caller that proved itself with `key`; `call` is what it asks for, the path's ids included.
    pub(crate) fn new(
        caller: &Caller,
        key: &ApiKey,
        header: &ClientRequestId,
        call: &str,
        body: &Map<String, Value>,
    ) -> Self {
        let hash = HEXLOWER.encode(&Sha256::digest(format!("{DOMAIN}\0{}", header.as_str())));
        let hash = hash.get(..40).unwrap_or_default();
        let place = format!("{IDEMPOTENCY_RECORDS}.{}.{}.{hash}", caller.account, caller.key_id);
        let call = HEXLOWER.encode(&Sha256::digest(format!("{DOMAIN}\0{call}\0{}", canonical_hash(body))));
        // A key of any length fits HMAC; where it did not, nothing would be sealed.
        let key = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).ok().map(|mut mac| {
            mac.update(format!("{DOMAIN}\0{place}\0{}", header.as_str()).as_bytes());
            mac.finalize().into_bytes().into()
        });
        Self { place, call, key }
    }

    /// Has it done, unless it was done before.
    pub(crate) async fn run<T: Serialize>(
        &self,
        ledger: &dyn Ledger,
        budget: Duration,
        create: impl Future<Output = Result<T, NotDone>>,
    ) -> Result<Answer, ApiError> {
        let (mut entry, revision) = match self.claim(ledger, budget).await? {
            Claimed::Before(json) => return Ok(Answer { json, is_new: false }),
            Claimed::Now(entry, revision) => (entry, revision),
        };
        let made = create.await.and_then(|made| {
            serde_json::to_vec(&made).map_err(|error| {
                tracing::error!(%error, "an answer could not be written");
                NotDone::Perhaps(ApiError::Unavailable)
            })
        });
        entry.state = match &made {
            Ok(json) => self.seal(json, entry.ends).map_or(State::Unknown, State::Answered),
            Err(NotDone::Surely(_)) => State::Free,
            Err(NotDone::Perhaps(_)) => State::Unknown,
        };
        // What was made is told in any case: nobody else knows its secret.
        let noted = put(ledger, &self.place, &entry, Some(revision), Instant::now() + NOTE_TIMEOUT).await;
        if let Err(error) = noted {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "how a call ended was not noted, its repeat is refused"
            );
        }
        match made {
            Ok(json) => Ok(Answer { json, is_new: true }),
            Err(NotDone::Surely(error) | NotDone::Perhaps(error)) => Err(error),
        }
    }

    /// Takes the header for this call, or finds what became of it before. Waits for one that is under way.
    async fn claim(&self, ledger: &dyn Ledger, budget: Duration) -> Result<Claimed, ApiError> {
        let deadline = Instant::now() + budget;
        loop {
            let found = ledger.get(&self.place, deadline).await.map_err(|error| failed(&error.0))?;
            let now = ledger.clock().now();
            let revision = found.as_ref().map(|record| record.revision);
            let entry: Option<Entry> = match found {
                None => None,
                Some(record) => Some(serde_json::from_slice(&record.value).map_err(|e| failed(&e.to_string()))?),
            };
            match entry.as_ref().map_or(Judgement::Free, |entry| entry.judge(&self.call, now)) {
                Judgement::Free => {
                    let until = now.checked_add(2 * budget + SLACK).unwrap_or(now).as_millisecond();
                    let ends = now.as_second().saturating_add(LIVES);
                    let entry = Entry { call: self.call.clone(), until, ends, state: State::UnderWay };
                    match put(ledger, &self.place, &entry, revision, deadline).await {
                        Ok(revision) => return Ok(Claimed::Now(entry, revision)),
                        // Another was faster: what becomes of it is seen in the next round.
                        Err(PutError::Conflict) if Instant::now() < deadline => {}
                        Err(PutError::Conflict) => return Err(failed("others take it, one after the other")),
                        Err(PutError::Failed(reason)) => return Err(failed(&reason)),
                    }
                }
                Judgement::Otherwise => {
                    let message = "was used with another call or another body";
                    return Err(ApiError::Invalid(vec![FieldError::new(IDEMPOTENCY_KEY, message)]));
                }
                Judgement::Unknown => {
                    return Err(ApiError::Conflict(
                        "an earlier call under this `Idempotency-Key` ended without an answer, and may have been \
                         done: look for what it made, then call again under another key"
                            .to_owned(),
                    ));
                }
                Judgement::Answered(sealed) => {
                    let ends = entry.map_or(0, |entry| entry.ends);
                    return self.open(&sealed, ends).map(Claimed::Before).ok_or_else(|| failed("it does not open"));
                }
                Judgement::UnderWay if Instant::now() + LOOK_EVERY >= deadline => return Err(ApiError::Unavailable),
                Judgement::UnderWay => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Bound to its place, call and end, so that it opens nowhere else.
    fn bound_to(&self, ends: i64) -> Aad<String> {
        Aad::from(format!("{}\0{}\0{ends}", self.place, self.call))
    }

    fn seal(&self, json: &[u8], ends: i64) -> Option<String> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, self.key.as_ref()?).ok()?;
        let mut text = json.to_vec();
        let nonce = key.seal_in_place_append_tag(self.bound_to(ends), &mut text).ok()?;
        Some(BASE64.encode(&[nonce.as_ref().as_slice(), &text].concat()))
    }

    fn open(&self, sealed: &str, ends: i64) -> Option<Vec<u8>> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, self.key.as_ref()?).ok()?;
        let bytes = BASE64.decode(sealed.as_bytes()).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut text = sealed.to_vec();
        let opened = key.open_in_place(Nonce::from(nonce), self.bound_to(ends), &mut text).ok()?;
        Some(opened.to_vec())
    }
}

enum Claimed {
    /// The answer of an earlier call.
    Before(Vec<u8>),
    Now(Entry, Revision),
}

async fn put(
    ledger: &dyn Ledger,
    place: &str,
    entry: &Entry,
    expected: Option<Revision>,
    deadline: Instant,
) -> Result<Revision, PutError> {
    let value = serde_json::to_vec(entry).map_err(|error| PutError::Failed(error.to_string()))?;
    // A clock that went back must not keep a header for longer.
    let left = entry.ends.saturating_sub(ledger.clock().now().as_second()).clamp(1, LIVES);
    ledger.put(place, Bytes::from(value), expected, Some(Duration::from_secs(left.unsigned_abs())), deadline).await
}

fn failed(error: &str) -> ApiError {
    tracing::warn!(error, "an idempotency key of a control call cannot be looked up");
    ApiError::Missing(Part::Ledger)
}

#[cfg(test)]
mod tests;
