//! `stage0 accounts`: the account calls of the control API (contract, section 7).

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Account, AccountCreated, AccountId, Page, Plan, UNLIMITED};

use crate::args::accounts::{DoAccounts, OwnLimits, Retention};
use crate::client::{Client, Target, Whose, block_on};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::Table;

/// Runs one of them.
pub(crate) fn run(command: &DoAccounts, settings: &ClientSettings) -> Exit {
    crate::run::finished(act(command, settings))
}

fn act(command: &DoAccounts, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Client::new(Target::find(settings, Whose::Operator)?, settings.timeout)?;
    match command {
        DoAccounts::Create { name, plan, json } => create(&client, name, *plan, *json),
        DoAccounts::List { json } => list(&client, *json),
        DoAccounts::SetRetention { account, retention, json } => set_retention(&client, account, retention, *json),
        DoAccounts::SetPlan { account, plan, json } => show(&change(&client, account, &json!({"plan": plan}))?, *json),
        DoAccounts::SetLimits { account, limits, json } => set_limits(&client, account, limits, *json),
        DoAccounts::RequireRunId { account, switch, json } => {
            show(&change(&client, account, &json!({"require_run_id": switch}))?, *json)
        }
    }
}

fn create(client: &Client, name: &str, plan: Option<Plan>, as_json: bool) -> anyhow::Result<()> {
    let body = match plan {
        Some(plan) => json!({"name": name, "plan": plan}),
        None => json!({"name": name}),
    };
    let created: AccountCreated = block_on(client.call(Method::POST, &["v1", "accounts"], &[], Some(&body)))?;
    if as_json {
        return out::json(&created);
    }
    let (id, name, plan) = (&created.id, plain(&created.name), created.plan.as_str());
    Ok(out::line(format!("account  {id}\nname     {name}\nplan     {plan}"))?)
}

fn list(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let accounts: Vec<Account> = block_on(crate::keys::pages(client, &["v1", "accounts"], None))?;
    if as_json {
        return out::json(&Page { items: accounts, next_cursor: None });
    }
    let headings = ["ID", "NAME", "PLAN", "OWN LIMITS", "RUN ID", "RETENTION", "CREATED"];
    let mut table = Table::new(headings).giving_way(&[(6, 11), (3, 12), (4, 0), (1, 12)]);
    for account in &accounts {
        table.row([
            account.id.to_string(),
            plain(&account.name),
            account.plan.as_str().to_owned(),
            own_limits(account),
            if account.require_run_id { "required" } else { "-" }.to_owned(),
            format!("{}d", account.retention()),
            account.created_at.to_string(),
        ]);
    }
    Ok(table.print()?)
}

fn set_retention(client: &Client, id: &AccountId, retention: &Retention, as_json: bool) -> anyhow::Result<()> {
    // No days are the plan's, which the command line has asked for by name.
    let body = json!({"retention_days": retention.days});
    let account = change(client, id, &body)?;
    if as_json {
        return out::json(&account);
    }
    let from = if account.retention_days.is_none() { ", as its plan says" } else { "" };
    Ok(out::line(format!("account    {}\nretention  {} days{from}", account.id, account.retention()))?)
}

fn set_limits(client: &Client, id: &AccountId, limits: &OwnLimits, as_json: bool) -> anyhow::Result<()> {
    let own = [
        ("per_minute", limits.per_minute),
        ("daily", limits.daily),
        ("monthly", limits.monthly),
        ("max_keys", limits.max_keys),
        ("max_endpoints", limits.max_endpoints),
        ("max_runs", limits.max_runs),
        ("stored_bytes", limits.stored_bytes),
    ];
    let named = own.into_iter().filter_map(|(name, limit)| Some((name.to_owned(), json!(limit?.own()))));
    show(&change(client, id, &Value::Object(named.collect()))?, as_json)
}

fn change(client: &Client, id: &AccountId, body: &Value) -> anyhow::Result<Account> {
    Ok(block_on(client.call(Method::PATCH, &["v1", "accounts", id.as_str()], &[], Some(body)))?)
}

fn show(account: &Account, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return out::json(account);
    }
    let (id, plan, run_id) = (&account.id, account.plan.as_str(), account.require_run_id);
    let (limits, run_id) = (own_limits(account), if run_id { "required" } else { "not required" });
    let limits = if limits.is_empty() { "the plan's" } else { &limits };
    Ok(out::line(format!("account     {id}\nplan        {plan}\nown limits  {limits}\nrun id      {run_id}"))?)
}

/// Empty where all are the plan's.
fn own_limits(account: &Account) -> String {
    let (limits, caps) = (&account.limits, &account.caps);
    let own = [
        (limits.per_minute, "/minute"),
        (limits.daily, "/day"),
        (limits.monthly, "/month"),
        (caps.max_keys, " keys"),
        (caps.max_endpoints, " endpoints"),
        (caps.max_runs, " runs/day"),
        (caps.stored_bytes, " stored bytes/day"),
    ];
    let told = own.into_iter().filter_map(|(limit, of)| match limit? {
        UNLIMITED => Some(format!("unlimited{of}")),
        limit => Some(format!("{limit}{of}")),
    });
    told.collect::<Vec<_>>().join(", ")
}
