//! `/v1/guards`: what enforces decisions beside agents, and when it reported last. The evaluator keeps guards.
//!
//! Only shapes and scopes are checked here. Each call counts as a read of its account. That a guard is silent is
//! recorded by `event_collection.rs`.

use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::web::Path;
use stage0_contract::{
    ForgetGuard, Guard, GuardCounts, GuardForgotten, GuardId, GuardState, ListGuards, MAX_NEXT_WITHIN_SECONDS, Page,
    ReportGuard, Scope, UNLIMITED, is_guard_text,
};
use tokio::time::Instant;

use super::approvals::authorize;
use super::decisions::large_json;
use super::fields::Fields;
use super::management::{Call, send_within};
use crate::errors::ApiError;

const TEXT_MUST: &str = "must be 1 to 64 letters, digits or one of `._-/@+`";

pub(super) async fn report(mut call: Call) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::Check]).await?;
    let mut fields = call.json_fields(&identity.account).await?;
    let must = "must be 1 to 64 letters, digits, `_` or `-`";
    let guard_id = fields.required("guard_id", must, |v| GuardId::parse(v.as_str()?).ok());
    let kind = required_text(&mut fields, "kind");
    let version = required_text(&mut fields, "version");
    let agent_version = fields.word("agent_version", TEXT_MUST, guard_text);
    let host = fields.word("host", TEXT_MUST, guard_text);
    let next_within_seconds = fields.number_within("next_within_seconds", 0, MAX_NEXT_WITHIN_SECONDS.into());
    if next_within_seconds.is_none() {
        fields.refuse("next_within_seconds", "is required: seconds until the next report, or 0 where the guard ends");
    }
    let mut count = |name| fields.number_within(name, 0, UNLIMITED).unwrap_or(0);
    let counts = GuardCounts {
        asked: count("asked"),
        refused: count("refused"),
        undecided: count("undecided"),
        ran_undecided: count("ran_undecided"),
    };
    fields.finish()?;
    let (Some(guard_id), Some(next_within_seconds)) = (guard_id, next_within_seconds) else {
        return Err(ApiError::Unavailable);
    };
    let report = ReportGuard {
        account: identity.account.clone(),
        key_id: identity.key_id.clone(),
        retention_days: identity.retention_days,
        guard_id,
        kind,
        version,
        agent_version,
        host,
        next_within_seconds,
        counts,
    };
    let guard: Guard = call.send(&report).await?;
    Ok(HttpResponse::Ok().json(guard))
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::DecisionsRead]).await?;
    let mut fields = call.query_fields();
    let state = fields.word("state", "must be `alive`, `silent` or `ended`", GuardState::parse);
    let cursor = fields.text("cursor");
    let limit = fields.page_limit();
    fields.finish()?;
    let list = ListGuards { account: identity.account.clone(), state, cursor, limit };
    let requests = Arc::clone(&call.state.reading.requests);
    let timeout = call.state.config.request_budget;
    // Limited like a page of decisions, until the client has taken it.
    let page = async move {
        let page: Page<Guard> = send_within(&*requests, &list, timeout).await?;
        serde_json::to_vec(&page).map_err(|_| ApiError::Unavailable)
    };
    let account = call.state.bytes.key_of(&identity.account);
    let (page, permit) = call.state.read_pool.page(account, Instant::now() + timeout, page).await?;
    large_json(&call, &identity, page?, permit)
}

pub(super) async fn forget(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let identity = authorize(&call, &[Scope::KeysManage]).await?;
    // A text that is not a guard's id names no guard.
    let guard_id = GuardId::parse(&id).map_err(|_| ApiError::NotFound)?;
    let GuardForgotten {} = call.send(&ForgetGuard { account: identity.account.clone(), guard_id }).await?;
    Ok(HttpResponse::NoContent().finish())
}

fn required_text(fields: &mut Fields, name: &str) -> String {
    fields.required(name, TEXT_MUST, |v| guard_text(v.as_str()?)).unwrap_or_default()
}

fn guard_text(text: &str) -> Option<String> {
    is_guard_text(text).then(|| text.to_owned())
}
