//! `/v1/accounts`, for the operator.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use stage0_contract::{AccountId, CapChanges, CreateAccount, ListAccounts, Scope, UpdateAccount};

use super::fields::Fields;
use super::management;
use crate::body;
use crate::errors::ApiError;
use crate::state::AppState;

/// What an operator may change; null restores the plan's value.
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

pub(super) async fn create(
    state: Data<AppState>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller_with_scope(&state, &request, Scope::Operator).await?;
    let body = body::json_object(&state, &request, payload, &caller.account).await?;
    let (idempotent, errors) = management::idempotency_key(&request, &caller, "POST /v1/accounts", &body);
    let mut fields = Fields::of_body_and(body.object, errors);
    let name = fields.required_text("name");
    let plan = fields.plan();
    fields.finish()?;
    Ok(management::create(&state, idempotent, CreateAccount { caller, name, plan }).await?.0)
}

pub(super) async fn list(state: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let caller = management::caller(&state, &request).await?;
    let mut fields = Fields::of_query(&request);
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    let page = management::call(&state, &ListAccounts { caller, cursor, limit }).await?;
    Ok(HttpResponse::Ok().json(page))
}

pub(super) async fn update(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller_with_scope(&state, &request, Scope::Operator).await?;
    let mut fields = Fields::of_body(body::json_object(&state, &request, payload, &caller.account).await?.object);
    if CHANGES.iter().all(|name| !fields.has(name)) {
        for name in CHANGES {
            fields.refuse(name, "is required, or one of the others");
        }
    }
    let plan = fields.plan();
    let require_run_id = fields.boolean("require_run_id");
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
    // A text that is not an account id names no account.
    let account = AccountId::parse(&id).map_err(|_| ApiError::NotFound)?;
    let update =
        UpdateAccount { caller, account, plan, retention_days, per_minute, daily, monthly, require_run_id, caps };
    let account = management::call(&state, &update).await?;
    // The change is in force here once this answer arrives; other gateways are notified at the same moment.
    state.key_cache.invalidate(&account.id);
    Ok(HttpResponse::Ok().json(account))
}
