//! Where a request arrives: the table of paths and methods, and what every answer carries.
//!
//! Owns routing, the request id, the headers of every answer and the access log (ids and numbers only, never content).
//! One file below for each room: `check`, `usage`, `accounts`, `keys`, `decisions`, `runs`, `webhooks`, `status`, `health`, `docs`; `fields` decodes bodies of the
//! control API.

use std::collections::BTreeSet;
use std::time::Instant;

use actix_http::ConnectionType;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, Resource, Route, guard, web};
use stage0_contract::{AccountId, Decision, IssueCode, KeyId, KeyIdentity, RequestId, Scope, Verdict};
use uuid::Uuid;

use crate::address::Client;
use crate::auth::{SILENT, confirm, identify};
use crate::body;
use crate::errors::ApiError;
use crate::keyring::Believed;
use crate::metrics;
use crate::patience::Patience;
use crate::sending::{Release, Sending};
use crate::state::Gate;

mod accounts;
mod check;
mod decisions;
mod docs;
mod fields;
mod health;
mod keys;
mod policy;
mod runs;
mod status;
mod usage;
mod webhooks;

pub(crate) use health::Readiness;
pub use health::{Found, look};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All paths of the gateway, below its base path.
pub(crate) fn configure(config: &mut web::ServiceConfig, base_path: &str, gate: Option<web::Data<Gate>>) {
    let get = || web::route().guard(guard::Any(guard::Get()).or(guard::Head()));
    let paths = web::scope(base_path)
        .service(only("/check", "POST", [web::post().to(check::check)]))
        .service(only("/usage", "GET, HEAD", [get().to(usage::usage)]))
        .service(only("/v1/policy/vocabulary", "GET, HEAD", [get().to(policy::vocabulary)]))
        .service(only("/v1/accounts", "GET, HEAD, POST", [get().to(accounts::list), web::post().to(accounts::create)]))
        .service(only("/v1/accounts/{id}", "PATCH", [web::patch().to(accounts::update)]))
        .service(only("/v1/keys", "GET, HEAD, POST", [get().to(keys::list), web::post().to(keys::create)]))
        .service(only("/v1/keys/{id}", "DELETE", [web::delete().to(keys::revoke)]))
        .service(only("/v1/keys/{id}/rotate", "POST", [web::post().to(keys::rotate)]))
        .service(only(
            "/v1/decisions",
            "DELETE, GET, HEAD",
            [get().to(decisions::list), web::delete().to(decisions::delete)],
        ))
        .service(only("/v1/decisions/export", "GET, HEAD", [get().to(decisions::export)]))
        .service(only("/v1/decisions/verify", "GET, HEAD", [get().to(decisions::verify)]))
        .service(only("/v1/decisions/{request_id}", "GET, HEAD", [get().to(decisions::get)]))
        .service(only("/v1/runs", "GET, HEAD", [get().to(runs::list)]))
        .service(only("/v1/runs/{run_id}", "DELETE, GET, HEAD", [get().to(runs::show), web::delete().to(runs::end)]))
        .service(only("/v1/runs/{run_id}/settle", "POST", [web::post().to(runs::settle)]))
        .service(only("/v1/status", "GET, HEAD", [get().to(status::status)]))
        .service(only("/v1/signing-keys", "GET, HEAD", [get().to(decisions::signing_keys)]))
        .service(only("/v1/webhooks", "GET, HEAD, POST", [get().to(webhooks::list), web::post().to(webhooks::create)]))
        .service(only(
            "/v1/webhooks/{id}",
            "DELETE, GET, HEAD, PATCH",
            [get().to(webhooks::get), web::patch().to(webhooks::update), web::delete().to(webhooks::delete)],
        ))
        .service(only("/v1/webhooks/{id}/rotate-secret", "POST", [web::post().to(webhooks::rotate)]))
        .service(only("/v1/webhooks/{id}/enable", "POST", [web::post().to(webhooks::enable)]))
        .service(only("/v1/webhooks/{id}/test", "POST", [web::post().to(webhooks::test)]))
        .service(only("/v1/webhooks/{id}/replay", "POST", [web::post().to(webhooks::replay)]))
        .service(only("/v1/webhooks/{id}/deliveries", "GET, HEAD", [get().to(webhooks::deliveries)]))
        .service(only(health::ALIVE, "GET, HEAD", [get().to(health::alive)]))
        .service(only(health::READY, "GET, HEAD", [get().to(health::ready)]))
        .service(only("/openapi.json", "GET, HEAD", [get().to(docs::openapi)]))
        .service(only("/docs", "GET, HEAD", [get().to(docs::page)]));
    if let Some(gate) = gate {
        config.app_data(gate);
    }
    config.service(paths).default_service(web::to(not_found));
}

fn only<const N: usize>(path: &str, allowed: &'static str, routes: [Route; N]) -> Resource {
    let refuse = move |request: HttpRequest| async move { answer(&request, Err(ApiError::MethodNotAllowed(allowed))) };
    routes.into_iter().fold(web::resource(path), Resource::route).default_service(web::to(refuse))
}

async fn not_found(request: HttpRequest) -> HttpResponse {
    answer(&request, Err(ApiError::NotFound))
}

/// What is known of a request from its first byte on.
#[derive(Clone, Copy)]
struct Stamp {
    id: RequestId,
    started: Instant,
}

/// What the access log and the metrics say of a request beyond its status.
struct Outcome {
    account: AccountId,
    key_id: KeyId,
    verdict: Option<Verdict>,
    codes: BTreeSet<IssueCode>,
}

/// Gives a request its id and its client, refuses it if that client sends too many, and gives its answer the headers that all answers
/// have; meanwhile the connection does not wait for its client.
pub(crate) async fn stamp(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let started = Instant::now();
    let mut busy = request.conn_data::<Patience>().map(|patience| patience.busy(head_bytes(&request)));
    let id = RequestId::new(Uuid::now_v7()).map_err(actix_web::error::ErrorInternalServerError)?;
    request.extensions_mut().insert(Stamp { id, started });
    let client = client(&request);
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    let mut response = if in_burst(&request, client, started) {
        request.into_response(ApiError::TooManyRequests.response(id)).map_into_right_body()
    } else {
        released(next.call(request).await?, id).await
    };
    if body::is_unread(response.request()) {
        // The server reads on for a moment and throws away, so that a client that still writes can read its answer.
        response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
    }
    if let Some(busy) = &mut busy
        && response.response().head().connection_type() == ConnectionType::Close
    {
        busy.closes();
    }
    let headers = response.headers_mut();
    // A decision that is answered again has the id under which it was recorded.
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&id.to_string())
    {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    log(&response, id, started);
    let believed = response.request().extensions_mut().remove::<Believed>();
    let release = gate_of_answer(&response).zip(believed).map(|(gate, believed)| Release::new(gate, believed, id));
    Ok(response.map_body(|_, body| Sending::new(body, busy, release)))
}

/// The answer, unless its caller's key is gone by now: it may have been made before the process was stopped. What failed
/// releases nothing.
async fn released<B>(response: ServiceResponse<B>, id: RequestId) -> ServiceResponse<EitherBody<B>>
where
    B: MessageBody + 'static,
{
    let confirmed = match gate_of_answer(&response) {
        Some(gate) if !response.status().is_server_error() => confirm(&gate, response.request()).await,
        Some(_) | None => {
            response.request().extensions_mut().remove::<Believed>();
            Ok(())
        }
    };
    match confirmed {
        Ok(()) => response.map_into_left_body(),
        Err(error) => {
            // A refusal leaves whatever becomes of the key.
            response.request().extensions_mut().remove::<Believed>();
            if let Some(outcome) = response.request().extensions_mut().get_mut::<Outcome>() {
                (outcome.verdict, outcome.codes) = (None, BTreeSet::new());
            }
            response.into_response(error.response(id)).map_into_right_body()
        }
    }
}

fn gate_of_answer<B>(response: &ServiceResponse<B>) -> Option<web::Data<Gate>> {
    response.request().app_data::<web::Data<Gate>>().cloned()
}

/// What a head took on the wire, but for blanks that mean nothing.
fn head_bytes(request: &ServiceRequest) -> usize {
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let line = request.method().as_str().len() + request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    headers.sum::<usize>() + line + "  HTTP/1.1\r\n\r\n".len()
}

/// Found out once, as the peer may be a proxy.
fn client(request: &ServiceRequest) -> Option<Client> {
    let (gate, peer) = gate_of(request).zip(request.peer_addr())?;
    Some(Client::of(peer.ip(), request.headers(), &gate.config.trusted_proxies))
}

/// Whether the client has no request left in this second. Probes always have: they come often, and their answers cost next to nothing.
fn in_burst(request: &ServiceRequest, client: Option<Client>, now: Instant) -> bool {
    let Some((gate, client)) = gate_of(request).zip(client) else { return false };
    let path = request.path().strip_prefix(gate.config.base_path.as_str()).map(|path| path.trim_end_matches('/'));
    let probes = matches!(path, Some(health::ALIVE | health::READY));
    !probes && gate.bursts.as_ref().is_some_and(|bursts| !bursts.admits(client.net(), now))
}

fn gate_of(request: &ServiceRequest) -> Option<&Gate> {
    request.app_data::<web::Data<Gate>>().map(|gate| &***gate)
}

/// Access log and metrics.
fn log(response: &ServiceResponse<impl MessageBody>, request_id: RequestId, started: Instant) {
    let took = started.elapsed();
    let (status, duration_ms) = (response.status().as_u16(), took.as_secs_f64() * 1e3);
    // The route's pattern, never the path: a path may hold anything.
    let route = response.request().match_pattern();
    metrics::answered(route.as_deref(), response.status(), took);
    let route = route.unwrap_or_default();
    match response.request().extensions().get::<Outcome>() {
        Some(Outcome { account, key_id, verdict, codes }) => {
            verdict.iter().for_each(|verdict| metrics::checked(*verdict, codes));
            let verdict = verdict.map(Verdict::as_str);
            tracing::info!(%request_id, %account, %key_id, verdict, status, route, duration_ms, "request answered");
        }
        None => tracing::info!(%request_id, status, route, duration_ms, "request answered"),
    }
}

pub(crate) fn request_id(request: &HttpRequest) -> Option<RequestId> {
    stamp_of(request).map(|stamp| stamp.id)
}

fn stamp_of(request: &HttpRequest) -> Option<Stamp> {
    request.extensions().get::<Stamp>().copied()
}

/// The one place where a refusal becomes an answer.
fn answer(request: &HttpRequest, result: Result<HttpResponse, ApiError>) -> HttpResponse {
    result.unwrap_or_else(|error| match request_id(request) {
        Some(id) => error.response(id),
        // INVARIANT: `stamp` wraps every route, so there always is an id.
        None => HttpResponse::InternalServerError().finish(),
    })
}

/// Judges the request's key within `deadline` and notes, for the log and the connection, who it was.
async fn authenticate(
    gate: &Gate,
    request: &HttpRequest,
    deadline: tokio::time::Instant,
) -> Result<std::sync::Arc<KeyIdentity>, ApiError> {
    let judged = tokio::time::timeout_at(deadline, identify(gate, request, deadline)).await;
    let believed = judged.map_err(|_| ApiError::Missing(SILENT))??;
    let identity = std::sync::Arc::clone(believed.identity());
    request.extensions_mut().insert(believed);
    note(request, &identity, None);
    if let Some(patience) = request.conn_data::<Patience>() {
        patience.belongs_to(gate.bytes.key_of(&identity.account));
    }
    Ok(identity)
}

/// Whether a key may make a call of the control API at all; which of them, the keystore says. An operator may.
fn allow(identity: &KeyIdentity, scope: Scope) -> Result<(), ApiError> {
    let may = identity.scopes.contains(&Scope::Operator) || identity.scopes.contains(&scope);
    if may { Ok(()) } else { Err(ApiError::ScopeMissing(scope)) }
}

fn note(request: &HttpRequest, identity: &KeyIdentity, decision: Option<&Decision>) {
    let (account, key_id) = (identity.account.clone(), identity.key_id.clone());
    let codes = decision.iter().flat_map(|decision| &decision.issues).map(|issue| issue.code.clone()).collect();
    let verdict = decision.map(|decision| decision.verdict);
    request.extensions_mut().insert(Outcome { account, key_id, verdict, codes });
}
