//! `POST /check`: the product's main job, step by step.
//!
//! Owns the order of refusals (contract, section 1) and the budget: what the keystore and the evaluators take together, tries
//! included, stays below `request_budget`. An evaluation is pure, so a question that got lost is asked again within the budget.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use serde_json::{Map, Value};
use stage0_backplane::AskError;
use stage0_contract::{
    AuditMode, CheckRequest, CheckResponse, ClientRequestId, Decision, EvaluateReply, EvaluateRequest, FieldError,
    KeyIdentity, ResponseMeta, ReviewRequest, Scope, Severity, Verdict,
};
use tokio::time::Instant;

use super::{answer, authenticate, note, request_id};
use crate::body;
use crate::errors::ApiError;
use crate::state::Gate;

const MOST_TRIES: u32 = 3;
/// Between two tries when the first failed at once: an evaluator that restarts needs a moment.
const PAUSE: Duration = Duration::from_millis(50);
/// A review only adds to a refusal that stands already.
const REVIEW_WITHIN: Duration = Duration::from_millis(500);

pub(super) async fn check(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let decided = decide(&gate, &request, payload).await;
    answer(&request, decided)
}

async fn decide(gate: &Gate, request: &HttpRequest, payload: Payload) -> Result<HttpResponse, ApiError> {
    let budget = Budget::new(gate.config.request_budget);
    let identity = authenticate(gate, request, budget.deadline()).await?;
    let budget = budget.pause();
    let body = body::json_object(request, payload, gate.config.body_timeout).await?;
    let budget = budget.resume();

    // An operator neither checks nor reads decisions, whatever else its key was granted.
    if !identity.scopes.contains(&Scope::Check) || identity.scopes.contains(&Scope::Operator) {
        return Err(ApiError::ScopeMissing(Scope::Check));
    }
    if body.get("pro") == Some(&Value::Bool(true)) && !identity.plan.has_pro() {
        return Err(ApiError::PlanWithoutPro);
    }
    let (check, client_request_id) = parse(gate, request, &identity, body, budget.deadline()).await?;

    let Some(request_id) = request_id(request) else { return Err(ApiError::Unavailable) };
    let task_hash = check.task_hash();
    let evaluated_at = Timestamp::now().as_second();
    let question = EvaluateRequest { request_id, account: identity.account.clone(), request: check, evaluated_at };
    let decision = evaluate(gate, &question, budget.deadline()).await?;
    note(request, &identity, Some(decision.verdict));

    let meta = ResponseMeta { source: "stage0".into(), test_mode: false, client_request_id, audit: AuditMode::None };
    Ok(HttpResponse::Ok().json(CheckResponse::new(decision, request_id, task_hash, evaluated_at, meta)))
}

/// Headers and body, with every bad field named, also those that only a policy knows to be bad.
async fn parse(
    gate: &Gate,
    request: &HttpRequest,
    identity: &Arc<KeyIdentity>,
    body: Map<String, Value>,
    deadline: Instant,
) -> Result<(CheckRequest, Option<ClientRequestId>), ApiError> {
    let mut errors = Vec::new();
    let client_request_id = visible_header(request, "X-Request-Id", &mut errors);
    visible_header(request, "Idempotency-Key", &mut errors);
    let (constraints, policy_pack_version) = match CheckRequest::parse(Value::Object(body)) {
        Ok(check) if errors.is_empty() => return Ok((check, client_request_id)),
        Ok(check) => (check.constraints, check.policy_pack_version),
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

fn visible_header(request: &HttpRequest, name: &'static str, errors: &mut Vec<FieldError>) -> Option<ClientRequestId> {
    let mut values = request.headers().get_all(name);
    let value = values.next()?;
    let parsed = value.to_str().ok().and_then(|text| ClientRequestId::parse(text).ok());
    if parsed.is_none() || values.next().is_some() {
        errors.push(FieldError::new(name, "must be given once, as 1 to 128 visible ASCII characters"));
        return None;
    }
    parsed
}

async fn evaluate(gate: &Gate, question: &EvaluateRequest, deadline: Instant) -> Result<Decision, ApiError> {
    let request_id = question.request_id;
    // A frozen evaluator costs one try, not the whole budget.
    let one_try = gate.config.request_budget * 2 / 5;
    let mut tries = 0;
    let reply = loop {
        tries += 1;
        let error = match gate.requests().ask_until(question, deadline.min(Instant::now() + one_try)).await {
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
            return Err(ApiError::Unavailable);
        }
    };
    match reply {
        EvaluateReply::Decided(decision) if is_sound(&decision) => Ok(*decision),
        EvaluateReply::Decided(_) => {
            tracing::error!(%request_id, "evaluator allowed with a grave issue, refused");
            Err(ApiError::Unavailable)
        }
        EvaluateReply::Invalid(errors) => Err(ApiError::Invalid(errors)),
        EvaluateReply::Unable(reason) => {
            tracing::error!(%request_id, reason, "evaluator could not decide");
            Err(ApiError::Unavailable)
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
