//! One signed request to an endpoint, with the headers of Standard Webhooks.
//!
//! URL and secrets are parsed once, when the keystore's list arrives. An endpoint that cannot be sent to keeps its
//! events, and each attempt fails with the reason. Each attempt is signed over its own time.

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use stage0_contract::{Endpoint, Webhook, WebhookSecret, WebhookUrl};

use crate::egress::{Egress, Response, SendError};
use crate::signature::{ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeliveryEndpoint {
    pub(crate) webhook: Webhook,
    pub(crate) retention_days: u32,
    target: Result<Target, SendError>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    url: WebhookUrl,
    /// The newest first; never empty.
    secrets: Vec<WebhookSecret>,
}

impl DeliveryEndpoint {
    pub(crate) fn fault(&self) -> Option<SendError> {
        self.target.as_ref().err().copied()
    }
}

impl From<Endpoint> for DeliveryEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint { webhook, secrets, retention_days } = endpoint;
        // The egress decides at every attempt which schemes and addresses are allowed.
        let target = match WebhookUrl::parse(&webhook.url, true) {
            Err(error) => Err(SendError::InvalidUrl(error)),
            Ok(_) if secrets.is_empty() => Err(SendError::NoSecret),
            Ok(url) => Ok(Target { url, secrets }),
        };
        Self { webhook, retention_days, target }
    }
}

pub(crate) async fn send(
    egress: &Egress,
    endpoint: &DeliveryEndpoint,
    event: &str,
    at: Timestamp,
    body: Bytes,
) -> Result<Response, SendError> {
    let target = endpoint.target.as_ref().map_err(|fault| *fault)?;
    let headers = headers(&target.secrets, event, at, &body).ok_or(SendError::NoClient)?;
    egress.post(&endpoint.webhook.account, &target.url, headers, body).await
}

fn headers(secrets: &[WebhookSecret], event: &str, at: Timestamp, body: &[u8]) -> Option<HeaderMap> {
    let signature = sign(secrets, event, at.as_second(), body);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HeaderName::from_static(ID_HEADER), HeaderValue::from_str(event).ok()?);
    headers.insert(HeaderName::from_static(TIMESTAMP_HEADER), HeaderValue::from(at.as_second()));
    headers.insert(HeaderName::from_static(SIGNATURE_HEADER), HeaderValue::from_str(&signature).ok()?);
    Some(headers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoint(url: &str, secrets: &[&str]) -> DeliveryEndpoint {
        let listed: Endpoint = serde_json::from_value(json!({
            "id": "wh_1", "account": "acc_1", "url": url, "verdicts": null, "environments": null, "description": "",
            "rate_limit": null, "enabled": true, "disabled_reason": null, "created_at": "2026-01-01T00:00:00Z",
            "secrets": secrets, "retention_days": 30,
        }))
        .unwrap();
        listed.into()
    }

    #[test]
    fn an_endpoint_that_cannot_be_sent_to_names_its_url_or_its_missing_secret() {
        let secret = "whsec_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
        let fault = |url, secrets: &[&str]| endpoint(url, secrets).fault().map(|fault| fault.to_string());
        assert_eq!(fault("https://hooks.example/in", &[secret]), None);
        assert_eq!(fault("http://127.0.0.1/in", &[secret]), None, "the egress decides on plain http");
        for (url, secrets, wanted) in [
            ("hooks.example/in", &[secret][..], "the endpoint's URL must be an absolute URL without white space"),
            ("https://a:b@hooks.example", &[secret][..], "the endpoint's URL must not hold a user name or a password"),
            ("https://hooks.example/in", &[][..], "the endpoint has no signing secret"),
        ] {
            assert_eq!(fault(url, secrets).as_deref(), Some(wanted), "{url}");
        }
    }
}
