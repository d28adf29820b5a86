//! `/v1/keys`: an account's own keys, or any account's for the operator.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use stage0_contract::{CreateKey, KeyId, ListKeys, RevokeKey, Revoked, RotateKey, Scope};

use super::fields::Fields;
use super::management;
use crate::body;
use crate::errors::ApiError;
use crate::key_cache::VerifiedCaller;
use crate::state::AppState;

pub(super) async fn create(
    state: Data<AppState>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller_with_scope(&state, &request, Scope::KeysManage).await?;
    let body = body::json_object(&state, &request, payload, &caller.account).await?;
    let (idempotent, errors) = management::idempotency_key(&request, &caller, "POST /v1/keys", &body);
    let mut fields = Fields::of_body_and(body.object, errors);
    let account = fields.account();
    let name = fields.required_text("name");
    let scopes = fields.scopes();
    let expires_at = fields.timestamp("expires_at");
    fields.finish()?;
    let create = CreateKey { caller, account, name, scopes, expires_at };
    Ok(management::create(&state, idempotent, create).await?.0)
}

pub(super) async fn list(state: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let caller = management::caller(&state, &request).await?;
    let mut fields = Fields::of_query(&request);
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    let page = management::call(&state, &ListKeys { caller, account, cursor, limit }).await?;
    Ok(HttpResponse::Ok().json(page))
}

pub(super) async fn rotate(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller_with_scope(&state, &request, Scope::KeysManage).await?;
    let body = body::optional_json_object(&state, &request, payload, &caller.account).await?;
    let call = format!("POST /v1/keys/{id}/rotate");
    let (idempotent, errors) = management::idempotency_key(&request, &caller, &call, &body);
    let mut fields = Fields::of_body_and(body.object, errors);
    // By default the old key ends at once: a rotation is most urgent when a key has leaked.
    let overlap_seconds = fields.seconds("overlap_seconds").unwrap_or(0);
    fields.finish()?;
    let id = key_id(&id)?;
    let own = caller.key_id.clone();
    let rotate = RotateKey { caller, id: id.clone(), overlap_seconds };
    let (answer, is_new) = management::create(&state, idempotent, rotate).await?;
    if is_new && own == id {
        release_without_key(&request);
    }
    Ok(answer)
}

pub(super) async fn revoke(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let caller = management::revoking_caller(&state, &request).await?;
    let id = key_id(&id)?;
    let own = caller.key_id.clone();
    let Revoked {} = management::call(&state, &RevokeKey { caller, id: id.clone() }).await?;
    if own == id {
        release_without_key(&request);
    }
    Ok(HttpResponse::NoContent().finish())
}

/// Lets a call that ended its own caller's key be answered nevertheless.
fn release_without_key(request: &HttpRequest) {
    request.extensions_mut().remove::<VerifiedCaller>();
}

/// A text that is not a key id names no key.
fn key_id(text: &str) -> Result<KeyId, ApiError> {
    KeyId::parse(text).map_err(|_| ApiError::NotFound)
}
