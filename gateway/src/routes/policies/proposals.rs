//! `/v1/policies/proposals`: activations that wait for a second member. The keystore keeps them and judges who may
//! decide.
//!
//! An approval is tried, recorded as the activation that it makes, and made. A proposal and every other end of one
//! change nothing, so they are stored first and recorded then; the same call again records them again.

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::Timestamp;
use stage0_contract::{
    Activation, ApprovalEvent, DecideProposal, KeyIdentity, ListProposals, PolicyProposal, ProposalDecided,
    ProposalDecision, ProposalId, ProposalStatus, Scope, ShowProposal,
};
use uuid::Uuid;

use super::recorded::{invalidate, record_event_of, record_not_made};
use super::{MAX_REASON_CHARS, masked_reason};
use crate::errors::{ApiError, Change};
use crate::routes::management::{Call, to_the_end};
use crate::routes::stops::refuse_secrets;

pub(in crate::routes) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let statuses = ProposalStatus::ALL.map(|status| format!("`{}`", status.as_str())).join(", ");
    let status = fields.word("status", &format!("must be one of {statuses}"), ProposalStatus::parse);
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ListProposals { caller, account, status, cursor, limit }).await?))
}

pub(in crate::routes) async fn show(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    call.query_fields().finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ShowProposal { caller, id: named(&id)? }).await?))
}

pub(in crate::routes) async fn approve(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (call, trial) = decision(call, &id, ProposalDecision::Approve).await?;
    let done = to_the_end(async move {
        let identity = call.identity()?;
        let trial = DecideProposal { is_trial: true, ..masked(&call, &identity, trial).await };
        let tried = call.send(&trial).await?;
        let activation = activation_of(&call, &tried).await?;
        let (account, recorded) = (&tried.proposal.account, Uuid::now_v7());
        let event = ApprovalEvent { at: Timestamp::now(), ..activation.event(recorded) };
        record_event_of(&call, (account, tried.retention_days), event, Change::NotActivated).await?;
        let made = call.send(&DecideProposal { is_trial: false, ..trial }).await;
        let is_not_made = match &made {
            Ok(made) => made.activation.is_none(),
            Err(error) => error.is_refusal(),
        };
        if is_not_made {
            record_not_made(&call, &identity, &activation, tried.retention_days, recorded).await;
        }
        let activation = activation_of(&call, &made?).await?;
        invalidate(&call.state, &activation);
        Ok(activation)
    });
    Ok(HttpResponse::Ok().json(done.await?))
}

pub(in crate::routes) async fn deny(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    end(call, &id, ProposalDecision::Deny).await
}

pub(in crate::routes) async fn cancel(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    end(call, &id, ProposalDecision::Cancel).await
}

async fn end(call: Call, id: &Path<String>, decision_of: ProposalDecision) -> Result<HttpResponse, ApiError> {
    let (call, decide) = decision(call, id, decision_of).await?;
    if !call.state.can_record() {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let done = to_the_end(async move {
        let identity = call.identity()?;
        let decide = masked(&call, &identity, decide).await;
        let ProposalDecided { proposal, is_new, retention_days, .. } = call.send(&decide).await?;
        record(&call, &proposal, is_new, retention_days).await?;
        Ok(proposal)
    });
    Ok(HttpResponse::Ok().json(done.await?))
}

/// Records a proposal, or how it ended.
pub(super) async fn record(
    call: &Call,
    proposal: &PolicyProposal,
    is_new: bool,
    retention_days: u32,
) -> Result<(), ApiError> {
    let Some(event) = proposal.event(!is_new, Uuid::now_v7(), Timestamp::now()) else { return Ok(()) };
    let change = if proposal.status == ProposalStatus::Pending { Change::Proposed } else { Change::Delegated };
    record_event_of(call, (&proposal.account, retention_days), event, change).await
}

/// What an approval activates. Where another version is in force by now, the proposal has ended, which is recorded.
async fn activation_of(call: &Call, decided: &ProposalDecided) -> Result<Activation, ApiError> {
    if let Some(activation) = &decided.activation {
        return Ok(activation.clone());
    }
    record(call, &decided.proposal, decided.is_new, decided.retention_days).await?;
    Err(ApiError::Conflict(
        "another version is in force than when it was proposed, so the proposal has ended: propose it again".to_owned(),
    ))
}

/// What a member decides, from the body of the call.
async fn decision(
    mut call: Call,
    id: &Path<String>,
    decision: ProposalDecision,
) -> Result<(Call, DecideProposal), ApiError> {
    let caller = call.caller_with_scope(Scope::PoliciesManage).await?;
    let mut fields = call.optional_json_fields(&caller.account).await?;
    let reason = match decision {
        ProposalDecision::Deny => Some(fields.required_prose("reason", MAX_REASON_CHARS)),
        ProposalDecision::Approve | ProposalDecision::Cancel => fields.prose("reason", MAX_REASON_CHARS),
    };
    refuse_secrets(&mut fields, "reason", reason.as_deref());
    fields.finish()?;
    Ok((call, DecideProposal { caller, id: named(id)?, decision, reason, is_trial: false }))
}

async fn masked(call: &Call, identity: &KeyIdentity, decide: DecideProposal) -> DecideProposal {
    let reason = masked_reason(&call.state, identity, decide.reason.clone()).await;
    DecideProposal { reason, ..decide }
}

/// The proposal in a path. A word that is no id names nothing.
fn named(id: &Path<String>) -> Result<ProposalId, ApiError> {
    ProposalId::parse(id).map_err(|_| ApiError::NotFound)
}
