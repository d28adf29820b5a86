//! `stage0 webhooks`: an account's endpoints and the deliveries to them.
//!
//! The file for a new secret is created before the request is sent, so that no secret is made that cannot be stored.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Map, Value, json};
use stage0_contract::{AccountId, Delivery, Page, ReplayStarted, Webhook, WebhookCreated, WebhookId, WebhookTested};

use crate::args::webhooks::{CreateArgs, EndpointArgs, NewSecret, UpdateArgs, WebhooksCommand};
use crate::client::{Connection, Credential, Query, block_on, target};
use crate::decision::wire_word;
use crate::exit::{Exit, UsageError};
use crate::keys::set;
use crate::new_file::NewFile;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional};

const WEBHOOKS: [&str; 2] = ["v1", "webhooks"];
/// Longer than the 20 s that the server waits for the endpoint.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn run(command: &WebhooksCommand, settings: &ClientSettings) -> anyhow::Result<Exit> {
    let now = Timestamp::now();
    let is_test = matches!(command, WebhooksCommand::Test(_));
    let timeout = if is_test { settings.timeout_or(TEST_TIMEOUT) } else { settings.timeout };
    let client = Connection::new(target(settings, Credential::Account)?, timeout)?;
    match command {
        WebhooksCommand::Create(create) => make(&client, &WEBHOOKS, &body_of(create), &create.shown)?,
        WebhooksCommand::List { account, json } => list(&client, account.as_ref(), *json)?,
        WebhooksCommand::Show(EndpointArgs { id, json }) => show(&client, id, *json, Method::GET, &[], None)?,
        WebhooksCommand::Update(update) => {
            show(&client, &update.id, update.json, Method::PATCH, &[], Some(&changes(update)))?;
        }
        WebhooksCommand::Enable(EndpointArgs { id, json }) => {
            show(&client, id, *json, Method::POST, &["enable"], None)?;
        }
        WebhooksCommand::Disable(EndpointArgs { id, json }) => {
            show(&client, id, *json, Method::PATCH, &[], Some(&json!({"enabled": false})))?;
        }
        WebhooksCommand::RotateSecret { id, overlap, shown } => {
            let mut body = Value::Object(Map::new());
            set(&mut body, "overlap_seconds", *overlap);
            make(&client, &path(id, &["rotate-secret"]), &body, shown)?;
        }
        WebhooksCommand::Test(EndpointArgs { id, json }) => return test(&client, id, *json),
        WebhooksCommand::Replay { id, from, to, json } => {
            let (from, to) = (from.at(now), to.at(now));
            if from >= to {
                return Err(UsageError("--to must be after --from").into());
            }
            let body = json!({"from": from, "to": to});
            let ReplayStarted {} = block_on(client.call(Method::POST, &path(id, &["replay"]), &[], Some(&body)))?;
            let text = format!("{id} receives again everything recorded from {from} to {to}");
            out::show(*json, &json!({"id": id, "from": from, "to": to}), |_| text)?;
        }
        WebhooksCommand::Deliveries(EndpointArgs { id, json }) => deliveries(&client, id, *json)?,
        WebhooksCommand::Delete(EndpointArgs { id, json }) => {
            block_on(client.execute(Method::DELETE, &path(id, &[])))?;
            out::show(*json, &json!({"id": id, "deleted": true}), |_| format!("deleted {id}"))?;
        }
    }
    Ok(Exit::Done)
}

fn path<'a>(id: &'a WebhookId, more: &[&'a str]) -> Vec<&'a str> {
    WEBHOOKS.into_iter().chain([id.as_str()]).chain(more.iter().copied()).collect()
}

/// Sends a request about an endpoint and shows the endpoint as it is then.
fn show(
    client: &Connection,
    id: &WebhookId,
    as_json: bool,
    method: Method,
    more: &[&str],
    body: Option<&Value>,
) -> anyhow::Result<()> {
    let webhook: Webhook = block_on(client.call(method, &path(id, more), &[], body))?;
    out::show(as_json, &webhook, for_people)
}

fn body_of(create: &CreateArgs) -> Value {
    let mut body = json!({"url": create.endpoint});
    set(&mut body, "account", create.account.as_ref().map(AccountId::as_str));
    set(&mut body, "verdicts", unless_empty(&create.verdicts));
    set(&mut body, "environments", unless_empty(&create.environments));
    set(&mut body, "events", unless_empty(&create.events));
    set(&mut body, "description", create.description.as_deref());
    set(&mut body, "rate_limit", create.rate_limit);
    body
}

fn changes(update: &UpdateArgs) -> Value {
    let mut body = Value::Object(Map::new());
    set(&mut body, "url", update.endpoint.as_deref());
    let all = |is_named: bool| is_named.then_some(Value::Null);
    set(&mut body, "verdicts", unless_empty(&update.verdicts).or(all(update.all_verdicts)));
    set(&mut body, "environments", unless_empty(&update.environments).or(all(update.all_environments)));
    set(&mut body, "events", unless_empty(&update.events).or(all(update.default_events)));
    set(&mut body, "description", update.description.as_deref());
    set(&mut body, "rate_limit", update.rate_limit);
    body
}

fn unless_empty<T: Serialize>(items: &[T]) -> Option<Value> {
    (!items.is_empty()).then(|| json!(items))
}

fn make(client: &Connection, path: &[&str], body: &Value, shown: &NewSecret) -> anyhow::Result<()> {
    let file = shown.out.as_deref().map(NewFile::create).transpose()?;
    let created: WebhookCreated = block_on(client.call(Method::POST, path, &[], Some(body)))?;
    let (webhook, secret) = (&created.webhook, created.secret.expose());
    match file {
        Some(file) => {
            file.keep_line(secret).with_context(|| {
                format!("the secret of endpoint {} was not saved: `rotate-secret` makes another", webhook.id)
            })?;
            Ok(out::line(&webhook.id)?)
        }
        None if shown.json => out::json(&created),
        None => {
            let hint = "The secret is shown this once; it cannot be read again.";
            Ok(out::line(format!("secret        {secret}\n{}\n\n{hint}", for_people(webhook)))?)
        }
    }
}

fn for_people(webhook: &Webhook) -> String {
    fields([
        ("id", webhook.id.to_string()),
        ("url", plain(&webhook.url)),
        ("state", state(webhook)),
        ("verdicts", verdicts(webhook)),
        ("environments", environments(webhook)),
        ("events", events(webhook)),
        ("rate limit", optional(webhook.rate_limit.map(|limit| format!("{limit} a second")).as_ref())),
        ("description", if webhook.description.is_empty() { "-".to_owned() } else { plain(&webhook.description) }),
        ("account", webhook.account.to_string()),
        ("created", webhook.created_at.to_string()),
    ])
}

fn state(webhook: &Webhook) -> String {
    match (webhook.enabled, &webhook.disabled_reason) {
        (true, _) => "enabled".to_owned(),
        (false, None) => "disabled".to_owned(),
        (false, Some(reason)) => format!("disabled: {}", plain(reason)),
    }
}

fn verdicts(webhook: &Webhook) -> String {
    let Some(verdicts) = &webhook.filters.verdicts else { return "all".to_owned() };
    verdicts.iter().map(|verdict| verdict.as_str()).collect::<Vec<_>>().join(",")
}

fn environments(webhook: &Webhook) -> String {
    webhook.filters.environments.as_ref().map_or_else(|| "all".to_owned(), |names| plain(&names.join(",")))
}

fn events(webhook: &Webhook) -> String {
    webhook.filters.events.as_ref().map_or_else(|| "decisions and marks".to_owned(), |types| plain(&types.join(",")))
}

fn list(client: &Connection, account: Option<&AccountId>, as_json: bool) -> anyhow::Result<()> {
    let webhooks: Page<Webhook> = block_on(client.list(&WEBHOOKS, &Query::default().with("account", account), None))?;
    if as_json {
        return out::json(&webhooks);
    }
    let headings = ["ID", "VERDICTS", "ENVIRONMENTS", "EVENTS", "RATE", "CREATED", "STATE", "URL"];
    let mut table = Table::new(headings).shrinkable(&[(5, 0), (4, 0), (2, 0), (3, 0), (1, 5), (7, 24), (6, 8)]);
    for webhook in &webhooks.items {
        table.row([
            webhook.id.to_string(),
            verdicts(webhook),
            environments(webhook),
            events(webhook),
            optional(webhook.rate_limit.as_ref()),
            webhook.created_at.to_string(),
            state(webhook),
            plain(&webhook.url),
        ]);
    }
    Ok(table.print()?)
}

fn test(client: &Connection, id: &WebhookId, as_json: bool) -> anyhow::Result<Exit> {
    let tested: WebhookTested = block_on(client.call(Method::POST, &path(id, &["test"]), &[], None))?;
    out::show(as_json, &tested, |tested| {
        fields([
            ("delivered", if tested.delivered { "yes" } else { "no" }.to_owned()),
            ("status", optional(tested.status.as_ref())),
            ("error", optional(tested.error.as_deref().map(plain).as_ref())),
            ("latency", format!("{} ms", tested.latency_ms)),
        ])
    })?;
    Ok(if tested.delivered { Exit::Done } else { Exit::Failed })
}

fn deliveries(client: &Connection, id: &WebhookId, as_json: bool) -> anyhow::Result<()> {
    let page: Page<Delivery> = block_on(client.call(Method::GET, &path(id, &["deliveries"]), &[], None))?;
    if as_json {
        return out::json(&page);
    }
    let headings = ["SEQUENCE", "STATE", "ATTEMPTS", "STATUS", "LATENCY", "LAST", "NEXT", "EVENT", "ERROR"];
    let mut table = Table::new(headings).shrinkable(&[(6, 0), (4, 0), (3, 0), (5, 10), (8, 12), (7, 12)]);
    for delivery in &page.items {
        table.row([
            delivery.sequence.to_string(),
            wire_word(&delivery.state),
            delivery.attempts.to_string(),
            optional(delivery.status.as_ref()),
            format!("{}ms", delivery.latency_ms),
            delivery.last_attempt_at.to_string(),
            optional(delivery.next_attempt_at.as_ref()),
            plain(&delivery.event),
            optional(delivery.error.as_deref().map(plain).as_ref()),
        ]);
    }
    Ok(table.print()?)
}
