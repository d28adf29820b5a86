//! `/v1/stops`: what denies every check in its scope until a person resumes it. The keystore keeps stops.
//!
//! A new stop is stored first and recorded then: what protects does not wait for the log. A resume is recorded first
//! and stored then. Gateways learn of both with the identities of callers (`key_cache.rs`), this one before it answers.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Path;
use jiff::Timestamp;
use serde_json::Map;
use stage0_contract::{
    Account, AccountId, ApprovalEvent, Caller, CreateStop, EventActor, KeyIdentity, LineType, ListAccounts, ListStops,
    MaskText, MaskTextReply, Page, ResumeStop, Scope, Stop, StopId, StopScope,
};
use tokio::time::Instant;
use uuid::Uuid;

use super::fields::Fields;
use super::management::{Call, send_within, to_the_end, try_send};
use crate::errors::{ApiError, Change};
use crate::idempotency::CallError;
use crate::recording::record_event;
use crate::state::AppState;

const MAX_REASON_CHARS: usize = 500;
const MAX_VALUE_CHARS: usize = 1_000;
/// All stops of an account fit on one page.
const PAGE: u32 = 1_000;
const MASK_TIMEOUT: Duration = Duration::from_millis(500);
/// An operator names a stop without its account.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn create(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::StopsManage).await?;
    let (mut fields, idempotent) = call.create_fields(&caller, "POST /v1/stops").await?;
    let account = fields.account();
    let scope = "must be `account`, `environment`, `tool`, `key` or `all`";
    let scope = fields.required("scope", scope, |v| serde_json::from_value::<StopScope>(v.clone()).ok());
    let value = fields.prose("value", MAX_VALUE_CHARS);
    let reason = fields.required_prose("reason", MAX_REASON_CHARS);
    refuse_secrets(&mut fields, "value", value.as_deref());
    refuse_secrets(&mut fields, "reason", Some(&reason));
    let until = fields.timestamp("until");
    fields.finish()?;
    let scope = scope.ok_or(ApiError::Unavailable)?;
    let (identity, verified, request_id) = (call.identity()?, call.verified_caller()?, call.request_id()?);
    let state = call.state.clone();
    let created = async move {
        let reason = masked(&state, &identity, reason).await;
        let create = CreateStop { caller: caller.clone(), account, scope, value, reason, until };
        let stop: Stop = try_send(state.requests(), &create, state.config.request_budget).await?;
        renew_keys(&state, &stop);
        let unrecorded = || CallError::OutcomeUnknown(ApiError::NotRecorded(Change::Stopped));
        if !state.can_record() {
            return Err(unrecorded());
        }
        let event = stop_event(LineType::StopStarted, &stop, stop.created_at, stop.reason.clone(), &identity);
        let account = stop.account.as_ref().unwrap_or(&identity.account);
        let days = retention_days(&state, &caller, &identity, account).await.map_err(|_| unrecorded())?;
        record_event(&state, request_id, verified, (account, days), event).await.map_err(|_| unrecorded())?;
        Ok(stop)
    };
    Ok(call.create_by(idempotent, created).await?.0)
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller().await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    if account.is_none() && [Scope::StopsManage, Scope::Operator].iter().all(|scope| !caller.scopes.contains(scope)) {
        // What holds for a key is a part of its identity; only those who manage stops ask the keystore.
        let now = Timestamp::now();
        let holds = |stop: &&Stop| stop.until.is_none_or(|until| until > now);
        let items = call.identity()?.rules.stops.iter().filter(holds).cloned().collect();
        return Ok(HttpResponse::Ok().json(Page::<Stop> { items, next_cursor: None }));
    }
    Ok(HttpResponse::Ok().json(call.send(&ListStops { caller, account, cursor, limit }).await?))
}

pub(super) async fn resume(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::StopsManage).await?;
    let mut fields = call.json_fields(&caller.account).await?;
    let reason = fields.required_prose("reason", MAX_REASON_CHARS);
    refuse_secrets(&mut fields, "reason", Some(&reason));
    fields.finish()?;
    let id = StopId::parse(&id).map_err(|_| ApiError::NotFound)?;
    let identity = call.identity()?;
    // As the keystore judges it, which is asked only once the line is in the log.
    let is_operator = caller.scopes.contains(&Scope::Operator);
    if !is_operator && identity.holder.as_ref().is_none_or(|holder| holder.member.is_none()) {
        return Err(ApiError::Conflict(
            "only a person resumes a stop: use the key of a member with `stops:manage`, or ask the operator".to_owned(),
        ));
    }
    let (verified, request_id) = (call.verified_caller()?, call.request_id()?);
    let resumed = to_the_end(async move {
        let state = &call.state;
        let reason = masked(state, &identity, reason).await;
        let found = find(state, &caller, &identity, &id).await?;
        // One that has ended is no error, and its end has been recorded.
        if let Some(Found { stop, account, retention_days }) = found {
            if stop.scope == StopScope::All && !is_operator {
                return Err(ApiError::ScopeMissing(Scope::Operator));
            }
            if !state.can_record() {
                return Err(ApiError::NotRecorded(Change::NotReadable));
            }
            let event = stop_event(LineType::StopEnded, &stop, Timestamp::now(), reason.clone(), &identity);
            let recorded = record_event(state, request_id, verified, (&account, retention_days), event).await;
            recorded.map_err(|failed| failed.or(Change::NotResumed))?;
        }
        let stop: Stop = call.send(&ResumeStop { caller, id, reason }).await?;
        renew_keys(state, &stop);
        Ok(stop)
    });
    Ok(HttpResponse::Ok().json(resumed.await?))
}

/// Each key is asked for again before it is used, so that it comes with the stops that hold now.
fn renew_keys(state: &AppState, stop: &Stop) {
    match &stop.account {
        Some(account) => state.key_cache.invalidate(account),
        None => state.key_cache.invalidate_all(),
    }
}

fn stop_event(kind: LineType, stop: &Stop, at: Timestamp, reason: String, by: &KeyIdentity) -> ApprovalEvent {
    let mut details = Map::new();
    details.insert("scope".to_owned(), serde_json::to_value(stop.scope).unwrap_or_default());
    details.extend(stop.value.clone().map(|value| ("value".to_owned(), value.into())));
    details.extend(stop.until.map(|until| ("until".to_owned(), until.to_string().into())));
    let member = by.holder.as_ref().and_then(|holder| holder.member.as_ref());
    ApprovalEvent {
        stop_id: Some(stop.id.clone()),
        environment: stop.value.clone().filter(|_| stop.scope == StopScope::Environment),
        actor: Some(EventActor::of(&by.key_id, member)),
        reason: Some(reason),
        details,
        ..ApprovalEvent::new(kind, Uuid::now_v7(), at)
    }
}

/// A stop that holds, and the account in whose log its lines stand.
struct Found {
    stop: Stop,
    account: AccountId,
    retention_days: u32,
}

async fn find(
    state: &AppState,
    caller: &Caller,
    identity: &KeyIdentity,
    id: &StopId,
) -> Result<Option<Found>, ApiError> {
    let deadline = Instant::now() + SEARCH_TIMEOUT;
    let in_account = async |account: Option<AccountId>| {
        let list = ListStops { caller: caller.clone(), account, cursor: None, limit: PAGE };
        let page: Page<Stop> = send_within(state.requests(), &list, left(state, deadline)).await?;
        Ok::<_, ApiError>(page.items.into_iter().find(|stop| stop.id == *id))
    };
    if let Some(stop) = in_account(None).await? {
        let (account, retention_days) = (identity.account.clone(), identity.retention_days);
        return Ok(Some(Found { stop, account, retention_days }));
    }
    if !caller.scopes.contains(&Scope::Operator) {
        return Ok(None);
    }
    let mut cursor = None;
    loop {
        let page = accounts(state, caller, cursor, deadline).await?;
        for account in page.items {
            if let Some(stop) = in_account(Some(account.id.clone())).await? {
                let retention_days = account.retention();
                return Ok(Some(Found { stop, account: account.id, retention_days }));
            }
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Ok(None);
        }
    }
}

/// How many days lines of this account are kept; another account is the operator's to name.
pub(super) async fn retention_days(
    state: &AppState,
    caller: &Caller,
    identity: &KeyIdentity,
    account: &AccountId,
) -> Result<u32, ApiError> {
    if *account == identity.account {
        return Ok(identity.retention_days);
    }
    let deadline = Instant::now() + SEARCH_TIMEOUT;
    let mut cursor = None;
    loop {
        let page = accounts(state, caller, cursor, deadline).await?;
        if let Some(found) = page.items.iter().find(|found| found.id == *account) {
            return Ok(found.retention());
        }
        cursor = page.next_cursor;
        if cursor.is_none() {
            return Err(ApiError::NotFound);
        }
    }
}

async fn accounts(
    state: &AppState,
    caller: &Caller,
    cursor: Option<String>,
    deadline: Instant,
) -> Result<Page<Account>, ApiError> {
    let list = ListAccounts { caller: caller.clone(), cursor, limit: PAGE };
    send_within(state.requests(), &list, left(state, deadline)).await
}

fn left(state: &AppState, deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(state.config.request_budget)
}

/// A reason without the secrets that the policy knows. A stop does not wait for an evaluator: without one the reason is
/// left out.
pub(super) async fn masked(state: &AppState, identity: &KeyIdentity, reason: String) -> String {
    let KeyIdentity { account, rules, .. } = identity;
    let (policies, floor) = (rules.policy.versions(), rules.floor.clone());
    let mask = MaskText { account: account.clone(), text: reason, policies, floor };
    match state.requests().request(&mask, MASK_TIMEOUT).await {
        Ok(MaskTextReply { text }) if !text.trim().is_empty() => text.chars().take(MAX_REASON_CHARS).collect(),
        Ok(_) | Err(_) => "(left out: it could not be searched for secrets)".to_owned(),
    }
}

/// These texts are recorded, so they must hold no key of ours: what the caller wrote by mistake is refused.
pub(super) fn refuse_secrets(fields: &mut Fields, name: &str, text: Option<&str>) {
    if text.is_some_and(holds_secret) {
        fields.refuse(name, "must not hold an API key, an invitation's code or a webhook's secret: it is recorded");
    }
}

/// Whether it holds a word that begins like one of our secrets and is as long as one.
fn holds_secret(text: &str) -> bool {
    const MIN_CHARS: usize = 20;
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '/' | '=' | '-');
    let prefixes = ["s0_", "inv_", "whsec_"];
    let begins = |rest: &str| rest.chars().take_while(|c| is_word(*c)).count() >= MIN_CHARS;
    prefixes.iter().any(|prefix| text.match_indices(prefix).any(|(at, _)| text.get(at..).is_some_and(begins)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_of_ours_is_found_in_a_text_and_a_word_that_only_begins_like_one_is_not() {
        for secret in [
            "s0_0w3ge1r70w3ge1r7_144gj289144gj289144gj289144gj289ka2s328",
            "leaked: inv_0123456789abcdefghjkmnpqrstvwxyz!",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ] {
            assert!(holds_secret(secret), "{secret}");
        }
        for harmless in ["rotate whsec_ secrets of team s0_1", "inv_1 is over", "incident 12", ""] {
            assert!(!holds_secret(harmless), "{harmless}");
        }
    }
}
