//! `POST /v1/decisions/{request_id}/outcome`: what a workload says came of an allowed action.
//!
//! In this order: what was reported before, the run's money, the record, the action that waited for it, the approval
//! that was used. Each step can be done again, so a caller that hears of a failure reports the same again.
//! A decision is in no log where `expires_at` is not after `decided_at`, or has come: then only an action that waits
//! for it is freed.
//! INVARIANT: a report that may not settle its cost changes nothing.

use stage0_contract::{
    ApprovalEvent, FieldError, MAX_DURATION_MS, MAX_TOOL_CALL_ID_CHARS, MAX_USD, ManageReply, Micros, OutcomeReported,
    OutcomeStatus, Refusal, ReportDecisionOutcome, RunSettled, SettleRun, Unrecorded, hidden, is_blank,
};
use tokio::time::Instant;

use super::record::{Report, StoredOutcome};
use super::{Outcomes, failed};
use crate::approval::Approvals;
use crate::engines::{Engines, SecretForms};
use crate::metrics;
use crate::records::{RecordError, pause};
use crate::run::RunCoordinator;

/// Stands for a name of a tool call that cannot be searched for secrets.
const LEFT_OUT: &str = "(left out)";

/// What else a report changes.
#[derive(Clone, Copy)]
pub(crate) struct Reporting<'a> {
    pub(crate) engines: &'a Engines,
    pub(crate) runs: &'a RunCoordinator,
    pub(crate) approvals: &'a Approvals,
}

/// Why nothing was reported.
#[derive(Debug)]
enum NotReported {
    Refused(Refusal),
    Failed,
    Busy,
}

impl From<NotReported> for ManageReply<OutcomeReported> {
    fn from(not_reported: NotReported) -> Self {
        match not_reported {
            NotReported::Refused(refusal) => Self::Refused(refusal),
            NotReported::Failed => Self::Failed,
            NotReported::Busy => Self::Busy,
        }
    }
}

impl Outcomes {
    pub(crate) async fn report(
        &self,
        with: Reporting<'_>,
        message: &ReportDecisionOutcome,
        deadline: Instant,
    ) -> ManageReply<OutcomeReported> {
        if let Some(error) = fault(message) {
            return ManageReply::Refused(Refusal::Invalid(vec![error]));
        }
        match self.reported(with, message, deadline).await {
            Ok(reported) => ManageReply::Done(reported),
            Err(not_reported) => not_reported.into(),
        }
    }

    async fn reported(
        &self,
        with: Reporting<'_>,
        message: &ReportDecisionOutcome,
        deadline: Instant,
    ) -> Result<OutcomeReported, NotReported> {
        let account = &message.account;
        let failed = |error: RecordError| {
            failed::<()>(account, &error);
            NotReported::Failed
        };
        let tool_call_id = masked(with.engines, message, deadline).await;
        while Instant::now() < deadline {
            let found = self.decision(account, message.request_id, deadline).await.map_err(failed)?;
            let now = self.records.now();
            let is_logged = is_logged(message, now);
            let known = found.value.filter(|stored| is_logged || !stored.holds.is_empty());
            let Some(mut stored) = known.or_else(|| is_logged.then(|| new_record(message))) else {
                return Err(NotReported::Refused(Refusal::NotFound));
            };
            let report = stored.judge(message, is_logged, now).map_err(NotReported::Refused)?;
            let settled = settle(with.runs, message, deadline).await?;
            let is_changed = match report {
                Report::Again => stored.give_again(now),
                Report::New => {
                    stored.report(message, tool_call_id.clone(), is_logged, now);
                    if is_logged {
                        stored.ends_at = stored.ends_at.max(expiry(message));
                    }
                    true
                }
            };
            if is_changed && !self.put_decision(&stored, found.revision, deadline).await.map_err(failed)? {
                pause().await;
                continue;
            }
            if report == Report::New {
                metrics::outcome_reported(message.status);
                let (request_id, status) = (&message.request_id, message.status.as_str());
                tracing::info!(%account, %request_id, key_id = %message.actor.key_id, status, "outcome reported");
            }
            if message.status != OutcomeStatus::Unknown {
                self.close(&stored, deadline).await.map_err(failed)?;
            }
            let mut events: Vec<ApprovalEvent> = stored.unrecorded().into_iter().collect();
            events.extend(note_on_approval(with.approvals, message, deadline).await?);
            let Some(outcome) = stored.view() else { return Err(NotReported::Failed) };
            return Ok(OutcomeReported { outcome, settled, unrecorded: Unrecorded { events } });
        }
        Err(failed(RecordError::Contended))
    }
}

/// The gateway's clock is another one, so its two times of a decision that the log does not have are compared.
fn is_logged(message: &ReportDecisionOutcome, now: jiff::Timestamp) -> bool {
    message.expires_at > now.as_second().max(message.decided_at.as_second())
}

fn new_record(message: &ReportDecisionOutcome) -> StoredOutcome {
    StoredOutcome::new(message.account.clone(), message.request_id, expiry(message))
}

fn expiry(message: &ReportDecisionOutcome) -> jiff::Timestamp {
    jiff::Timestamp::from_second(message.expires_at).unwrap_or(jiff::Timestamp::MAX)
}

/// The gateway has validated this, but any process may send a request.
fn fault(message: &ReportDecisionOutcome) -> Option<FieldError> {
    if let Some(id) = &message.tool_call_id {
        let length = id.chars().count();
        if is_blank(id) || length > MAX_TOOL_CALL_ID_CHARS || hidden(id).is_some() {
            let message = format!("must be 1 to {MAX_TOOL_CALL_ID_CHARS} characters, all of them visible");
            return Some(FieldError::new("tool_call_id", message));
        }
    }
    if message.duration_ms.is_some_and(|duration| duration > MAX_DURATION_MS) {
        return Some(FieldError::new("duration_ms", format!("must be at most {MAX_DURATION_MS}")));
    }
    let is_amount = |micros| Micros::from_micros(micros).and_then(Micros::at_most_usd).is_ok();
    let is_wrong = message.actual_micros.is_some_and(|micros| !is_amount(micros));
    is_wrong.then(|| FieldError::new("cost_usd", format!("must be from 0 to {MAX_USD} US dollars")))
}

/// The name of the tool call without secrets.
async fn masked(engines: &Engines, message: &ReportDecisionOutcome, deadline: Instant) -> Option<String> {
    let text = message.tool_call_id.clone()?;
    let forms = SecretForms { account: &message.account, policies: Vec::new(), floor: None };
    let masked = engines.with_mask(forms, text.len(), deadline, move |mask| mask(&text)).await;
    Some(masked.unwrap_or_else(|| LEFT_OUT.to_owned()))
}

/// Settles the check in its run; none where there is nothing to settle.
async fn settle(
    runs: &RunCoordinator,
    message: &ReportDecisionOutcome,
    deadline: Instant,
) -> Result<Option<RunSettled>, NotReported> {
    let (Some(run_id), Some(actual_micros)) = (&message.run_id, message.actual_micros) else { return Ok(None) };
    let settle = SettleRun {
        account: message.account.clone(),
        run_id: run_id.clone(),
        request_id: message.request_id,
        actual_micros,
        may_lower: message.may_lower,
    };
    match runs.settle_reported(&settle, deadline).await {
        ManageReply::Done(settled) => Ok(Some(settled)),
        ManageReply::Refused(Refusal::NotFound) => Ok(None),
        ManageReply::Refused(refusal) => Err(NotReported::Refused(refusal)),
        ManageReply::Failed => Err(NotReported::Failed),
        ManageReply::Busy => Err(NotReported::Busy),
    }
}

/// Tells the approval that the decision used. What conflicts there is left as it is.
async fn note_on_approval(
    approvals: &Approvals,
    message: &ReportDecisionOutcome,
    deadline: Instant,
) -> Result<Vec<ApprovalEvent>, NotReported> {
    match &message.approval_id {
        Some(id) => approvals.note_outcome(id, message, deadline).await.map_err(|()| NotReported::Failed),
        None => Ok(Vec::new()),
    }
}
