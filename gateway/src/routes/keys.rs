//! `/v1/keys`: an account's own keys, or any account's for the operator.

use actix_web::HttpResponse;
use actix_web::web::Path;
use stage0_contract::{CreateKey, KeyId, ListKeys, RevokeKey, Revoked, RotateKey, Scope};

use super::management::Call;
use crate::errors::ApiError;

pub(super) async fn create(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::KeysManage).await?;
    let (mut fields, idempotent) = call.create_fields(&caller, "POST /v1/keys").await?;
    let account = fields.account();
    let name = fields.required_text("name");
    let scopes = fields.scopes();
    let expires_at = fields.timestamp("expires_at");
    let owner = fields.member("owner");
    fields.finish()?;
    let create = CreateKey { caller, account, name, scopes, expires_at, owner };
    Ok(call.create(idempotent, create).await?.0)
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller().await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ListKeys { caller, account, cursor, limit }).await?))
}

pub(super) async fn rotate(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::KeysManage).await?;
    let (mut fields, idempotent) = call.optional_create_fields(&caller, &format!("POST /v1/keys/{id}/rotate")).await?;
    // By default the old key ends at once: a rotation is most urgent when a key has leaked.
    let overlap_seconds = fields.seconds("overlap_seconds").unwrap_or(0);
    fields.finish()?;
    let id = key_id(&id)?;
    let own = caller.key_id.clone();
    let rotate = RotateKey { caller, id: id.clone(), overlap_seconds };
    let (answer, is_new) = call.create(idempotent, rotate).await?;
    if is_new && own == id {
        call.release_without_key();
    }
    Ok(answer)
}

pub(super) async fn revoke(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.revoking_caller().await?;
    let id = key_id(&id)?;
    let own = caller.key_id.clone();
    let Revoked {} = call.send(&RevokeKey { caller, id: id.clone() }).await?;
    if own == id {
        call.release_without_key();
    }
    Ok(HttpResponse::NoContent().finish())
}

/// A text that is not a key id names no key.
fn key_id(text: &str) -> Result<KeyId, ApiError> {
    KeyId::parse(text).map_err(|_| ApiError::NotFound)
}
