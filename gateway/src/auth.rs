//! Who asks: from the `x-api-key` header to a verified identity, before the body is read.
//!
//! Owns the order: form, then what is known, then the throttles of address and key id, then a hash. Missing, malformed, unknown, wrong, revoked
//! and expired keys get one and the same answer; a failure of ours is never that answer.

use std::sync::Arc;
use std::time::Instant;

use actix_web::HttpRequest;
use stage0_contract::{ApiKey, KeyIdentity, RequestId};

use crate::address::Client;
use crate::errors::ApiError;
use crate::keyring::{KeystoreError, Known};
use crate::metrics;
use crate::routes::request_id;
use crate::state::Gate;
use crate::throttle::LoginsBy;

const HEADER: &str = "x-api-key";

/// The identity behind the request's key.
pub(crate) async fn identify(
    gate: &Gate,
    request: &HttpRequest,
    deadline: tokio::time::Instant,
) -> Result<Arc<KeyIdentity>, ApiError> {
    let mut presented = request.headers().get_all(HEADER);
    // Two keys are as good as none: which of them would a proxy have judged?
    let (Some(value), None) = (presented.next(), presented.next()) else { return Err(ApiError::Unauthorized) };
    let client = Client::of_request(request).map(Client::net);
    let request_id = request_id(request);
    let unavailable = |error| unavailable(request_id, &error);
    let key = value.to_str().ok().and_then(|text| ApiKey::parse(text).ok());
    if let Some(key) = &key {
        let known = gate.keyring.look_up(key, gate.requests(), deadline, request_id).await;
        match known.map_err(unavailable)? {
            Known::Yes(identity) => return Ok(identity),
            Known::Gone => return Err(ApiError::Unauthorized),
            Known::No => {}
        }
    }
    let key_id = key.as_ref().map(ApiKey::id);
    if let Some(blocked) = gate.failed_logins.blocked(client, key_id, Instant::now()) {
        return Err(ApiError::TooManyFailedLogins(blocked));
    }
    let verified = match &key {
        Some(key) => gate.keyring.verify(key, gate.requests(), deadline, request_id).await.map_err(unavailable)?,
        None => None,
    };
    verified.ok_or_else(|| {
        gate.failed_logins.failed(client, key_id, Instant::now());
        let counted = [client.map(|_| LoginsBy::Address), key_id.map(|_| LoginsBy::Key)];
        counted.into_iter().flatten().for_each(metrics::login_failed);
        ApiError::Unauthorized
    })
}

fn unavailable(request_id: Option<RequestId>, error: &KeystoreError) -> ApiError {
    let request_id = request_id.map(tracing::field::display);
    tracing::warn!(request_id, error = error as &dyn std::error::Error, "key could not be judged");
    ApiError::Unavailable
}
