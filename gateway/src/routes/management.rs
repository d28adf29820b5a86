//! What the calls of the control API share: who may call, how a call reaches the service that serves it, and creating
//! something only once under an `Idempotency-Key`.
//!
//! Only shapes and scopes are checked here. The keystore authorizes every management call itself, by the key that the
//! caller presented, which goes along with the call.

use std::error::Error;
use std::time::Duration;

use actix_web::http::header::ContentType;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use serde::Serialize;
use stage0_backplane::{RequestError, Requests};
use stage0_contract::{Caller, ClientRequestId, FieldError, ManageReply, Request, Scope};

use crate::auth::{authenticate, presented_key};
use crate::body::Body;
use crate::errors::{ApiError, How, Part};
use crate::idempotency::{CallError, IDEMPOTENCY_KEY, IdempotentCreate, MAX_BODY_BYTES};
use crate::state::AppState;
use crate::throttle::ManagementCall;

/// Sends a management call to the service that serves it, within the request budget.
pub(super) async fn call<M, T>(state: &AppState, message: &M) -> Result<T, ApiError>
where
    M: Request<Reply = ManageReply<T>>,
{
    call_within(state.requests(), message, state.config.request_budget).await
}

/// As [`call`], with another connection or timeout.
pub(super) async fn call_within<M, T>(requests: &dyn Requests, message: &M, timeout: Duration) -> Result<T, ApiError>
where
    M: Request<Reply = ManageReply<T>>,
{
    try_call(requests, message, timeout).await.map_err(CallError::into_api_error)
}

async fn try_call<M, T>(requests: &dyn Requests, message: &M, timeout: Duration) -> Result<T, CallError>
where
    M: Request<Reply = ManageReply<T>>,
{
    match requests.request(message, timeout).await {
        Ok(ManageReply::Done(done)) => Ok(done),
        Ok(ManageReply::Refused(refusal)) => Err(CallError::NotDone(refusal.into())),
        Ok(ManageReply::Failed) => {
            tracing::error!(subject = M::SUBJECT, "management call failed");
            Err(CallError::OutcomeUnknown(ApiError::Missing(Part::answered::<M>(How::Failed))))
        }
        Ok(ManageReply::Busy) => {
            tracing::debug!(subject = M::SUBJECT, "too many management calls wait for the keystore");
            Err(CallError::NotDone(ApiError::Missing(Part::answered::<M>(How::Busy))))
        }
        Err(error) => {
            tracing::error!(subject = M::SUBJECT, error = &error as &dyn Error, "management call was not answered");
            let missing = ApiError::Missing(Part::asked::<M>(&error));
            Err(match error {
                RequestError::NoResponders | RequestError::TooLarge => CallError::NotDone(missing),
                RequestError::Timeout | RequestError::Disconnected | RequestError::Malformed => {
                    CallError::OutcomeUnknown(missing)
                }
            })
        }
    }
}

/// The caller, if its key has a management call left in this minute.
pub(super) async fn caller(state: &AppState, request: &HttpRequest) -> Result<Caller, ApiError> {
    authorize(state, request, ManagementCall::Other, None).await
}

/// As [`caller`], where a missing scope is refused before the body is read. An operator needs no scope.
pub(super) async fn caller_with_scope(
    state: &AppState,
    request: &HttpRequest,
    scope: Scope,
) -> Result<Caller, ApiError> {
    authorize(state, request, ManagementCall::Other, Some(scope)).await
}

/// As [`caller`]; revocations have a rate limit of their own.
pub(super) async fn revoking_caller(state: &AppState, request: &HttpRequest) -> Result<Caller, ApiError> {
    authorize(state, request, ManagementCall::Revocation, None).await
}

async fn authorize(
    state: &AppState,
    request: &HttpRequest,
    call: ManagementCall,
    scope: Option<Scope>,
) -> Result<Caller, ApiError> {
    let identity = authenticate(state, request).await?;
    if let Some(scope) = scope
        && !identity.scopes.contains(&Scope::Operator)
        && !identity.scopes.contains(&scope)
    {
        return Err(ApiError::ScopeMissing(scope));
    }
    if let Some(calls) = &state.management_calls {
        calls.admit(&identity, call, std::time::Instant::now()).map_err(ApiError::TooManyCalls)?;
    }
    // It was authenticated a moment ago, so it is there.
    let key = presented_key(request).ok_or(ApiError::Unauthorized)?;
    Ok(Caller::new(&identity, &key))
}

/// Reads the `Idempotency-Key` of a call that creates, with what is wrong with it; `call` is its method and path.
pub(super) fn idempotency_key(
    request: &HttpRequest,
    caller: &Caller,
    call: &str,
    body: &Body,
) -> (Option<IdempotentCreate>, Vec<FieldError>) {
    let mut errors = Vec::new();
    let header = visible_header(request, IDEMPOTENCY_KEY, &mut errors);
    if header.is_some() && body.bytes > MAX_BODY_BYTES {
        let message = format!("serves calls with a body of at most {MAX_BODY_BYTES} bytes");
        errors.push(FieldError::new(IDEMPOTENCY_KEY, message));
    }
    let create = header.zip(caller.key.as_ref());
    (create.map(|(header, key)| IdempotentCreate::new(caller, key, &header, call, &body.object)), errors)
}

/// Creates something, only once if the call has an `Idempotency-Key`. The flag says whether it was created just now.
pub(super) async fn create<M, T>(
    state: &Data<AppState>,
    idempotent: Option<IdempotentCreate>,
    message: M,
) -> Result<(HttpResponse, bool), ApiError>
where
    M: Request<Reply = ManageReply<T>> + 'static,
    T: Serialize + 'static,
{
    let Some(idempotent) = idempotent else {
        return Ok((HttpResponse::Created().json(call(state, &message).await?), true));
    };
    let state = state.clone();
    // In a task of its own: actix drops the handler of a client that disconnects, and a retry must find the answer.
    let answered = actix_web::rt::spawn(async move {
        let budget = state.config.request_budget;
        idempotent.run(state.state_store(), budget, try_call(state.requests(), &message, budget)).await
    });
    let answer = answered.await.map_err(|error| {
        tracing::error!(error = &error as &dyn Error, "a call that creates ended early");
        ApiError::Unavailable
    })??;
    Ok((HttpResponse::Created().content_type(ContentType::json()).body(answer.json), answer.is_new))
}

/// A header that is at most 128 visible ASCII characters; a bad one is added to `errors`.
pub(super) fn visible_header(
    request: &HttpRequest,
    name: &'static str,
    errors: &mut Vec<FieldError>,
) -> Option<ClientRequestId> {
    let mut values = request.headers().get_all(name);
    let value = values.next()?;
    let parsed = value.to_str().ok().and_then(|text| ClientRequestId::parse(text).ok());
    if parsed.is_none() || values.next().is_some() {
        errors.push(FieldError::new(name, "must be given once, as 1 to 128 visible ASCII characters"));
        return None;
    }
    parsed
}
