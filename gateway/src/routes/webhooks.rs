//! `/v1/webhooks`: an account's endpoints. The keystore stores them; the exporter delivers, tests and replays.
//!
//! The exporter is called only after the keystore has confirmed that the endpoint is the caller's. Only the syntax of
//! an endpoint's address is checked here; where it leads is checked at every delivery.

use std::time::Duration;

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use stage0_contract::{
    Caller, CreateWebhook, DeleteWebhook, EnableWebhook, GetWebhook, ListDeliveries, ListWebhooks, ReplayWebhook,
    RotateWebhookSecret, Scope, TestWebhook, UpdateWebhook, Webhook, WebhookDeleted, WebhookFilters, WebhookId,
    WebhookUrl,
};

use super::fields::Fields;
use super::management;
use crate::body;
use crate::errors::ApiError;
use crate::state::AppState;

/// Longer than the 15 s that a receiver has to answer.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn create(
    state: Data<AppState>,
    request: HttpRequest,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller_with_scope(&state, &request, Scope::WebhooksManage).await?;
    let body = body::json_object(&state, &request, payload, &caller.account).await?;
    let (idempotent, errors) = management::idempotency_key(&request, &caller, "POST /v1/webhooks", &body);
    let mut fields = Fields::of_body_and(body.object, errors);
    let account = fields.account();
    let url = fields.required_text("url");
    let url = normal_url(&state, &mut fields, url);
    let filters = WebhookFilters { verdicts: fields.verdicts(), environments: fields.texts("environments") };
    let description = fields.text("description").unwrap_or_default();
    let rate_limit = fields.number("rate_limit");
    fields.finish()?;
    let webhook = CreateWebhook { caller, account, url, filters, description, rate_limit };
    Ok(management::create(&state, idempotent, webhook).await?.0)
}

pub(super) async fn list(state: Data<AppState>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let caller = management::caller(&state, &request).await?;
    let mut fields = Fields::of_query(&request);
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    let page = management::call(&state, &ListWebhooks { caller, account, cursor, limit }).await?;
    Ok(HttpResponse::Ok().json(page))
}

pub(super) async fn get(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (_, webhook) = own_webhook(&state, &request, &id).await?;
    Ok(HttpResponse::Ok().json(webhook))
}

pub(super) async fn update(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let (caller, webhook) = own_webhook(&state, &request, &id).await?;
    let mut fields = Fields::of_body(body::json_object(&state, &request, payload, &caller.account).await?.object);
    let url = fields.text("url").map(|url| normal_url(&state, &mut fields, url));
    // Each filter is a member of its own; null removes it.
    let has_verdicts = fields.has("verdicts");
    let has_environments = fields.has("environments");
    let filters = (has_verdicts || has_environments).then(|| WebhookFilters {
        verdicts: if has_verdicts { fields.verdicts() } else { webhook.filters.verdicts.clone() },
        environments: if has_environments {
            fields.texts("environments")
        } else {
            webhook.filters.environments.clone()
        },
    });
    let description = fields.text("description");
    let rate_limit = if fields.take_null("rate_limit") { Some(0) } else { fields.number("rate_limit") };
    let enabled = fields.boolean("enabled");
    fields.finish()?;
    let update = UpdateWebhook { caller, id: webhook.id, url, filters, description, rate_limit, enabled };
    Ok(HttpResponse::Ok().json(management::call(&state, &update).await?))
}

pub(super) async fn delete(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller(&state, &request).await?;
    let WebhookDeleted {} = management::call(&state, &DeleteWebhook { caller, id: webhook_id(&id)? }).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn enable(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller_with_scope(&state, &request, Scope::WebhooksManage).await?;
    let body = body::optional_json_object(&state, &request, payload, &caller.account).await?;
    Fields::of_body(body.object).finish()?;
    let webhook = management::call(&state, &EnableWebhook { caller, id: webhook_id(&id)? }).await?;
    Ok(HttpResponse::Ok().json(webhook))
}

pub(super) async fn rotate(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let caller = management::caller_with_scope(&state, &request, Scope::WebhooksManage).await?;
    let body = body::optional_json_object(&state, &request, payload, &caller.account).await?;
    let call = format!("POST /v1/webhooks/{id}/rotate-secret");
    let (idempotent, errors) = management::idempotency_key(&request, &caller, &call, &body);
    let mut fields = Fields::of_body_and(body.object, errors);
    // By default both secrets sign for a day, until the receiver has the new one.
    let overlap_seconds = fields.seconds("overlap_seconds").unwrap_or(86_400);
    fields.finish()?;
    let rotate = RotateWebhookSecret { caller, id: webhook_id(&id)?, overlap_seconds };
    Ok(management::create(&state, idempotent, rotate).await?.0)
}

pub(super) async fn test(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let (caller, webhook) = own_webhook(&state, &request, &id).await?;
    let body = body::optional_json_object(&state, &request, payload, &caller.account).await?;
    Fields::of_body(body.object).finish()?;
    let test = TestWebhook { account: webhook.account, id: webhook.id };
    Ok(HttpResponse::Ok().json(management::call_within(state.requests(), &test, TEST_TIMEOUT).await?))
}

pub(super) async fn replay(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let (caller, webhook) = own_webhook(&state, &request, &id).await?;
    let mut fields = Fields::of_body(body::json_object(&state, &request, payload, &caller.account).await?.object);
    let (from, to) = (fields.timestamp("from"), fields.timestamp("to"));
    for (name, time) in [("from", from), ("to", to)] {
        if time.is_none() {
            fields.refuse(name, "is required, as a time such as `2026-01-31T12:00:00Z` (RFC 3339)");
        }
    }
    let (Some(from), Some(to)) = (from, to) else {
        return Err(fields.finish().err().unwrap_or(ApiError::NotFound));
    };
    if from >= to {
        fields.refuse("to", "must be after `from`");
    }
    fields.finish()?;
    let replay = ReplayWebhook { account: webhook.account, id: webhook.id, from, to };
    Ok(HttpResponse::Accepted().json(management::call(&state, &replay).await?))
}

pub(super) async fn deliveries(
    state: Data<AppState>,
    request: HttpRequest,
    id: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (_, webhook) = own_webhook(&state, &request, &id).await?;
    Fields::of_query(&request).finish()?;
    let list = ListDeliveries { account: webhook.account, id: webhook.id };
    Ok(HttpResponse::Ok().json(management::call(&state, &list).await?))
}

/// The caller, and the endpoint if it is the caller's.
async fn own_webhook(state: &AppState, request: &HttpRequest, id: &str) -> Result<(Caller, Webhook), ApiError> {
    let caller = management::caller(state, request).await?;
    let webhook = management::call(state, &GetWebhook { caller: caller.clone(), id: webhook_id(id)? }).await?;
    Ok((caller, webhook))
}

/// The address in the form that is connected to, so that what is stored and shown cannot pass for another one.
fn normal_url(state: &AppState, fields: &mut Fields, url: String) -> String {
    if url.is_empty() {
        return url;
    }
    match WebhookUrl::parse(&url, state.config.dangerous_allow_private_webhooks) {
        Ok(normal) => normal.as_str().to_owned(),
        Err(error) => {
            fields.refuse("url", &error.to_string());
            url
        }
    }
}

/// A text that is not an endpoint's id names no endpoint.
fn webhook_id(text: &str) -> Result<WebhookId, ApiError> {
    WebhookId::parse(text).map_err(|_| ApiError::NotFound)
}
