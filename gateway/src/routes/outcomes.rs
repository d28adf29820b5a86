//! `POST /v1/decisions/{request_id}/outcome`: what came of an allowed action, as its workload reports it.
//!
//! The evaluator keeps outcomes and judges a second report. The decision is looked up in the log first, for what was
//! decided and for its run and approval. One that the log does not have is asked about all the same: the evaluator may
//! count an action as open whose decision was never recorded.
//! INVARIANT: the answer leaves after its line is in the log.

use std::sync::Arc;

use actix_web::web::Path;
use actix_web::{HttpRequest, HttpResponse};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;
use stage0_contract::{
    ApprovalId, ApprovalRef, ApprovalSource, EventActor, KeyIdentity, MAX_DURATION_MS, MAX_TOOL_CALL_ID_CHARS, Micros,
    OutcomeReported, OutcomeStatus, ReportDecisionOutcome, ReportedOutcome, RequestId, RunId, Scope, Verdict, hidden,
    is_blank, is_invisible,
};
use stage0_guard::Ended;

use super::approvals::{authorize, record_change};
use super::decisions::{find_decision, read_failed};
use super::fields::Fields;
use super::management::{Call, to_the_end};
use crate::errors::{ApiError, Change};

pub(super) const STATUS_MUST: &str = "must be `succeeded`, `failed`, `unknown` or `skipped`";

/// What a body says.
struct Report {
    status: OutcomeStatus,
    tool_call_id: Option<String>,
    duration_ms: Option<u64>,
    cost: Option<Micros>,
}

/// What an outcome needs of its decision's record.
#[derive(Deserialize)]
struct Decided {
    verdict: Verdict,
    recorded_at: Timestamp,
    expires_at: i64,
    #[serde(default)]
    run_id: Option<String>,
    #[serde(default)]
    approval: Option<ApprovalRef>,
    #[serde(default)]
    meta: DecidedMeta,
}

#[derive(Default, Deserialize)]
struct DecidedMeta {
    #[serde(default)]
    approval_source: Option<ApprovalSource>,
}

pub(super) async fn report(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::OutcomesReport]).await?;
    let request_id = RequestId::parse(&id).map_err(|_| ApiError::NotFound)?;
    let report = Report::read(call.json_fields(&identity.account).await?)?;
    Ok(HttpResponse::Ok().json(keep(call, identity, request_id, report).await?))
}

/// What a hook saw of a call that a decision had allowed. Nothing is reported of what cannot stand in a report.
pub(super) async fn report_of_hook(
    request: &HttpRequest,
    request_id: RequestId,
    ended: &Ended,
) -> Result<ReportedOutcome, ApiError> {
    let call = Call::of(request)?;
    let identity = authorize(&call, &[Scope::OutcomesReport]).await?;
    let report = Report {
        status: OutcomeStatus::parse(ended.status.as_str()).ok_or(ApiError::Unavailable)?,
        tool_call_id: ended.call_id.as_deref().and_then(tool_call_id),
        duration_ms: ended.duration_ms.filter(|ms| *ms <= MAX_DURATION_MS),
        cost: None,
    };
    keep(call, identity, request_id, report).await
}

async fn keep(
    call: Call,
    identity: Arc<KeyIdentity>,
    request_id: RequestId,
    report: Report,
) -> Result<ReportedOutcome, ApiError> {
    if !call.state.actor_of(&identity).can_record {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let decided = match find_decision(&call.state, &identity, request_id).await? {
        (Some(record), _permit) => Some(Decided::read(record)?),
        (None, _permit) => None,
    };
    let message = report.of_decision(&identity, request_id, decided);
    to_the_end(async move {
        let OutcomeReported { outcome, settled, unrecorded } = call.send(&message).await?;
        record_change(&call, &identity, unrecorded).await?;
        Ok(ReportedOutcome { outcome, settled })
    })
    .await
}

impl Report {
    fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let status = fields.required("status", STATUS_MUST, |v| OutcomeStatus::parse(v.as_str()?));
        let must = "must be text of 1 to 256 characters, without control and invisible ones";
        let tool_call_id = fields.word("tool_call_id", must, tool_call_id);
        let duration_ms = fields.number_within("duration_ms", 0, MAX_DURATION_MS);
        let must = "must be a number of US dollars from 0 to 1000000000";
        let cost = fields.optional("cost_usd", must, |v| Micros::usd(v.as_number()?).ok());
        fields.finish()?;
        Ok(Self { status: status.ok_or(ApiError::Unavailable)?, tool_call_id, duration_ms, cost })
    }

    /// The report as the evaluator gets it. A decision that is not in the log counts as made now.
    fn of_decision(
        self,
        identity: &KeyIdentity,
        request_id: RequestId,
        decided: Option<Decided>,
    ) -> ReportDecisionOutcome {
        let member = identity.holder.as_ref().and_then(|holder| holder.member.as_ref());
        let (decided_at, expires_at) = decided
            .as_ref()
            .map_or_else(|| unrecorded_times(Timestamp::now()), |decided| (decided.recorded_at, decided.expires_at));
        ReportDecisionOutcome {
            account: identity.account.clone(),
            actor: EventActor::of(&identity.key_id, member),
            request_id,
            status: self.status,
            tool_call_id: self.tool_call_id,
            duration_ms: self.duration_ms,
            actual_micros: self.cost.map(Micros::get),
            may_lower: identity.scopes.contains(&Scope::RunsManage),
            run_id: decided.as_ref().and_then(|decided| RunId::parse(decided.run_id.as_deref()?).ok()),
            approval_id: decided.and_then(Decided::used_approval),
            decided_at,
            expires_at,
        }
    }
}

impl Decided {
    /// The record of a decision that allowed its action.
    fn read(record: Value) -> Result<Self, ApiError> {
        let decided: Self = serde_json::from_value(record).map_err(|error| read_failed(&error))?;
        if decided.verdict == Verdict::Allow {
            return Ok(decided);
        }
        Err(ApiError::Conflict("the check was not allowed, so there is no outcome to report".to_owned()))
    }

    /// The approval that the decision used up. What the caller says of an approval elsewhere is none of ours.
    fn used_approval(self) -> Option<ApprovalId> {
        self.approval.filter(|_| self.meta.approval_source != Some(ApprovalSource::Caller))?.id
    }
}

/// When a decision that is not in the log was made, and from which second on it is not shown: from now on, so that the
/// evaluator frees an action that waits for it and keeps no outcome beside it.
fn unrecorded_times(now: Timestamp) -> (Timestamp, i64) {
    (now, now.as_second())
}

fn tool_call_id(text: &str) -> Option<String> {
    let is_shown = |c: char| !c.is_control() && !is_invisible(c);
    let is_id = !is_blank(text) && text.chars().count() <= MAX_TOOL_CALL_ID_CHARS;
    (is_id && text.chars().all(is_shown) && hidden(text).is_none()).then(|| text.to_owned())
}
