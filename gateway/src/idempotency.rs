//! `Idempotency-Key`: the same check asked for again gets its recorded decision again, and counts once.
//!
//! Owns what a key stands for, for ten minutes after its first use: one small record of account, key and header in the ledger, with a
//! hash of the body. Whether an attempt was recorded only the decision log says. Neither the header nor the body is kept.
//! INVARIANT: of two attempts with one key only one is under way at a time, and each has a request id of its own: the
//! log never holds an id twice. What cannot be looked up is not decided.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use stage0_backplane::{Ledger, PutError, Revision};
use stage0_contract::{
    CheckResponse, ClientRequestId, EvaluatorStatus, EvaluatorStatusReply, IDEMPOTENCY_RECORDS, KeyIdentity,
    PolicyVersion, RequestId,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::errors::{ApiError, Part};
use crate::reader::Shelf;
use crate::state::Gate;

mod once;

pub(crate) use once::{IDEMPOTENCY_KEY, MAX_BODY_BYTES, NotDone, Once};

/// Seconds after its first use in which a key stands for one decision.
const LIVES: i64 = 600;
/// While another attempt is under way, it is looked for so often.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// By how much two gateways' readings of the store's clock may differ.
const SLACK: Duration = Duration::from_secs(2);
/// By how much the log's clock may differ from what they read.
const STORE_SLACK: SignedDuration = SignedDuration::from_secs(5);
/// For giving a claim back: the answer waits for it.
const GIVE_BACK_WITHIN: Duration = Duration::from_millis(50);
const MAX_SIGHTINGS: u64 = 10_000;
/// Longer than any attempt takes.
const SIGHTING_TTL: Duration = Duration::from_secs(600);
/// Claims that others made first, until we give up.
pub(crate) const MOST_RACES: u32 = 5;

/// A request with the header.
pub(crate) struct Repeatable {
    place: String,
    body: String,
    /// The version that the request itself names.
    version: Option<String>,
}

/// What the ledger has of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Hash of the body.
    body: String,
    /// The first attempt: what it counted in its run is not counted again.
    operation: RequestId,
    /// The last attempt.
    request_id: RequestId,
    /// Milliseconds since the epoch at which the last attempt took the key.
    since: i64,
    /// Until which it may be under way.
    until: i64,
    /// Seconds since the epoch at which the key is forgotten.
    ends: i64,
    /// How the last attempt ended, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended: Option<Ended>,
}

/// An attempt that was surely not recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ended {
    /// The request was refused: nothing was counted, and the key stands for nothing.
    Refused,
    /// It failed: what it counted is not counted again.
    Failed,
}

/// Since when this gateway has known entries of a time that is still to come: after a clock went back, their own end
/// may be hours away.
#[derive(Clone)]
pub(crate) struct Sightings(Cache<(String, Revision), Instant>);

impl Default for Sightings {
    fn default() -> Self {
        Self(Cache::builder().max_capacity(MAX_SIGHTINGS).time_to_live(SIGHTING_TTL).build())
    }
}

impl Sightings {
    fn known_for(&self, place: &str, revision: Revision, now: Instant) -> Duration {
        let first = self.0.get_with((place.to_owned(), revision), || now);
        now.saturating_duration_since(first)
    }
}

/// What a key was used for before.
pub(crate) enum Before {
    /// This very request, and it was answered.
    Answered(Box<CheckResponse>),
    /// Another request.
    Otherwise,
    /// Nothing that was answered: go on, with a claim.
    Free(Ticket),
}

/// A key that may be claimed.
pub(crate) struct Ticket {
    place: String,
    body: String,
    operation: Option<RequestId>,
    ends: Option<i64>,
    seen: Option<Revision>,
    /// The attempt before may have used up its quota.
    pub(crate) counted: bool,
}

/// A key in the hand of one attempt.
pub(crate) struct Claim {
    place: String,
    entry: Entry,
    revision: Revision,
}

/// What an entry says to a request.
#[derive(Debug, PartialEq, Eq)]
enum Judgement {
    Unused,
    Otherwise,
    /// Known not to be recorded.
    Failed,
    UnderWay,
    /// Nobody knows whether it was recorded, but the log.
    Over,
}

impl Entry {
    /// `known_for` is how long this gateway has seen the entry as it is, by a clock that never goes back.
    fn judge(&self, body: &str, now: Timestamp, known_for: Duration) -> Judgement {
        if self.ended == Some(Ended::Refused) {
            Judgement::Unused
        } else if self.body != body {
            Judgement::Otherwise
        } else if self.ended == Some(Ended::Failed) {
            Judgement::Failed
        } else if now.as_millisecond() < self.until && known_for < self.lifetime() {
            Judgement::UnderWay
        } else {
            Judgement::Over
        }
    }
}

impl Entry {
    /// The store may have the last attempt's record from then on, by its own clock.
    fn recorded_from(&self) -> Timestamp {
        let since = Timestamp::from_millisecond(self.since).unwrap_or(Timestamp::UNIX_EPOCH);
        since.checked_sub(STORE_SLACK).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// How long the last attempt may be under way.
    fn lifetime(&self) -> Duration {
        Duration::from_millis(self.until.saturating_sub(self.since).max(0).unsigned_abs())
    }

    /// Whether the last attempt took the key later than it is now: a clock went back since.
    fn is_of_the_future(&self, now: Timestamp) -> bool {
        Timestamp::from_millisecond(self.since).is_ok_and(|since| since.duration_since(now) > STORE_SLACK)
    }

    /// And not after.
    fn recorded_to(&self) -> Timestamp {
        let until = Timestamp::from_millisecond(self.until).unwrap_or(Timestamp::MAX);
        until.checked_add(STORE_SLACK).unwrap_or(Timestamp::MAX)
    }
}

impl Repeatable {
    /// Under a header, with a body that is about to be judged, and its canonical hash.
    pub(crate) fn new(
        identity: &KeyIdentity,
        header: &ClientRequestId,
        body: &Map<String, Value>,
        body_hash: String,
    ) -> Self {
        let hash = HEXLOWER.encode(&Sha256::digest(header.as_str().as_bytes()));
        let hash = hash.get(..40).unwrap_or_default();
        let version = body.get("policy_pack_version").and_then(Value::as_str).filter(|version| !version.is_empty());
        Self {
            place: format!("{IDEMPOTENCY_RECORDS}.{}.{}.{hash}", identity.account, identity.key_id),
            body: body_hash,
            version: version.map(str::to_owned),
        }
    }

    /// What became of it before. Waits for an attempt that is under way, no longer than until `deadline`.
    pub(crate) async fn look_up(&self, gate: &Gate, shelf: &Shelf<'_>, deadline: Instant) -> Result<Before, ApiError> {
        loop {
            let Some(record) =
                gate.ledger().get(&self.place, deadline).await.map_err(|error| failed(Part::Ledger, &error.0))?
            else {
                return Ok(Before::Free(self.ticket(None, None, None)));
            };
            let entry: Entry =
                serde_json::from_slice(&record.value).map_err(|error| failed(Part::Ledger, &error.to_string()))?;
            let again = || self.ticket(Some(entry.operation), Some(entry.ends), Some(record.revision));
            let (now, clock) = (gate.ledger().clock().now(), Instant::now());
            let future = entry.is_of_the_future(now);
            let known_for =
                if future { gate.sightings.known_for(&self.place, record.revision, clock) } else { Duration::ZERO };
            let over = match entry.judge(&self.body, now, known_for) {
                Judgement::Unused => return Ok(Before::Free(self.ticket(None, None, Some(record.revision)))),
                Judgement::Otherwise => return Ok(Before::Otherwise),
                Judgement::Failed => return Ok(Before::Free(again())),
                Judgement::UnderWay => false,
                Judgement::Over => true,
            };
            let found =
                timeout_at(deadline, shelf.between(entry.request_id, entry.recorded_from(), entry.recorded_to())).await;
            let found = found.map_err(|_| failed(Part::LogUnread, "the log is too slow"))?;
            if let Some(recorded) = found.map_err(|error| failed(Part::LogUnread, &error.0))? {
                let recorded: CheckResponse =
                    serde_json::from_value(recorded).map_err(|error| failed(Part::LogUnread, &error.to_string()))?;
                return Ok(if self.holds(gate, &recorded.decided.policy_version, deadline).await? {
                    Before::Answered(Box::new(recorded))
                } else {
                    Before::Free(self.ticket(None, None, Some(record.revision)))
                });
            }
            if over {
                // Its check may have been counted, and then it is not counted again.
                return Ok(Before::Free(Ticket { counted: true, ..again() }));
            }
            if Instant::now() + LOOK_EVERY >= deadline {
                return Err(ApiError::Unavailable);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn ticket(&self, operation: Option<RequestId>, ends: Option<i64>, seen: Option<Revision>) -> Ticket {
        Ticket { place: self.place.clone(), body: self.body.clone(), operation, ends, seen, counted: false }
    }

    /// Whether a decision by this version would be made by it again.
    async fn holds(&self, gate: &Gate, decided: &PolicyVersion, deadline: Instant) -> Result<bool, ApiError> {
        if let Some(named) = &self.version {
            return Ok(named == decided.as_str());
        }
        let status = gate.requests().ask_until(&EvaluatorStatus {}, deadline).await;
        let EvaluatorStatusReply { active, .. } =
            status.map_err(|error| failed(Part::asked::<EvaluatorStatus>(&error), &error.to_string()))?;
        Ok(active == *decided)
    }
}

impl Ticket {
    /// Takes the key for this attempt; none when another one was faster.
    pub(crate) async fn claim(
        self,
        ledger: &dyn Ledger,
        request_id: RequestId,
        budget: Duration,
        deadline: Instant,
    ) -> Result<Option<Claim>, ApiError> {
        let now = ledger.clock().now();
        // A record is written together with others, whose time may end a budget later.
        let (since, until) =
            (now.as_millisecond(), now.checked_add(2 * budget + SLACK).unwrap_or(now).as_millisecond());
        let ends = self.ends.unwrap_or_else(|| now.as_second().saturating_add(LIVES));
        let operation = self.operation.unwrap_or(request_id);
        let entry = Entry { body: self.body, operation, request_id, since, until, ends, ended: None };
        match put(ledger, &self.place, &entry, self.seen, deadline).await {
            Ok(revision) => Ok(Some(Claim { place: self.place, entry, revision })),
            Err(PutError::Conflict) => Ok(None),
            Err(PutError::Failed(reason)) => Err(failed(Part::Ledger, &reason)),
        }
    }
}

impl Claim {
    /// The check that this attempt repeats, if it is not the first.
    pub(crate) fn repeats(&self) -> Option<RequestId> {
        (self.entry.operation != self.entry.request_id).then_some(self.entry.operation)
    }

    /// The attempt is over and was not recorded: whoever asks again need neither wait nor search. If this fails, they do.
    pub(crate) async fn give_back(self, ended: Ended, ledger: &dyn Ledger) {
        let entry = Entry { ended: Some(ended), ..self.entry };
        let deadline = Instant::now() + GIVE_BACK_WITHIN;
        if let Err(error) = put(ledger, &self.place, &entry, Some(self.revision), deadline).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "an idempotency key was not given back");
        }
    }
}

async fn put(
    ledger: &dyn Ledger,
    place: &str,
    entry: &Entry,
    expected: Option<Revision>,
    deadline: Instant,
) -> Result<Revision, PutError> {
    let value = serde_json::to_vec(entry).map_err(|error| PutError::Failed(error.to_string()))?;
    // A clock that went back must not keep a key for longer.
    let left = entry.ends.saturating_sub(ledger.clock().now().as_second()).clamp(1, LIVES);
    let lives = Duration::from_secs(left.unsigned_abs());
    ledger.put(place, Bytes::from(value), expected, Some(lives), deadline).await
}

fn failed(part: Part, error: &str) -> ApiError {
    tracing::warn!(error, "an idempotency key cannot be looked up");
    ApiError::Missing(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use stage0_contract::{AccountId, Caps, KeyId, Limits, Plan, Scopes, canonical_hash};

    fn identity(account: &str, key: &str) -> KeyIdentity {
        KeyIdentity {
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

    fn of(account: &str, key: &str, header: &str, body: impl Into<Value>) -> Repeatable {
        let Value::Object(body) = body.into() else { panic!("no object") };
        Repeatable::new(&identity(account, key), &ClientRequestId::parse(header).unwrap(), &body, canonical_hash(&body))
    }

    #[test]
    fn a_key_is_its_accounts_its_keys_and_its_own() {
        let place = |account, key, header| of(account, key, header, json!({})).place;
        let one = place("a", "k", "h");
        for other in [place("b", "k", "h"), place("a", "l", "h"), place("a", "k", "H")] {
            assert_ne!(one, other);
        }
        let longest = place(&"a".repeat(64), &"k".repeat(64), &"!".repeat(128));
        assert!(longest.len() <= 200 && longest.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)));
        assert!(!one.contains(".h"), "the header's text is not kept");
    }

    #[test]
    fn the_order_of_members_makes_no_other_body_and_everything_else_does() {
        let body = |body: Value| of("a", "k", "h", body).body;
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
    fn an_entry_speaks_of_its_body_and_of_its_time() {
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let entry = Entry {
            body: "b".to_owned(),
            operation: id,
            request_id: id,
            since: 0,
            until: 5_000,
            ends: 600,
            ended: None,
        };
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        assert_eq!(entry.judge("c", at(1), Duration::ZERO), Judgement::Otherwise);
        assert_eq!(entry.judge("b", at(4_999), Duration::ZERO), Judgement::UnderWay);
        assert_eq!(entry.judge("b", at(5_000), Duration::ZERO), Judgement::Over);
        let ended = |ended| Entry { ended: Some(ended), ..entry.clone() };
        assert_eq!(ended(Ended::Failed).judge("b", at(1), Duration::ZERO), Judgement::Failed);
        assert_eq!(ended(Ended::Failed).judge("c", at(1), Duration::ZERO), Judgement::Otherwise);
        assert_eq!(ended(Ended::Refused).judge("c", at(1), Duration::ZERO), Judgement::Unused);
    }
    #[tokio::test(start_paused = true)]
    async fn an_attempt_of_the_future_is_over_once_it_was_seen_for_as_long_as_it_may_take() {
        let id = RequestId::parse("0190163d-8694-739b-aea5-966c26f8ad91").unwrap();
        let (hour, since) = (3_600_000, 1_000_000_000);
        let entry = Entry {
            body: "b".to_owned(),
            operation: id,
            request_id: id,
            since,
            until: since + 6_000,
            ends: 600,
            ended: None,
        };
        let now = Timestamp::from_millisecond(since - hour).unwrap();
        assert!(entry.is_of_the_future(now));
        assert!(!entry.is_of_the_future(Timestamp::from_millisecond(since - 4_000).unwrap()), "clocks differ a little");
        let (sightings, revision) = (Sightings::default(), Revision(7));
        let mut judged = Vec::new();
        for _ in 0..4 {
            judged.push(entry.judge("b", now, sightings.known_for("p", revision, Instant::now())));
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        assert_eq!(judged, [Judgement::UnderWay, Judgement::UnderWay, Judgement::UnderWay, Judgement::Over]);
        let other = sightings.known_for("p", Revision(8), Instant::now());
        assert_eq!(entry.judge("b", now, other), Judgement::UnderWay, "another attempt has a time of its own");
        assert_eq!(entry.judge("c", now, Duration::from_secs(60)), Judgement::Otherwise);
    }
}
