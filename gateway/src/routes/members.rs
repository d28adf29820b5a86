//! `/v1/members` and `/v1/invitations`: the people of an account. The keystore keeps them, and judges who may do what.
//!
//! An invitation is accepted without a key: its code is the proof, and a wrong one counts like a failed login of its
//! address. Who decides in another's place is recorded. INVARIANT: names, mail and codes are in no log line.

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::Timestamp;
use serde_json::Map;
use stage0_contract::{
    AcceptInvitation, ApprovalEvent, DelegateMember, EventActor, InvitationCode, InviteMember, KeyIdentity, LineType,
    ListMembers, MAX_INVITATION_SECONDS, Member, MemberId, MemberRemoved, ReinviteMember, RemoveMember, Scope,
    UpdateMember,
};
use uuid::Uuid;

use super::fields::Fields;
use super::management::{Call, to_the_end};
use super::stops::retention_days;
use crate::address::Client;
use crate::errors::{ApiError, Change};
use crate::recording::record_event;

const CHANGES: [&str; 3] = ["name", "mail", "groups"];

pub(super) async fn invite(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::MembersManage).await?;
    let (mut fields, idempotent) = call.create_fields(&caller, "POST /v1/members").await?;
    let account = fields.account();
    let name = fields.required_text("name");
    let mail = fields.text("mail");
    let groups = fields.texts("groups").unwrap_or_default();
    let scopes = fields.optional_scopes();
    let valid_seconds = valid_seconds(&mut fields);
    fields.finish()?;
    let invite = InviteMember { caller, account, name, mail, groups, scopes, valid_seconds };
    Ok(call.create(idempotent, invite).await?.0)
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::MembersManage).await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ListMembers { caller, account, cursor, limit }).await?))
}

pub(super) async fn update(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::MembersManage).await?;
    let mut fields = call.json_fields(&caller.account).await?;
    if CHANGES.iter().all(|name| !fields.has(name)) {
        for name in CHANGES {
            fields.refuse(name, "is required, or one of the others");
        }
    }
    let name = fields.text("name");
    let mail = fields.text("mail");
    let groups = fields.texts("groups");
    fields.finish()?;
    let update = UpdateMember { caller, id: member_id(&id)?, name, mail, groups };
    Ok(HttpResponse::Ok().json(call.send(&update).await?))
}

pub(super) async fn remove(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.revoking_caller().await?;
    let id = member_id(&id)?;
    let MemberRemoved {} = call.send(&RemoveMember { caller, id: id.clone() }).await?;
    if call.identity()?.holder.as_ref().is_some_and(|holder| holder.member.as_ref() == Some(&id)) {
        call.release_without_key();
    }
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn reinvite(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::MembersManage).await?;
    let path = format!("POST /v1/members/{id}/invite");
    let (mut fields, idempotent) = call.optional_create_fields(&caller, &path).await?;
    let valid_seconds = valid_seconds(&mut fields);
    fields.finish()?;
    let reinvite = ReinviteMember { caller, id: member_id(&id)?, valid_seconds };
    Ok(call.create(idempotent, reinvite).await?.0)
}

pub(super) async fn delegate(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller().await?;
    let mut fields = call.json_fields(&caller.account).await?;
    let to = fields.member("to");
    let until = fields.timestamp("until");
    if to.is_some() && until.is_none() {
        fields.refuse("until", "is required with `to`, as a time such as `2026-01-31T12:00:00Z` (RFC 3339)");
    }
    if to.is_none() && until.is_some() {
        fields.refuse("to", "is required with `until`: the member who decides meanwhile");
    }
    fields.finish()?;
    let id = member_id(&id)?;
    if !call.state.can_record() {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let (identity, verified, request_id) = (call.identity()?, call.verified_caller()?, call.request_id()?);
    let delegated = to_the_end(async move {
        let state = &call.state;
        let delegate = DelegateMember { caller: caller.clone(), id, to, until };
        let member: Member = call.send(&delegate).await?;
        let event = delegation_event(&member, &identity);
        let days = retention_days(state, &caller, &identity, &member.account).await;
        let days = days.map_err(|_| ApiError::NotRecorded(Change::Delegated))?;
        let recorded = record_event(state, request_id, verified, (&member.account, days), event).await;
        recorded.map_err(|failed| failed.or(Change::Delegated))?;
        Ok(member)
    });
    Ok(HttpResponse::Ok().json(delegated.await?))
}

pub(super) async fn accept(mut call: Call) -> Result<HttpResponse, ApiError> {
    let client = Client::of_request(&call.request).map(Client::net);
    let state = call.state.clone();
    let logins = state.failed_logins.of(client, None);
    if let Some(blocked) = logins.blocked() {
        return Err(ApiError::TooManyFailedLogins(blocked));
    }
    let mut fields = call.json_fields_without_key().await?;
    let must = "must be the code of an invitation: `inv_` and 32 characters";
    let code = fields.required("code", must, |v| InvitationCode::parse(v.as_str()?));
    fields.finish()?;
    let code = code.ok_or(ApiError::Unavailable)?;
    // To its end: a code works once, and its key is shown in this answer alone.
    let accepted = to_the_end(async move { call.send(&AcceptInvitation { code }).await }).await;
    if accepted.as_ref().is_err_and(|error| *error == ApiError::NotFound) {
        logins.failed();
    }
    Ok(HttpResponse::Created().json(accepted?))
}

fn valid_seconds(fields: &mut Fields) -> u64 {
    fields.seconds("valid_seconds").unwrap_or(MAX_INVITATION_SECONDS)
}

fn delegation_event(member: &Member, by: &KeyIdentity) -> ApprovalEvent {
    let mut details = Map::from_iter([("member_id".to_owned(), member.id.as_str().into())]);
    if let Some(delegate) = &member.delegate {
        details.insert("to".to_owned(), delegate.to.as_str().into());
        details.insert("until".to_owned(), delegate.until.to_string().into());
    }
    let own = by.holder.as_ref().and_then(|holder| holder.member.as_ref());
    ApprovalEvent {
        actor: Some(EventActor::of(&by.key_id, own)),
        details,
        ..ApprovalEvent::new(LineType::ApprovalDelegated, Uuid::now_v7(), Timestamp::now())
    }
}

/// A text that is not a member's id names no member.
fn member_id(text: &str) -> Result<MemberId, ApiError> {
    MemberId::parse(text).map_err(|_| ApiError::NotFound)
}
