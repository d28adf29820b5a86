//! `stage0 accounts`: the account calls of the control API (contract, section 7).

use reqwest::Method;
use serde_json::json;
use stage0_contract::{Account, AccountCreated, AccountId, Page, Plan};

use crate::args::{DoAccounts, Retention};
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
        DoAccounts::SetRetention { account, retention } => set_retention(&client, account, retention),
    }
}

fn create(client: &Client, name: &str, plan: Option<Plan>, as_json: bool) -> anyhow::Result<()> {
    let body = match plan {
        Some(plan) => json!({"name": name, "plan": plan}),
        None => json!({"name": name}),
    };
    let created: AccountCreated = block_on(client.call(Method::POST, &["v1", "accounts"], &[], Some(&body)))?;
    if as_json {
        return Ok(out::line(serde_json::to_string_pretty(&created)?)?);
    }
    let (id, name, plan) = (&created.id, plain(&created.name), created.plan.as_str());
    Ok(out::line(format!("account  {id}\nname     {name}\nplan     {plan}"))?)
}

fn list(client: &Client, as_json: bool) -> anyhow::Result<()> {
    let accounts: Vec<Account> = block_on(crate::keys::pages(client, &["v1", "accounts"], None))?;
    if as_json {
        return Ok(out::line(serde_json::to_string_pretty(&Page { items: accounts, next_cursor: None })?)?);
    }
    let mut table = Table::new(["ID", "NAME", "PLAN", "RETENTION", "CREATED"]);
    for account in &accounts {
        table.row([
            account.id.to_string(),
            plain(&account.name),
            account.plan.as_str().to_owned(),
            format!("{}d", account.retention()),
            account.created_at.to_string(),
        ]);
    }
    Ok(out::line(table)?)
}

fn set_retention(client: &Client, id: &AccountId, retention: &Retention) -> anyhow::Result<()> {
    // No days are the plan's, which the command line has asked for by name.
    let body = json!({"retention_days": retention.days});
    let path = ["v1", "accounts", id.as_str()];
    let account: Account = block_on(client.call(Method::PATCH, &path, &[], Some(&body)))?;
    let from = if account.retention_days.is_none() { ", as its plan says" } else { "" };
    Ok(out::line(format!("account    {}\nretention  {} days{from}", account.id, account.retention()))?)
}
