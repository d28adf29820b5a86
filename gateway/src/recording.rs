//! Records for a caller: its key is confirmed right before the append, and events are settled after it.
//!
//! An event of an approval becomes a line of the chain here; it lies in the evaluator's outbox until the evaluator
//! hears that the line is in the log. INVARIANT: settling is best effort and changes no answer: what is not settled is
//! handed out again, and then its line is there twice, with the same `event_id`.

use std::error::Error;
use std::time::Duration;

use serde_json::{Map, Value};
use stage0_contract::{
    AccountId, ApprovalEvent, EventRef, EventsSettled, ManageReply, Released, RequestId, SettleEvents,
};
use tokio::time::Instant;

use crate::auth::{KEYSTORE_SILENT, confirm};
use crate::errors::{ApiError, Change, Part};
use crate::key_cache::VerifiedCaller;
use crate::recorder::{LineGroup, NewLine, NotRecorded};
use crate::state::AppState;

/// How often the caller's identity may become stale between its last confirmation and the append.
const MAX_INVALIDATIONS: u32 = 3;
/// It delays the answer.
const SETTLE_TIMEOUT: Duration = Duration::from_millis(300);

#[derive(Debug)]
pub(crate) struct RecordError {
    pub(crate) error: ApiError,
    /// The log surely does not have the lines.
    pub(crate) is_certain: bool,
    /// The caller's key is not valid any more, or that is not known.
    pub(crate) caller_refused: bool,
}

impl RecordError {
    /// The answer to a call that changed something: 401 for a refused key, and else what is known of the
    /// change.
    pub(crate) fn or(self, change: Change) -> ApiError {
        if self.error == ApiError::Unauthorized { self.error } else { ApiError::NotRecorded(change) }
    }
}

/// Records lines whose caller, if there is one, is confirmed right before the append.
pub(crate) async fn record(
    state: &AppState,
    request_id: RequestId,
    mut group: LineGroup,
    deadline: Instant,
) -> Result<(), RecordError> {
    let mut not_recorded = NotRecorded::CallerStale;
    for _ in 0..MAX_INVALIDATIONS {
        if let Some(caller) = &group.caller {
            let caller = confirm(&state.key_cache, state.requests(), caller, Some(request_id)).await;
            let caller = caller.map_err(|error| RecordError { error, is_certain: true, caller_refused: true })?;
            group.caller = Some(caller);
        }
        let coming = group.coming.take();
        match state.recorder.record(LineGroup { coming, ..group.clone() }, deadline).await {
            Ok(()) => return Ok(()),
            Err(NotRecorded::CallerStale) => {}
            Err(error) => {
                not_recorded = error;
                break;
            }
        }
    }
    let error = &not_recorded as &dyn Error;
    tracing::warn!(%request_id, account = %group.account, error, "lines were not recorded");
    let (part, is_certain) = match not_recorded {
        // Only the keystore knows.
        NotRecorded::CallerStale => (KEYSTORE_SILENT, true),
        NotRecorded::Failed(_) => (Part::LogUnwritten, true),
        NotRecorded::Late | NotRecorded::Unknown(_) => (Part::LogUnwritten, false),
    };
    Err(RecordError { error: ApiError::Missing(part), is_certain, caller_refused: false })
}

/// The lines of events of this account.
pub(crate) fn event_lines(account: &AccountId, events: &[ApprovalEvent]) -> Result<Vec<NewLine>, ApiError> {
    let line = |event: &ApprovalEvent| {
        let mut body = Map::from_iter([("account".to_owned(), Value::from(account.as_str()))]);
        if let Value::Object(members) = serde_json::to_value(event)? {
            // The recorder writes the type, before what it links.
            body.extend(members.into_iter().filter(|(name, _)| name != "type"));
        }
        Ok(NewLine { kind: event.kind, body: serde_json::to_vec(&body)?.into() })
    };
    events.iter().map(line).collect::<Result<_, serde_json::Error>>().map_err(|error| {
        tracing::error!(%account, error = &error as &dyn Error, "an event could not be written");
        ApiError::Unavailable
    })
}

/// Records an event that no outbox holds, in the log of this account with its retention in days.
pub(crate) async fn record_event(
    state: &AppState,
    request_id: RequestId,
    caller: VerifiedCaller,
    (account, retention_days): (&AccountId, u32),
    event: ApprovalEvent,
) -> Result<(), RecordError> {
    let lines = event_lines(account, &[event]);
    let lines = lines.map_err(|error| RecordError { error, is_certain: true, caller_refused: false })?;
    let group = LineGroup { caller: Some(caller), account: account.clone(), retention_days, lines, coming: None };
    record(state, request_id, group, Instant::now() + state.config.request_budget).await
}

/// Tells the evaluators that these events are in the log, or that a check's decision surely is not. Whether they have
/// noted it.
pub(crate) async fn settle(
    state: &AppState,
    account: &AccountId,
    recorded: &[ApprovalEvent],
    released: Option<Released>,
) -> bool {
    settle_refs(state, account, recorded.iter().map(EventRef::of).collect(), released).await
}

/// As [`settle`], of events by their ids.
pub(crate) async fn settle_refs(
    state: &AppState,
    account: &AccountId,
    recorded: Vec<EventRef>,
    released: Option<Released>,
) -> bool {
    if recorded.is_empty() && released.is_none() {
        return true;
    }
    let settle = SettleEvents { account: account.clone(), recorded, released };
    match state.requests().request(&settle, SETTLE_TIMEOUT).await {
        Ok(ManageReply::Done(EventsSettled {})) => return true,
        Ok(reply) => tracing::warn!(%account, ?reply, "events of approvals were not settled"),
        Err(error) => {
            tracing::warn!(%account, error = &error as &dyn Error, "events of approvals were not settled");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage0_contract::{ApprovalRecord, LineType};

    #[test]
    fn an_events_line_names_its_account_and_its_type_once() {
        let record: ApprovalRecord =
            serde_json::from_str(include_str!("../../contract/fixtures/approval_record.json")).unwrap();
        let line = event_lines(&record.account, std::slice::from_ref(&record.event)).unwrap().pop().unwrap();
        assert_eq!(line.kind, LineType::ApprovalRequested);
        let header = stage0_contract::LineHeader {
            line: line.kind,
            chain: record.chain.clone(),
            recorded_at: record.recorded_at,
            expires_at: record.expires_at,
        };
        let whole = header.with(&line.body).unwrap();
        assert_eq!(String::from_utf8(whole.clone()).unwrap().matches("\"type\":").count(), 1);
        // As strictly as a request: a second member of one name is refused.
        let whole = stage0_contract::parse_strict(&whole).unwrap();
        assert_eq!(serde_json::from_value::<ApprovalRecord>(whole).unwrap(), record);
    }
}
