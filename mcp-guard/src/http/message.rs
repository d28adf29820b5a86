//! Requests of clients to the endpoint: what must hold before one is looked at, and the way of each kind.

use std::sync::Arc;
use std::time::Instant;

use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use sha2::{Digest as _, Sha256};

use super::State;
use super::passing::{self, Passing};
use super::sessions::Owner;
use super::upstream::SESSION_ID;
use crate::answer;
use crate::guard::{Guard, Speaks, Step};
use crate::headers::{METHOD, Mirrored, NAME, PARAM_PREFIX, PROTOCOL_VERSION, check_version, meta};
use crate::message::{HEADER_MISMATCH, INVALID_REQUEST, Id, Message, Request, of_client};
use crate::method::{CANCELLED, is_known_notification, of_request};
use crate::pending::{Begun, Pending};
use crate::version::{META_VERSION, Version};

/// What a client speaks that names no version.
const UNNAMED_VERSION: Version = Version::V2025_03_26;

/// Who sends, and how it speaks.
struct Caller {
    owner: Owner,
    version: Version,
    /// The session, where the client names one that is its own.
    session: Option<Arc<Pending>>,
}

pub(super) async fn post(state: Data<State>, request: HttpRequest, body: Bytes) -> HttpResponse {
    let caller = match caller(&state, &request) {
        Ok(caller) => caller,
        Err(refused) => return *refused,
    };
    if !is_json(&request) {
        return HttpResponse::UnsupportedMediaType().finish();
    }
    match of_client(&body) {
        Err(refusal) => json(StatusCode::BAD_REQUEST, refusal.answer()),
        Ok(Message::Request(message)) => asked(&state, &request, &caller, &message, &body).await,
        Ok(Message::Notification(method, _)) if !is_known_notification(&method) => {
            tracing::warn!(server = state.guard.server(), "an unknown notification of the client is dropped");
            HttpResponse::Accepted().finish()
        }
        Ok(Message::Notification(method, params)) => {
            let cancelled = (method == CANCELLED).then(|| params.get("requestId")).flatten();
            let session = caller.session.as_ref();
            if let Some(watch) = cancelled.zip(session).and_then(|(raw, session)| session.cancel(raw)) {
                state.guard.lost(&watch);
            }
            passing::plain(&state, &request, caller.version, body.to_vec()).await
        }
        Ok(Message::Response(..)) => passing::plain(&state, &request, caller.version, body.to_vec()).await,
    }
}

/// The stream of the versions that have one.
pub(super) async fn get(state: Data<State>, request: HttpRequest) -> HttpResponse {
    match caller(&state, &request) {
        Err(refused) => *refused,
        Ok(caller) if caller.version.is_stateless() => HttpResponse::MethodNotAllowed().finish(),
        Ok(caller) => {
            let pending = caller.session.unwrap_or_else(|| Arc::new(Pending::new(0, caller.version)));
            passing::stream(&state, &request, pending).await
        }
    }
}

/// The end of a session.
pub(super) async fn delete(state: Data<State>, request: HttpRequest) -> HttpResponse {
    match caller(&state, &request) {
        Err(refused) => *refused,
        Ok(caller) if caller.version.is_stateless() => HttpResponse::MethodNotAllowed().finish(),
        Ok(_) => passing::end_session(&state, &request).await,
    }
}

async fn asked(
    state: &Data<State>,
    http: &HttpRequest,
    caller: &Caller,
    request: &Request<'_>,
    body: &[u8],
) -> HttpResponse {
    let mirrored = mirrored(http);
    let speaks = match speaks(http, caller, request, &mirrored) {
        Ok(speaks) => speaks,
        Err(answer) => return json(StatusCode::BAD_REQUEST, answer),
    };
    let pending = match caller.session.as_ref().filter(|_| !speaks.version.is_stateless()) {
        Some(session) => Arc::clone(session),
        None => Arc::new(Pending::new(1, speaks.version)),
    };
    let begun = match pending.begin(&request.id) {
        Begun::Yes => None,
        Begun::SameId => Some("a request with this id is still open"),
        Begun::TooMany => Some("too many requests are open"),
    };
    if let Some(text) = begun {
        return json(StatusCode::BAD_REQUEST, answer::error(Some(request.raw_id), INVALID_REQUEST, text));
    }
    let mut deciding = Deciding { pending: &pending, id: &request.id, is_sent: false };
    match state.guard.request(request, body, speaks, Some(&mirrored)).await {
        Step::Invalid(answer) => json(StatusCode::BAD_REQUEST, answer),
        Step::Answer(answer) if speaks.version.is_stateless() && of_request(&request.method).is_none() => {
            json(StatusCode::NOT_FOUND, answer)
        }
        Step::Answer(answer) => json(StatusCode::OK, answer),
        Step::Forward(bytes, watch) => match pending.sent(&request.id, watch) {
            Err(watch) => {
                state.guard.not_sent(&watch);
                HttpResponse::Accepted().finish()
            }
            Ok(()) => {
                deciding.is_sent = true;
                let passing = Passing {
                    state: state.clone(),
                    pending: Arc::clone(&pending),
                    id: request.id.clone(),
                    owner: caller.owner,
                    version: speaks.version,
                };
                passing.send(http, bytes.into_owned()).await
            }
        },
    }
}

/// A request that the server does not have. Its id is free again when it is answered here, or its client is gone.
struct Deciding<'a> {
    pending: &'a Pending,
    id: &'a Id,
    is_sent: bool,
}

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        if !self.is_sent {
            self.pending.end(self.id);
        }
    }
}

/// How the client speaks, if headers and body say the same. `Err`: the answer, with the status 400.
fn speaks(http: &HttpRequest, caller: &Caller, request: &Request<'_>, mirrored: &Mirrored) -> Result<Speaks, Vec<u8>> {
    let mismatch = |text: String| answer::error(Some(request.raw_id), HEADER_MISMATCH, &text);
    let header = one(http, PROTOCOL_VERSION).unwrap_or_default();
    let in_body = meta(&request.params).text(META_VERSION);
    check_version(header.as_deref(), in_body.as_deref()).map_err(mismatch)?;
    let speaks = Guard::speaks(request, caller.version)?;
    mirrored.check_standard(request, speaks.version.is_stateless()).map_err(mismatch)?;
    if caller.version.is_stateless() && in_body.is_none() {
        return Err(mismatch(format!("`_meta` has no `{META_VERSION}`")));
    }
    Ok(speaks)
}

/// Host, origin, version and session of a request. `Err`: the response.
fn caller(state: &State, request: &HttpRequest) -> Result<Caller, Box<HttpResponse>> {
    let refuse = |status: StatusCode, code: i64, text: &str| Box::new(json(status, answer::error(None, code, text)));
    let bad = |text: String| refuse(StatusCode::BAD_REQUEST, INVALID_REQUEST, &text);
    let (host, origin) = (one(request, HOST.as_str()).map_err(bad)?, one(request, ORIGIN.as_str()).map_err(bad)?);
    let host = host.or_else(|| request.uri().authority().map(ToString::to_string));
    let allowed = state.allowed.check(host.as_deref(), origin.as_deref());
    allowed.map_err(|text| refuse(StatusCode::FORBIDDEN, INVALID_REQUEST, text))?;
    let owner = owner(request);
    let session = one(request, SESSION_ID).map_err(bad)?;
    let named = one(request, PROTOCOL_VERSION).map_err(bad)?;
    let version = match &named {
        None => None,
        Some(named) => Some(
            Version::parse(named)
                .ok_or_else(|| Box::new(json(StatusCode::BAD_REQUEST, answer::unsupported_version("null", named))))?,
        ),
    };
    let session = match session.filter(|_| !version.is_some_and(Version::is_stateless)) {
        None => None,
        Some(id) => Some(state.sessions.find(&id, &owner, Instant::now()).ok_or_else(|| {
            refuse(StatusCode::NOT_FOUND, INVALID_REQUEST, "the session is not known: begin one with `initialize`")
        })?),
    };
    let version = version.or_else(|| session.as_ref().map(|session| session.version())).unwrap_or(UNNAMED_VERSION);
    Ok(Caller { owner, version, session })
}

/// Address and authorization: what a session is bound to.
fn owner(request: &HttpRequest) -> Owner {
    let address = request.peer_addr().map(|address| address.ip().to_string()).unwrap_or_default();
    let mut hash = Sha256::new();
    hash.update(address.as_bytes());
    for value in request.headers().get_all(AUTHORIZATION) {
        hash.update([0]);
        hash.update(value.as_bytes());
    }
    hash.finalize().into()
}

/// The one value of a header. `Err`: it is there twice, or is no visible text.
pub(super) fn one(request: &HttpRequest, name: &str) -> Result<Option<String>, String> {
    let mut values = request.headers().get_all(name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(value) => Ok(Some(value.to_owned())),
            Err(_) => Err(format!("the header `{name}` cannot be read")),
        },
        (Some(_), Some(_)) => Err(format!("the header `{name}` is there more than once")),
    }
}

fn mirrored(request: &HttpRequest) -> Mirrored {
    let is_mirrored = |name: &str| name == METHOD || name == NAME || name.starts_with(PARAM_PREFIX);
    let headers = request.headers().iter().filter(|(name, _)| is_mirrored(name.as_str()));
    Mirrored(headers.map(|(name, value)| (name.to_string(), value.to_str().ok().map(str::to_owned))).collect())
}

fn is_json(request: &HttpRequest) -> bool {
    let kind = one(request, CONTENT_TYPE.as_str()).ok().flatten().unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

pub(super) fn json(status: StatusCode, body: Vec<u8>) -> HttpResponse {
    HttpResponse::build(status).content_type("application/json").insert_header(("cache-control", "no-store")).body(body)
}
