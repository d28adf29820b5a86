//! One attempt to decide a check: an evaluator decides, the log records, and then the answer leaves.
//!
//! What happens to an approval meanwhile is recorded in the same batch as the decision. INVARIANT: an ALLOW that used
//! an approval or a wider grant leaves only once it is recorded, in every audit mode; where it surely is not recorded,
//! the evaluator hears that the approval is free again, and where that is not known, it stays used.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{ContentType, USER_AGENT};
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use stage0_backplane::{RequestError, Requests};
use stage0_contract::{
    ApprovalEvent, ApprovalRef, ApprovalSource, CallerTexts, CheckRequest, CheckResponse, ClientOrigin,
    ClientRequestId, Decision, Durations, EvaluateReply, EvaluateRequest, Evaluation, KeyIdentity, LineType,
    MAX_KEPT_FACTS_BYTES, PolicyVersion, RecordMetadata, RedactedTexts, Released, RequestId, ResponseMeta, Role, Scope,
    Severity, Verdict, recordable as recordable_line,
};
use tokio::time::Instant;

use super::{ParsedRequest, bind_to_decision, boottime_of, serialize};
use crate::access_log;
use crate::address::Client;
use crate::config::Audit;
use crate::errors::{ApiError, How, Part};
use crate::idempotency::AttemptEnd;
use crate::key_cache::VerifiedCaller;
use crate::metrics::{CheckStep, timed};
use crate::middleware::RequestContext;
use crate::quota::{Reservation, end_of_day};
use crate::recorder::{ComingLines, LineGroup, NewLine};
use crate::recording::{RecordError, event_lines, record, settle};
use crate::state::AppState;

const MAX_EVALUATIONS: u32 = 3;
/// After an evaluation that failed at once: an evaluator that restarts needs a moment.
const RETRY_DELAY: Duration = Duration::from_millis(50);
const MAX_ALLOWED_RISK: u8 = 99;
const SECRET: &str = "SECRET_IN_REQUEST";
const MAX_USER_AGENT_CHARS: usize = 256;
/// The largest line: reasons, rules and metadata, plus what of the request is in it, escaped.
const MAX_LINE_BYTES: usize = (64 << 10) + MAX_KEPT_FACTS_BYTES;
const LINE_BYTES_PER_BODY_BYTE: usize = 8;

pub(super) struct Attempt<'a> {
    pub(super) state: &'a AppState,
    pub(super) request: &'a HttpRequest,
    pub(super) context: RequestContext,
    /// Bound to its account's rules.
    pub(super) caller: VerifiedCaller,
    pub(super) client_request_id: Option<ClientRequestId>,
    /// The first attempt under the same idempotency key, if this is a later one.
    pub(super) repeats: Option<RequestId>,
    /// The version that the caller wants to be decided by.
    pub(super) min_policy: Option<PolicyVersion>,
    pub(super) deadline: Instant,
}

/// Why an attempt has no answer.
pub(super) struct Failure {
    pub(super) error: ApiError,
    /// How the attempt ended; none if the log may have its decision.
    pub(super) end: Option<AttemptEnd>,
}

impl Failure {
    /// Whether the check may be decided again: the caller's rules changed before the append, and it surely is not in
    /// the log.
    pub(super) fn is_by_change(&self) -> bool {
        self.error == ApiError::Changed && self.end.is_some()
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { error, end: Some(AttemptEnd::Failed) }
    }
}

/// What an evaluator decided, and what it said beside it.
struct Decided {
    decision: Decision,
    recordable: Option<RedactedTexts>,
    source: Option<ApprovalSource>,
    events: Vec<ApprovalEvent>,
    took: Duration,
}

/// A check as evaluators get it, and what they do not need of it.
pub(super) struct Question {
    pub(super) message: Arc<EvaluateRequest>,
    task_hash: String,
    /// The length of the body.
    bytes: usize,
}

impl Attempt<'_> {
    /// Decides the check. Where the caller's rules change meanwhile, it is decided again (`again`).
    pub(super) async fn run(
        mut self,
        parsed: ParsedRequest,
        mut reservation: Option<Reservation>,
    ) -> Result<HttpResponse, Failure> {
        let mut question = self.question(parsed);
        match self.decide(&question, &mut reservation).await {
            // Boxed, so that an ordinary check does not carry the room for it.
            Err(failure) if failure.is_by_change() => {
                Box::pin(self.decide_again(failure, &mut question, &mut reservation)).await
            }
            answered => answered,
        }
    }

    fn question(&self, parsed: ParsedRequest) -> Question {
        let ParsedRequest { check, task_hash, bytes } = parsed;
        let (state, identity) = (self.state, self.identity());
        let message = EvaluateRequest {
            request_id: self.context.id,
            account: identity.account.clone(),
            request: check,
            evaluated_at: state.state_store().clock().now().as_second(),
            operation: self.repeats,
            caller: CallerTexts {
                client_request_id: self.client_request_id.as_ref().map(ToString::to_string),
                user_agent: user_agent(self.request),
            },
            max_runs: Some(identity.caps.runs()),
            asker: state.asker_of(identity),
        };
        Question { message: Arc::new(message), task_hash, bytes }
    }

    pub(super) async fn decide(
        &self,
        question: &Question,
        reservation: &mut Option<Reservation>,
    ) -> Result<HttpResponse, Failure> {
        let Self { state, context, deadline, .. } = *self;
        let Question { message, bytes, .. } = question;
        let identity = self.identity();
        if identity.holder.is_none() && (!identity.rules.stops.is_empty() || identity.rules.needs_published()) {
            // Stops and published policies reach the evaluator with who asks.
            return Err(ApiError::Missing(Part::Service(Role::Keystore, How::Failed)).into());
        }
        let required = self.required_policy(&message.request)?;
        if !identity.rules.candidates.is_empty() {
            let taken = identity.rules.canary_of(&message.request);
            state.canaries.note(&identity.account, &identity.rules.candidates, taken, Instant::now());
        }
        let started = Instant::now();
        let coming = state.recorder.announce();
        let evaluated = evaluate(state.requests(), state.config.request_budget, message, *bytes, deadline);
        let evaluated = timed(CheckStep::Evaluate, evaluated).await.map_err(|error| {
            let refused = matches!(error, ApiError::Invalid(_) | ApiError::TooManyRuns { .. });
            Failure { error, end: Some(if refused { AttemptEnd::Refused } else { AttemptEnd::Failed }) }
        })?;
        let Evaluation { mut decision, recordable, approval_source, events } = evaluated;
        if let Some(approval) = &mut decision.approval {
            approval.url = state.public_url(&approval.url);
        }
        let used = reserved(identity, &decision, approval_source, context.id);
        if let Err(error) = self.require_policy(&decision, required.as_ref()) {
            if used.is_some() {
                Box::pin(settle(state, &identity.account, &[], used)).await;
            }
            return Err(error.into());
        }
        let decided = Decided { decision, recordable, source: approval_source, events, took: started.elapsed() };
        let mut answered = self.record_and_answer(question, decided, reservation, coming).await;
        if let (Some(used), Err(failure @ Failure { end: Some(_), .. })) = (used, &mut answered) {
            let is_released = Box::pin(settle(state, &identity.account, &[], Some(used))).await;
            if failure.is_by_change() && !is_released {
                // It may be released later: then it must not have been reserved again under the same id.
                failure.error = ApiError::Unavailable;
            }
        }
        answered
    }

    pub(super) fn identity(&self) -> &KeyIdentity {
        self.caller.identity()
    }

    /// The published version that must decide; none: the evaluator's own.
    fn required_policy(&self, check: &CheckRequest) -> Result<Option<PolicyVersion>, ApiError> {
        let rules = &self.identity().rules;
        if rules.needs_published()
            && let Some(instance) = self.state.instances.evaluator_without_policies(std::time::Instant::now())
        {
            return Err(ApiError::OldEvaluator(instance));
        }
        if let Some(error) = rules.unclear_environment(check) {
            return Err(ApiError::Invalid(vec![error]));
        }
        let active = rules.policy_of(check).cloned();
        if let Some(active) = &active {
            self.require_min_policy(active)?;
        }
        Ok(active)
    }

    /// Refuses what is decided by an earlier version than the caller asks for.
    fn require_min_policy(&self, decides: &PolicyVersion) -> Result<(), ApiError> {
        match &self.min_policy {
            Some(wanted) if !decides.is_at_least(wanted) => {
                Err(ApiError::OtherPolicy { wanted: wanted.clone(), active: decides.clone() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// An answer says by which version it was decided. Another one than the account's comes from an evaluator of an
    /// earlier release, which has not said so yet: it is not released.
    fn require_policy(&self, decision: &Decision, required: Option<&PolicyVersion>) -> Result<(), ApiError> {
        let decided_by = &decision.policy_version;
        self.require_min_policy(decided_by)?;
        if required.is_none_or(|required| required == decided_by)
            && decision.floor_version == self.identity().rules.floor
        {
            return Ok(());
        }
        let (request_id, floor) = (self.context.id, &decision.floor_version);
        tracing::error!(%request_id, %decided_by, ?floor, ?required, "another policy decided, refused");
        Err(ApiError::Missing(Part::Service(Role::Evaluator, How::Failed)))
    }

    async fn record_and_answer(
        &self,
        question: &Question,
        decided: Decided,
        reservation: &mut Option<Reservation>,
        coming: ComingLines,
    ) -> Result<HttpResponse, Failure> {
        let Self { state, context, .. } = *self;
        let Question { message, task_hash, bytes } = question;
        let EvaluateRequest { request, evaluated_at, .. } = &**message;
        let (identity, answer_until) = (self.identity(), boottime_of(self.deadline));
        let Decided { decision, mut recordable, source, events, took } = decided;
        let keeps_input = request.debug_store_input;
        let mut input = None;
        if keeps_input {
            input = self.reserve_input(&mut recordable).await;
        } else if let Some(texts) = &mut recordable {
            texts.input = None;
        }
        let meta = ResponseMeta {
            source: "stage0".into(),
            test_mode: false,
            client_request_id: self.client_request_id.clone(),
            audit: state.config.audit.into(),
            input_stored: keeps_input.then_some(input.is_some()),
            ignored_fields: ignored_fields(request, &decision),
            approval_source: source,
        };
        let needs_record =
            state.config.audit == Audit::Required || used_approval(&decision, source, context.id).is_some();
        let mut response = CheckResponse::new(decision, context.id, task_hash.clone(), *evaluated_at, meta);
        let mut body = serialize(&response)?;
        let metadata = self.record_metadata(took, &response.decided, recordable.as_ref());
        let line = record_line(&response, &body, *bytes, &metadata, recordable.as_ref())?;
        let mut lines = vec![NewLine { kind: LineType::Decision, body: line.into() }];
        lines.extend(event_lines(&identity.account, &events)?);

        // From here on the log may have it, so it counts, even if the client disconnects.
        reservation.iter_mut().chain(&mut input).for_each(Reservation::keep);
        match timed(CheckStep::Record, self.record(lines, coming)).await {
            Ok(()) if events.is_empty() => {}
            Ok(()) => {
                Box::pin(settle(state, &identity.account, &events, None)).await;
            }
            Err(RecordError { error, is_certain, caller_refused }) => {
                if is_certain {
                    input.iter_mut().for_each(Reservation::give_back);
                }
                if needs_record || caller_refused {
                    if is_certain {
                        reservation.iter_mut().for_each(Reservation::give_back);
                    }
                    return Err(Failure { error, end: is_certain.then_some(AttemptEnd::Failed) });
                }
                // Best effort: the answer leaves, and must not claim that the input was stored.
                if response.meta.input_stored.is_some() {
                    response.meta.input_stored = Some(false);
                    body = serialize(&response)?;
                }
            }
        }
        bind_to_decision(self.request, answer_until);
        access_log::set_decision(self.request, &response.decided);
        Ok(HttpResponse::Ok().content_type(ContentType::json()).body(body))
    }

    async fn record(&self, lines: Vec<NewLine>, coming: ComingLines) -> Result<(), RecordError> {
        let group = LineGroup {
            caller: Some(self.caller.clone()),
            account: self.identity().account.clone(),
            retention_days: self.identity().retention_days,
            lines,
            coming: Some(Arc::new(coming)),
        };
        record(self.state, self.context.id, group, self.deadline).await
    }

    /// Counts the input that the check wants stored. If there is no room for it, the decision is recorded without it.
    async fn reserve_input(&self, recordable: &mut Option<RedactedTexts>) -> Option<Reservation> {
        let texts = recordable.as_mut()?;
        let input = texts.input.take()?;
        let bytes = serde_json::to_vec(&input).ok()?.len() as u64;
        let store = self.state.store_until(self.deadline);
        let reservation = self.state.quotas.reserve_bytes(self.identity(), bytes, store).await?;
        texts.input = Some(input);
        Some(reservation)
    }

    /// What is recorded beside the answer. Texts of the caller are taken from what the evaluator has masked.
    fn record_metadata(
        &self,
        evaluation: Duration,
        decision: &Decision,
        recordable: Option<&RedactedTexts>,
    ) -> RecordMetadata {
        let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        RecordMetadata {
            account: self.identity().account.clone(),
            key_id: self.identity().key_id.clone(),
            run_id: recordable.and_then(|texts| texts.run_id.clone()),
            effect_classes: recordable.map(|texts| texts.effect_classes.clone()).unwrap_or_default(),
            tools: recordable.map(|texts| texts.tools.clone()).unwrap_or_default(),
            facts: recordable.and_then(|texts| texts.facts.clone()),
            constraints_ignored_count: decision.constraints_ignored.len(),
            client: ClientOrigin {
                address: Client::of_request(self.request).map(|client| client.address().to_string()),
                user_agent: recordable.and_then(|texts| texts.caller.user_agent.clone()),
            },
            durations: Durations {
                evaluation_ms: millis(evaluation),
                total_ms: millis(self.context.started.elapsed()),
            },
            input: recordable.and_then(|texts| texts.input.clone()),
        }
    }
}

/// Sends the request until an evaluator answers; lost requests are sent again under the same id, so they count once.
/// Every answer is final, including that the evaluator gave up or is busy: another one would take as long, and one
/// expensive check must not take the time of all others.
async fn evaluate(
    requests: &dyn Requests,
    request_budget: Duration,
    message: &Arc<EvaluateRequest>,
    bytes: usize,
    deadline: Instant,
) -> Result<Evaluation, ApiError> {
    let request_id = message.request_id;
    // So that a frozen evaluator costs one attempt and not the whole budget.
    let attempt_timeout = request_budget * 2 / 5;
    let mut attempt = 0;
    let reply = loop {
        attempt += 1;
        let until = deadline.min(Instant::now() + attempt_timeout);
        let error = match requests.request_shared(message, bytes, until).await {
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
        if !can_retry || attempt == MAX_EVALUATIONS || Instant::now() >= deadline {
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
        EvaluateReply::PolicyMissing { version, is_loading } => {
            tracing::warn!(%request_id, policy_version = %version, is_loading, "evaluator does not have the policy");
            Err(ApiError::PolicyMissing { version, is_loading })
        }
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

/// What is free again if the decision is surely not recorded: an approval or a grant, and for a key that reports
/// outcomes the action, of which an end may be awaited.
fn reserved(
    identity: &KeyIdentity,
    decision: &Decision,
    source: Option<ApprovalSource>,
    request_id: RequestId,
) -> Option<Released> {
    let awaits_outcome = decision.verdict == Verdict::Allow && identity.scopes.contains(&Scope::OutcomesReport);
    let action = || awaits_outcome.then_some(Released { request_id, approval_id: None, grant_id: None });
    used_approval(decision, source, request_id).or_else(action)
}

/// What the evaluator reserved for this check: an approval or a wider grant that allowed it.
fn used_approval(decision: &Decision, source: Option<ApprovalSource>, request_id: RequestId) -> Option<Released> {
    if decision.verdict != Verdict::Allow || source == Some(ApprovalSource::Caller) {
        return None;
    }
    let ApprovalRef { id, grant_id, .. } = decision.approval.clone()?;
    Some(Released { request_id, approval_id: id, grant_id })
}

/// What a careful client checks, too, before it trusts an ALLOW.
fn is_sound(decision: &Decision) -> bool {
    let has_grave_issue = decision.issues.iter().any(|issue| issue.severity >= Severity::High);
    decision.verdict != Verdict::Allow || (!has_grave_issue && decision.risk_score <= MAX_ALLOWED_RISK)
}

/// The names of members that nothing reads. Where the request holds a secret, a name may be that secret.
fn ignored_fields(request: &CheckRequest, decision: &Decision) -> Vec<String> {
    let names = request.ignored_fields();
    if names.is_empty() || decision.issues.iter().all(|issue| issue.code.as_str() != SECRET) {
        return names;
    }
    vec!["*".to_owned()]
}

fn user_agent(request: &HttpRequest) -> Option<String> {
    let value = request.headers().get(USER_AGENT)?;
    Some(String::from_utf8_lossy(value.as_bytes()).chars().take(MAX_USER_AGENT_CHARS).collect())
}

/// The record's line, without what only the recorder knows. It has the answer's own bytes, unless the answer holds
/// something that is not kept: a secret in the caller's id, or words of the request.
fn record_line(
    response: &CheckResponse,
    body: &[u8],
    request_bytes: usize,
    metadata: &RecordMetadata,
    recordable: Option<&RedactedTexts>,
) -> Result<Vec<u8>, ApiError> {
    let client_request_id = response.meta.client_request_id.as_ref().map(ClientRequestId::as_str);
    let masked = recordable.and_then(|texts| texts.caller.client_request_id.as_deref());
    let recorded = response.decided.recorded();
    let line = if client_request_id == masked && recorded.is_none() && response.meta.ignored_fields.is_empty() {
        recordable_line(body, metadata)
    } else {
        let decided = recorded.unwrap_or_else(|| response.decided.clone());
        let mut response = CheckResponse { decided, ..response.clone() };
        response.meta.ignored_fields = Vec::new();
        response.meta.client_request_id = masked.and_then(|masked| ClientRequestId::parse(masked).ok());
        serde_json::to_vec(&response).and_then(|body| recordable_line(&body, metadata))
    };
    let line = line.map_err(|error| {
        let error = &error as &dyn Error;
        tracing::error!(request_id = %response.request_id, error, "record could not be written");
        ApiError::Unavailable
    })?;
    if line.len() > MAX_LINE_BYTES + LINE_BYTES_PER_BODY_BYTE * request_bytes {
        let (request_id, bytes) = (response.request_id, line.len());
        tracing::error!(%request_id, bytes, "evaluator's answer is larger than any to such a request");
        return Err(ApiError::Unavailable);
    }
    Ok(line)
}

#[cfg(test)]
mod tests;
