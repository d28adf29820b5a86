//! `POST /check`: the product's main job, step by step.
//!
//! Owns the order of refusals (contract, section 1) and the budget: what the keystore, the evaluators and the log take together, tries
//! included, stays below `request_budget`. A question that got lost is asked again within the budget: under one id it counts once.
//! The caller's key is looked at again before the append and before the answer leaves.
//! INVARIANT: the answer leaves after the log has acknowledged its record, unless the operator chose best effort.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{ContentType, HeaderName, HeaderValue, USER_AGENT};
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use jiff::Timestamp;
use serde_json::{Map, Value};
use stage0_backplane::{AskError, ClockError, MAX_FRESH_CLOCK, Requests};
use stage0_contract::{
    AuditMode, CallerTexts, CheckRequest, CheckResponse, Circumstances, ClientOrigin, ClientRequestId, Decided,
    Decision, Durations, EvaluateReply, EvaluateRequest, FieldError, KeyIdentity, Recordable, RequestId, ResponseMeta,
    ReviewRequest, Role, RunId, Scope, Severity, Verdict, canonical_hash, recordable as recordable_line,
};
use tokio::time::Instant;

use super::decisions::shelf;
use super::{REQUEST_ID, Stamp, answer, authenticate, note, stamp_of};
use crate::address::Client;
use crate::auth::{SILENT, confirmed};
use crate::body::{self, Body};
use crate::errors::{ApiError, How, Part};
use crate::idempotency::{Before, Claim, Ended, IDEMPOTENCY_KEY, MOST_RACES, Repeatable};
use crate::keyring::Believed;
use crate::metrics::{InFlight, Step, timed};
use crate::quota::{Reservation, end_of_day};
use crate::recorder::{Entry, NotRecorded, Recorder};
use crate::state::Gate;

/// Of draft-ietf-httpapi-ratelimit-headers-06; the reset is in seconds.
const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
/// Of a line of the log: reasons, rules and who asked; and what of the request is in it, escaped.
const MAX_LINE_BYTES: usize = 64 << 10;
const LINE_BYTES_FOR_EACH: usize = 8;
/// The code of a request that holds a secret.
const SECRET: &str = "SECRET_IN_REQUEST";
const MOST_TRIES: u32 = 3;
/// How often a caller may come into doubt between the last look at its key and the append.
const MOST_DOUBTS: u32 = 3;
/// Between two tries when the first failed at once: an evaluator that restarts needs a moment.
const PAUSE: Duration = Duration::from_millis(50);
/// Of a user agent, in characters.
const MOST_AGENT_CHARS: usize = 256;
/// A review only adds to a refusal that stands already.
const REVIEW_WITHIN: Duration = Duration::from_millis(500);

pub(super) async fn check(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    // A task of its own: the server drops a handler whose client is gone, and what is counted and recorded would fall apart.
    let answered = actix_web::rt::spawn(answered(gate, request.clone(), payload)).await;
    answered.unwrap_or_else(|error| {
        tracing::error!(%error, "a check ended early");
        answer(&request, Err(ApiError::Unavailable))
    })
}

async fn answered(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let _in_flight = InFlight::begin();
    let mut caller = None;
    let decided = decide(&gate, &request, payload, &mut caller).await;
    let mut response = answer(&request, decided);
    if let Some(told) = caller.and_then(|identity| gate.quotas.told(&identity)) {
        let numbers = [(LIMIT, told.limit), (REMAINING, told.remaining), (RESET, told.reset)];
        for (name, number) in numbers {
            response.headers_mut().insert(name, HeaderValue::from(number));
        }
    }
    response
}

/// A request that may ask.
struct Admitted {
    identity: Arc<KeyIdentity>,
    body: Body,
    deadline: Instant,
}

/// Finds out who asks, whether the account may ask now, and only then what. `caller` is known also when it may not.
async fn admitted(
    gate: &Gate,
    request: &HttpRequest,
    payload: Payload,
    caller: &mut Option<Arc<KeyIdentity>>,
) -> Result<Admitted, ApiError> {
    let budget = Budget::new(gate.config.request_budget);
    // Before the keystore is asked: it believes nothing that such a host says, and could not say why.
    if let Err(error @ (ClockError::Ahead(_) | ClockError::Behind(_))) = gate.ledger().clock().judge() {
        return Err(ApiError::Clock(error));
    }
    let identity = timed(Step::Authenticate, authenticate(gate, request, budget.deadline())).await?;
    *caller = Some(Arc::clone(&identity));
    // An operator neither checks nor reads decisions, whatever else its key was granted.
    if !identity.scopes.contains(&Scope::Check) || identity.scopes.contains(&Scope::Operator) {
        return Err(ApiError::ScopeMissing(Scope::Check));
    }
    gate.ledger().read_clock(MAX_FRESH_CLOCK, budget.deadline()).await.map_err(ApiError::Clock)?;
    timed(Step::Admit, gate.quotas.admit(&identity, gate.ledger(), budget.deadline())).await?;
    let budget = budget.pause();
    let arrived = timed(Step::Body, body::arrived(gate, request, payload, &identity.account)).await?;
    let deadline = budget.resume().deadline();
    let body = arrived.parse(&gate.in_hand, &identity.account, deadline).await?;
    if body.object.get("pro") == Some(&Value::Bool(true)) && !identity.plan.has_pro() {
        return Err(ApiError::PlanWithoutPro);
    }
    Ok(Admitted { identity, body, deadline })
}

async fn decide(
    gate: &Gate,
    request: &HttpRequest,
    payload: Payload,
    caller: &mut Option<Arc<KeyIdentity>>,
) -> Result<HttpResponse, ApiError> {
    let Admitted { identity, body: Body { object: body, bytes, place: _place }, deadline } =
        admitted(gate, request, payload, caller).await?;
    let mut headers = Headers::read(request);
    let log = shelf(gate, &identity);
    let (repeatable, body) = match &headers.idempotency_key {
        None => (None, body),
        Some(key) => {
            let (hash, body) = body::apart(bytes, move || (canonical_hash(&body), body)).await?;
            (Some(Repeatable::new(&identity, key, &body, hash)), body)
        }
    };
    let mut body = Some(body);
    let mut parsed = None;
    let mut reservation = None;
    for _ in 0..MOST_RACES {
        let ticket = match &repeatable {
            None => None,
            Some(repeatable) => match timed(Step::LookUp, repeatable.look_up(gate, &log, deadline)).await? {
                Before::Answered(recorded) => return again(request, &identity, *recorded, headers.client_request_id),
                Before::Otherwise => {
                    headers.errors.push(FieldError::new(IDEMPOTENCY_KEY, "was used with another body"));
                    if body.is_none() {
                        return Err(ApiError::Invalid(headers.errors));
                    }
                    None
                }
                Before::Free(ticket) => Some(ticket),
            },
        };
        if ticket.as_ref().is_some_and(|ticket| ticket.counted) {
            // By an attempt before; what was reserved in an earlier round goes back.
            reservation = None;
        } else if reservation.is_none() {
            reservation = Some(timed(Step::Reserve, gate.quotas.reserve(&identity, gate.ledger(), deadline)).await?);
        }
        if let Some(body) = body.take() {
            let errors = std::mem::take(&mut headers.errors);
            parsed = Some(timed(Step::Parse, parse(gate, &identity, (body, bytes), errors, deadline)).await?);
        }
        let Some(stamp) = stamp_of(request) else { return Err(ApiError::Unavailable) };
        let claim = match ticket {
            None => None,
            // Another attempt was faster: what became of it is seen in the next round.
            Some(ticket) => {
                let claim = ticket.claim(gate.ledger(), stamp.id, gate.config.request_budget, deadline);
                match timed(Step::Claim, claim).await? {
                    None => continue,
                    claim => claim,
                }
            }
        };
        let Some(check) = parsed.take() else { return Err(ApiError::Unavailable) };
        let Some(caller) = request.extensions().get::<Believed>().cloned() else { return Err(ApiError::Unavailable) };
        let asked = Asked { request, caller, identity: &identity, stamp, headers, reservation, deadline };
        let repeats = claim.as_ref().and_then(Claim::repeats);
        let decided = asked.decide(gate, check, repeats).await;
        return match decided {
            Ok(answer) => Ok(answer),
            // The log will say.
            Err(Undecided::PerhapsRecorded(error)) => Err(error),
            Err(Undecided::Before(ended, error)) => {
                if let Some(claim) = claim {
                    claim.give_back(ended, gate.ledger()).await;
                }
                Err(error)
            }
        };
    }
    tracing::warn!(account = %identity.account, "attempts with one idempotency key outrun each other");
    Err(ApiError::Unavailable)
}

/// Why a check has no answer.
enum Undecided {
    /// Nothing of it can be in the log.
    Before(Ended, ApiError),
    /// The recorder had it.
    PerhapsRecorded(ApiError),
}

/// A request that keeps the rules.
struct Parsed {
    check: CheckRequest,
    task_hash: String,
    /// As it arrived.
    bytes: usize,
}

/// A check that nothing speaks against any more.
struct Asked<'a> {
    request: &'a HttpRequest,
    caller: Believed,
    identity: &'a KeyIdentity,
    stamp: Stamp,
    headers: Headers,
    /// None where an attempt before this one counted.
    reservation: Option<Reservation>,
    deadline: Instant,
}

impl Asked<'_> {
    /// Evaluates, records, answers.
    async fn decide(self, gate: &Gate, check: Parsed, operation: Option<RequestId>) -> Result<HttpResponse, Undecided> {
        let failed = |error| Undecided::Before(Ended::Failed, error);
        let Self { request, caller, identity, stamp, headers, mut reservation, deadline } = self;
        let Parsed { check, task_hash, bytes } = check;
        let evaluated_at = gate.ledger().clock().now().as_second();
        let client_request_id = headers.client_request_id;
        let question = EvaluateRequest {
            request_id: stamp.id,
            account: identity.account.clone(),
            request: check,
            evaluated_at,
            operation,
            caller: CallerTexts {
                client_request_id: client_request_id.as_ref().map(ToString::to_string),
                user_agent: user_agent(request),
            },
            max_runs: Some(identity.caps.runs()),
        };
        let asked = Instant::now();
        let evaluated =
            timed(Step::Evaluate, evaluate(gate.requests(), gate.config.request_budget, &question, deadline)).await;
        let Decided { decision, mut recordable } = evaluated.map_err(|error| {
            let refused = matches!(error, ApiError::Invalid(_) | ApiError::TooManyRuns { .. });
            Undecided::Before(if refused { Ended::Refused } else { Ended::Failed }, error)
        })?;
        let evaluation = asked.elapsed();

        let mut input = None;
        if question.request.debug_store_input {
            input = keep_input(gate, identity, &mut recordable, deadline).await;
        } else if let Some(texts) = &mut recordable {
            texts.input = None;
        }
        let meta = ResponseMeta {
            source: "stage0".into(),
            test_mode: false,
            client_request_id,
            audit: gate.config.audit,
            input_stored: question.request.debug_store_input.then_some(input.is_some()),
            ignored_fields: ignored_fields(&question.request, &decision),
        };
        let mut response = CheckResponse::new(decision, stamp.id, task_hash, evaluated_at, meta);
        let mut body = written(&response).map_err(failed)?;
        if let Some(recorder) = &gate.recorder {
            let circumstances =
                circumstances(request, identity, stamp, evaluation, &response.decided, recordable.as_ref());
            let line = line(&response, &body, &circumstances, recordable.as_ref()).map_err(failed)?;
            if line.len() > MAX_LINE_BYTES + LINE_BYTES_FOR_EACH * bytes {
                tracing::error!(request_id = %stamp.id, bytes = line.len(), "evaluator's answer is larger than any to such a question");
                return Err(failed(ApiError::Unavailable));
            }
            let (account, retention_days) = (identity.account.clone(), identity.retention_days);
            let entry = Entry { caller, account, retention_days, body: line.into() };
            // From here on it may be in the log: it counts, whoever is gone.
            reservation.iter_mut().chain(&mut input).for_each(Reservation::keep);
            if let Err(error) = timed(Step::Record, record(gate, recorder, entry, stamp.id, deadline)).await {
                let error = match error {
                    Unrecorded::NotRecorded(error) => error,
                    // Whatever is released without a record, this is not.
                    Unrecorded::Refused(error) => {
                        reservation.iter_mut().chain(&mut input).for_each(Reservation::give_back);
                        return Err(failed(error));
                    }
                };
                tracing::warn!(request_id = %stamp.id, account = %identity.account, error = &error as &dyn std::error::Error, "decision was not recorded");
                if matches!(error, NotRecorded::Failed(_) | NotRecorded::Doubted) {
                    input.iter_mut().for_each(Reservation::give_back);
                }
                if gate.config.audit == AuditMode::Required {
                    let unrecorded = match &error {
                        // That is the keystore's to know.
                        NotRecorded::Doubted => ApiError::Missing(SILENT),
                        NotRecorded::Failed(_) | NotRecorded::Late | NotRecorded::Unknown(_) => {
                            ApiError::Missing(Part::LogUnwritten)
                        }
                    };
                    return Err(match error {
                        NotRecorded::Failed(_) | NotRecorded::Doubted => {
                            reservation.iter_mut().for_each(Reservation::give_back);
                            failed(unrecorded)
                        }
                        NotRecorded::Late | NotRecorded::Unknown(_) => Undecided::PerhapsRecorded(unrecorded),
                    });
                }
                // Best effort: the answer leaves, and does not claim what nobody knows.
                if response.meta.input_stored.is_some() {
                    response.meta.input_stored = Some(false);
                    body = written(&response).map_err(failed)?;
                }
            }
        }
        reservation.iter_mut().for_each(Reservation::keep);
        note(request, identity, Some(&response.decided));
        Ok(HttpResponse::Ok().content_type(ContentType::json()).body(body))
    }
}

/// Counts the input that a check wants kept; without room for it the decision is recorded alone.
async fn keep_input(
    gate: &Gate,
    identity: &KeyIdentity,
    recordable: &mut Option<Recordable>,
    deadline: Instant,
) -> Option<Reservation> {
    let texts = recordable.as_mut()?;
    let input = texts.input.take()?;
    gate.recorder.as_ref()?;
    let bytes = serde_json::to_vec(&input).ok()?.len() as u64;
    let kept = gate.quotas.reserve_bytes(identity, bytes, gate.ledger(), deadline).await;
    if kept.is_some() {
        texts.input = Some(input);
    }
    kept
}

/// The names of what nothing reads. Where the request holds a secret, it may be one of these names.
fn ignored_fields(request: &CheckRequest, decision: &Decision) -> Vec<String> {
    let names = request.ignored_fields();
    if names.is_empty() || decision.issues.iter().all(|issue| issue.code.as_str() != SECRET) {
        return names;
    }
    vec!["*".to_owned()]
}

/// A decision that was recorded before, under its own id.
fn again(
    request: &HttpRequest,
    identity: &KeyIdentity,
    recorded: CheckResponse,
    client_request_id: Option<ClientRequestId>,
) -> Result<HttpResponse, ApiError> {
    let meta = ResponseMeta { client_request_id, ..recorded.meta };
    let response = CheckResponse { cached: true, meta, ..recorded };
    note(request, identity, Some(&response.decided));
    let id = (REQUEST_ID, response.request_id.to_string());
    Ok(HttpResponse::Ok().content_type(ContentType::json()).insert_header(id).body(written(&response)?))
}

fn written(response: &CheckResponse) -> Result<Vec<u8>, ApiError> {
    serde_json::to_vec(response).map_err(|error| {
        tracing::error!(request_id = %response.request_id, %error, "answer could not be written");
        ApiError::Unavailable
    })
}

/// What a caller says beside its body.
struct Headers {
    client_request_id: Option<ClientRequestId>,
    idempotency_key: Option<ClientRequestId>,
    /// What is wrong with them.
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

/// What is recorded beside the answer. Texts of the caller are those that the evaluator has masked.
fn circumstances(
    request: &HttpRequest,
    identity: &KeyIdentity,
    stamp: Stamp,
    evaluation: Duration,
    decision: &Decision,
    recordable: Option<&Recordable>,
) -> Circumstances {
    let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    Circumstances {
        account: identity.account.clone(),
        key_id: identity.key_id.clone(),
        run_id: recordable.and_then(|texts| texts.run_id.clone()),
        effect_classes: recordable.map(|texts| texts.effect_classes.clone()).unwrap_or_default(),
        tools: recordable.map(|texts| texts.tools.clone()).unwrap_or_default(),
        constraints_ignored_count: decision.constraints_ignored.len(),
        client: ClientOrigin {
            address: Client::of_request(request).map(|client| client.address().to_string()),
            user_agent: recordable.and_then(|texts| texts.caller.user_agent.clone()),
        },
        durations: Durations { evaluation_ms: millis(evaluation), total_ms: millis(stamp.started.elapsed()) },
        input: recordable.and_then(|texts| texts.input.clone()),
    }
}

/// Why there is no record.
enum Unrecorded {
    /// The log is at fault.
    NotRecorded(NotRecorded),
    /// The caller is not believed any more.
    Refused(ApiError),
}

/// Records a decision of a caller who is believed when it is appended.
async fn record(
    gate: &Gate,
    recorder: &Recorder,
    mut entry: Entry,
    id: RequestId,
    deadline: Instant,
) -> Result<(), Unrecorded> {
    for _ in 0..MOST_DOUBTS {
        // Much may have happened since it was found out who asks, or nothing for long.
        let caller = confirmed(&gate.keyring, gate.requests(), &entry.caller, Some(id)).await;
        entry.caller = caller.map_err(Unrecorded::Refused)?;
        match recorder.record(entry.clone(), deadline).await {
            Err(NotRecorded::Doubted) => {}
            outcome => return outcome.map_err(Unrecorded::NotRecorded),
        }
    }
    Err(Unrecorded::NotRecorded(NotRecorded::Doubted))
}

/// The line, but for what only the recorder knows: the answer's own bytes, unless its caller's id holds a secret or it
/// tells words of the request that are not kept.
fn line(
    response: &CheckResponse,
    body: &[u8],
    circumstances: &Circumstances,
    recordable: Option<&Recordable>,
) -> Result<Vec<u8>, ApiError> {
    let said = response.meta.client_request_id.as_ref().map(ClientRequestId::as_str);
    let masked = recordable.and_then(|texts| texts.caller.client_request_id.as_deref());
    let recorded = response.decided.recorded();
    let line = if said == masked && recorded.is_none() && response.meta.ignored_fields.is_empty() {
        recordable_line(body, circumstances)
    } else {
        let decided = recorded.unwrap_or_else(|| response.decided.clone());
        let mut response = CheckResponse { decided, ..response.clone() };
        response.meta.ignored_fields = Vec::new();
        response.meta.client_request_id = masked.and_then(|masked| ClientRequestId::parse(masked).ok());
        serde_json::to_vec(&response).and_then(|body| recordable_line(&body, circumstances))
    };
    line.map_err(|error| {
        tracing::error!(request_id = %response.request_id, %error, "record could not be written");
        ApiError::Unavailable
    })
}

/// At most 256 characters.
fn user_agent(request: &HttpRequest) -> Option<String> {
    let value = request.headers().get(USER_AGENT)?;
    Some(String::from_utf8_lossy(value.as_bytes()).chars().take(MOST_AGENT_CHARS).collect())
}

/// The body, which had so many bytes, with every bad field named beside `errors`, also those that only a policy knows
/// to be bad.
async fn parse(
    gate: &Gate,
    identity: &KeyIdentity,
    (body, bytes): (Map<String, Value>, usize),
    mut errors: Vec<FieldError>,
    deadline: Instant,
) -> Result<Parsed, ApiError> {
    let context = body.get("context").and_then(Value::as_object);
    if identity.require_run_id && !matches!(context.map(RunId::in_context), Some(Ok(Some(_)))) {
        errors.push(FieldError::new("context.run_id", "is required: each check of this account names its run"));
    }
    let parsed = body::apart(bytes, move || {
        CheckRequest::parse(Value::Object(body)).map(|check| Parsed { task_hash: check.task_hash(), check, bytes })
    });
    let (constraints, policy_pack_version) = match parsed.await? {
        Ok(parsed) => {
            if errors.is_empty() {
                return Ok(parsed);
            }
            (parsed.check.constraints, parsed.check.policy_pack_version)
        }
        Err(rejected) => {
            errors.extend(rejected.errors);
            (rejected.constraints, rejected.policy_pack_version)
        }
    };
    if !constraints.is_empty() || policy_pack_version.is_some() {
        let review = ReviewRequest { account: identity.account.clone(), constraints, policy_pack_version };
        match gate.requests().ask_until(&review, deadline.min(Instant::now() + REVIEW_WITHIN)).await {
            Ok(review) => errors.extend(review.errors),
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "bad request could not be reviewed"),
        }
    }
    Err(ApiError::Invalid(errors))
}

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

/// Asks until an evaluator has answered. Each answer is final, also that it gave up or would not begin: another one
/// would take as long, and what is too dear for one must not take the time of all.
async fn evaluate(
    requests: &dyn Requests,
    request_budget: Duration,
    question: &EvaluateRequest,
    deadline: Instant,
) -> Result<Decided, ApiError> {
    let request_id = question.request_id;
    // A frozen evaluator costs one try, not the whole budget.
    let one_try = request_budget * 2 / 5;
    let mut tries = 0;
    let reply = loop {
        tries += 1;
        let error = match requests.ask_until(question, deadline.min(Instant::now() + one_try)).await {
            Ok(reply) => break reply,
            Err(error) => error,
        };
        tracing::warn!(%request_id, attempt = tries, error = &error as &dyn std::error::Error, "evaluator did not answer");
        let again = match error {
            AskError::Late => true,
            AskError::Absent | AskError::Lost => {
                tokio::time::sleep(PAUSE).await;
                true
            }
            AskError::TooLarge | AskError::Unreadable => false,
        };
        if !again || tries == MOST_TRIES || Instant::now() >= deadline {
            return Err(ApiError::Missing(Part::asked::<EvaluateRequest>(&error)));
        }
    };
    match reply {
        EvaluateReply::Decided(decided) if is_sound(&decided.decision) => Ok(*decided),
        EvaluateReply::Decided(_) => {
            tracing::error!(%request_id, "evaluator allowed with a grave issue, refused");
            Err(ApiError::Unavailable)
        }
        EvaluateReply::Invalid(errors) => Err(ApiError::Invalid(errors)),
        EvaluateReply::TooManyRuns { limit } => Err(ApiError::TooManyRuns {
            limit,
            again: end_of_day(Timestamp::from_second(question.evaluated_at).unwrap_or_default()),
        }),
        EvaluateReply::Unable(reason) => {
            tracing::error!(%request_id, reason, "evaluator could not decide");
            Err(ApiError::Missing(Part::Service(Role::Evaluator, How::Failed)))
        }
        EvaluateReply::TimedOut => {
            tracing::warn!(%request_id, "evaluator gave the check up: it took too long");
            Err(ApiError::Missing(Part::Service(Role::Evaluator, How::Busy)))
        }
        EvaluateReply::Busy => {
            tracing::warn!(%request_id, "evaluator refused the check: too many of its account wait");
            Err(ApiError::Missing(Part::Service(Role::Evaluator, How::Busy)))
        }
    }
}

/// What one public client also checks before it believes an ALLOW.
fn is_sound(decision: &Decision) -> bool {
    let grave = decision.issues.iter().any(|issue| issue.severity >= Severity::High);
    decision.verdict != Verdict::Allow || (!grave && decision.risk_score <= 99)
}

/// The time that is ours. It stands still while the caller sends its body.
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

#[cfg(test)]
mod tests;
