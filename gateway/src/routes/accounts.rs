//! `/v1/accounts`: the operator's. The keystore judges the caller; here only the shapes are checked.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use stage0_contract::{AccountId, Caller, CreateAccount, ListAccounts, SetRetention};
use tokio::time::Instant;

use super::fields::Fields;
use super::keys::{caller, manage};
use super::{answer, authenticate};
use crate::body;
use crate::errors::ApiError;
use crate::state::Gate;

pub(super) async fn create(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let created = async {
        let identity = authenticate(&gate, &request, Instant::now() + gate.config.request_budget).await?;
        let mut fields = Fields::of_body(body::json_object(&request, payload, gate.config.body_timeout).await?);
        let (caller, name, plan) = (Caller::from(&*identity), fields.required_text("name"), fields.plan());
        fields.finish()?;
        let account = manage(&gate, &CreateAccount { caller, name, plan }).await?;
        Ok::<_, ApiError>(HttpResponse::Created().json(account))
    };
    answer(&request, created.await)
}

pub(super) async fn list(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let listed = async {
        let identity = authenticate(&gate, &request, Instant::now() + gate.config.request_budget).await?;
        let mut fields = Fields::of_query(&request);
        let (caller, cursor, limit) = (Caller::from(&*identity), fields.text("cursor"), fields.limit());
        fields.finish()?;
        let page = manage(&gate, &ListAccounts { caller, cursor, limit }).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(page))
    };
    answer(&request, listed.await)
}

pub(super) async fn update(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let updated = async {
        let caller = caller(&gate, &request).await?;
        let mut fields = Fields::of_body(body::json_object(&request, payload, gate.config.body_timeout).await?);
        if !fields.has("retention_days") {
            fields.refuse("retention_days", "is required; null means the plan's");
        }
        let retention_days = fields.number("retention_days");
        fields.finish()?;
        // What cannot be an account's id names none.
        let account = AccountId::parse(&id).map_err(|_| ApiError::NotFound)?;
        let account = manage(&gate, &SetRetention { caller, account, retention_days }).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(account))
    };
    answer(&request, updated.await)
}
