//! `/v1/accounts`, for the operator.

use actix_web::HttpResponse;
use actix_web::web::Path;
use stage0_contract::{AccountId, CapChanges, CreateAccount, ListAccounts, PolicyChanges, Scope, UpdateAccount};

use super::fields::Fields;
use super::management::Call;
use crate::errors::ApiError;

/// What an operator may change; null restores the plan's value.
const CHANGES: [&str; 14] = [
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
    "approvals",
    "four_eyes",
    "policy_changes",
    "record_facts",
];

pub(super) async fn create(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::Operator).await?;
    let (mut fields, idempotent) = call.create_fields(&caller, "POST /v1/accounts").await?;
    let name = fields.required_text("name");
    let plan = fields.plan();
    let approvals = fields.approval_mode();
    fields.finish()?;
    Ok(call.create(idempotent, CreateAccount { caller, name, plan, approvals }).await?.0)
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller().await?;
    let mut fields = call.query_fields();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ListAccounts { caller, cursor, limit }).await?))
}

pub(super) async fn update(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::Operator).await?;
    let mut fields = call.json_fields(&caller.account).await?;
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
    let approvals = fields.approval_mode();
    let four_eyes = fields.boolean("four_eyes");
    let must = "must be `single` or `second_member`";
    let policy_changes = fields.word("policy_changes", must, PolicyChanges::parse);
    let record_facts = fields.boolean("record_facts");
    fields.finish()?;
    // A text that is not an account id names no account.
    let account = AccountId::parse(&id).map_err(|_| ApiError::NotFound)?;
    let update = UpdateAccount {
        caller,
        account,
        plan,
        retention_days,
        per_minute,
        daily,
        monthly,
        require_run_id,
        approvals,
        four_eyes,
        policy_changes,
        record_facts,
        caps,
    };
    let account = call.send(&update).await?;
    // The change is in force here once this answer arrives; other gateways are notified at the same moment.
    call.state.key_cache.invalidate(&account.id);
    Ok(HttpResponse::Ok().json(account))
}
