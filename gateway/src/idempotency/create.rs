//! `Idempotency-Key` on calls that create: a retried call gets the answer of the first one.
//!
//! Owns one record per account, key and header in the state store, for ten minutes after its first use: a hash of the
//! call and its body, and the answer, sealed with a key that is derived from the caller's API key (ADR 0025).
//! INVARIANT: nothing is created twice under one header, and access to the state store opens nothing. If it is unknown
//! whether something was created, a retry is refused: a secret that no client received would be worse.

use std::error::Error;
use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use data_encoding::{BASE64, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use stage0_backplane::{PutError, Revision, StateStore};
use stage0_contract::{ApiKey, Caller, ClientRequestId, FieldError, canonical_hash};
use tokio::time::{Instant, sleep};

use super::{KEY_TTL_SECONDS, MAX_CLOCK_DIFFERENCE, POLL_INTERVAL, put, record_key};
use crate::errors::{ApiError, Part};

pub(crate) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
/// Larger bodies are refused under the header: their answers would not fit into a record of the state store (16 KiB).
pub(crate) const MAX_BODY_BYTES: usize = 6_000;
/// Prefix of everything that is hashed here, so that a check under the same header has another record.
const DOMAIN: &str = "stage0 control call v1";
/// For storing how a call ended, which delays its answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) struct IdempotentCreate {
    record_key: String,
    /// Hash of the call and its body.
    call: String,
    key: Option<[u8; 32]>,
}

#[derive(Debug)]
pub(crate) enum CallError {
    /// It surely did nothing.
    NotDone(ApiError),
    /// It may have been done nevertheless.
    OutcomeUnknown(ApiError),
}

impl CallError {
    pub(crate) fn into_api_error(self) -> ApiError {
        match self {
            Self::NotDone(error) | Self::OutcomeUnknown(error) => error,
        }
    }
}

pub(crate) struct Answer {
    pub(crate) json: Vec<u8>,
    /// Whether this call created something, and not an earlier one.
    pub(crate) is_new: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct CallRecord {
    /// Hash of the call and its body.
    call: String,
    /// Until when the call may be in flight, in milliseconds since the epoch.
    until: i64,
    /// When the header expires, in seconds since the epoch.
    ends: i64,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    #[serde(rename = "under_way")]
    InFlight,
    /// Nothing was done.
    Free,
    /// It is unknown whether it was done.
    Unknown,
    /// With the sealed answer.
    Answered(String),
}

impl CallRecord {
    /// What the record means for this call; none if it is of another one.
    fn state_for(&self, call: &str, now: Timestamp) -> Option<State> {
        if self.state == State::Free || now.as_second() >= self.ends {
            Some(State::Free)
        } else if self.call != call {
            None
        } else if self.state == State::InFlight && now.as_millisecond() >= self.until {
            Some(State::Unknown)
        } else {
            Some(self.state.clone())
        }
    }
}

impl IdempotentCreate {
    /// For a caller that authenticated with `key`; `call` is the method and path, with the ids in it.
    pub(crate) fn new(
        caller: &Caller,
        key: &ApiKey,
        header: &ClientRequestId,
        call: &str,
        body: &Map<String, Value>,
    ) -> Self {
        let record_key = record_key(&caller.account, &caller.key_id, &format!("{DOMAIN}\0{}", header.as_str()));
        let call = HEXLOWER.encode(&Sha256::digest(format!("{DOMAIN}\0{call}\0{}", canonical_hash(body))));
        // HMAC takes keys of any length; if it did not, nothing would be sealed and a retry refused.
        let key = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).ok().map(|mut mac| {
            mac.update(format!("{DOMAIN}\0{record_key}\0{}", header.as_str()).as_bytes());
            mac.finalize().into_bytes().into()
        });
        Self { record_key, call, key }
    }

    pub(crate) async fn run<T: Serialize>(
        &self,
        state_store: &dyn StateStore,
        budget: Duration,
        create: impl Future<Output = Result<T, CallError>>,
    ) -> Result<Answer, ApiError> {
        let (mut record, revision) = match self.claim(state_store, budget).await? {
            Claimed::Earlier(json) => return Ok(Answer { json, is_new: false }),
            Claimed::Now(record, revision) => (record, revision),
        };
        let made = create.await.and_then(|made| {
            serde_json::to_vec(&made).map_err(|error| {
                tracing::error!(error = &error as &dyn Error, "an answer could not be written");
                CallError::OutcomeUnknown(ApiError::Unavailable)
            })
        });
        record.state = match &made {
            Ok(json) => self.seal(json, record.ends).map_or(State::Unknown, State::Answered),
            Err(CallError::NotDone(_)) => State::Free,
            Err(CallError::OutcomeUnknown(_)) => State::Unknown,
        };
        // The answer leaves even if this fails: nothing else holds the secret that was created.
        let deadline = Instant::now() + STORE_TIMEOUT;
        let stored = put(state_store, &self.record_key, &record, record.ends, Some(revision), deadline).await;
        if let Err(error) = stored {
            tracing::warn!(error = &error as &dyn Error, "how a call ended was not noted, its repeat is refused");
        }
        match made {
            Ok(json) => Ok(Answer { json, is_new: true }),
            Err(CallError::NotDone(error) | CallError::OutcomeUnknown(error)) => Err(error),
        }
    }

    /// Claims the header for this call, or returns the answer of an earlier one. Waits for a call in flight.
    async fn claim(&self, state_store: &dyn StateStore, budget: Duration) -> Result<Claimed, ApiError> {
        let deadline = Instant::now() + budget;
        loop {
            let found = state_store.get(&self.record_key, deadline).await.map_err(|error| failed(&error))?;
            let now = state_store.clock().now();
            let revision = found.as_ref().map(|record| record.revision);
            let record = found.map(|stored| serde_json::from_slice::<CallRecord>(&stored.value)).transpose();
            let record = record.map_err(|error| failed(&error))?;
            match record.as_ref().map_or(Some(State::Free), |record| record.state_for(&self.call, now)) {
                Some(State::Free) => {
                    let until = now.checked_add(2 * budget + MAX_CLOCK_DIFFERENCE).unwrap_or(now).as_millisecond();
                    let ends = now.as_second().saturating_add(KEY_TTL_SECONDS);
                    let record = CallRecord { call: self.call.clone(), until, ends, state: State::InFlight };
                    match put(state_store, &self.record_key, &record, ends, revision, deadline).await {
                        Ok(revision) => return Ok(Claimed::Now(record, revision)),
                        // Another call was faster: the next round sees its record.
                        Err(PutError::Conflict) if Instant::now() < deadline => {}
                        Err(error) => return Err(failed(&error)),
                    }
                }
                None => {
                    let message = "was used with another call or another body";
                    return Err(ApiError::Invalid(vec![FieldError::new(IDEMPOTENCY_KEY, message)]));
                }
                Some(State::Unknown) => {
                    return Err(ApiError::Conflict(
                        "an earlier call under this `Idempotency-Key` ended without an answer, and may have been \
                         done: look for what it made, then call again under another key"
                            .to_owned(),
                    ));
                }
                Some(State::Answered(sealed)) => {
                    let ends = record.map_or(0, |record| record.ends);
                    return self.open(&sealed, ends).map(Claimed::Earlier).ok_or_else(|| failed(&DoesNotOpen));
                }
                Some(State::InFlight) if Instant::now() + POLL_INTERVAL >= deadline => {
                    return Err(ApiError::Unavailable);
                }
                Some(State::InFlight) => sleep(POLL_INTERVAL).await,
            }
        }
    }

    /// Binds a sealed answer to its record, call and end, so that it opens nowhere else.
    fn bound_to(&self, ends: i64) -> Aad<String> {
        Aad::from(format!("{}\0{}\0{ends}", self.record_key, self.call))
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
    Earlier(Vec<u8>),
    Now(CallRecord, Revision),
}

#[derive(Debug, thiserror::Error)]
#[error("the sealed answer does not open")]
struct DoesNotOpen;

fn failed(error: &(dyn Error + 'static)) -> ApiError {
    tracing::warn!(error, "an idempotency key of a control call cannot be looked up");
    ApiError::Missing(Part::StateStore)
}

#[cfg(test)]
mod tests;
