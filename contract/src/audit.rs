//! What the gateway asks of the exporter, and what it tells it: deliveries, replays, deletion on demand.
//!
//! The gateway has judged the caller, and that the endpoint is the caller's, before it sends any of these. A deletion
//! cannot be undone, so it needs the keystore's own permit as well.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{AccountId, Caller, KeyId, WebhookId};

/// Gateway to all: decisions of these accounts were just recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionsRecorded {
    /// Whose: at most [`DecisionsRecorded::MAX_ACCOUNTS`].
    #[serde(deserialize_with = "few_accounts")]
    pub accounts: Vec<AccountId>,
}

impl DecisionsRecorded {
    /// More accounts take several notices. A subscriber does not read a longer list; it looks at the log instead.
    pub const MAX_ACCOUNTS: usize = 1_000;
}

/// The list is bounded like a caller's, because any process with the right to publish may send it.
fn few_accounts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<AccountId>, D::Error> {
    struct Few;

    impl<'de> Visitor<'de> for Few {
        type Value = Vec<AccountId>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {} accounts", DecisionsRecorded::MAX_ACCOUNTS)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut accounts = Vec::new();
            while let Some(account) = list.next_element()? {
                if accounts.len() == DecisionsRecorded::MAX_ACCOUNTS {
                    return Err(A::Error::invalid_length(accounts.len() + 1, &self));
                }
                accounts.push(account);
            }
            Ok(accounts)
        }
    }

    deserializer.deserialize_seq(Few)
}

/// `POST /v1/webhooks/{id}/test`: one attempt with an event of type `webhook.test`, now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TestWebhook {
    #[schemars(skip)]
    pub account: AccountId,
    /// The endpoint.
    pub id: WebhookId,
}

/// What became of the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookTested {
    /// It answered 2xx.
    pub delivered: bool,
    /// Its status, if it answered.
    pub status: Option<u16>,
    /// Why it counts as not delivered.
    pub error: Option<String>,
    /// The duration of the attempt in milliseconds.
    pub latency_ms: u64,
}

/// `POST /v1/webhooks/{id}/replay`: send what was recorded in this time once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayWebhook {
    #[schemars(skip)]
    pub account: AccountId,
    /// The endpoint.
    pub id: WebhookId,
    /// Recorded at this moment or later.
    pub from: Timestamp,
    /// Recorded before this moment; after `from`.
    pub to: Timestamp,
}

/// It will be sent. A replayed event keeps its `webhook-id` and gets a new `sequence`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReplayStarted {}

/// `GET /v1/webhooks/{id}/deliveries`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListDeliveries {
    #[schemars(skip)]
    pub account: AccountId,
    /// The endpoint.
    pub id: WebhookId,
}

/// One event on its way to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delivery {
    /// The header `webhook-id`: the same at every attempt.
    pub event: String,
    /// `data.sequence` of the event.
    #[schemars(extend("minimum" = 1))]
    pub sequence: u64,
    /// `waiting`: it failed and will be tried again. `exhausted`: it failed eight times; a replay sends it again.
    pub state: DeliveryState,
    /// How often it was tried.
    #[schemars(extend("minimum" = 1))]
    pub attempts: u32,
    /// Of the last attempt, if it was answered.
    pub status: Option<u16>,
    /// Of the last attempt, if it failed.
    pub error: Option<String>,
    /// Of the last attempt, in milliseconds.
    pub latency_ms: u64,
    /// RFC 3339.
    pub last_attempt_at: Timestamp,
    /// Null when none is planned.
    pub next_attempt_at: Option<Timestamp>,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It was answered 2xx.
    Delivered,
    /// It failed and will be tried again.
    Waiting,
    /// It failed to the end; a replay sends it again.
    Exhausted,
}

/// `DELETE /v1/decisions?before=…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteDecisions {
    #[schemars(skip)]
    pub account: AccountId,
    /// What was recorded before this goes.
    pub before: Timestamp,
    #[schemars(skip)]
    pub requested_by: KeyId,
    /// The keystore's permit for exactly this deletion, without which it does not sign the deletion's mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub permit: Option<DeletionPermit>,
}

/// Gateway to keystore: may this caller delete its account's decisions of before this time?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitDeletion {
    pub caller: Caller,
    /// What was recorded before this goes.
    pub before: Timestamp,
}

/// The keystore's permit for one deletion. Only the keystore process that issued it can validate it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionPermit {
    /// The keystore refuses it from this time on.
    pub expires_at: Timestamp,
    /// Base64url; covers account, time, key and expiry.
    pub mac: String,
}

/// They are gone; a signed mark says so in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionsDeleted {
    /// The number of deleted decisions.
    pub count: u64,
    /// What was recorded before this is gone.
    pub before: Timestamp,
    /// When the first of them was recorded.
    pub from: Option<Timestamp>,
    /// When the last of them was.
    pub to: Option<Timestamp>,
    /// Number of the mark that says so; null when there was nothing to delete.
    #[schemars(extend("minimum" = 1))]
    pub mark: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_names_a_bounded_number_of_accounts() {
        let notice = |count: usize| {
            let accounts = (0..count).map(|n| AccountId::parse(&format!("acc_{n}")).unwrap()).collect();
            serde_json::to_vec(&DecisionsRecorded { accounts }).unwrap()
        };
        let read = |bytes: Vec<u8>| serde_json::from_slice::<DecisionsRecorded>(&bytes);
        assert_eq!(read(notice(DecisionsRecorded::MAX_ACCOUNTS)).unwrap().accounts.len(), 1_000);
        assert!(read(notice(DecisionsRecorded::MAX_ACCOUNTS + 1)).is_err());
        assert!(read(br#"{"accounts":["a.b"]}"#.to_vec()).is_err());
    }
}
