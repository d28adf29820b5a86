//! Webhook endpoints, retention and signing: what the control API, the exporter and the keystore say to each other.
//!
//! The keystore judges the caller beside the data it protects, and alone holds secrets and the signing key; an
//! endpoint's secret crosses the backplane to the exporter, and to the one answer that shows it.

#![expect(missing_docs, reason = "a test demands a description of every member that the API's document shows")]

use std::fmt;

use data_encoding::BASE64;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::chain::PublicKey;
use crate::record::{LineType, Mark};
use crate::{AccountId, Caller, DeletionPermit, Verdict, WebhookId};

/// The secret of an endpoint: `whsec_` and base64 of 24 to 64 bytes (Standard Webhooks).
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret {
    text: Zeroizing<String>,
    key: Zeroizing<Vec<u8>>,
}

const SECRET_PREFIX: &str = "whsec_";

impl WebhookSecret {
    pub fn from_random(bytes: &[u8; 32]) -> Self {
        let text = Zeroizing::new(format!("{SECRET_PREFIX}{}", BASE64.encode(bytes)));
        Self { text, key: Zeroizing::new(bytes.to_vec()) }
    }

    /// Reads `whsec_` and canonical, padded base64 of 24 to 64 bytes.
    pub fn parse(text: &str) -> Option<Self> {
        let encoded = text.strip_prefix(SECRET_PREFIX)?;
        // The decoder takes padding within, as of texts that were joined. Others end there and have another key.
        if encoded.trim_end_matches('=').contains('=') {
            return None;
        }
        let key = Zeroizing::new(BASE64.decode(encoded.as_bytes()).ok()?);
        (24..=64).contains(&key.len()).then(|| Self { text: Zeroizing::new(text.to_owned()), key })
    }

    /// The whole text, for sealing, the wire to the exporter and the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    /// The decoded bytes, which are the key of the signature.
    pub fn key(&self) -> &[u8] {
        &self.key
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(…)")
    }
}

impl Serialize for WebhookSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for WebhookSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("is not a webhook secret"))
    }
}

/// Which events an endpoint gets.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct WebhookFilters {
    /// Only decisions with one of these verdicts; null means all.
    #[schemars(extend("minItems" = 1, "uniqueItems" = true))]
    pub verdicts: Option<Vec<Verdict>>,
    /// Only decisions and approvals in one of these environments, compared as words (case and surrounding space do not
    /// matter) and by their other names (`prod`, `prd`, `live` and `production` are one, `stage`, `stg` and `staging`,
    /// `dev` and `development`); null means all.
    #[schemars(extend("minItems" = 1, "maxItems" = 100))]
    pub environments: Option<Vec<String>>,
    /// Only events of these types: `decision.recorded`, `approval.requested`, …, or all of a kind: `approval.*`,
    /// `stop.*`, `policy.*`. Null means decisions and signed marks, and nothing of approvals, stops and policies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minItems" = 1, "maxItems" = 100))]
    pub events: Option<Vec<String>>,
}

impl WebhookFilters {
    /// Whether a filter of events can name this: the type of an event that is delivered, or all of one kind.
    pub fn can_name(event: &str) -> bool {
        LineType::ALL.into_iter().any(|line| line != LineType::Expiry && is_named(event, line))
    }

    /// Whether events of this type go to the endpoint, by `events` alone. The hourly removals by retention go to none.
    pub fn wants(&self, line: LineType) -> bool {
        match &self.events {
            _ if line == LineType::Expiry => false,
            None => line == LineType::Decision || line.is_mark(),
            Some(events) => events.iter().any(|event| is_named(event, line)),
        }
    }
}

/// Whether a filter's word is this type, or its kind followed by `.*`.
fn is_named(event: &str, line: LineType) -> bool {
    let kind = event.strip_suffix(".*").filter(|kind| !kind.is_empty());
    event == line.as_str()
        || kind.is_some_and(|kind| line.as_str().strip_prefix(kind).is_some_and(|rest| rest.starts_with('.')))
}

/// An endpoint, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Webhook {
    /// The endpoint's id.
    pub id: WebhookId,
    /// The account that it belongs to.
    pub account: AccountId,
    /// As given.
    pub url: String,
    /// Which events go there.
    #[serde(flatten)]
    pub filters: WebhookFilters,
    /// As given; empty when none was.
    #[schemars(extend("maxLength" = 500))]
    pub description: String,
    /// Most events a second; null means no limit.
    #[schemars(extend("minimum" = 1, "maximum" = 10_000))]
    pub rate_limit: Option<u32>,
    /// Whether it gets events.
    pub enabled: bool,
    /// Why it was disabled by its failures; null if it was not, or if a person stopped it.
    pub disabled_reason: Option<String>,
    /// RFC 3339.
    pub created_at: Timestamp,
}

/// A new endpoint, or one with a new secret: the only time that it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WebhookCreated {
    /// The endpoint.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// Signs every event: `whsec_` and base64 of 32 bytes. Shown here and never again.
    pub secret: WebhookSecret,
}

/// `POST /v1/webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateWebhook {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// `https:`, visible ASCII, at most 2,000 characters, without user name, password and fragment.
    #[schemars(extend("maxLength" = 2000))]
    pub url: String,
    /// Which events.
    #[serde(flatten)]
    pub filters: WebhookFilters,
    /// For people.
    #[schemars(with = "Option<String>", extend("maxLength" = 500))]
    pub description: String,
    /// Most events a second; null means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1, "maximum" = 10_000))]
    pub rate_limit: Option<u32>,
}

/// `GET /v1/webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListWebhooks {
    #[schemars(skip)]
    pub caller: Caller,
    /// Only the operator names another account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountId>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Most items of the page.
    #[schemars(with = "Option<u32>", extend("minimum" = 1, "maximum" = 1000, "default" = 100))]
    pub limit: u32,
}

/// `GET /v1/webhooks/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetWebhook {
    #[schemars(skip)]
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
}

/// `PATCH /v1/webhooks/{id}`: members that are left out are unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateWebhook {
    #[schemars(skip)]
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
    /// `https:`, visible ASCII, at most 2,000 characters, without user name, password and fragment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 2000))]
    pub url: Option<String>,
    /// Both filters at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(flatten, with = "WebhookFilters")]
    pub filters: Option<WebhookFilters>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 500))]
    pub description: Option<String>,
    /// Most events a second; null means no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = 10_000))]
    pub rate_limit: Option<u32>,
    /// False stops it; what is recorded meanwhile waits in the log, as long as it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// `POST /v1/webhooks/{id}/enable`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnableWebhook {
    #[schemars(skip)]
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
}

/// `POST /v1/webhooks/{id}/rotate-secret`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateWebhookSecret {
    #[schemars(skip)]
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
    /// How long the old secrets sign beside the new one; 0 ends them at once.
    #[schemars(with = "Option<u64>", extend("maximum" = 2_592_000, "default" = 86400))]
    pub overlap_seconds: u64,
}

/// `DELETE /v1/webhooks/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteWebhook {
    #[schemars(skip)]
    pub caller: Caller,
    /// The endpoint.
    pub id: WebhookId,
}

/// The endpoint is gone; it was so already if the call was made twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookDeleted {}

/// Exporter to keystore: it said 410, or failed for days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisableWebhook {
    pub id: WebhookId,
    /// For people; no address of ours in it.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookDisabled {}

/// Exporter to keystore: every endpoint, with secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEndpoints {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<WebhookId>,
}

/// At most 500 endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointsPage {
    pub items: Vec<Endpoint>,
    pub next_cursor: Option<WebhookId>,
}

/// An endpoint as the exporter needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    #[serde(flatten)]
    pub webhook: Webhook,
    /// All that sign now, the newest first.
    pub secrets: Vec<WebhookSecret>,
    pub retention_days: u32,
}

/// Exporter to keystore: sign this mark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignMark {
    pub mark: Mark,
    /// The line of the log's last mark. A keystore that knows only older marks goes on from it, if it signed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// Whether the asker can be given the mark that was signed before instead of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_earlier: bool,
    /// Of the deletion that the mark tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permit: Option<DeletionPermit>,
}

/// The mark as a line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkSigned {
    /// Its bytes are what is signed; they are stored as they are.
    pub line: String,
    /// The line is the mark that was signed last, which the log does not end with: it is to be stored first.
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

/// All of them, the newest first. Not a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "SigningKeys")]
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<AccountId>,
}

/// At most 1,000 accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetentionsPage {
    pub items: Vec<(AccountId, u32)>,
    pub next_cursor: Option<AccountId>,
    /// The time at the keystore, as a second clock beside the exporter's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<SecondClock>,
}

/// The time that a process vouches for as it answers: of its start, and what went by since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondClock {
    /// Names the process: one that asks itself has no second clock.
    pub process: String,
    pub at: Timestamp,
}

/// The keystore to all: an endpoint was made, changed or removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookChanged {
    pub account: AccountId,
    pub id: WebhookId,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(events: Option<&[&str]>) -> WebhookFilters {
        let events = events.map(|events| events.iter().map(|event| (*event).to_owned()).collect());
        WebhookFilters { events, ..WebhookFilters::default() }
    }

    fn wanted(events: Option<&[&str]>) -> Vec<&'static str> {
        let filters = naming(events);
        LineType::ALL.into_iter().filter(|line| filters.wants(*line)).map(LineType::as_str).collect()
    }

    #[test]
    fn an_endpoint_that_names_no_events_gets_decisions_and_marks_alone() {
        assert_eq!(
            wanted(None),
            ["decision.recorded", "checkpoint.signed", "decisions.deleted", "webhook.disabled"],
            "an endpoint of before approvals gets nothing new"
        );
    }

    #[test]
    fn an_endpoint_that_names_events_gets_exactly_those() {
        assert_eq!(
            wanted(Some(&["approval.requested", "stop.*"])),
            ["approval.requested", "stop.started", "stop.ended"]
        );
        let approvals = wanted(Some(&["approval.*"]));
        assert!(approvals.len() == 14 && approvals.iter().all(|line| line.starts_with("approval.")), "{approvals:?}");
        assert_eq!(wanted(Some(&["decision.recorded"])), ["decision.recorded"]);
        assert_eq!(wanted(Some(&["decisions.*"])), ["decisions.deleted"], "removals by retention go to no endpoint");
        assert_eq!(wanted(Some(&["decisions.expired", "approval", "approval.", "*", ".*", "approval.req*"])), [""; 0]);
    }

    #[test]
    fn a_filter_names_types_that_are_delivered_and_kinds_of_them() {
        for event in ["decision.recorded", "approval.used", "approval.*", "stop.*", "decisions.*", "webhook.disabled"] {
            assert!(WebhookFilters::can_name(event), "{event}");
        }
        for event in
            ["decisions.expired", "webhook.test", "approval", "*", ".*", "", "approval.**", "Approval.*", "ap.*"]
        {
            assert!(!WebhookFilters::can_name(event), "{event}");
        }
    }

    #[test]
    fn a_webhook_secret_is_written_as_it_was_read_and_holds_the_decoded_key() {
        let longest = format!("{SECRET_PREFIX}{}", BASE64.encode(&[1; 64]));
        for text in ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX", &longest] {
            let secret = WebhookSecret::parse(text).unwrap();
            assert_eq!(secret.expose(), text);
            assert_eq!(BASE64.encode(secret.key()), text.trim_start_matches(SECRET_PREFIX));
        }
        let ours = WebhookSecret::from_random(&[0xa5; 32]);
        assert_eq!(WebhookSecret::parse(ours.expose()), Some(ours.clone()));
        assert_eq!((ours.key(), ours.expose().len()), ([0xa5; 32].as_slice(), SECRET_PREFIX.len() + 44));
    }

    #[test]
    fn a_malformed_webhook_secret_is_refused() {
        let of = |count: usize| format!("whsec_{}", BASE64.encode(&vec![1; count]));
        assert!(WebhookSecret::parse(&of(24)).is_some() && WebhookSecret::parse(&of(64)).is_some());
        let padded = of(32);
        let bad = [
            of(23),
            of(65),
            of(0),
            String::new(),
            padded.trim_start_matches("whsec_").to_owned(),
            padded.trim_end_matches('=').to_owned(),
            padded.replace("whsec_", "WHSEC_"),
            format!("{padded}\n"),
            format!(" {padded}"),
            padded.replace("AQ", "-_"),
            // The unused bits of the last character are not zero: a second spelling of the same bytes.
            padded.replace("E=", "F="),
            format!("{padded}AQEB"),
        ];
        for text in bad {
            assert_eq!(WebhookSecret::parse(&text), None, "{text:?}");
        }
    }

    #[test]
    fn debug_output_hides_a_webhook_secret() {
        assert_eq!(format!("{:?}", WebhookSecret::from_random(&[7; 32])), "WebhookSecret(…)");
    }
}
