//! Authentication: from the `x-api-key` header to a verified identity, before the body is read.
//!
//! Owns the order: the key's form, then the cache, then a hash of the same key that is already under way, then the
//! login throttles of address and key id, then a new hash. Every kind of bad key gets one and the same answer; a
//! failure of ours is never that answer. The caller is confirmed again after every wait for the client and before
//! anything is released (ADR 0013).

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::HeaderValue;
use actix_web::{HttpMessage as _, HttpRequest};
use jiff::Timestamp;
use stage0_backplane::Requests;
use stage0_contract::{ApiKey, KeyIdentity, RequestId, Role, Scope};
use tokio::time::{Instant, timeout_at};

use crate::access_log;
use crate::address::Client;
use crate::errors::{ApiError, How, Part};
use crate::idle_timeout::ConnectionState;
use crate::key_cache::{CacheLookup, KeyCache, KeystoreCall, KeystoreError, Verification, VerifiedCaller};
use crate::middleware::RequestContext;
use crate::state::AppState;

const API_KEY: &str = "x-api-key";
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);
/// A key that could not be judged in time waited for the keystore.
pub(crate) const KEYSTORE_SILENT: Part = Part::Service(Role::Keystore, How::Silent);

pub(crate) async fn authenticate(state: &AppState, request: &HttpRequest) -> Result<Arc<KeyIdentity>, ApiError> {
    authenticate_until(state, request, Instant::now() + state.config.request_budget).await
}

/// Authenticates the request's key, and notes its identity in the request, the access log and the connection.
pub(crate) async fn authenticate_until(
    state: &AppState,
    request: &HttpRequest,
    deadline: Instant,
) -> Result<Arc<KeyIdentity>, ApiError> {
    let verified = timeout_at(deadline, verify_key(state, request, deadline)).await;
    let caller = verified.map_err(|_| ApiError::Missing(KEYSTORE_SILENT))??;
    let identity = Arc::clone(caller.identity());
    let now = Timestamp::now();
    if caller.is_first_use_in_hour(now) {
        state.key_uses.note(&identity.key_id, now);
    }
    request.extensions_mut().insert(caller);
    access_log::set_caller(request, &identity);
    if let Some(connection) = request.conn_data::<ConnectionState>() {
        connection.set_account(state.bytes.key_of(&identity.account));
    }
    Ok(identity)
}

async fn verify_key(state: &AppState, request: &HttpRequest, deadline: Instant) -> Result<VerifiedCaller, ApiError> {
    let value = key_header(request).ok_or(ApiError::Unauthorized)?;
    let request_id = RequestContext::id_of(request);
    let unavailable = |error| unavailable(request_id, &error);
    let call = KeystoreCall { keystore: state.requests(), deadline, request_id };
    let key = parse_key(value);
    if let Some(key) = &key {
        match state.key_cache.look_up(key, call).await.map_err(unavailable)? {
            CacheLookup::Hit(caller) => return Ok(caller),
            CacheLookup::Revoked => return Err(ApiError::Unauthorized),
            CacheLookup::Miss => {}
        }
    }
    let client = Client::of_request(request).map(Client::net);
    let logins = state.failed_logins.of(client, key.as_ref().map(ApiKey::id));
    let Some(key) = &key else {
        if let Some(blocked) = logins.blocked() {
            return Err(ApiError::TooManyFailedLogins(blocked));
        }
        logins.failed();
        return Err(ApiError::Unauthorized);
    };
    match state.key_cache.verify(key, call, logins).await.map_err(unavailable)? {
        Verification::Valid(caller) => Ok(caller),
        Verification::Invalid => Err(ApiError::Unauthorized),
        Verification::Blocked(blocked) => Err(ApiError::TooManyFailedLogins(blocked)),
    }
}

/// Refuses if the caller's key was revoked since it was authenticated. Costs nothing while the cached identity is
/// fresh.
pub(crate) async fn reconfirm_caller(state: &AppState, request: &HttpRequest) -> Result<(), ApiError> {
    let caller = request.extensions().get::<VerifiedCaller>().cloned();
    let Some(caller) = caller else { return Ok(()) };
    let request_id = RequestContext::id_of(request);
    let confirmed = confirm(&state.key_cache, state.requests(), &caller, request_id).await?;
    request.extensions_mut().insert(confirmed);
    Ok(())
}

/// The same caller with an identity that is fresh now, or the refusal that is due.
pub(crate) async fn confirm(
    key_cache: &KeyCache,
    keystore: &dyn Requests,
    caller: &VerifiedCaller,
    request_id: Option<RequestId>,
) -> Result<VerifiedCaller, ApiError> {
    let deadline = Instant::now() + CONFIRM_TIMEOUT;
    let confirmed = key_cache.confirm(caller, KeystoreCall { keystore, deadline, request_id });
    let confirmed = timeout_at(deadline, confirmed).await.map_err(|_| ApiError::Missing(KEYSTORE_SILENT))?;
    confirmed.map_err(|error| unavailable(request_id, &error))?.ok_or(ApiError::Unauthorized)
}

/// Requires one of the scopes for a call about the account's own checks, decisions or runs. An operator's key has none
/// of these, whatever else it was granted. The refusal names the first scope.
pub(crate) fn require_any_scope(identity: &KeyIdentity, scopes: &[Scope]) -> Result<(), ApiError> {
    let is_operator = identity.scopes.contains(&Scope::Operator);
    if !is_operator && scopes.iter().any(|scope| identity.scopes.contains(scope)) {
        return Ok(());
    }
    Err(ApiError::ScopeMissing(scopes.first().copied().unwrap_or(Scope::Operator)))
}

/// The key that the request presents, if it has the form of one. A management call carries it along, because the
/// keystore authenticates the caller itself.
pub(crate) fn presented_key(request: &HttpRequest) -> Option<ApiKey> {
    key_header(request).and_then(parse_key)
}

/// Two keys count as none: a proxy may have checked the other one.
fn key_header(request: &HttpRequest) -> Option<&HeaderValue> {
    let mut values = request.headers().get_all(API_KEY);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

fn parse_key(value: &HeaderValue) -> Option<ApiKey> {
    value.to_str().ok().and_then(|text| ApiKey::parse(text).ok())
}

fn unavailable(request_id: Option<RequestId>, error: &KeystoreError) -> ApiError {
    let request_id = request_id.map(tracing::field::display);
    tracing::warn!(request_id, error = error as &dyn std::error::Error, "key could not be judged");
    match error {
        KeystoreError::Ask(error) => ApiError::Missing(Part::of_service(Role::Keystore, error)),
        KeystoreError::Failed => ApiError::Missing(Part::Service(Role::Keystore, How::Failed)),
        KeystoreError::Busy => ApiError::Missing(Part::Service(Role::Keystore, How::Busy)),
        KeystoreError::Changed => ApiError::Changed,
        KeystoreError::Unsettled => ApiError::Unavailable,
    }
}
