//! What the gateway asks of the exporter, and what it tells it: deliveries, replays, deletion on demand.
//!
//! Owns the shapes. The gateway has judged the caller, and that the endpoint is the caller's, before it asks any of
//! these. A deletion needs the keystore's own permit beside: it cannot be undone.

use std::fmt;

use jiff::Timestamp;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{AccountId, Caller, KeyId, ManageReply, Notice, Page, Request, WebhookId};

/// Gateway to all: decisions of these accounts were just recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionsRecorded {
    /// Whose: at most [`DecisionsRecorded::MAX_ACCOUNTS`].
    #[serde(deserialize_with = "few_accounts")]
    pub accounts: Vec<AccountId>,
}

impl DecisionsRecorded {
    /// More are told in more than one notice. A longer list is not read to its end: who hears it looks at the log.
    pub const MAX_ACCOUNTS: usize = 1_000;
}

impl Notice for DecisionsRecorded {
    const SUBJECT: &'static str = "notice.decisions.recorded";
}

/// A list of whoever may tell this notice is bounded like a caller's.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestWebhook {
    /// Whose.
    pub account: AccountId,
    /// The endpoint.
    pub id: WebhookId,
}

impl Request for TestWebhook {
    const SUBJECT: &'static str = "audit.test";
    type Reply = ManageReply<WebhookTested>;
}

/// What became of the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookTested {
    /// It answered 2xx.
    pub delivered: bool,
    /// Its status, if it answered.
    pub status: Option<u16>,
    /// In words, when it was not delivered.
    pub error: Option<String>,
    /// How long it took.
    pub latency_ms: u64,
}

/// `POST /v1/webhooks/{id}/replay`: send what was recorded in this time once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayWebhook {
    /// Whose.
    pub account: AccountId,
    /// The endpoint.
    pub id: WebhookId,
    /// From then on.
    pub from: Timestamp,
    /// Until then, that moment not included.
    pub to: Timestamp,
}

impl Request for ReplayWebhook {
    const SUBJECT: &'static str = "audit.replay";
    type Reply = ManageReply<ReplayStarted>;
}

/// It will be sent. A replayed event keeps its `webhook-id` and gets a new `sequence`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayStarted {}

/// `GET /v1/webhooks/{id}/deliveries`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListDeliveries {
    /// Whose.
    pub account: AccountId,
    /// The endpoint.
    pub id: WebhookId,
}

impl Request for ListDeliveries {
    const SUBJECT: &'static str = "audit.deliveries";
    type Reply = ManageReply<Page<Delivery>>;
}

/// One event on its way to one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The `webhook-id` header: the same at every attempt.
    pub event: String,
    /// The event's number at this endpoint.
    pub sequence: u64,
    /// Where it stands.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// Of the last attempt, if it was answered.
    pub status: Option<u16>,
    /// Of the last attempt, in words, if it failed.
    pub error: Option<String>,
    /// Of the last attempt.
    pub latency_ms: u64,
    /// RFC 3339.
    pub last_attempt_at: Timestamp,
    /// RFC 3339; null when there will be none.
    pub next_attempt_at: Option<Timestamp>,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteDecisions {
    /// Whose.
    pub account: AccountId,
    /// What was recorded before this goes.
    pub before: Timestamp,
    /// Who asks.
    pub requested_by: KeyId,
    /// The keystore's permit for exactly this deletion. Without it the keystore does not sign the deletion's mark, and
    /// nothing is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<DeletionPermit>,
}

impl Request for DeleteDecisions {
    const SUBJECT: &'static str = "audit.delete";
    type Reply = ManageReply<DecisionsDeleted>;
}

/// Gateway to keystore: may this caller delete its account's decisions of before this time?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitDeletion {
    /// Who asks.
    pub caller: Caller,
    /// What was recorded before this goes.
    pub before: Timestamp,
}

impl Request for PermitDeletion {
    const SUBJECT: &'static str = "keys.deletions.permit";
    type Reply = ManageReply<DeletionPermit>;
}

/// The keystore's word that a caller, whose key it verified, asked for one deletion. Nobody but the keystore process
/// that gave it can tell a good one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionPermit {
    /// From then on it is refused.
    pub expires_at: Timestamp,
    /// Base64url; covers account, time, key and expiry.
    pub mac: String,
}

/// They are gone; a signed mark says so in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionsDeleted {
    /// How many.
    pub count: u64,
    /// What was recorded before this is gone.
    pub before: Timestamp,
    /// When the first of them was recorded.
    pub from: Option<Timestamp>,
    /// When the last of them was.
    pub to: Option<Timestamp>,
    /// The mark that says so; null when there was nothing to delete.
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
