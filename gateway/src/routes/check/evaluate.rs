//! Asks an evaluator for the decision, and again if it does not answer, within the check's deadline.

use std::error::Error;
use std::time::Duration;

use jiff::Timestamp;
use stage0_backplane::{RequestError, Requests};
use stage0_contract::{Decision, EvaluateReply, EvaluateRequest, Evaluation, Role, Severity, Verdict};
use tokio::time::Instant;

use crate::errors::{ApiError, How, Part};
use crate::quota::end_of_day;

const MAX_ATTEMPTS: u32 = 3;
/// After an attempt that failed at once: an evaluator that restarts needs a moment.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_ALLOWED_RISK: u8 = 99;

/// Sends the request until an evaluator answers; lost requests are sent again under the same id, so they count once.
/// Every answer is final, including that the evaluator gave up or is busy: another one would take as long, and one
/// expensive check must not take the time of all others.
pub(super) async fn evaluate(
    requests: &dyn Requests,
    request_budget: Duration,
    message: &EvaluateRequest,
    deadline: Instant,
) -> Result<Evaluation, ApiError> {
    let request_id = message.request_id;
    // So that a frozen evaluator costs one attempt and not the whole budget.
    let attempt_timeout = request_budget * 2 / 5;
    let mut attempt = 0;
    let reply = loop {
        attempt += 1;
        let error = match requests.request_until(message, deadline.min(Instant::now() + attempt_timeout)).await {
            Ok(reply) => break reply,
            Err(error) => error,
        };
        tracing::warn!(%request_id, attempt, error = &error as &dyn Error, "evaluator did not answer");
        let can_retry = match error {
            RequestError::Timeout => true,
            RequestError::NoResponders | RequestError::Disconnected => {
                tokio::time::sleep(RETRY_DELAY).await;
                true
            }
            RequestError::TooLarge | RequestError::Malformed => false,
        };
        if !can_retry || attempt == MAX_ATTEMPTS || Instant::now() >= deadline {
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
            again: end_of_day(Timestamp::from_second(message.evaluated_at).unwrap_or_default()),
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

/// What a careful client checks, too, before it trusts an ALLOW.
fn is_sound(decision: &Decision) -> bool {
    let has_grave_issue = decision.issues.iter().any(|issue| issue.severity >= Severity::High);
    decision.verdict != Verdict::Allow || (!has_grave_issue && decision.risk_score <= MAX_ALLOWED_RISK)
}

#[cfg(test)]
mod tests;
