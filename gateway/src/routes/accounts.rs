//! `/v1/accounts`: the operator's. The keystore judges the caller; here only the shapes are checked.

use actix_web::web::{Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use stage0_contract::{Caller, CreateAccount, ListAccounts};
use tokio::time::Instant;

use super::fields::Fields;
use super::keys::manage;
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
