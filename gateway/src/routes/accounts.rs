//! `/v1/accounts`: the operator's. The keystore judges the caller; here only the shapes are checked.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use stage0_contract::{AccountId, CapChanges, CreateAccount, ListAccounts, Scope, UpdateAccount};

use super::answer;
use super::fields::Fields;
use super::keys::{allowed, caller, created, manage, once};
use crate::body;
use crate::errors::ApiError;
use crate::state::Gate;

/// What an operator may change; null is the plan's.
const CHANGES: [&str; 10] = [
    "plan",
    "retention_days",
    "per_minute",
    "daily",
    "monthly",
    "require_run_id",
    "max_keys",
    "max_endpoints",
    "max_runs",
    "stored_bytes",
];

pub(super) async fn create(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let created = async {
        let caller = allowed(&gate, &request, Scope::Operator).await?;
        let body = body::json_object(&gate, &request, payload, &caller.account).await?;
        let (once, refused) = once(&request, &caller, "POST /v1/accounts", &body);
        let mut fields = Fields::of_body_and(body.object, refused);
        let (name, plan) = (fields.required_text("name"), fields.plan());
        fields.finish()?;
        let (answer, _) = created(&gate, once, CreateAccount { caller, name, plan }).await?;
        Ok::<_, ApiError>(answer)
    };
    answer(&request, created.await)
}

pub(super) async fn list(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let listed = async {
        let caller = caller(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let (cursor, limit) = (fields.text("cursor"), fields.limit());
        fields.finish()?;
        let page = manage(&gate, &ListAccounts { caller, cursor, limit }).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(page))
    };
    answer(&request, listed.await)
}

pub(super) async fn update(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let updated = async {
        let caller = allowed(&gate, &request, Scope::Operator).await?;
        let mut fields = Fields::of_body(body::json_object(&gate, &request, payload, &caller.account).await?.object);
        if CHANGES.iter().all(|name| !fields.has(name)) {
            for name in CHANGES {
                fields.refuse(name, "is required, or one of the others");
            }
        }
        let (plan, require_run_id) = (fields.plan(), fields.boolean("require_run_id"));
        let retention_days = fields.change("retention_days", Fields::number);
        let per_minute = fields.change("per_minute", Fields::large_number);
        let daily = fields.change("daily", Fields::large_number);
        let monthly = fields.change("monthly", Fields::large_number);
        let caps = CapChanges {
            max_keys: fields.change("max_keys", Fields::large_number),
            max_endpoints: fields.change("max_endpoints", Fields::large_number),
            max_runs: fields.change("max_runs", Fields::large_number),
            stored_bytes: fields.change("stored_bytes", Fields::large_number),
        };
        fields.finish()?;
        // What cannot be an account's id names none.
        let account = AccountId::parse(&id).map_err(|_| ApiError::NotFound)?;
        let changes =
            UpdateAccount { caller, account, plan, retention_days, per_minute, daily, monthly, require_run_id, caps };
        let account = manage(&gate, &changes).await?;
        // Whoever has this answer finds the change in force here; other gateways hear of it in the same moment.
        gate.keyring.doubt(&account.id);
        Ok::<_, ApiError>(HttpResponse::Ok().json(account))
    };
    answer(&request, updated.await)
}
