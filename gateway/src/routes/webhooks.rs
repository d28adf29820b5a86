//! `/v1/webhooks`: an account's endpoints. The keystore stores them; the exporter delivers, tests and replays.
//!
//! The exporter is called only after the keystore has confirmed that the endpoint is the caller's. Only the syntax of
//! an endpoint's address is checked here; where it leads is checked at every delivery.

use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::web::Path;
use stage0_contract::{
    Caller, CreateWebhook, DeleteWebhook, EnableWebhook, GetWebhook, ListDeliveries, ListWebhooks, ReplayWebhook,
    RotateWebhookSecret, Scope, TestWebhook, UpdateWebhook, Webhook, WebhookDeleted, WebhookFilters, WebhookId,
    WebhookUrl,
};

use super::fields::Fields;
use super::management::{Call, send_within};
use crate::errors::ApiError;

/// Longer than the 15 s that a receiver has to answer.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) async fn create(mut call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::WebhooksManage).await?;
    let (mut fields, idempotent) = call.create_fields(&caller, "POST /v1/webhooks").await?;
    let account = fields.account();
    let url = fields.required_text("url");
    let url = normal_url(&call, &mut fields, url);
    let filters = WebhookFilters {
        verdicts: fields.verdicts(),
        environments: fields.texts("environments"),
        events: fields.events(),
    };
    let description = fields.text("description").unwrap_or_default();
    let rate_limit = fields.number("rate_limit");
    fields.finish()?;
    let webhook = CreateWebhook { caller, account, url, filters, description, rate_limit };
    Ok(call.create(idempotent, webhook).await?.0)
}

pub(super) async fn list(call: Call) -> Result<HttpResponse, ApiError> {
    let caller = call.caller().await?;
    let mut fields = call.query_fields();
    let account = fields.account();
    let cursor = fields.text("cursor");
    let limit = fields.limit();
    fields.finish()?;
    Ok(HttpResponse::Ok().json(call.send(&ListWebhooks { caller, account, cursor, limit }).await?))
}

pub(super) async fn get(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (_, webhook) = own_webhook(&call, &id).await?;
    Ok(HttpResponse::Ok().json(webhook))
}

pub(super) async fn update(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (caller, webhook) = own_webhook(&call, &id).await?;
    let mut fields = call.json_fields(&caller.account).await?;
    let url = fields.text("url").map(|url| normal_url(&call, &mut fields, url));
    // Each filter is a member of its own; null removes it.
    let has_verdicts = fields.has("verdicts");
    let has_environments = fields.has("environments");
    let has_events = fields.has("events");
    let filters = (has_verdicts || has_environments || has_events).then(|| WebhookFilters {
        verdicts: if has_verdicts { fields.verdicts() } else { webhook.filters.verdicts },
        environments: if has_environments { fields.texts("environments") } else { webhook.filters.environments },
        events: if has_events { fields.events() } else { webhook.filters.events },
    });
    let description = fields.text("description");
    let rate_limit = if fields.take_null("rate_limit") { Some(0) } else { fields.number("rate_limit") };
    let enabled = fields.boolean("enabled");
    fields.finish()?;
    let update = UpdateWebhook { caller, id: webhook.id, url, filters, description, rate_limit, enabled };
    Ok(HttpResponse::Ok().json(call.send(&update).await?))
}

pub(super) async fn delete(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller().await?;
    let WebhookDeleted {} = call.send(&DeleteWebhook { caller, id: webhook_id(&id)? }).await?;
    Ok(HttpResponse::NoContent().finish())
}

pub(super) async fn enable(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::WebhooksManage).await?;
    call.no_fields(&caller.account).await?;
    Ok(HttpResponse::Ok().json(call.send(&EnableWebhook { caller, id: webhook_id(&id)? }).await?))
}

pub(super) async fn rotate(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let caller = call.caller_with_scope(Scope::WebhooksManage).await?;
    let (mut fields, idempotent) =
        call.optional_create_fields(&caller, &format!("POST /v1/webhooks/{id}/rotate-secret")).await?;
    // By default both secrets sign for a day, until the receiver has the new one.
    let overlap_seconds = fields.seconds("overlap_seconds").unwrap_or(86_400);
    fields.finish()?;
    let rotate = RotateWebhookSecret { caller, id: webhook_id(&id)?, overlap_seconds };
    Ok(call.create(idempotent, rotate).await?.0)
}

pub(super) async fn test(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (caller, webhook) = own_webhook(&call, &id).await?;
    call.no_fields(&caller.account).await?;
    let test = TestWebhook { account: webhook.account, id: webhook.id };
    Ok(HttpResponse::Ok().json(send_within(call.state.requests(), &test, TEST_TIMEOUT).await?))
}

pub(super) async fn replay(mut call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (caller, webhook) = own_webhook(&call, &id).await?;
    let mut fields = call.json_fields(&caller.account).await?;
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
    Ok(HttpResponse::Accepted().json(call.send(&replay).await?))
}

pub(super) async fn deliveries(call: Call, id: Path<String>) -> Result<HttpResponse, ApiError> {
    let (_, webhook) = own_webhook(&call, &id).await?;
    call.query_fields().finish()?;
    let list = ListDeliveries { account: webhook.account, id: webhook.id };
    Ok(HttpResponse::Ok().json(call.send(&list).await?))
}

/// The caller, and the endpoint if it is the caller's.
async fn own_webhook(call: &Call, id: &str) -> Result<(Caller, Webhook), ApiError> {
    let caller = call.caller().await?;
    let webhook = call.send(&GetWebhook { caller: caller.clone(), id: webhook_id(id)? }).await?;
    Ok((caller, webhook))
}

/// The address in the form that is connected to, so that what is stored and shown cannot pass for another one.
fn normal_url(call: &Call, fields: &mut Fields, url: String) -> String {
    if url.is_empty() {
        return url;
    }
    match WebhookUrl::parse(&url, call.state.config.dangerous_allow_private_webhooks) {
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
