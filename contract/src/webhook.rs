//! Webhook endpoints, retention and signing: what the control API, the exporter and the keystore say to each other.
//!
//! Owns the shapes. The keystore judges the caller beside the data it protects, and alone holds secrets and the signing key; an
//! endpoint's secret crosses the backplane to the exporter, and to the one answer that shows it.

use std::fmt;

use data_encoding::BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::chain::PublicKey;
use crate::record::Mark;
use crate::{AccountId, Caller, DeletionPermit, ManageReply, Notice, Page, Request, Verdict, WebhookId};

/// The secret of an endpoint: `whsec_` and base64 of 24 to 64 bytes (Standard Webhooks).
#[derive(Clone)]
pub struct WebhookSecret(Zeroizing<String>);

const SECRET_PREFIX: &str = "whsec_";

impl WebhookSecret {
    /// Of random bytes.
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        Self(Zeroizing::new(format!("{SECRET_PREFIX}{}", BASE64.encode(bytes))))
    }

    /// Checks the form.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64.decode(text.strip_prefix(SECRET_PREFIX)?.as_bytes()).ok()?);
        (24..=64).contains(&bytes.len()).then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// The whole text. For sealing, signing, the wire to the exporter and the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

impl PartialEq for WebhookSecret {
    /// For fixtures; nothing is judged by it.
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

impl Eq for WebhookSecret {}

impl Serialize for WebhookSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WebhookSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("is not a webhook secret"))
    }
}

/// Which decisions an endpoint gets. Events that are no decisions go to every endpoint of the account.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WebhookFilters {
    /// Null means all.
    pub verdicts: Option<Vec<Verdict>>,
    /// Compared as words; null means all.
    pub environments: Option<Vec<String>>,
}

/// An endpoint, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Ours.
    pub id: WebhookId,
    /// Whose.
    pub account: AccountId,
    /// Where events go.
    pub url: String,
    /// Which events go there.
    #[serde(flatten)]
    pub filters: WebhookFilters,
    /// As given; empty when none was.
    pub description: String,
    /// Most events a second; null means no limit.
    pub rate_limit: Option<u32>,
    /// Whether it gets events.
    pub enabled: bool,
    /// Why it does not, when the exporter disabled it.
    pub disabled_reason: Option<String>,
    /// RFC 3339.
    pub created_at: Timestamp,
}

/// A new endpoint, or one with a new secret: the only time that it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookCreated {
    /// The endpoint.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// Signs every event.
    pub secret: WebhookSecret,
}

/// `POST /v1/webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateWebhook {
    /// Who asks.
    pub caller: Caller,
    /// None means the caller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// The gateway has checked its syntax.
    pub url: String,
    /// Which events.
    #[serde(flatten)]
    pub filters: WebhookFilters,
    /// At most 500 characters.
    pub description: String,
    /// 1–10,000 events a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<u32>,
}

impl Request for CreateWebhook {
    const SUBJECT: &'static str = "keys.webhooks.create";
    type Reply = ManageReply<WebhookCreated>;
}

/// `GET /v1/webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListWebhooks {
    /// Who asks.
    pub caller: Caller,
    /// None means the caller's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// From an earlier page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// 1–1,000.
    pub limit: u32,
}

impl Request for ListWebhooks {
    const SUBJECT: &'static str = "keys.webhooks.list";
    type Reply = ManageReply<Page<Webhook>>;
}

/// `GET /v1/webhooks/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetWebhook {
    /// Who asks.
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
}

impl Request for GetWebhook {
    const SUBJECT: &'static str = "keys.webhooks.get";
    type Reply = ManageReply<Webhook>;
}

/// `PATCH /v1/webhooks/{id}`: what is none stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateWebhook {
    /// Who asks.
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
    /// The gateway has checked its syntax.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Both filters at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<WebhookFilters>,
    /// At most 500 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// 0 takes the limit away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<u32>,
    /// Stops or starts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

impl Request for UpdateWebhook {
    const SUBJECT: &'static str = "keys.webhooks.update";
    type Reply = ManageReply<Webhook>;
}

/// `POST /v1/webhooks/{id}/enable`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnableWebhook {
    /// Who asks.
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
}

impl Request for EnableWebhook {
    const SUBJECT: &'static str = "keys.webhooks.enable";
    type Reply = ManageReply<Webhook>;
}

/// `POST /v1/webhooks/{id}/rotate-secret`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateWebhookSecret {
    /// Who asks.
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
    /// How long the old secret signs beside the new one: 0 to 30 days.
    pub overlap_seconds: u64,
}

impl Request for RotateWebhookSecret {
    const SUBJECT: &'static str = "keys.webhooks.rotate";
    type Reply = ManageReply<WebhookCreated>;
}

/// `DELETE /v1/webhooks/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteWebhook {
    /// Who asks.
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
}

impl Request for DeleteWebhook {
    const SUBJECT: &'static str = "keys.webhooks.delete";
    type Reply = ManageReply<WebhookDeleted>;
}

/// The endpoint is gone; it was so already if the call was made twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookDeleted {}

/// Exporter to keystore: it said 410, or failed for days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisableWebhook {
    /// The endpoint.
    pub id: WebhookId,
    /// For people; no address of ours in it.
    pub reason: String,
}

impl Request for DisableWebhook {
    const SUBJECT: &'static str = "keys.endpoints.disable";
    type Reply = ManageReply<WebhookDisabled>;
}

/// It is disabled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookDisabled {}

/// Exporter to keystore: every endpoint, with secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEndpoints {
    /// From an earlier page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<WebhookId>,
}

impl Request for ListEndpoints {
    const SUBJECT: &'static str = "keys.endpoints.list";
    type Reply = ManageReply<EndpointsPage>;
}

/// At most 500 endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsPage {
    /// In the order of their ids.
    pub items: Vec<Endpoint>,
    /// For the next page; null on the last.
    pub next_cursor: Option<WebhookId>,
}

/// An endpoint as the exporter needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The endpoint.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// All that sign now, the newest first.
    pub secrets: Vec<WebhookSecret>,
    /// How many days its account keeps decisions.
    pub retention_days: u32,
}

/// Exporter to keystore: sign this mark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignMark {
    /// The mark.
    pub mark: Mark,
    /// The line of the log's last mark. A keystore that knows of no mark of the account, or of older ones only, goes on
    /// from this one, provided that it signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Whether the asker can be given the mark that was signed before instead of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_earlier: bool,
    /// Of the deletion that the mark tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<DeletionPermit>,
}

impl Request for SignMark {
    const SUBJECT: &'static str = "keys.sign";
    type Reply = ManageReply<MarkSigned>;
}

/// The mark as a line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkSigned {
    /// Its bytes are what is signed; they are stored as they are.
    pub line: String,
    /// The line is not the mark that was asked for but the one that was signed last, which the log does not end with:
    /// it is to be stored first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub earlier: bool,
}

/// To the keystore: which keys sign, or signed, marks?
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningKeys {
    /// And which mark of this account did they sign last?
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
}

impl Request for SigningKeys {
    const SUBJECT: &'static str = "keys.signing";
    type Reply = ManageReply<PublicKeys>;
}

/// All of them, the newest first. Not a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicKeys {
    /// The newest first.
    pub items: Vec<PublicKey>,
    /// The line of the last mark that was signed for the account that was asked about. It may not be in the log yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_mark: Option<String>,
}

/// Exporter to keystore: how long does each account keep decisions?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListRetentions {
    /// From an earlier page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<AccountId>,
}

impl Request for ListRetentions {
    const SUBJECT: &'static str = "keys.retentions.list";
    type Reply = ManageReply<RetentionsPage>;
}

/// At most 1,000 accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionsPage {
    /// Account and days.
    pub items: Vec<(AccountId, u32)>,
    /// For the next page; null on the last.
    pub next_cursor: Option<AccountId>,
    /// The time at the keystore, as a second clock beside the exporter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<VouchedTime>,
}

/// The time that a process vouches for as it answers: of its start, and what went by since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VouchedTime {
    /// Names the process: one that asks itself has no second clock.
    pub process: String,
    /// The time.
    pub at: Timestamp,
}

/// The keystore to all: an endpoint was made, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookChanged {
    /// Its account.
    pub account: AccountId,
    /// The endpoint.
    pub id: WebhookId,
}

impl Notice for WebhookChanged {
    const SUBJECT: &'static str = "notice.webhook.changed";
}
