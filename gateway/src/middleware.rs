//! What happens to every request before and after its handler.
//!
//! Owns the request id, the per-address rate limit, the form of refusals, the headers of every answer, and the last
//! confirmation of the caller's key before an answer leaves.
//! INVARIANT: an answer that is not a failure leaves only while its caller's key is known to be valid.

use std::time::Instant;

use actix_http::ConnectionType;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, HttpRequest, web};
use stage0_contract::RequestId;
use uuid::Uuid;

use crate::access_log;
use crate::address::Client;
use crate::auth::reconfirm_caller;
use crate::body;
use crate::errors::ApiError;
use crate::idle_timeout::ConnectionState;
use crate::key_cache::VerifiedCaller;
use crate::response_body::{PacedBody, RevocationCheck};
use crate::routes::{self, hooks};
use crate::state::AppState;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What is known about a request from its first byte. Stored in its extensions before any handler runs.
#[derive(Clone, Copy)]
pub(crate) struct RequestContext {
    pub(crate) id: RequestId,
    pub(crate) started: Instant,
}

impl RequestContext {
    /// INVARIANT: the middleware wraps every route, so a handler always finds one.
    pub(crate) fn of(request: &HttpRequest) -> Option<Self> {
        request.extensions().get::<Self>().copied()
    }

    pub(crate) fn id_of(request: &HttpRequest) -> Option<RequestId> {
        Self::of(request).map(|context| context.id)
    }
}

/// Gives the request its id and client address, refuses it if that address exceeds its rate, and completes the answer.
/// Until the answer is sent, the connection does not count as idle.
pub(crate) async fn handle(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let mut guard =
        request.conn_data::<ConnectionState>().map(|connection| connection.begin_request(head_bytes(&request)));
    let id = RequestId::new(Uuid::now_v7()).map_err(actix_web::error::ErrorInternalServerError)?;
    let context = RequestContext { id, started };
    request.extensions_mut().insert(context);
    let client = client(&request);
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    let response = if exceeds_rate(&request, client, started) {
        let refusal = hooks::refusal(request.request(), &ApiError::TooManyRequests, id);
        request.into_response(refusal)
    } else {
        next.call(request).await?.map_into_boxed_body()
    };
    let mut response = release(refusal_with_id(response, id), id).await;
    // Of a body that is not read, the server discards the rest for a moment, so that a client that is still writing can
    // read its answer. A client of a gateway that stops has to send its next request on another connection.
    let is_stopping = app_state(&response).is_some_and(|state| state.stopping.is_cancelled());
    if is_stopping || body::is_unread(response.request()) {
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    if let Some(guard) = &mut guard
        && response.response().head().connection_type() == ConnectionType::Close
    {
        guard.set_closing();
    }
    let headers = response.headers_mut();
    // A replayed decision already has the id under which it was recorded.
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&id.to_string())
    {
        headers.insert(REQUEST_ID, id);
    }
    // Static documents set their own cache headers.
    if !headers.contains_key(CACHE_CONTROL) {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    access_log::write(&response, context);
    let caller = response.request().extensions_mut().remove::<VerifiedCaller>();
    let revocation = app_state(&response).zip(caller).map(|(state, caller)| RevocationCheck::new(state, caller, id));
    Ok(response.map_body(|_, body| PacedBody::new(body, guard, revocation)))
}

/// The one place where the error that a handler returned becomes its public answer.
fn refusal_with_id(response: ServiceResponse, id: RequestId) -> ServiceResponse {
    let error = response.response().error().and_then(|error| error.as_error::<ApiError>());
    match error.map(|error| hooks::refusal(response.request(), error, id)) {
        Some(refusal) => response.into_response(refusal),
        None => response,
    }
}

/// Replaces the answer with a refusal if the caller's key was revoked in the meantime: the process may have been
/// stopped after the answer was made. A failure or refusal discloses nothing and leaves in any case.
async fn release(response: ServiceResponse, id: RequestId) -> ServiceResponse<BoxBody> {
    let refusal = match app_state(&response) {
        Some(state) if !response.status().is_server_error() => reconfirm_caller(&state, response.request()).await,
        Some(_) | None => {
            response.request().extensions_mut().remove::<VerifiedCaller>();
            Ok(())
        }
    };
    let Err(error) = refusal else { return response };
    response.request().extensions_mut().remove::<VerifiedCaller>();
    access_log::clear_decision(response.request());
    let refusal = hooks::refusal(response.request(), &error, id);
    response.into_response(refusal)
}

fn app_state<B>(response: &ServiceResponse<B>) -> Option<web::Data<AppState>> {
    response.request().app_data::<web::Data<AppState>>().cloned()
}

fn head_bytes(request: &ServiceRequest) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let line = request.method().as_str().len() + request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    headers.sum::<usize>() + line + "  HTTP/1.1\r\n\r\n".len()
}

fn client(request: &ServiceRequest) -> Option<Client> {
    let state = request.app_data::<web::Data<AppState>>()?;
    Some(Client::of(request.peer_addr()?.ip(), request.headers(), &state.config.trusted_proxies))
}

/// Whether the address has used up its requests of this second. Probes are exempt: they cost next to nothing.
fn exceeds_rate(request: &ServiceRequest, client: Option<Client>, now: Instant) -> bool {
    let Some(state) = request.app_data::<web::Data<AppState>>() else { return false };
    let (Some(limiter), Some(client)) = (&state.ip_rate_limiter, client) else { return false };
    let path = request.path().strip_prefix(state.config.base_path.as_str()).map(|path| path.trim_end_matches('/'));
    !path.is_some_and(routes::is_probe) && limiter.take(&client.net(), now).is_err()
}
