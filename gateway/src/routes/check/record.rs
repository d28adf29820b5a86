//! The record of a decision: its line, and the append that must succeed before the answer leaves.

use std::time::Duration;

use actix_web::HttpRequest;
use stage0_contract::{
    CheckResponse, ClientOrigin, ClientRequestId, Decision, Durations, KeyIdentity, RecordMetadata, RedactedTexts,
    RequestId, recordable as recordable_line,
};
use tokio::time::Instant;

use crate::address::Client;
use crate::auth::{KEYSTORE_SILENT, confirm};
use crate::errors::{ApiError, Part};
use crate::key_cache::VerifiedCaller;
use crate::recorder::{DecisionLine, NotRecorded};
use crate::request_context::RequestContext;
use crate::state::AppState;

/// The largest line: reasons, rules and metadata, plus what of the request is in it, escaped.
const MAX_LINE_BYTES: usize = 64 << 10;
const LINE_BYTES_PER_BODY_BYTE: usize = 8;
/// How often the caller's identity may become stale between its last confirmation and the append.
const MAX_INVALIDATIONS: u32 = 3;

/// Why there is no record.
pub(super) enum RecordError {
    /// The caller's key is not valid any more, or that is not known.
    CallerRefused(ApiError),
    /// The recorder's reason.
    NotRecorded(NotRecorded),
}

impl RecordError {
    /// Whether the log surely does not have the decision.
    pub(super) fn is_certain(&self) -> bool {
        match self {
            Self::CallerRefused(_) | Self::NotRecorded(NotRecorded::Failed(_) | NotRecorded::CallerStale) => true,
            Self::NotRecorded(NotRecorded::Late | NotRecorded::Unknown(_)) => false,
        }
    }

    pub(super) fn into_api_error(self) -> ApiError {
        match self {
            Self::CallerRefused(error) => error,
            // Only the keystore knows.
            Self::NotRecorded(NotRecorded::CallerStale) => ApiError::Missing(KEYSTORE_SILENT),
            Self::NotRecorded(NotRecorded::Failed(_) | NotRecorded::Late | NotRecorded::Unknown(_)) => {
                ApiError::Missing(Part::LogUnwritten)
            }
        }
    }
}

/// Records a decision whose caller is confirmed right before the append.
pub(super) async fn record(
    state: &AppState,
    identity: &KeyIdentity,
    caller: VerifiedCaller,
    line: Vec<u8>,
    id: RequestId,
    deadline: Instant,
) -> Result<(), RecordError> {
    let mut line = DecisionLine {
        caller,
        account: identity.account.clone(),
        retention_days: identity.retention_days,
        body: line.into(),
    };
    let mut not_recorded = NotRecorded::CallerStale;
    for _ in 0..MAX_INVALIDATIONS {
        let caller = confirm(&state.key_cache, state.requests(), &line.caller, Some(id)).await;
        line.caller = caller.map_err(RecordError::CallerRefused)?;
        match state.recorder.record(line.clone(), deadline).await {
            Ok(()) => return Ok(()),
            Err(NotRecorded::CallerStale) => {}
            Err(error) => {
                not_recorded = error;
                break;
            }
        }
    }
    let error = &not_recorded as &dyn std::error::Error;
    tracing::warn!(request_id = %id, account = %identity.account, error, "decision was not recorded");
    Err(RecordError::NotRecorded(not_recorded))
}

/// What is recorded beside the answer. Texts of the caller are taken from what the evaluator has masked.
pub(super) fn record_metadata(
    request: &HttpRequest,
    identity: &KeyIdentity,
    context: RequestContext,
    evaluation: Duration,
    decision: &Decision,
    recordable: Option<&RedactedTexts>,
) -> RecordMetadata {
    let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    RecordMetadata {
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
        durations: Durations { evaluation_ms: millis(evaluation), total_ms: millis(context.started.elapsed()) },
        input: recordable.and_then(|texts| texts.input.clone()),
    }
}

/// The record's line, without what only the recorder knows. It has the answer's own bytes, unless the answer holds
/// something that is not kept: a secret in the caller's id, or words of the request.
pub(super) fn record_line(
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
        let error = &error as &dyn std::error::Error;
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
