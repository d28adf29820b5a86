//! `/v1/keys`: an account's own, or any for the operator. The keystore judges the caller by the key that it presented,
//! which goes with each call; here only the shapes are checked.

use std::time::Duration;

use actix_web::http::header::ContentType;
use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use serde::Serialize;
use stage0_backplane::{AskError, Requests};
use stage0_contract::{
    Caller, CreateKey, FieldError, KeyId, ListKeys, ManageReply, Request, RevokeKey, Revoked, RotateKey, Scope,
};
use tokio::time::Instant;

use super::check::visible_header;
use super::fields::Fields;
use super::{allow, answer, authenticate};
use crate::auth::presented;
use crate::body::{self, Body};
use crate::errors::{ApiError, How, Part};
use crate::idempotency::{IDEMPOTENCY_KEY, MAX_BODY_BYTES, NotDone, Once};
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
    manage_over(gate.requests(), message, within).await
}

/// As [`manage_within`], over this connection.
pub(super) async fn manage_over<M, T>(requests: &dyn Requests, message: &M, within: Duration) -> Result<T, ApiError>
where
    M: Request<Reply = ManageReply<T>>,
{
    asked(requests, message, within).await.map_err(|error| match error {
        NotDone::Surely(error) | NotDone::Perhaps(error) => error,
    })
}

async fn asked<M, T>(requests: &dyn Requests, message: &M, within: Duration) -> Result<T, NotDone>
where
    M: Request<Reply = ManageReply<T>>,
{
    match requests.ask(message, within).await {
        Ok(ManageReply::Done(done)) => Ok(done),
        Ok(ManageReply::Refused(refusal)) => Err(NotDone::Surely(refusal.into())),
        Ok(ManageReply::Failed) => {
            tracing::error!(subject = M::SUBJECT, "management call failed");
            Err(NotDone::Perhaps(ApiError::Missing(Part::answered::<M>(How::Failed))))
        }
        Ok(ManageReply::Busy) => {
            tracing::debug!(subject = M::SUBJECT, "too many management calls wait for the keystore");
            Err(NotDone::Surely(ApiError::Missing(Part::answered::<M>(How::Busy))))
        }
        Err(error) => {
            tracing::error!(
                subject = M::SUBJECT,
                error = &error as &dyn std::error::Error,
                "management call was not answered"
            );
            let missing = ApiError::Missing(Part::asked::<M>(&error));
            Err(match error {
                AskError::Absent | AskError::TooLarge => NotDone::Surely(missing),
                AskError::Late | AskError::Lost | AskError::Unreadable => NotDone::Perhaps(missing),
            })
        }
    }
}

/// The header of a call that creates, where there is one, and what is wrong with it; `call` is its method and path.
pub(super) fn once(request: &HttpRequest, caller: &Caller, call: &str, body: &Body) -> (Option<Once>, Vec<FieldError>) {
    let mut errors = Vec::new();
    let header = visible_header(request, IDEMPOTENCY_KEY, &mut errors);
    if header.is_some() && body.bytes > MAX_BODY_BYTES {
        let message = format!("serves calls with a body of at most {MAX_BODY_BYTES} bytes");
        errors.push(FieldError::new(IDEMPOTENCY_KEY, message));
    }
    let once = header.zip(caller.key.as_ref());
    (once.map(|(header, key)| Once::new(caller, key, &header, call, &body.object)), errors)
}

/// Has something created, once where the call has a header for it; whether it was created now.
pub(super) async fn created<M, T>(
    gate: &Data<Gate>,
    once: Option<Once>,
    message: M,
) -> Result<(HttpResponse, bool), ApiError>
where
    M: Request<Reply = ManageReply<T>> + 'static,
    T: Serialize + 'static,
{
    let Some(once) = once else {
        return Ok((HttpResponse::Created().json(manage(gate, &message).await?), true));
    };
    let gate = gate.clone();
    // A task of its own: the server drops a handler whose client is gone, and its repeat must find the answer.
    let answered = actix_web::rt::spawn(async move {
        let within = gate.config.request_budget;
        once.run(gate.ledger(), within, asked(gate.requests(), &message, within)).await
    });
    let answer = answered.await.map_err(|error| {
        tracing::error!(%error, "a call that creates ended early");
        ApiError::Unavailable
    })??;
    Ok((HttpResponse::Created().content_type(ContentType::json()).body(answer.json), answer.is_new))
}

pub(super) async fn create(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let created = async {
        let caller = allowed(&gate, &request, Scope::KeysManage).await?;
        let body = body::json_object(&gate, &request, payload, &caller.account).await?;
        let (once, refused) = once(&request, &caller, "POST /v1/keys", &body);
        let mut fields = Fields::of_body_and(body.object, refused);
        let (account, name) = (fields.account(), fields.required_text("name"));
        let (scopes, expires_at) = (fields.scopes(), fields.timestamp("expires_at"));
        fields.finish()?;
        let (answer, _) = created(&gate, once, CreateKey { caller, account, name, scopes, expires_at }).await?;
        Ok::<_, ApiError>(answer)
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
        let (once, refused) = once(&request, &caller, &format!("POST /v1/keys/{id}/rotate"), &body);
        let mut fields = Fields::of_body_and(body.object, refused);
        // Without a word about it, the old key ends at once: a rotation is most urgent when a key has leaked.
        let overlap_seconds = fields.seconds("overlap_seconds").unwrap_or(0);
        fields.finish()?;
        let (id, own) = (key_id(&id)?, caller.key_id.clone());
        let (answer, is_new) = created(&gate, once, RotateKey { caller, id: id.clone(), overlap_seconds }).await?;
        if is_new {
            ends(&request, &own, &id);
        }
        Ok::<_, ApiError>(answer)
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
