//! `Idempotency-Key` on checks: a retried check gets the recorded decision again, and counts once.
//!
//! Owns one small record per account, key and header in the state store, for ten minutes after its first use, with a
//! hash of the body. Only the decision log says whether an attempt was recorded; whether a recorded decision may be
//! given again is judged by `routes/check/replay.rs`. INVARIANT: of two attempts with one key only one is in flight at
//! a time, and each has a request id of its own, so the log never holds an id twice. What cannot be looked up is not
//! decided.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use stage0_backplane::{Cause, PutError, Revision, StateStore};
use stage0_contract::{AccountId, CheckResponse, ClientRequestId, IDEMPOTENCY_RECORDS, KeyId, KeyIdentity, RequestId};
use tokio::time::{Instant, sleep, timeout_at};

use crate::errors::{ApiError, Part};
use crate::log_reader::LogReader;

mod create;

pub(crate) use create::{Answer, CallError, IDEMPOTENCY_KEY, IdempotentCreate, MAX_BODY_BYTES};

/// Seconds during which a key stands for one decision, from its first use.
const KEY_TTL_SECONDS: i64 = 600;
/// While another attempt is in flight.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// By how much two gateways' readings of the store's clock may differ.
const MAX_CLOCK_DIFFERENCE: Duration = Duration::from_secs(2);
/// By how much the log's clock may differ from those readings.
const MAX_LOG_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(5);
/// It delays the answer.
const RELEASE_TIMEOUT: Duration = Duration::from_millis(50);
const MAX_FIRST_SEEN: u64 = 10_000;
/// Longer than any attempt takes.
const FIRST_SEEN_TTL: Duration = Duration::from_secs(600);
/// While other requests claim the key first.
pub(crate) const MAX_CLAIM_ATTEMPTS: u32 = 5;

pub(crate) struct IdempotencyStore<'a> {
    pub(crate) state_store: &'a dyn StateStore,
    pub(crate) first_seen: &'a FirstSeen,
    pub(crate) log: &'a LogReader,
    pub(crate) deadline: Instant,
}

/// The key of a request that has the header.
pub(crate) struct IdempotencyKey {
    record_key: String,
    body_hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KeyRecord {
    #[serde(rename = "body")]
    body_hash: String,
    /// The first attempt: what it counted in its run is not counted again.
    operation: RequestId,
    /// The last attempt.
    request_id: RequestId,
    /// When the last attempt claimed the key, in milliseconds since the epoch.
    since: i64,
    /// Until when that attempt may be in flight.
    until: i64,
    /// When the key expires, in seconds since the epoch.
    ends: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<AttemptEnd>,
}

/// How an attempt ended that was surely not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AttemptEnd {
    /// The request was refused: nothing was counted, and the key is unused again.
    Refused,
    /// It failed: what it counted is not counted again.
    Failed,
}

/// When this gateway first saw each record whose times lie in the future: after a clock went back, the record's own end
/// may be hours away.
#[derive(Clone)]
pub(crate) struct FirstSeen(Cache<(String, Revision), Instant>);

impl Default for FirstSeen {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_FIRST_SEEN).time_to_live(FIRST_SEEN_TTL).build())
    }
}

impl FirstSeen {
    fn known_for(&self, record_key: &str, revision: Revision, now: Instant) -> Duration {
        let first = self.0.get_with((record_key.to_owned(), revision), || now);
        now.saturating_duration_since(first)
    }
}

/// What a key was used for before.
pub(crate) enum Lookup {
    /// This very request, and it was decided.
    Recorded(Box<Recorded>),
    BodyMismatch,
    Available(Available),
}

pub(crate) struct Recorded {
    pub(crate) response: CheckResponse,
    /// The first attempt under the key.
    pub(crate) operation: RequestId,
    /// If the decision must not be given again: the key as if it were unused.
    pub(crate) void: Available,
}

pub(crate) struct Available {
    record_key: String,
    body_hash: String,
    operation: Option<RequestId>,
    ends: Option<i64>,
    revision: Option<Revision>,
    /// An earlier attempt may have used its quota.
    pub(crate) counted: bool,
}

pub(crate) struct Claim {
    record_key: String,
    record: KeyRecord,
    revision: Revision,
}

#[derive(Debug, PartialEq, Eq)]
enum KeyState {
    Unused,
    BodyMismatch,
    Failed,
    InFlight,
    /// Only the log knows whether the last attempt was recorded.
    Over,
}

impl KeyRecord {
    /// `known_for` is how long this gateway has seen the record as it is, by a clock that never goes back.
    fn state_for(&self, body_hash: &str, now: Timestamp, known_for: Duration) -> KeyState {
        if self.ended == Some(AttemptEnd::Refused) {
            KeyState::Unused
        } else if self.body_hash != body_hash {
            KeyState::BodyMismatch
        } else if self.ended == Some(AttemptEnd::Failed) {
            KeyState::Failed
        } else if now.as_millisecond() < self.until && known_for < self.max_duration() {
            KeyState::InFlight
        } else {
            KeyState::Over
        }
    }

    /// The earliest time, by the log's clock, at which the last attempt may have been recorded.
    fn recorded_from(&self) -> Timestamp {
        let since = Timestamp::from_millisecond(self.since).unwrap_or(Timestamp::UNIX_EPOCH);
        since.checked_sub(MAX_LOG_CLOCK_DIFFERENCE).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    fn recorded_to(&self) -> Timestamp {
        let until = Timestamp::from_millisecond(self.until).unwrap_or(Timestamp::MAX);
        until.checked_add(MAX_LOG_CLOCK_DIFFERENCE).unwrap_or(Timestamp::MAX)
    }

    fn max_duration(&self) -> Duration {
        Duration::from_millis(self.until.saturating_sub(self.since).max(0).unsigned_abs())
    }

    /// Whether the last attempt claimed the key later than now, because a clock went back since.
    fn is_of_the_future(&self, now: Timestamp) -> bool {
        Timestamp::from_millisecond(self.since).is_ok_and(|since| since.duration_since(now) > MAX_LOG_CLOCK_DIFFERENCE)
    }
}

impl IdempotencyKey {
    pub(crate) fn new(identity: &KeyIdentity, header: &ClientRequestId, body_hash: String) -> Self {
        Self { record_key: record_key(&identity.account, &identity.key_id, header.as_str()), body_hash }
    }

    /// What the key was used for before. Waits for an attempt in flight.
    pub(crate) async fn look_up(&self, store: &IdempotencyStore<'_>) -> Result<Lookup, ApiError> {
        loop {
            let stored = store.state_store.get(&self.record_key, store.deadline).await;
            let Some(stored) = stored.map_err(|error| failed(Part::StateStore, &error))? else {
                return Ok(Lookup::Available(self.available(None)));
            };
            let record: KeyRecord =
                serde_json::from_slice(&stored.value).map_err(|error| failed(Part::StateStore, &error))?;
            let retry = || Available {
                operation: Some(record.operation),
                ends: Some(record.ends),
                ..self.available(Some(stored.revision))
            };
            let now = store.state_store.clock().now();
            let known_for = if record.is_of_the_future(now) {
                store.first_seen.known_for(&self.record_key, stored.revision, Instant::now())
            } else {
                Duration::ZERO
            };
            let is_over = match record.state_for(&self.body_hash, now, known_for) {
                KeyState::Unused => return Ok(Lookup::Available(self.available(Some(stored.revision)))),
                KeyState::BodyMismatch => return Ok(Lookup::BodyMismatch),
                KeyState::Failed => return Ok(Lookup::Available(retry())),
                KeyState::InFlight => false,
                KeyState::Over => true,
            };
            if let Some(response) = find_record(store, &record).await? {
                let (operation, void) = (record.operation, self.available(Some(stored.revision)));
                return Ok(Lookup::Recorded(Box::new(Recorded { response, operation, void })));
            }
            if is_over {
                // Its check may have been counted, and then it is not counted again.
                return Ok(Lookup::Available(Available { counted: true, ..retry() }));
            }
            if Instant::now() + POLL_INTERVAL >= store.deadline {
                return Err(ApiError::Unavailable);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    fn available(&self, revision: Option<Revision>) -> Available {
        Available {
            record_key: self.record_key.clone(),
            body_hash: self.body_hash.clone(),
            operation: None,
            ends: None,
            revision,
            counted: false,
        }
    }
}

/// The decision of a record's last attempt, if the log has it.
async fn find_record(store: &IdempotencyStore<'_>, record: &KeyRecord) -> Result<Option<CheckResponse>, ApiError> {
    let found = store.log.decision_between(record.request_id, record.recorded_from(), record.recorded_to());
    let found = timeout_at(store.deadline, found).await.map_err(|error| failed(Part::LogUnread, &error))?;
    let Some(line) = found.map_err(|error| failed(Part::LogUnread, &error))? else { return Ok(None) };
    serde_json::from_value(line).map(Some).map_err(|error| failed(Part::LogUnread, &error))
}

impl Available {
    /// Claims the key for one attempt; none if another one was faster.
    pub(crate) async fn claim(
        self,
        IdempotencyStore { state_store, deadline, .. }: &IdempotencyStore<'_>,
        request_id: RequestId,
        budget: Duration,
    ) -> Result<Option<Claim>, ApiError> {
        let now = state_store.clock().now();
        // A record is appended together with others, whose deadline may end a budget later.
        let until = now.checked_add(2 * budget + MAX_CLOCK_DIFFERENCE).unwrap_or(now).as_millisecond();
        let record = KeyRecord {
            body_hash: self.body_hash,
            operation: self.operation.unwrap_or(request_id),
            request_id,
            since: now.as_millisecond(),
            until,
            ends: self.ends.unwrap_or_else(|| now.as_second().saturating_add(KEY_TTL_SECONDS)),
            ended: None,
        };
        match put(*state_store, &self.record_key, &record, record.ends, self.revision, *deadline).await {
            Ok(revision) => Ok(Some(Claim { record_key: self.record_key, record, revision })),
            Err(PutError::Conflict) => Ok(None),
            Err(error @ PutError::Failed(_)) => Err(failed(Part::StateStore, &error)),
        }
    }
}

impl Claim {
    pub(crate) fn repeats(&self) -> Option<RequestId> {
        (self.record.operation != self.record.request_id).then_some(self.record.operation)
    }

    /// Marks the attempt as ended without a record, so that a retry need not wait or search the log. Best effort.
    pub(crate) async fn release(self, ended: AttemptEnd, state_store: &dyn StateStore) {
        let record = KeyRecord { ended: Some(ended), ..self.record };
        let deadline = Instant::now() + RELEASE_TIMEOUT;
        let put = put(state_store, &self.record_key, &record, record.ends, Some(self.revision), deadline).await;
        if let Err(error) = put {
            tracing::warn!(error = &error as &dyn Error, "an idempotency key was not given back");
        }
    }
}

/// The key of the record of a header, in which the header is hashed.
fn record_key(account: &AccountId, key_id: &KeyId, header: &str) -> String {
    let hash = HEXLOWER.encode(&Sha256::digest(header));
    format!("{IDEMPOTENCY_RECORDS}.{account}.{key_id}.{}", hash.get(..40).unwrap_or_default())
}

/// Stores a record until `ends`, in seconds since the epoch.
async fn put(
    state_store: &dyn StateStore,
    record_key: &str,
    record: &impl Serialize,
    ends: i64,
    expected: Option<Revision>,
    deadline: Instant,
) -> Result<Revision, PutError> {
    let value = serde_json::to_vec(record).map_err(|error| PutError::Failed(Cause::new(error)))?;
    // A clock that went back must not extend a key's life.
    let left = ends.saturating_sub(state_store.clock().now().as_second()).clamp(1, KEY_TTL_SECONDS);
    let ttl = Duration::from_secs(left.unsigned_abs());
    state_store.put(record_key, Bytes::from(value), expected, Some(ttl), deadline).await
}

fn failed(part: Part, error: &(dyn Error + 'static)) -> ApiError {
    tracing::warn!(error, "an idempotency key cannot be looked up");
    ApiError::Missing(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use stage0_contract::{Caps, Limits, Plan, Scopes, canonical_hash};

    fn identity(account: &str, key: &str) -> KeyIdentity {
        KeyIdentity {
            holder: None,
            key_name: None,
            groups: None,
            rules: stage0_contract::AccountRules::default(),
            key_id: KeyId::parse(key).unwrap(),
            account: AccountId::parse(account).unwrap(),
            scopes: Scopes::new(),
            plan: Plan::Free,
            expires_at: None,
            retention_days: 30,
            limits: Limits::NONE,
            require_run_id: false,
            caps: Caps::NONE,
        }
    }

    fn of(account: &str, key: &str, header: &str, body: impl Into<Value>) -> IdempotencyKey {
        let Value::Object(body) = body.into() else { panic!("no object") };
        IdempotencyKey::new(&identity(account, key), &ClientRequestId::parse(header).unwrap(), canonical_hash(&body))
    }

    #[test]
    fn an_idempotency_key_belongs_to_one_account_api_key_and_header() {
        let record_key = |account, key, header| of(account, key, header, json!({})).record_key;
        let one = record_key("a", "k", "h");
        for other in [record_key("b", "k", "h"), record_key("a", "l", "h"), record_key("a", "k", "H")] {
            assert_ne!(one, other);
        }
        let longest = record_key(&"a".repeat(64), &"k".repeat(64), &"!".repeat(128));
        assert!(longest.len() <= 200 && longest.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)));
        assert!(!one.contains(".h"), "the header's text is not kept");
    }

    #[test]
    fn a_body_is_the_same_in_any_order_of_its_members_and_otherwise_another() {
        let body = |body: Value| of("a", "k", "h", body).body_hash;
        let one = body(json!({"goal": "g", "context": {"a": 1, "b": [1, 2]}, "extra": true}));
        assert_eq!(one, body(json!({"extra": true, "context": {"b": [1, 2], "a": 1}, "goal": "g"})));
        for other in [
            json!({"goal": "g", "context": {"a": 1, "b": [2, 1]}, "extra": true}),
            json!({"goal": "g", "context": {"a": 1, "b": [1, 2]}, "extra": false}),
            json!({"goal": "g", "context": {"a": 1, "b": [1, 2]}}),
        ] {
            assert_ne!(one, body(other));
        }
    }

    #[test]
    fn a_record_is_in_flight_over_or_failed_for_its_own_body_only() {
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let record = KeyRecord {
            body_hash: "b".to_owned(),
            operation: id,
            request_id: id,
            since: 0,
            until: 5_000,
            ends: 600,
            ended: None,
        };
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        assert_eq!(record.state_for("c", at(1), Duration::ZERO), KeyState::BodyMismatch);
        assert_eq!(record.state_for("b", at(4_999), Duration::ZERO), KeyState::InFlight);
        assert_eq!(record.state_for("b", at(5_000), Duration::ZERO), KeyState::Over);
        let ended = |ended| KeyRecord { ended: Some(ended), ..record.clone() };
        assert_eq!(ended(AttemptEnd::Failed).state_for("b", at(1), Duration::ZERO), KeyState::Failed);
        assert_eq!(ended(AttemptEnd::Failed).state_for("c", at(1), Duration::ZERO), KeyState::BodyMismatch);
        assert_eq!(ended(AttemptEnd::Refused).state_for("c", at(1), Duration::ZERO), KeyState::Unused);
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_with_future_times_is_over_once_it_was_seen_for_its_maximum_duration() {
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let (hour, since) = (3_600_000, 1_000_000_000);
        let record = KeyRecord {
            body_hash: "b".to_owned(),
            operation: id,
            request_id: id,
            since,
            until: since + 6_000,
            ends: 600,
            ended: None,
        };
        let now = Timestamp::from_millisecond(since - hour).unwrap();
        assert!(record.is_of_the_future(now));
        assert!(
            !record.is_of_the_future(Timestamp::from_millisecond(since - 4_000).unwrap()),
            "clocks differ a little"
        );
        let (first_seen, revision) = (FirstSeen::default(), Revision(7));
        let mut judged = Vec::new();
        for _ in 0..4 {
            judged.push(record.state_for("b", now, first_seen.known_for("p", revision, Instant::now())));
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        assert_eq!(judged, [KeyState::InFlight, KeyState::InFlight, KeyState::InFlight, KeyState::Over]);
        let other = first_seen.known_for("p", Revision(8), Instant::now());
        assert_eq!(record.state_for("b", now, other), KeyState::InFlight, "another attempt has a time of its own");
        assert_eq!(record.state_for("c", now, Duration::from_secs(60)), KeyState::BodyMismatch);
    }
}
