//! Who asks: from the `x-api-key` header to a verified identity, before the body is read.
//!
//! Owns the order: form, then what is known, then a hash of the same key that is under way, then the throttles of address
//! and key id, then a hash. Missing, malformed, unknown, wrong, revoked and expired keys get one and the same answer; a
//! failure of ours is never that answer. Owns also the second look: what was found is looked at again after every wait
//! for the caller and before anything is released (ADR 0013).

use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::HttpRequest;
use actix_web::http::header::HeaderValue;
use jiff::Timestamp;
use stage0_backplane::Requests;
use stage0_contract::{ApiKey, RequestId, Role};

use crate::address::Client;
use crate::errors::{ApiError, How, Part};
use crate::keyring::{Asking, Believed, Keyring, KeystoreError, Known, Verified};
use crate::routes::request_id;
use crate::state::Gate;

const HEADER: &str = "x-api-key";
/// How long a second look may take when it has to ask.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// Whoever waits for a key's judgement waits for the keystore.
pub(crate) const SILENT: Part = Part::Service(Role::Keystore, How::Silent);

/// The caller behind the request's key, whose use is noted.
pub(crate) async fn identify(
    gate: &Gate,
    request: &HttpRequest,
    deadline: tokio::time::Instant,
) -> Result<Believed, ApiError> {
    let believed = judge(gate, request, deadline).await?;
    let now = Timestamp::now();
    if believed.is_first_use_in_hour(now) {
        gate.key_uses.note(&believed.identity().key_id, now);
    }
    Ok(believed)
}

async fn judge(gate: &Gate, request: &HttpRequest, deadline: tokio::time::Instant) -> Result<Believed, ApiError> {
    let value = header(request).ok_or(ApiError::Unauthorized)?;
    let client = Client::of_request(request).map(Client::net);
    let request_id = request_id(request);
    let unavailable = |error| unavailable(request_id, &error);
    let asking = Asking { keystore: gate.requests(), deadline, request_id };
    let key = parsed(value);
    if let Some(key) = &key {
        let known = gate.keyring.look_up(key, asking).await;
        match known.map_err(unavailable)? {
            Known::Yes(believed) => return Ok(believed),
            Known::Gone => return Err(ApiError::Unauthorized),
            Known::No => {}
        }
    }
    let logins = gate.failed_logins.of(client, key.as_ref().map(ApiKey::id));
    let verified = match &key {
        Some(key) => gate.keyring.verify(key, asking, logins).await.map_err(unavailable)?,
        None => match logins.blocked() {
            Some(blocked) => Verified::Blocked(blocked),
            None => {
                logins.failed();
                Verified::No
            }
        },
    };
    match verified {
        Verified::Yes(believed) => Ok(believed),
        Verified::No => Err(ApiError::Unauthorized),
        Verified::Blocked(blocked) => Err(ApiError::TooManyFailedLogins(blocked)),
    }
}

/// Looks again at who asks, and refuses where the key is gone by now. Costs nothing while what was found still holds.
pub(crate) async fn confirm(gate: &Gate, request: &HttpRequest) -> Result<(), ApiError> {
    let believed = request.extensions().get::<Believed>().cloned();
    let Some(believed) = believed else { return Ok(()) };
    let confirmed = confirmed(&gate.keyring, gate.requests(), &believed, request_id(request)).await?;
    request.extensions_mut().insert(confirmed);
    Ok(())
}

/// The same caller as it is believed now.
pub(crate) async fn confirmed(
    keyring: &Keyring,
    keystore: &dyn Requests,
    believed: &Believed,
    request_id: Option<RequestId>,
) -> Result<Believed, ApiError> {
    let deadline = tokio::time::Instant::now() + CONFIRM_TIMEOUT;
    let confirmed = keyring.confirm(believed, Asking { keystore, deadline, request_id });
    let confirmed = tokio::time::timeout_at(deadline, confirmed).await.map_err(|_| ApiError::Missing(SILENT))?;
    confirmed.map_err(|error| unavailable(request_id, &error))?.ok_or(ApiError::Unauthorized)
}

/// The key that the request presents, if it has the form of one: goes with a management call, whose caller the keystore
/// judges by it.
pub(crate) fn presented(request: &HttpRequest) -> Option<ApiKey> {
    header(request).and_then(parsed)
}

/// Two keys are as good as none: which of them would a proxy have judged?
fn header(request: &HttpRequest) -> Option<&HeaderValue> {
    let mut presented = request.headers().get_all(HEADER);
    let value = presented.next()?;
    presented.next().is_none().then_some(value)
}

fn parsed(value: &HeaderValue) -> Option<ApiKey> {
    value.to_str().ok().and_then(|text| ApiKey::parse(text).ok())
}

fn unavailable(request_id: Option<RequestId>, error: &KeystoreError) -> ApiError {
    let request_id = request_id.map(tracing::field::display);
    tracing::warn!(request_id, error = error as &dyn std::error::Error, "key could not be judged");
    match error {
        KeystoreError::Ask(error) => ApiError::Missing(Part::of_service(Role::Keystore, error)),
        KeystoreError::Failed => ApiError::Missing(Part::Service(Role::Keystore, How::Failed)),
        KeystoreError::Busy => ApiError::Missing(Part::Service(Role::Keystore, How::Busy)),
        KeystoreError::Unsettled | KeystoreError::Changed => ApiError::Unavailable,
    }
}
