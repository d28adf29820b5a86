//! `POST /check`: the product's main job, step by step, in [`run`].
//!
//! Owns the order of refusals and the budget: what the keystore, the evaluators and the log take
//! together, retries included, stays below `request_budget`. `attempt` decides and records a check that may be decided.
//! The caller's key is confirmed again before the append and before the answer leaves.
//! INVARIANT: the answer leaves after the log has acknowledged its record, unless the operator chose best effort.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{ContentType, HeaderName, HeaderValue};
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use serde_json::{Map, Value};
use stage0_backplane::clock::boottime;
use stage0_backplane::{CLOCK_READING_TTL, ClockError};
use stage0_contract::{
    ApprovalId, CheckRequest, CheckResponse, ClientRequestId, FetchAction, FetchedAction, FieldError, KeyIdentity,
    PolicyVersion, RejectedRequest, ResponseMeta, ReviewRequest, RunId, Scope, canonical_hash,
};
use stage0_guard::Agent;
use tokio::time::Instant;

use super::hooks::{self, HookBody};
use super::management::{send_within, visible_header};
use crate::access_log;
use crate::auth::{authenticate_until, require_any_scope};
use crate::body::{self, Body};
use crate::errors::ApiError;
use crate::idempotency::{Claim, IDEMPOTENCY_KEY, IdempotencyKey, IdempotencyStore, Lookup, MAX_CLAIM_ATTEMPTS};
use crate::key_cache::VerifiedCaller;
use crate::log_reader::LogReader;
use crate::metrics::{CheckStep, InFlight, timed};
use crate::middleware::{REQUEST_ID, RequestContext};
use crate::quota::Reservation;
use crate::state::AppState;

mod again;
mod attempt;
mod replay;

use attempt::{Attempt, Failure};

/// Of draft-ietf-httpapi-ratelimit-headers-06; the reset is in seconds.
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
/// A review only adds to a refusal that is certain already.
const REVIEW_TIMEOUT: Duration = Duration::from_millis(500);
/// The member of a body that names an approved action instead of an action.
const APPROVAL_ID: &str = "approval_id";
/// Names the earliest version that the caller wants to be decided by.
const MIN_POLICY: &str = "X-Stage0-Min-Policy";

/// How a check comes in. All ways lead through the same steps.
#[derive(Debug, Clone, Copy)]
pub(super) enum Door {
    /// The body is the check.
    Check,
    /// The body is the event of a coding agent's hook, which may ask about a tool call.
    Hook(Agent),
}

pub(super) async fn check(state: Data<AppState>, request: HttpRequest, payload: Payload) -> HttpResponse {
    enter(Door::Check, state, request, payload).await
}

pub(super) async fn enter(door: Door, state: Data<AppState>, request: HttpRequest, payload: Payload) -> HttpResponse {
    // In a task of its own: actix drops the handler of a client that disconnects, and then what was counted and what
    // was recorded would differ.
    let answered = actix_web::rt::spawn(answer(door, state, request, payload)).await;
    answered.unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn Error, "a check ended early");
        HttpResponse::from_error(ApiError::Unavailable)
    })
}

/// Runs the check, and tells the caller its rate limit also when it is refused.
async fn answer(door: Door, state: Data<AppState>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let _in_flight = InFlight::begin();
    let Some(context) = RequestContext::of(&request) else { return HttpResponse::from_error(ApiError::Unavailable) };
    let mut caller = None;
    let result = run(door, &state, &request, context, payload, &mut caller).await;
    let mut response = match result {
        Ok(answer) => hooks::answered(&request, answer),
        Err(error) => {
            if let Some(caller) = request.extensions_mut().get_mut::<VerifiedCaller>() {
                caller.unbind();
            }
            hooks::refusal(&request, &error, context.id)
        }
    };
    if let Some(limit) = caller.and_then(|identity| state.quotas.rate_limit(&identity)) {
        for (name, number) in [(LIMIT, limit.limit), (REMAINING, limit.remaining), (RESET, limit.reset)] {
            response.headers_mut().insert(name, HeaderValue::from(number));
        }
    }
    response
}

/// All steps of a check. `caller` is set as soon as it is known, also when the check is refused later.
async fn run(
    door: Door,
    state: &AppState,
    request: &HttpRequest,
    context: RequestContext,
    payload: Payload,
    caller: &mut Option<Arc<KeyIdentity>>,
) -> Result<HttpResponse, ApiError> {
    // A twentieth of the budget is kept back for writing the answer.
    let deadline = Instant::now() + state.config.request_budget * 19 / 20;
    // Before the keystore is asked: it would reject every message of a host whose clock is wrong, without a reason.
    if let Err(error @ (ClockError::Ahead(_) | ClockError::Behind(_))) = state.state_store().clock().check() {
        return Err(ApiError::Clock(error));
    }
    let identity = timed(CheckStep::Authenticate, authenticate_until(state, request, deadline)).await?;
    *caller = Some(Arc::clone(&identity));
    require_any_scope(&identity, &[Scope::Check])?;
    state.state_store().read_clock(CLOCK_READING_TTL, deadline).await.map_err(ApiError::Clock)?;
    timed(CheckStep::Admit, state.quotas.admit(&identity, state.store_until(deadline))).await?;
    let mut errors = Vec::new();
    let min_policy = min_policy(request, &mut errors);

    let receiving_since = Instant::now();
    let payload = payload.into_inner();
    let received = timed(CheckStep::Body, body::receive(state, request, payload, Some(&identity.account))).await?;
    // The budget stands still while the client sends its body.
    let deadline = deadline + receiving_since.elapsed();
    // Not before: the account's rules may change while a client sends its body.
    let caller = bind_to_rules(request)?;
    let identity = Arc::clone(caller.identity());
    // The permit stands for the memory that the request needs until it is answered.
    let body = match door {
        Door::Check => received.parse(&state.request_memory, Some(&identity.account), deadline).await?,
        Door::Hook(agent) => match hooks::read(agent, state, request, received, (&identity, deadline)).await? {
            HookBody::Call(body) => body,
            HookBody::Other(answer) => return Ok(answer),
        },
    };
    let Body { object, bytes, permit: _permit } = body;
    if object.get("pro") == Some(&Value::Bool(true)) && !identity.plan.has_pro() {
        return Err(ApiError::PlanWithoutPro);
    }

    let client_request_id = visible_header(request, "X-Request-Id", &mut errors).or_else(|| hooks::call_id(request));
    let idempotency_key = visible_header(request, IDEMPOTENCY_KEY, &mut errors);
    let received = Received { object, bytes, idempotency_key, errors };
    let Prepared { check, claim, reservation } = match prepare(state, context, &identity, received, deadline).await? {
        Preparation::Ready(prepared) => *prepared,
        Preparation::Replay(recorded) => {
            let decided_by = &recorded.decided.policy_version;
            return match min_policy.filter(|wanted| !decided_by.is_at_least(wanted)) {
                Some(wanted) => Err(ApiError::OtherPolicy { wanted, active: decided_by.clone() }),
                None => {
                    bind_to_decision(request, boottime_of(deadline));
                    replay(request, *recorded, client_request_id)
                }
            };
        }
    };

    let repeats = claim.as_ref().and_then(Claim::repeats);
    let attempt = Attempt { state, request, context, caller, client_request_id, repeats, min_policy, deadline };
    match attempt.run(check, reservation).await {
        Ok(answer) => Ok(answer),
        Err(Failure { error, end }) => {
            // Where the log may have the decision, a retry finds out there.
            if let Some((claim, end)) = claim.zip(end) {
                claim.release(end, state.state_store()).await;
            }
            Err(error)
        }
    }
}

/// The earliest version that the caller wants to be decided by.
fn min_policy(request: &HttpRequest, errors: &mut Vec<FieldError>) -> Option<PolicyVersion> {
    let named = visible_header(request, MIN_POLICY, errors)?;
    let version = PolicyVersion::parse(named.as_str());
    if let Err(error) = &version {
        errors.push(FieldError::new(MIN_POLICY, error.to_string()));
    }
    version.ok()
}

/// The caller, from now on bound to its account's rules.
fn bind_to_rules(request: &HttpRequest) -> Result<VerifiedCaller, ApiError> {
    let mut extensions = request.extensions_mut();
    let caller = extensions.get_mut::<VerifiedCaller>().ok_or(ApiError::Unavailable)?;
    caller.bind_to_rules();
    Ok(caller.clone())
}

/// The decision counts: its answer may leave until this boottime, also if another policy is active by then.
fn bind_to_decision(request: &HttpRequest, until: Duration) {
    if let Some(caller) = request.extensions_mut().get_mut::<VerifiedCaller>() {
        caller.bind_to_decision(until);
    }
}

/// Time that passes while the process is suspended counts.
fn boottime_of(deadline: Instant) -> Duration {
    boottime() + deadline.saturating_duration_since(Instant::now())
}

struct Received {
    object: Map<String, Value>,
    /// The length of the body.
    bytes: usize,
    idempotency_key: Option<ClientRequestId>,
    /// What is wrong with the headers; refused together with what is wrong in the body.
    errors: Vec<FieldError>,
}

/// What a body asks for.
enum Submitted {
    Action(Map<String, Value>),
    /// The action of an approval, as it was deferred.
    Approved(ApprovalId),
}

impl Submitted {
    /// A body with `approval_id` has nothing else in it: what would count would be unclear.
    fn of(object: Map<String, Value>, errors: &mut Vec<FieldError>) -> Result<Self, ApiError> {
        let Some(id) = object.get(APPROVAL_ID) else { return Ok(Self::Action(object)) };
        let id = id.as_str().and_then(|id| ApprovalId::parse(id).ok());
        if object.len() > 1 {
            errors.push(FieldError::new(APPROVAL_ID, "must stand alone: its action is decided as it was sent then"));
        } else if id.is_none() {
            errors.push(FieldError::new(APPROVAL_ID, "must be the `id` of an approval"));
        }
        match id {
            Some(id) if errors.is_empty() => Ok(Self::Approved(id)),
            Some(_) | None => Err(ApiError::Invalid(std::mem::take(errors))),
        }
    }
}

/// A check that may be evaluated.
struct Prepared {
    check: ParsedRequest,
    claim: Option<Claim>,
    /// None where an earlier attempt under the same key was counted.
    reservation: Option<Reservation>,
}

enum Preparation {
    Ready(Box<Prepared>),
    Replay(Box<CheckResponse>),
}

/// Looks the idempotency key up, reserves quota, parses the request, and claims the key; again from the start when
/// another attempt claims the key first.
async fn prepare(
    state: &AppState,
    context: RequestContext,
    identity: &KeyIdentity,
    received: Received,
    deadline: Instant,
) -> Result<Preparation, ApiError> {
    let log = LogReader::new(&state.backplane.log, identity);
    let store =
        IdempotencyStore { state_store: state.state_store(), first_seen: &state.first_seen, log: &log, deadline };
    let Received { object, bytes, idempotency_key, mut errors } = received;
    let (key, object) = match &idempotency_key {
        None => (None, object),
        Some(header) => {
            let (hash, object) = body::compute(bytes, move || (canonical_hash(&object), object)).await?;
            (Some(IdempotencyKey::new(identity, header, hash)), object)
        }
    };
    let mut submitted = Some(Submitted::of(object, &mut errors)?);
    let mut check = None;
    let mut reservation = None;
    for _ in 0..MAX_CLAIM_ATTEMPTS {
        let available = match &key {
            None => None,
            Some(key) => match timed(CheckStep::LookUp, key.look_up(&store)).await? {
                Lookup::Recorded(recorded) => {
                    let request = replay::Request { submitted: submitted.as_ref(), parsed: check.as_ref() };
                    let holds = Box::pin(replay::still_holds(state, identity, &recorded, request, deadline));
                    if timed(CheckStep::LookUp, holds).await? {
                        return Ok(Preparation::Replay(Box::new(recorded.response)));
                    }
                    Some(recorded.void)
                }
                Lookup::Available(available) => Some(available),
                Lookup::BodyMismatch => {
                    errors.push(FieldError::new(IDEMPOTENCY_KEY, "was used with another body"));
                    if submitted.is_none() {
                        return Err(ApiError::Invalid(errors));
                    }
                    None
                }
            },
        };
        if available.as_ref().is_some_and(|available| available.counted) {
            // By an earlier attempt: what this one reserved in an earlier round is given back.
            reservation = None;
        } else if reservation.is_none() {
            let reserved = state.quotas.reserve(identity, state.store_until(deadline));
            reservation = Some(timed(CheckStep::Reserve, reserved).await?);
        }
        if let Some(submitted) = submitted.take() {
            let errors = std::mem::take(&mut errors);
            check = Some(match submitted {
                Submitted::Action(object) => {
                    timed(CheckStep::Parse, parse(state, identity, object, bytes, errors, deadline)).await?
                }
                Submitted::Approved(id) => {
                    let approved = Box::pin(parse_approved(state, identity, id, errors, deadline));
                    timed(CheckStep::Parse, approved).await?
                }
            });
        }
        let claim = match available {
            None => None,
            Some(available) => {
                let claim = available.claim(&store, context.id, state.config.request_budget);
                let Some(claim) = timed(CheckStep::Claim, claim).await? else { continue };
                Some(claim)
            }
        };
        let check = check.ok_or(ApiError::Unavailable)?;
        return Ok(Preparation::Ready(Box::new(Prepared { check, claim, reservation })));
    }
    tracing::warn!(account = %identity.account, "too many attempts race for one idempotency key");
    Err(ApiError::Unavailable)
}

/// A request that keeps the rules.
struct ParsedRequest {
    check: CheckRequest,
    task_hash: String,
    /// The length of the body as it arrived.
    bytes: usize,
}

/// The action of an approval that the caller's own workload asked for, as if it had been sent.
async fn parse_approved(
    state: &AppState,
    identity: &KeyIdentity,
    id: ApprovalId,
    mut errors: Vec<FieldError>,
    deadline: Instant,
) -> Result<ParsedRequest, ApiError> {
    if !errors.is_empty() {
        return Err(ApiError::Invalid(errors));
    }
    let check = fetch_action(state, identity, id, deadline).await?;
    // The account may have changed since the action was deferred.
    if check.pro && !identity.plan.has_pro() {
        return Err(ApiError::PlanWithoutPro);
    }
    if identity.require_run_id && !matches!(check.context.as_ref().map(RunId::in_context), Some(Ok(Some(_)))) {
        errors.push(FieldError::new(APPROVAL_ID, "its action names no run, and each check of this account must"));
        return Err(ApiError::Invalid(errors));
    }
    let bytes = serde_json::to_vec(&check).map_or(0, |json| json.len());
    body::compute(bytes, move || ParsedRequest { task_hash: check.task_hash(), check, bytes }).await
}

async fn fetch_action(
    state: &AppState,
    identity: &KeyIdentity,
    id: ApprovalId,
    deadline: Instant,
) -> Result<CheckRequest, ApiError> {
    let fetch = FetchAction { account: identity.account.clone(), actor: state.actor_of(identity), id };
    let timeout = deadline.saturating_duration_since(Instant::now());
    let FetchedAction { request } = send_within(state.requests(), &fetch, timeout).await?;
    Ok(request)
}

/// Answers with a decision that was recorded before, under its own id.
fn replay(
    request: &HttpRequest,
    recorded: CheckResponse,
    client_request_id: Option<ClientRequestId>,
) -> Result<HttpResponse, ApiError> {
    let meta = ResponseMeta { client_request_id, ..recorded.meta };
    let response = CheckResponse { cached: true, meta, ..recorded };
    access_log::set_decision(request, &response.decided);
    let id = (REQUEST_ID, response.request_id.to_string());
    Ok(HttpResponse::Ok().content_type(ContentType::json()).insert_header(id).body(serialize(&response)?))
}

fn serialize(response: &CheckResponse) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(response).map_err(|error| {
        let error = &error as &dyn Error;
        tracing::error!(request_id = %response.request_id, error, "answer could not be written");
        ApiError::Unavailable
    })
}

/// Parses the body. A refusal names every bad field beside `errors`, including those that only the policy knows to be
/// bad.
async fn parse(
    state: &AppState,
    identity: &KeyIdentity,
    object: Map<String, Value>,
    bytes: usize,
    mut errors: Vec<FieldError>,
    deadline: Instant,
) -> Result<ParsedRequest, ApiError> {
    let context = object.get("context").and_then(Value::as_object);
    if identity.require_run_id && !matches!(context.map(RunId::in_context), Some(Ok(Some(_)))) {
        errors.push(FieldError::new("context.run_id", "is required: each check of this account names its run"));
    }
    let policy = identity.rules.policy.of(CheckRequest::environment_in(&object)).cloned();
    let parsed = body::compute(bytes, move || {
        CheckRequest::parse(Value::Object(object)).map(|check| ParsedRequest {
            task_hash: check.task_hash(),
            check,
            bytes,
        })
    });
    let (constraints, policy_pack_version) = match parsed.await? {
        Ok(parsed) if errors.is_empty() => return Ok(parsed),
        Ok(parsed) => (parsed.check.constraints, parsed.check.policy_pack_version),
        Err(RejectedRequest { errors: found, constraints, policy_pack_version }) => {
            errors.extend(found);
            (constraints, policy_pack_version)
        }
    };
    if !constraints.is_empty() || policy_pack_version.is_some() {
        let review = ReviewRequest { account: identity.account.clone(), constraints, policy_pack_version, policy };
        match state.requests().request_until(&review, deadline.min(Instant::now() + REVIEW_TIMEOUT)).await {
            Ok(review) => errors.extend(review.errors),
            Err(error) => tracing::warn!(error = &error as &dyn Error, "bad request could not be reviewed"),
        }
    }
    Err(ApiError::Invalid(errors))
}
