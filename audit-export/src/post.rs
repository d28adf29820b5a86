//! One signed request.
//!
//! Owns the headers of Standard Webhooks. The signature is made again at every attempt, over the time of the attempt.

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use stage0_contract::{Endpoint, WebhookUrl};

use crate::egress::{Response, SendError};
use crate::shared::Shared;
use crate::signature::{EndpointSecret, ID_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, sign};
use crate::verdict::Outcome;

/// Sends a body to an endpoint.
pub(crate) async fn post(
    shared: &Shared,
    endpoint: &Endpoint,
    event: &str,
    at: Timestamp,
    body: Bytes,
) -> Result<Response, SendError> {
    // Which schemes and addresses are allowed is the egress's to say, at every attempt.
    let url = WebhookUrl::parse(&endpoint.webhook.url, true).map_err(|_| SendError::NoClient)?;
    let headers = headers(endpoint, event, at, &body).ok_or(SendError::NoClient)?;
    shared.egress.post(&endpoint.webhook.account, &url, headers, body).await
}

/// Why it was not delivered, for the endpoint's owner.
pub(crate) fn reason(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Delivered => None,
        Outcome::Retry { reason, .. } | Outcome::Disable { reason } => Some(reason.clone()),
    }
}

fn headers(endpoint: &Endpoint, event: &str, at: Timestamp, body: &[u8]) -> Option<HeaderMap> {
    let secrets: Vec<EndpointSecret> =
        endpoint.secrets.iter().filter_map(|secret| EndpointSecret::parse(secret.expose()).ok()).collect();
    if secrets.is_empty() {
        return None;
    }
    let signature = sign(&secrets, event, at.as_second(), body);
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HeaderName::from_static(ID_HEADER), HeaderValue::from_str(event).ok()?);
    headers.insert(HeaderName::from_static(TIMESTAMP_HEADER), HeaderValue::from(at.as_second()));
    headers.insert(HeaderName::from_static(SIGNATURE_HEADER), HeaderValue::from_str(&signature).ok()?);
    Some(headers)
}
