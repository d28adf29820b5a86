//! `/v1/grants`: wider grants, with which a workload needs no new approval for a while. The evaluator keeps them.
//!
//! Changes are recorded as those of approvals are. Who holds the key that a grant names is asked of the keystore, so
//! that no caller says it. INVARIANT: a grant is for a workload of the caller's own account.

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::{SignedDuration, Timestamp};
use stage0_contract::{
    ChangeGrant, CreateGrant, Grant, GrantChange, GrantChanged, GrantId, Grants, Holder, KeyId, KeyIdentity,
    ListGrants, MAX_GRANT_SECONDS, MAX_REASON_CHARS, RefreshKey, RefreshKeyReply, Role, Scope,
};

use super::approvals::{READERS, authorize, record_change};
use super::management::{Call, to_the_end};
use crate::errors::{ApiError, Change, How, Part};

const MAX_TEXT_CHARS: usize = 200;
const MAX_EFFECTS: usize = 20;
const MAX_EFFECT_CHARS: usize = 100;
/// What narrows a grant; one of them must be there.
const NARROWING: [&str; 3] = ["run_id", "tool", "effects"];

pub(super) async fn create(mut call: Call) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::ApprovalsDecide]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let key_id =
        fields.required("key_id", "must be the id of a key of the workload", |v| KeyId::parse(v.as_str()?).ok());
    // Null is absent.
    let has_any = NARROWING.iter().any(|name| !fields.take_null(name) && fields.has(name));
    let run_id = fields.prose("run_id", MAX_TEXT_CHARS);
    let tool = fields.prose("tool", MAX_TEXT_CHARS);
    let effects = fields.texts("effects");
    let environment = fields.prose("environment", MAX_TEXT_CHARS);
    let reason = fields.required_prose("reason", MAX_REASON_CHARS);
    let until = fields.timestamp("until");
    if !has_any {
        for name in NARROWING {
            fields.refuse(name, "is required, or one of the others: a grant is for a run, a tool or effects");
        }
    }
    let are_texts = |texts: &Vec<String>| {
        (1..=MAX_EFFECTS).contains(&texts.len())
            && texts.iter().all(|text| !text.trim().is_empty() && text.chars().count() <= MAX_EFFECT_CHARS)
    };
    if effects.as_ref().is_some_and(|effects| !are_texts(effects)) {
        fields.refuse("effects", "must be 1 to 20 effects, each of 1 to 100 characters");
    }
    let now = Timestamp::now();
    let latest = now.checked_add(SignedDuration::from_secs(MAX_GRANT_SECONDS)).unwrap_or(now);
    if until.is_none_or(|until| until <= now || until > latest) {
        fields.refuse("until", "is required: a time such as `2026-01-31T12:00:00Z` (RFC 3339), at most 8 hours ahead");
    }
    fields.finish()?;
    let (Some(key_id), Some(until)) = (key_id, until) else { return Err(ApiError::Unavailable) };
    let (account, actor) = (identity.account.clone(), call.state.actor_of(&identity));
    if !actor.can_record {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let holder = Some(holder_of(&call, &identity, &key_id).await?);
    let create = CreateGrant { account, actor, holder, key_id, run_id, tool, effects, environment, until, reason };
    let grant = to_the_end(async move {
        let GrantChanged { grant, unrecorded } = call.send(&create).await?;
        record_change(&call, &identity, unrecorded).await?;
        Ok(grant)
    });
    Ok(HttpResponse::Created().json(grant.await?))
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &READERS).await?;
    call.query_fields().finish()?;
    let list = ListGrants { account: identity.account.clone(), actor: call.state.actor_of(&identity) };
    let grants: Grants = call.send(&list).await?;
    Ok(HttpResponse::Ok().json(grants))
}

pub(super) async fn approve(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    change(call, id, GrantChange::Approve).await
}

pub(super) async fn revoke(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    change(call, id, GrantChange::Revoke).await
}

async fn change(mut call: Call, id: Path<String>, change: GrantChange) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::ApprovalsDecide]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let reason = fields.required_prose("reason", MAX_REASON_CHARS);
    fields.finish()?;
    // A text that is not a grant's id names no grant.
    let id = GrantId::parse(&id).map_err(|_| ApiError::NotFound)?;
    let (account, actor) = (identity.account.clone(), call.state.actor_of(&identity));
    if !actor.can_record {
        return Err(ApiError::NotRecorded(Change::NotReadable));
    }
    let grant = to_the_end(async move {
        let changed: GrantChanged = call.send(&ChangeGrant { account, actor, id, change, reason }).await?;
        let GrantChanged { grant, unrecorded } = changed;
        record_change(&call, &identity, unrecorded).await?;
        Ok::<Grant, ApiError>(grant)
    });
    Ok(HttpResponse::Ok().json(grant.await?))
}

/// Who holds this key of the caller's account. Another account's key does not exist for the caller.
async fn holder_of(call: &Call, identity: &KeyIdentity, key_id: &KeyId) -> Result<Holder, ApiError> {
    let refresh = RefreshKey { key_id: key_id.clone(), request_id: Some(call.request_id()?) };
    let reply = call.state.requests().request(&refresh, call.state.config.request_budget).await;
    match reply.map_err(|error| ApiError::Missing(Part::asked::<RefreshKey>(&error)))? {
        RefreshKeyReply::Live(found) if found.account == identity.account => {
            found.holder.ok_or(ApiError::NotRecorded(Change::NotReadable))
        }
        RefreshKeyReply::Live(_) | RefreshKeyReply::Gone => Err(ApiError::NotFound),
        RefreshKeyReply::Failed => Err(ApiError::Missing(Part::Service(Role::Keystore, How::Failed))),
    }
}
