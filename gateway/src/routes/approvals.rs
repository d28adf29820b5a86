//! `/v1/approvals`: what people decide about. The evaluator keeps approvals and judges who may see and decide what.
//!
//! A change is recorded before its answer leaves: the evaluator changes its record and hands out the events, which are
//! appended here and settled. Where that fails the answer is a 503, and the event is recorded later. Reading with
//! `wait` answers when the approval changes. Each call counts as a read of its account.

use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Path;
use stage0_contract::{
    Approval, ApprovalChange, ApprovalChanged, ApprovalHistory, ApprovalId, ApprovalStatus, ChangeApproval,
    ExternalApproval, KeyIdentity, ListApprovals, MAX_REASON_CHARS, OutcomeStatus, Page, ReadApprovalHistory, Scope,
    ShowApproval, Unrecorded,
};
use tokio::time::Instant;

use super::decisions::{admit_read, large_json};
use super::fields::Fields;
use super::management::{Call, send_within, to_the_end};
use super::outcomes::STATUS_MUST;
use crate::auth::{authenticate, require_any_scope};
use crate::errors::{ApiError, Change};
use crate::idle_timeout::ConnectionState;
use crate::recorder::LineGroup;
use crate::recording::{event_lines, record, settle};
use crate::state::AppState;

/// Who sees approvals, or a part of them.
pub(super) const READERS: [Scope; 3] = [Scope::Check, Scope::ApprovalsDecide, Scope::DecisionsRead];
const DEFAULT_PAGE: u32 = 50;
const MAX_PAGE: u32 = 100;
const MAX_GROUP_CHARS: usize = 64;
const MAX_EVIDENCE_CHARS: usize = 2_000;
const MAX_EXTERNAL_NAMES: usize = 10;
const MAX_NAME_CHARS: usize = 200;
const MAX_WAIT_SECONDS: u64 = 60;

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &READERS).await?;
    let mut fields = call.query_fields();
    let statuses = ApprovalStatus::ALL.map(|status| format!("`{}`", status.as_str())).join(", ");
    let status = fields.word("status", &format!("must be one of {statuses}"), ApprovalStatus::parse);
    let group = fields.prose("group", MAX_GROUP_CHARS);
    let cursor = fields.text("cursor");
    let limit = fields.limit_within(DEFAULT_PAGE, MAX_PAGE);
    fields.finish()?;
    let (account, actor) = (identity.account.clone(), call.state.actor_of(&identity));
    let list = ListApprovals { account, actor, status, group, cursor, limit };
    let (state, timeout) = (call.state.clone(), call.state.config.request_budget);
    // Limited like a page of decisions, until the client has taken it.
    let page = {
        let (requests, public_url) = (Arc::clone(&state.reading.requests), state.config.public_url.clone());
        async move {
            let mut page: Page<Approval> = send_within(&*requests, &list, timeout).await?;
            if let Some(public) = public_url {
                page.items.iter_mut().for_each(|approval| approval.url = public.join(&approval.url));
            }
            serde_json::to_vec(&page).map_err(|_| ApiError::Unavailable)
        }
    };
    let account = state.bytes.key_of(&identity.account);
    let (page, permit) = state.read_pool.page(account, Instant::now() + timeout, page).await?;
    large_json(&call, &identity, page?, permit)
}

pub(super) async fn show(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &READERS).await?;
    let mut fields = call.query_fields();
    let wait = fields.word("wait", "must be 1 to 60 seconds, such as `30s`", wait);
    fields.finish()?;
    let id = approval_id(&id)?;
    let show = ShowApproval {
        account: identity.account.clone(),
        actor: call.state.actor_of(&identity),
        id: id.clone(),
        wait: None,
    };
    let approval = match wait {
        None => call.send(&show).await?,
        Some(wait) => {
            let until = Instant::now() + wait;
            // Before it is read, so that no change falls between the two.
            let mut waiting = call.state.approval_waits.begin(&identity, &id).map_err(ApiError::TooManyWaits)?;
            let first: Approval = call.send(&show).await?;
            let mut now = first.clone();
            let connection = call.request.conn_data::<ConnectionState>();
            let gone = connection.map(ConnectionState::client_gone).unwrap_or_default();
            while now.status == ApprovalStatus::Pending
                && now == first
                && gone.run_until_cancelled(waiting.changed(until)).await == Some(true)
            {
                now = call.send(&show).await?;
            }
            now
        }
    };
    // The middleware confirms the caller's key again before this leaves.
    Ok(HttpResponse::Ok().json(shown(&call.state, approval)))
}

pub(super) async fn history(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &READERS).await?;
    call.query_fields().finish()?;
    let (account, actor) = (identity.account.clone(), call.state.actor_of(&identity));
    let read = ReadApprovalHistory { account, actor, id: approval_id(&id)? };
    let history: ApprovalHistory = call.send(&read).await?;
    Ok(HttpResponse::Ok().json(history))
}

pub(super) async fn approve(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::ApprovalsDecide]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let action_digest = fields.action_digest();
    let reason = fields.prose("reason", MAX_REASON_CHARS).unwrap_or_default();
    fields.finish()?;
    let action_digest = action_digest.ok_or(ApiError::Unavailable)?;
    change(call, identity, &id, ApprovalChange::Approve { action_digest }, reason).await
}

pub(super) async fn deny(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::ApprovalsDecide]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let action_digest = fields.action_digest();
    let reason = fields.required_prose("reason", MAX_REASON_CHARS);
    fields.finish()?;
    let action_digest = action_digest.ok_or(ApiError::Unavailable)?;
    change(call, identity, &id, ApprovalChange::Deny { action_digest }, reason).await
}

pub(super) async fn register(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::ApprovalsGrant]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let action_digest = fields.action_digest();
    let approved_by = names(&mut fields);
    let evidence = fields.required_prose("evidence", MAX_EVIDENCE_CHARS);
    let reason = fields.prose("reason", MAX_REASON_CHARS).unwrap_or_default();
    fields.finish()?;
    let action_digest = action_digest.ok_or(ApiError::Unavailable)?;
    let external = ExternalApproval { approved_by, evidence };
    change(call, identity, &id, ApprovalChange::Register { action_digest, external }, reason).await
}

pub(super) async fn cancel(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::Check, Scope::ApprovalsDecide]).await?;
    let mut fields = call.optional_json_fields(&identity.account).await?;
    let reason = fields.prose("reason", MAX_REASON_CHARS).unwrap_or_default();
    fields.finish()?;
    change(call, identity, &id, ApprovalChange::Cancel {}, reason).await
}

pub(super) async fn reopen(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::ApprovalsDecide]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let reason = fields.required_prose("reason", MAX_REASON_CHARS);
    fields.finish()?;
    change(call, identity, &id, ApprovalChange::Reopen {}, reason).await
}

pub(super) async fn outcome(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::Check]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let status = fields.required("status", STATUS_MUST, |v| OutcomeStatus::parse(v.as_str()?));
    fields.finish()?;
    let status = status.ok_or(ApiError::Unavailable)?;
    change(call, identity, &id, ApprovalChange::Report { status }, String::new()).await
}

async fn change(
    call: Call,
    identity: Arc<KeyIdentity>,
    id: &str,
    change: ApprovalChange,
    reason: String,
) -> Result<HttpResponse, ApiError> {
    let (account, actor) = (identity.account.clone(), call.state.actor_of(&identity));
    let id = approval_id(id)?;
    if !actor.can_record {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let approval = to_the_end(async move {
        let changed: ApprovalChanged = call.send(&ChangeApproval { account, actor, id, change, reason }).await?;
        let ApprovalChanged { approval, unrecorded } = changed;
        record_change(&call, &identity, unrecorded).await?;
        Ok(shown(&call.state, approval))
    });
    Ok(HttpResponse::Ok().json(approval.await?))
}

/// Records what a call changed, so that its answer may leave.
pub(super) async fn record_change(
    call: &Call,
    identity: &KeyIdentity,
    Unrecorded { events }: Unrecorded,
) -> Result<(), ApiError> {
    if events.is_empty() {
        return Ok(());
    }
    let group = LineGroup {
        caller: Some(call.verified_caller()?),
        account: identity.account.clone(),
        retention_days: identity.retention_days,
        lines: event_lines(&identity.account, &events)?,
        coming: None,
    };
    let deadline = Instant::now() + call.state.config.request_budget;
    let recorded = record(&call.state, call.request_id()?, group, deadline).await;
    recorded.map_err(|failed| failed.or(Change::Pending))?;
    settle(&call.state, &identity.account, &events, None).await;
    Ok(())
}

/// Authenticates a caller with any one of the scopes, and counts the call as a read of its account. An operator's key
/// sees no approvals and decides none.
pub(super) async fn authorize(call: &Call, scopes: &[Scope]) -> Result<Arc<KeyIdentity>, ApiError> {
    let identity = authenticate(&call.state, &call.request).await?;
    require_any_scope(&identity, scopes)?;
    admit_read(&call.state, &identity)?;
    Ok(identity)
}

fn shown(state: &AppState, approval: Approval) -> Approval {
    Approval { url: state.public_url(&approval.url), ..approval }
}

/// The people who approved in a system outside.
fn names(fields: &mut Fields) -> Vec<String> {
    let names = fields.texts("approved_by").unwrap_or_default();
    let is_name = |name: &String| !name.trim().is_empty() && name.chars().count() <= MAX_NAME_CHARS;
    if !(1..=MAX_EXTERNAL_NAMES).contains(&names.len()) || !names.iter().all(is_name) {
        fields.refuse("approved_by", "must be 1 to 10 names, each of 1 to 200 characters");
    }
    names
}

/// Reads `30s`.
fn wait(text: &str) -> Option<Duration> {
    let digits = text.strip_suffix('s').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let seconds: u64 = digits.parse().ok()?;
    (1..=MAX_WAIT_SECONDS).contains(&seconds).then(|| Duration::from_secs(seconds))
}

/// A text that is not an approval's id names no approval.
fn approval_id(text: &str) -> Result<ApprovalId, ApiError> {
    ApprovalId::parse(text).map_err(|_| ApiError::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_one_to_sixty_whole_seconds() {
        for (text, seconds) in [
            ("30s", Some(30)),
            ("1s", Some(1)),
            ("60s", Some(60)),
            ("0s", None),
            ("61s", None),
            ("30", None),
            ("30 s", None),
            ("+3s", None),
            ("1.5s", None),
            ("s", None),
            ("", None),
            ("1m", None),
        ] {
            assert_eq!(wait(text), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
