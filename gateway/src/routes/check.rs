//! `POST /check`: the product's main job, step by step, in [`run`].
//!
//! Owns the order of refusals (contract, section 1) and the budget: what the keystore, the evaluators and the log take
//! together, retries included, stays below `request_budget`. `evaluate` asks an evaluator; `record` makes and appends
//! the record. The caller's key is confirmed again before the append and before the answer leaves.
//! INVARIANT: the answer leaves after the log has acknowledged its record, unless the operator chose best effort.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{ContentType, HeaderName, HeaderValue, USER_AGENT};
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use jiff::Timestamp;
use serde_json::{Map, Value};
use stage0_backplane::{CLOCK_READING_TTL, ClockError};
use stage0_contract::{
    CallerTexts, CheckRequest, CheckResponse, ClientRequestId, Decision, EvaluateRequest, Evaluation, FieldError,
    KeyIdentity, RedactedTexts, RejectedRequest, RequestId, ResponseMeta, ReviewRequest, RunId, Scope, canonical_hash,
};
use tokio::time::Instant;

use super::management::visible_header;
use crate::access_log;
use crate::auth::{authenticate_until, require_any_scope};
use crate::body::{self, Body};
use crate::config::Audit;
use crate::errors::ApiError;
use crate::idempotency::{
    AttemptEnd, Claim, IDEMPOTENCY_KEY, IdempotencyKey, IdempotencyStore, Lookup, MAX_CLAIM_ATTEMPTS,
};
use crate::key_cache::VerifiedCaller;
use crate::log_reader::{LogReader, retention_horizon};
use crate::metrics::{CheckStep, InFlight, timed};
use crate::middleware::REQUEST_ID;
use crate::quota::Reservation;
use crate::request_context::RequestContext;
use crate::state::AppState;

mod evaluate;
mod record;

use evaluate::evaluate;
use record::{RecordError, record, record_line, record_metadata};

/// Of draft-ietf-httpapi-ratelimit-headers-06; the reset is in seconds.
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
/// The code of a request that holds a secret.
const SECRET: &str = "SECRET_IN_REQUEST";
const MAX_USER_AGENT_CHARS: usize = 256;
/// A review only adds to a refusal that is certain already.
const REVIEW_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) async fn check(state: Data<AppState>, request: HttpRequest, payload: Payload) -> HttpResponse {
    // In a task of its own: actix drops the handler of a client that disconnects, and then what was counted and what
    // was recorded would differ.
    let answered = actix_web::rt::spawn(answer(state, request, payload)).await;
    answered.unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "a check ended early");
        HttpResponse::from_error(ApiError::Unavailable)
    })
}

/// Runs the check, and tells the caller its rate limit also when it is refused.
async fn answer(state: Data<AppState>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let _in_flight = InFlight::begin();
    let Some(context) = RequestContext::of(&request) else { return HttpResponse::from_error(ApiError::Unavailable) };
    let mut caller = None;
    let result = run(&state, &request, context, payload, &mut caller).await;
    let mut response = result.unwrap_or_else(|error| error.response(context.id));
    if let Some(limit) = caller.and_then(|identity| state.quotas.rate_limit(&identity)) {
        for (name, number) in [(LIMIT, limit.limit), (REMAINING, limit.remaining), (RESET, limit.reset)] {
            response.headers_mut().insert(name, HeaderValue::from(number));
        }
    }
    response
}

/// All steps of a check. `caller` is set as soon as it is known, also when the check is refused later.
async fn run(
    state: &AppState,
    request: &HttpRequest,
    context: RequestContext,
    payload: Payload,
    caller: &mut Option<Arc<KeyIdentity>>,
) -> Result<HttpResponse, ApiError> {
    let budget = Budget::new(state.config.request_budget);
    // Before the keystore is asked: it would reject every message of a host whose clock is wrong, without a reason.
    if let Err(error @ (ClockError::Ahead(_) | ClockError::Behind(_))) = state.state_store().clock().check() {
        return Err(ApiError::Clock(error));
    }
    let authenticated = authenticate_until(state, request, budget.deadline());
    let identity = timed(CheckStep::Authenticate, authenticated).await?;
    *caller = Some(Arc::clone(&identity));
    require_any_scope(&identity, &[Scope::Check])?;
    state.state_store().read_clock(CLOCK_READING_TTL, budget.deadline()).await.map_err(ApiError::Clock)?;
    timed(CheckStep::Admit, state.quotas.admit(&identity, state.state_store(), budget.deadline())).await?;

    let budget = budget.pause();
    let received = timed(CheckStep::Body, body::receive(state, request, payload, &identity.account)).await?;
    let deadline = budget.resume().deadline();
    // The permit stands for the memory that the request needs until it is answered.
    let Body { object, bytes, permit: _permit } =
        received.parse(&state.request_memory, &identity.account, deadline).await?;
    if object.get("pro") == Some(&Value::Bool(true)) && !identity.plan.has_pro() {
        return Err(ApiError::PlanWithoutPro);
    }

    let mut headers = Headers::read(request);
    let client_request_id = headers.client_request_id.take();
    let received = Received { object, bytes, headers };
    let Prepared { check, claim, reservation } = match prepare(state, context, &identity, received, deadline).await? {
        Preparation::Ready(prepared) => *prepared,
        Preparation::Replay(recorded) => return replay(request, *recorded, client_request_id),
    };

    let Some(caller) = request.extensions().get::<VerifiedCaller>().cloned() else {
        return Err(ApiError::Unavailable);
    };
    let repeats = claim.as_ref().and_then(Claim::repeats);
    let attempt =
        Attempt { state, request, context, caller, identity: &identity, client_request_id, repeats, deadline };
    match attempt.decide_and_record(check, reservation).await {
        Ok(answer) => Ok(answer),
        // A retry finds out in the log.
        Err(Failure::MaybeRecorded(error)) => Err(error),
        Err(Failure::NotRecorded(end, error)) => {
            if let Some(claim) = claim {
                claim.release(end, state.state_store()).await;
            }
            Err(error)
        }
    }
}

/// A request as it arrived.
struct Received {
    object: Map<String, Value>,
    /// The length of the body.
    bytes: usize,
    headers: Headers,
}

struct Headers {
    client_request_id: Option<ClientRequestId>,
    idempotency_key: Option<ClientRequestId>,
    /// What is wrong with them; refused together with what is wrong in the body.
    errors: Vec<FieldError>,
}

impl Headers {
    fn read(request: &HttpRequest) -> Self {
        let mut errors = Vec::new();
        let client_request_id = visible_header(request, "X-Request-Id", &mut errors);
        let idempotency_key = visible_header(request, IDEMPOTENCY_KEY, &mut errors);
        Self { client_request_id, idempotency_key, errors }
    }
}

/// A check that may be evaluated.
struct Prepared {
    check: ParsedRequest,
    /// On the idempotency key, if the request has one.
    claim: Option<Claim>,
    /// None where an earlier attempt under the same key was counted.
    reservation: Option<Reservation>,
}

enum Preparation {
    Ready(Box<Prepared>),
    /// An earlier attempt under the same idempotency key was recorded.
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
    let now = Timestamp::now();
    let log =
        LogReader { log: state.log(), account: &identity.account, horizon: retention_horizon(identity, now), now };
    let store = IdempotencyStore {
        state_store: state.state_store(),
        requests: state.requests(),
        first_seen: &state.first_seen,
        log: &log,
    };
    let Received { object, bytes, headers: Headers { idempotency_key, mut errors, .. } } = received;
    let (key, object) = match &idempotency_key {
        None => (None, object),
        Some(header) => {
            let (hash, object) = body::compute(bytes, move || (canonical_hash(&object), object)).await?;
            (Some(IdempotencyKey::new(identity, header, &object, hash)), object)
        }
    };
    let mut object = Some(object);
    let mut check = None;
    let mut reservation = None;
    for _ in 0..MAX_CLAIM_ATTEMPTS {
        let available = match &key {
            None => None,
            Some(key) => match timed(CheckStep::LookUp, key.look_up(&store, deadline)).await? {
                Lookup::Replay(recorded) => return Ok(Preparation::Replay(recorded)),
                Lookup::Available(available) => Some(available),
                Lookup::BodyMismatch => {
                    errors.push(FieldError::new(IDEMPOTENCY_KEY, "was used with another body"));
                    if object.is_none() {
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
            let reserved = state.quotas.reserve(identity, state.state_store(), deadline);
            reservation = Some(timed(CheckStep::Reserve, reserved).await?);
        }
        if let Some(object) = object.take() {
            let parsed = parse(state, identity, object, bytes, std::mem::take(&mut errors), deadline);
            check = Some(timed(CheckStep::Parse, parsed).await?);
        }
        let claim = match available {
            None => None,
            Some(available) => {
                let claim = available.claim(state.state_store(), context.id, state.config.request_budget, deadline);
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

/// Why an attempt has no answer.
enum Failure {
    /// The log surely does not have it.
    NotRecorded(AttemptEnd, ApiError),
    /// The log may have it.
    MaybeRecorded(ApiError),
}

impl Failure {
    fn failed(error: ApiError) -> Self {
        Self::NotRecorded(AttemptEnd::Failed, error)
    }
}

/// A request that keeps the rules.
struct ParsedRequest {
    check: CheckRequest,
    task_hash: String,
    /// The length of the body as it arrived.
    bytes: usize,
}

/// One attempt to decide a check.
struct Attempt<'a> {
    state: &'a AppState,
    request: &'a HttpRequest,
    context: RequestContext,
    caller: VerifiedCaller,
    identity: &'a KeyIdentity,
    client_request_id: Option<ClientRequestId>,
    /// The first attempt under the same idempotency key, if this is a later one.
    repeats: Option<RequestId>,
    deadline: Instant,
}

impl Attempt<'_> {
    async fn decide_and_record(
        self,
        parsed: ParsedRequest,
        mut reservation: Option<Reservation>,
    ) -> Result<HttpResponse, Failure> {
        let Self { state, request, context, caller, identity, client_request_id, repeats, deadline } = self;
        let ParsedRequest { check, task_hash, bytes } = parsed;
        let evaluated_at = state.state_store().clock().now().as_second();
        let message = EvaluateRequest {
            request_id: context.id,
            account: identity.account.clone(),
            request: check,
            evaluated_at,
            operation: repeats,
            caller: CallerTexts {
                client_request_id: client_request_id.as_ref().map(ToString::to_string),
                user_agent: user_agent(request),
            },
            max_runs: Some(identity.caps.runs()),
        };
        let started = Instant::now();
        let evaluated = evaluate(state.requests(), state.config.request_budget, &message, deadline);
        let Evaluation { decision, mut recordable } = timed(CheckStep::Evaluate, evaluated).await.map_err(|error| {
            let refused = matches!(error, ApiError::Invalid(_) | ApiError::TooManyRuns { .. });
            Failure::NotRecorded(if refused { AttemptEnd::Refused } else { AttemptEnd::Failed }, error)
        })?;
        let evaluation = started.elapsed();

        let keeps_input = message.request.debug_store_input;
        let mut input = None;
        if keeps_input {
            input = reserve_input(state, identity, &mut recordable, deadline).await;
        } else if let Some(texts) = &mut recordable {
            texts.input = None;
        }
        let meta = ResponseMeta {
            source: "stage0".into(),
            test_mode: false,
            client_request_id,
            audit: state.config.audit.into(),
            input_stored: keeps_input.then_some(input.is_some()),
            ignored_fields: ignored_fields(&message.request, &decision),
        };
        let mut response = CheckResponse::new(decision, context.id, task_hash, evaluated_at, meta);
        let mut body = serialize(&response).map_err(Failure::failed)?;
        let metadata = record_metadata(request, identity, context, evaluation, &response.decided, recordable.as_ref());
        let line = record_line(&response, &body, bytes, &metadata, recordable.as_ref()).map_err(Failure::failed)?;

        // From here on the log may have it, so it counts, even if the client disconnects.
        reservation.iter_mut().chain(&mut input).for_each(Reservation::keep);
        let recorded = timed(CheckStep::Record, record(state, identity, caller, line, context.id, deadline)).await;
        if let Err(error) = recorded {
            let is_certain = error.is_certain();
            if is_certain {
                input.iter_mut().for_each(Reservation::give_back);
            }
            if state.config.audit == Audit::Required || matches!(error, RecordError::CallerRefused(_)) {
                if is_certain {
                    reservation.iter_mut().for_each(Reservation::give_back);
                    return Err(Failure::failed(error.into_api_error()));
                }
                return Err(Failure::MaybeRecorded(error.into_api_error()));
            }
            // Best effort: the answer leaves, and must not claim that the input was stored.
            if response.meta.input_stored.is_some() {
                response.meta.input_stored = Some(false);
                body = serialize(&response).map_err(Failure::failed)?;
            }
        }
        access_log::set_decision(request, &response.decided);
        Ok(HttpResponse::Ok().content_type(ContentType::json()).body(body))
    }
}

/// Counts the input that the check wants stored. If there is no room for it, the decision is recorded without it.
async fn reserve_input(
    state: &AppState,
    identity: &KeyIdentity,
    recordable: &mut Option<RedactedTexts>,
    deadline: Instant,
) -> Option<Reservation> {
    let texts = recordable.as_mut()?;
    let input = texts.input.take()?;
    let bytes = serde_json::to_vec(&input).ok()?.len() as u64;
    let reservation = state.quotas.reserve_bytes(identity, bytes, state.state_store(), deadline).await?;
    texts.input = Some(input);
    Some(reservation)
}

/// The names of members that nothing reads. Where the request holds a secret, a name may be that secret.
fn ignored_fields(request: &CheckRequest, decision: &Decision) -> Vec<String> {
    let names = request.ignored_fields();
    if names.is_empty() || decision.issues.iter().all(|issue| issue.code.as_str() != SECRET) {
        return names;
    }
    vec!["*".to_owned()]
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
        let error = &error as &dyn std::error::Error;
        tracing::error!(request_id = %response.request_id, error, "answer could not be written");
        ApiError::Unavailable
    })
}

fn user_agent(request: &HttpRequest) -> Option<String> {
    let value = request.headers().get(USER_AGENT)?;
    Some(String::from_utf8_lossy(value.as_bytes()).chars().take(MAX_USER_AGENT_CHARS).collect())
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
        let review = ReviewRequest { account: identity.account.clone(), constraints, policy_pack_version };
        match state.requests().request_until(&review, deadline.min(Instant::now() + REVIEW_TIMEOUT)).await {
            Ok(review) => errors.extend(review.errors),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "bad request could not be reviewed"),
        }
    }
    Err(ApiError::Invalid(errors))
}

/// The service's own time for a check. It stands still while the client sends its body.
struct Budget {
    left: Duration,
    since: Instant,
}

impl Budget {
    /// A twentieth is kept back for writing the answer.
    fn new(whole: Duration) -> Self {
        Self { left: whole * 19 / 20, since: Instant::now() }
    }

    fn deadline(&self) -> Instant {
        self.since + self.left
    }

    fn pause(self) -> Self {
        Self { left: self.left.saturating_sub(self.since.elapsed()), since: Instant::now() }
    }

    fn resume(self) -> Self {
        Self { left: self.left, since: Instant::now() }
    }
}
