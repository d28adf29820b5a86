//! `stage0 webhooks`: an account's endpoints, and what became of what was sent to them.
//!
//! Owns the calls, how an endpoint looks, and where a new secret goes: the terminal, once, or a new file that is made before the server
//! is asked, so that no secret is made that has no place.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Map, Value, json};
use stage0_contract::{
    AccountId, Delivery, Page, ReplayStarted, Webhook, WebhookCreated, WebhookId, WebhookSecret, WebhookTested,
};

use crate::args::webhooks::{CreateArgs, DoWebhooks, NewSecret, UpdateArgs};
use crate::client::{Client, Target, Whose, block_on};
use crate::decision::wire_word;
use crate::exit::{AskedWrongly, Exit};
use crate::keys::{pages, set};
use crate::new_file::NewFile;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, optional};

const WEBHOOKS: [&str; 2] = ["v1", "webhooks"];
/// The server gives a receiver 20 s.
const TEST_WITHIN: Duration = Duration::from_secs(30);

/// Runs one of them.
pub(crate) fn run(command: &DoWebhooks, settings: &ClientSettings) -> Exit {
    crate::run::ended(act(command, settings, Timestamp::now()))
}

fn act(command: &DoWebhooks, settings: &ClientSettings, now: Timestamp) -> anyhow::Result<Exit> {
    let is_test = matches!(command, DoWebhooks::Test { .. });
    let within = if is_test { settings.timeout_or(TEST_WITHIN) } else { settings.timeout };
    let client = Client::new(Target::find(settings, Whose::Account)?, within)?;
    match command {
        DoWebhooks::Create(create) => make(&client, &WEBHOOKS, &body_of(create), &create.shown)?,
        DoWebhooks::List { account, json } => list(&client, account.as_ref(), *json)?,
        DoWebhooks::Show { id, json } => told(&ask(&client, Method::GET, id, &[], None)?, *json)?,
        DoWebhooks::Update(update) => {
            let changed = ask(&client, Method::PATCH, &update.id, &[], Some(&changes(update)))?;
            told(&changed, update.json)?;
        }
        DoWebhooks::Enable { id, json } => told(&ask(&client, Method::POST, id, &["enable"], None)?, *json)?,
        DoWebhooks::Disable { id, json } => {
            let body = json!({"enabled": false});
            told(&ask(&client, Method::PATCH, id, &[], Some(&body))?, *json)?;
        }
        DoWebhooks::RotateSecret { id, overlap, shown } => {
            let mut body = Value::Object(Map::new());
            set(&mut body, "overlap_seconds", *overlap);
            make(&client, &path(id, &["rotate-secret"]), &body, shown)?;
        }
        DoWebhooks::Test { id, json } => return test(&client, id, *json),
        DoWebhooks::Replay { id, from, to, json } => {
            let (from, to) = (from.at(now), to.at(now));
            if from >= to {
                return Err(AskedWrongly("--to must be after --from").into());
            }
            let body = json!({"from": from, "to": to});
            let ReplayStarted {} = block_on(client.call(Method::POST, &path(id, &["replay"]), &[], Some(&body)))?;
            if *json {
                out::json(&json!({"id": id, "from": from, "to": to}))?;
            } else {
                out::line(format!("{id} gets again what was recorded from {from} to {to}"))?;
            }
        }
        DoWebhooks::Deliveries { id, json } => deliveries(&client, id, *json)?,
        DoWebhooks::Delete { id, json } => {
            block_on(async { client.send(Method::DELETE, &path(id, &[]), &[], None).await?.successful() })?;
            if *json {
                out::json(&json!({"id": id, "deleted": true}))?;
            } else {
                out::line(format!("deleted {id}"))?;
            }
        }
    }
    Ok(Exit::Done)
}

fn told(webhook: &Webhook, as_json: bool) -> anyhow::Result<()> {
    if as_json { out::json(webhook) } else { Ok(out::line(for_people(webhook))?) }
}

fn path<'a>(id: &'a WebhookId, more: &[&'a str]) -> Vec<&'a str> {
    WEBHOOKS.into_iter().chain([id.as_str()]).chain(more.iter().copied()).collect()
}

fn ask(
    client: &Client,
    method: Method,
    id: &WebhookId,
    more: &[&str],
    body: Option<&Value>,
) -> anyhow::Result<Webhook> {
    Ok(block_on(client.call(method, &path(id, more), &[], body))?)
}

fn body_of(create: &CreateArgs) -> Value {
    let mut body = json!({"url": create.endpoint});
    set(&mut body, "account", create.account.as_ref().map(AccountId::as_str));
    set(&mut body, "verdicts", some(&create.verdicts).map(|verdicts| json!(verdicts)));
    set(&mut body, "environments", some(&create.environments).map(|environments| json!(environments)));
    set(&mut body, "description", create.description.as_deref());
    set(&mut body, "rate_limit", create.rate_limit);
    body
}

/// What was named; null means all again.
fn changes(update: &UpdateArgs) -> Value {
    let mut body = Value::Object(Map::new());
    set(&mut body, "url", update.endpoint.as_deref());
    let verdicts = some(&update.verdicts).map(|verdicts| json!(verdicts));
    set(&mut body, "verdicts", verdicts.or(update.all_verdicts.then_some(Value::Null)));
    let environments = some(&update.environments).map(|environments| json!(environments));
    set(&mut body, "environments", environments.or(update.all_environments.then_some(Value::Null)));
    set(&mut body, "description", update.description.as_deref());
    set(&mut body, "rate_limit", update.rate_limit);
    body
}

fn some<T>(items: &[T]) -> Option<&[T]> {
    (!items.is_empty()).then_some(items)
}

fn make(client: &Client, path: &[&str], body: &Value, shown: &NewSecret) -> anyhow::Result<()> {
    let file = shown.out.as_deref().map(NewFile::create).transpose()?;
    let created: WebhookCreated = block_on(client.call(Method::POST, path, &[], Some(body)))?;
    let (webhook, secret) = (&created.webhook, created.secret.expose());
    match file {
        Some(mut file) => {
            let written = file.write(format!("{secret}\n").as_bytes()).and_then(|()| file.keep());
            let hint =
                || format!("the endpoint {} has a secret that nobody knows: `rotate-secret` makes another", webhook.id);
            written.with_context(hint)?;
            Ok(out::line(&webhook.id)?)
        }
        None if shown.json => out::json(&created),
        None => Ok(out::line(with_secret(webhook, &created.secret))?),
    }
}

fn with_secret(webhook: &Webhook, secret: &WebhookSecret) -> String {
    let hint = "The secret is shown this once; it cannot be read again.";
    format!("secret        {}\n{}\n\n{hint}", secret.expose(), for_people(webhook))
}

fn for_people(webhook: &Webhook) -> String {
    format!(
        "id            {}\nurl           {}\nstate         {}\nverdicts      {}\nenvironments  {}\nrate limit    {}\ndescription   {}\naccount       {}\ncreated       {}",
        webhook.id,
        plain(&webhook.url),
        state(webhook),
        verdicts(webhook),
        environments(webhook),
        webhook.rate_limit.map_or_else(|| "-".to_owned(), |limit| format!("{limit} a second")),
        if webhook.description.is_empty() { "-".to_owned() } else { plain(&webhook.description) },
        webhook.account,
        webhook.created_at,
    )
}

fn state(webhook: &Webhook) -> String {
    match (webhook.enabled, &webhook.disabled_reason) {
        (true, _) => "enabled".to_owned(),
        (false, None) => "disabled".to_owned(),
        (false, Some(reason)) => format!("disabled: {}", plain(reason)),
    }
}

fn verdicts(webhook: &Webhook) -> String {
    let words =
        |verdicts: &Vec<stage0_contract::Verdict>| verdicts.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(",");
    webhook.filters.verdicts.as_ref().map_or_else(|| "all".to_owned(), words)
}

fn environments(webhook: &Webhook) -> String {
    webhook.filters.environments.as_ref().map_or_else(|| "all".to_owned(), |names| plain(&names.join(",")))
}

fn list(client: &Client, account: Option<&AccountId>, as_json: bool) -> anyhow::Result<()> {
    let webhooks: Vec<Webhook> = block_on(pages(client, &WEBHOOKS, account.map(AccountId::as_str)))?;
    if as_json {
        return out::json(&Page { items: webhooks, next_cursor: None });
    }
    let headings = ["ID", "VERDICTS", "ENVIRONMENTS", "RATE", "CREATED", "STATE", "URL"];
    let mut table = Table::new(headings).giving_way(&[(4, 0), (3, 0), (2, 0), (1, 5), (6, 24), (5, 8)]);
    for webhook in &webhooks {
        table.row([
            webhook.id.to_string(),
            verdicts(webhook),
            environments(webhook),
            optional(webhook.rate_limit.as_ref()),
            webhook.created_at.to_string(),
            state(webhook),
            plain(&webhook.url),
        ]);
    }
    Ok(table.print()?)
}

fn test(client: &Client, id: &WebhookId, as_json: bool) -> anyhow::Result<Exit> {
    let tested: WebhookTested = block_on(client.call(Method::POST, &path(id, &["test"]), &[], None))?;
    let exit = if tested.delivered { Exit::Done } else { Exit::Failed };
    if as_json {
        out::json(&tested)?;
        return Ok(exit);
    }
    out::line(format!(
        "delivered  {}\nstatus     {}\nerror      {}\nlatency    {} ms",
        if tested.delivered { "yes" } else { "no" },
        optional(tested.status.as_ref()),
        optional(tested.error.as_deref().map(plain).as_ref()),
        tested.latency_ms,
    ))?;
    Ok(exit)
}

fn deliveries(client: &Client, id: &WebhookId, as_json: bool) -> anyhow::Result<()> {
    let page: Page<Delivery> = block_on(client.call(Method::GET, &path(id, &["deliveries"]), &[], None))?;
    if as_json {
        return out::json(&page);
    }
    let headings = ["SEQUENCE", "STATE", "ATTEMPTS", "STATUS", "LATENCY", "LAST", "NEXT", "EVENT", "ERROR"];
    let mut table = Table::new(headings).giving_way(&[(6, 0), (4, 0), (3, 0), (5, 10), (8, 12), (7, 12)]);
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
