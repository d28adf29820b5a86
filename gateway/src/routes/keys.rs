//! `/v1/keys`: an account's own, or any for the operator. The keystore judges the caller by the key that it presented,
//! which goes with each call; here only the shapes are checked.

use std::time::Duration;

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use stage0_contract::{Caller, CreateKey, KeyId, ListKeys, ManageReply, Request, RevokeKey, Revoked, RotateKey, Scope};
use tokio::time::Instant;

use super::fields::Fields;
use super::{allow, answer, authenticate};
use crate::auth::presented;
use crate::body;
use crate::errors::ApiError;
use crate::keyring::Believed;
use crate::state::Gate;
use crate::throttle::ManagementCall;

/// Asks the keystore, or the exporter, to do something.
pub(super) async fn manage<M, T>(gate: &Gate, message: &M) -> Result<T, ApiError>
where
    M: Request<Reply = ManageReply<T>>,
{
    manage_within(gate, message, gate.config.request_budget).await
}

/// As [`manage`], for what takes longer than a check may.
pub(super) async fn manage_within<M, T>(gate: &Gate, message: &M, within: Duration) -> Result<T, ApiError>
where
    M: Request<Reply = ManageReply<T>>,
{
    match gate.requests().ask(message, within).await {
        Ok(ManageReply::Done(done)) => Ok(done),
        Ok(ManageReply::Refused(refusal)) => Err(refusal.into()),
        Ok(ManageReply::Failed) => {
            tracing::error!(subject = M::SUBJECT, "management call failed");
            Err(ApiError::Unavailable)
        }
        Ok(ManageReply::Busy) => {
            tracing::debug!(subject = M::SUBJECT, "too many management calls wait for the keystore");
            Err(ApiError::Unavailable)
        }
        Err(error) => {
            tracing::error!(
                subject = M::SUBJECT,
                error = &error as &dyn std::error::Error,
                "management call was not answered"
            );
            Err(ApiError::Unavailable)
        }
    }
}

pub(super) async fn create(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let created = async {
        let caller = allowed(&gate, &request, Scope::KeysManage).await?;
        let mut fields = Fields::of_body(body::json_object(&gate, &request, payload, &caller.account).await?.object);
        let (account, name) = (fields.account(), fields.required_text("name"));
        let (scopes, expires_at) = (fields.scopes(), fields.timestamp("expires_at"));
        fields.finish()?;
        let key = manage(&gate, &CreateKey { caller, account, name, scopes, expires_at }).await?;
        Ok::<_, ApiError>(HttpResponse::Created().json(key))
    };
    answer(&request, created.await)
}

pub(super) async fn list(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let listed = async {
        let caller = caller(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let (account, cursor, limit) = (fields.account(), fields.text("cursor"), fields.limit());
        fields.finish()?;
        let page = manage(&gate, &ListKeys { caller, account, cursor, limit }).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(page))
    };
    answer(&request, listed.await)
}

pub(super) async fn rotate(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let rotated = async {
        let caller = allowed(&gate, &request, Scope::KeysManage).await?;
        let body = body::optional_json_object(&gate, &request, payload, &caller.account).await?;
        let mut fields = Fields::of_body(body.object);
        // Without a word about it, the old key ends at once: a rotation is most urgent when a key has leaked.
        let overlap_seconds = fields.seconds("overlap_seconds").unwrap_or(0);
        fields.finish()?;
        let (id, own) = (key_id(&id)?, caller.key_id.clone());
        let key = manage(&gate, &RotateKey { caller, id: id.clone(), overlap_seconds }).await?;
        ends(&request, &own, &id);
        Ok::<_, ApiError>(HttpResponse::Created().json(key))
    };
    answer(&request, rotated.await)
}

pub(super) async fn revoke(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let revoked = async {
        let caller = calls(&gate, &request, ManagementCall::Revocation, None).await?;
        let (id, own) = (key_id(&id)?, caller.key_id.clone());
        let Revoked {} = manage(&gate, &RevokeKey { caller, id: id.clone() }).await?;
        ends(&request, &own, &id);
        Ok::<_, ApiError>(HttpResponse::NoContent().finish())
    };
    answer(&request, revoked.await)
}

/// Who calls, if its key has a call left.
pub(super) async fn caller(gate: &Gate, request: &HttpRequest) -> Result<Caller, ApiError> {
    calls(gate, request, ManagementCall::Other, None).await
}

async fn calls(
    gate: &Gate,
    request: &HttpRequest,
    call: ManagementCall,
    scope: Option<Scope>,
) -> Result<Caller, ApiError> {
    let identity = authenticate(gate, request, Instant::now() + gate.config.request_budget).await?;
    if let Some(scope) = scope {
        allow(&identity, scope)?;
    }
    if let Some(calls) = &gate.management_calls {
        calls.admit(&identity, call, std::time::Instant::now()).map_err(ApiError::TooManyCalls)?;
    }
    // It was judged a moment ago, and so it is there.
    let key = presented(request).ok_or(ApiError::Unauthorized)?;
    Ok(Caller::new(&identity, &key))
}

/// The caller of a call with a body, whose scope is judged before the body is read; the keystore judges the rest.
pub(super) async fn allowed(gate: &Gate, request: &HttpRequest, scope: Scope) -> Result<Caller, ApiError> {
    calls(gate, request, ManagementCall::Other, Some(scope)).await
}

/// A call that ended its own caller's key is answered all the same.
fn ends(request: &HttpRequest, own: &KeyId, id: &KeyId) {
    if own == id {
        request.extensions_mut().remove::<Believed>();
    }
}

/// What cannot be a key's id names no key.
fn key_id(text: &str) -> Result<KeyId, ApiError> {
    KeyId::parse(text).map_err(|_| ApiError::NotFound)
}
