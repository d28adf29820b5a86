//! `/v1/webhooks`: an account's endpoints. The keystore judges the caller and keeps them; the exporter delivers, tests and replays.
//!
//! What is asked of the exporter is asked only after the keystore has said that the endpoint is the caller's. Here the shapes are
//! checked, and an address's syntax; where it leads is judged at every delivery.

use actix_web::web::{Data, Path, Payload};
use actix_web::{HttpRequest, HttpResponse};
use stage0_contract::{
    Caller, CreateWebhook, DeleteWebhook, EnableWebhook, GetWebhook, ListDeliveries, ListWebhooks, ReplayWebhook,
    RotateWebhookSecret, Scope, TestWebhook, UpdateWebhook, Webhook, WebhookDeleted, WebhookFilters, WebhookId,
    WebhookUrl,
};

use super::answer;
use super::fields::Fields;
use super::keys::{allowed, caller, created, manage, manage_within, once};
use crate::body;
use crate::errors::ApiError;
use crate::state::Gate;

/// A receiver has 15 s to answer.
const TEST_WITHIN: std::time::Duration = std::time::Duration::from_secs(20);

pub(super) async fn create(gate: Data<Gate>, request: HttpRequest, payload: Payload) -> HttpResponse {
    let created = async {
        let caller = allowed(&gate, &request, Scope::WebhooksManage).await?;
        let body = body::json_object(&gate, &request, payload, &caller.account).await?;
        let (once, refused) = once(&request, &caller, "POST /v1/webhooks", &body);
        let mut fields = Fields::of_body_and(body.object, refused);
        let (account, url) = (fields.account(), fields.required_text("url"));
        let url = normal_url(&gate, &mut fields, url);
        let filters = WebhookFilters { verdicts: fields.verdicts(), environments: fields.texts("environments") };
        let (description, rate_limit) = (fields.text("description").unwrap_or_default(), fields.number("rate_limit"));
        fields.finish()?;
        let create = CreateWebhook { caller, account, url, filters, description, rate_limit };
        Ok::<_, ApiError>(created(&gate, once, create).await?.0)
    };
    answer(&request, created.await)
}

pub(super) async fn list(gate: Data<Gate>, request: HttpRequest) -> HttpResponse {
    let listed = async {
        let caller = caller(&gate, &request).await?;
        let mut fields = Fields::of_query(&request);
        let (account, cursor, limit) = (fields.account(), fields.text("cursor"), fields.limit());
        fields.finish()?;
        let page = manage(&gate, &ListWebhooks { caller, account, cursor, limit }).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(page))
    };
    answer(&request, listed.await)
}

pub(super) async fn get(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let found = async {
        let (_, webhook) = own(&gate, &request, &id).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(webhook))
    };
    answer(&request, found.await)
}

pub(super) async fn update(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let updated = async {
        let (caller, webhook) = own(&gate, &request, &id).await?;
        let mut fields = Fields::of_body(body::json_object(&gate, &request, payload, &caller.account).await?.object);
        let url = fields.text("url").map(|url| normal_url(&gate, &mut fields, url));
        // Each filter is its own member; null means all again.
        let (verdicts, environments) = (fields.has("verdicts"), fields.has("environments"));
        let filters = (verdicts || environments).then(|| WebhookFilters {
            verdicts: if verdicts { fields.verdicts() } else { webhook.filters.verdicts.clone() },
            environments: if environments {
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
        Ok::<_, ApiError>(HttpResponse::Ok().json(manage(&gate, &update).await?))
    };
    answer(&request, updated.await)
}

pub(super) async fn delete(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let deleted = async {
        let caller = caller(&gate, &request).await?;
        let WebhookDeleted {} = manage(&gate, &DeleteWebhook { caller, id: webhook_id(&id)? }).await?;
        Ok::<_, ApiError>(HttpResponse::NoContent().finish())
    };
    answer(&request, deleted.await)
}

pub(super) async fn enable(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let enabled = async {
        let caller = allowed(&gate, &request, Scope::WebhooksManage).await?;
        let body = body::optional_json_object(&gate, &request, payload, &caller.account).await?;
        Fields::of_body(body.object).finish()?;
        let webhook = manage(&gate, &EnableWebhook { caller, id: webhook_id(&id)? }).await?;
        Ok::<_, ApiError>(HttpResponse::Ok().json(webhook))
    };
    answer(&request, enabled.await)
}

pub(super) async fn rotate(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let rotated = async {
        let caller = allowed(&gate, &request, Scope::WebhooksManage).await?;
        let body = body::optional_json_object(&gate, &request, payload, &caller.account).await?;
        let (once, refused) = once(&request, &caller, &format!("POST /v1/webhooks/{id}/rotate-secret"), &body);
        let mut fields = Fields::of_body_and(body.object, refused);
        // A receiver needs a moment to learn the new secret: both sign for a day unless the caller says otherwise.
        let overlap_seconds = fields.seconds("overlap_seconds").unwrap_or(86_400);
        fields.finish()?;
        let rotate = RotateWebhookSecret { caller, id: webhook_id(&id)?, overlap_seconds };
        Ok::<_, ApiError>(created(&gate, once, rotate).await?.0)
    };
    answer(&request, rotated.await)
}

pub(super) async fn test(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let tested = async {
        let (caller, webhook) = own(&gate, &request, &id).await?;
        let body = body::optional_json_object(&gate, &request, payload, &caller.account).await?;
        Fields::of_body(body.object).finish()?;
        let test = TestWebhook { account: webhook.account, id: webhook.id };
        Ok::<_, ApiError>(HttpResponse::Ok().json(manage_within(&gate, &test, TEST_WITHIN).await?))
    };
    answer(&request, tested.await)
}

pub(super) async fn replay(gate: Data<Gate>, request: HttpRequest, id: Path<String>, payload: Payload) -> HttpResponse {
    let replayed = async {
        let (caller, webhook) = own(&gate, &request, &id).await?;
        let mut fields = Fields::of_body(body::json_object(&gate, &request, payload, &caller.account).await?.object);
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
        Ok::<_, ApiError>(HttpResponse::Accepted().json(manage(&gate, &replay).await?))
    };
    answer(&request, replayed.await)
}

pub(super) async fn deliveries(gate: Data<Gate>, request: HttpRequest, id: Path<String>) -> HttpResponse {
    let listed = async {
        let (_, webhook) = own(&gate, &request, &id).await?;
        Fields::of_query(&request).finish()?;
        let list = ListDeliveries { account: webhook.account, id: webhook.id };
        Ok::<_, ApiError>(HttpResponse::Ok().json(manage(&gate, &list).await?))
    };
    answer(&request, listed.await)
}

/// The caller, and its endpoint.
async fn own(gate: &Gate, request: &HttpRequest, id: &str) -> Result<(Caller, Webhook), ApiError> {
    let caller = caller(gate, request).await?;
    let webhook = manage(gate, &GetWebhook { caller: caller.clone(), id: webhook_id(id)? }).await?;
    Ok((caller, webhook))
}

/// The address as it is connected to: what is stored and shown must not look like another.
fn normal_url(gate: &Gate, fields: &mut Fields, url: String) -> String {
    if url.is_empty() {
        return url;
    }
    match WebhookUrl::parse(&url, gate.config.dangerous_allow_private_webhooks) {
        Ok(normal) => normal.as_str().to_owned(),
        Err(error) => {
            fields.refuse("url", &error.to_string());
            url
        }
    }
}

/// What cannot be an endpoint's id names none.
fn webhook_id(text: &str) -> Result<WebhookId, ApiError> {
    WebhookId::parse(text).map_err(|_| ApiError::NotFound)
}
