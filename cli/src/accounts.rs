//! `stage0 accounts`: manages accounts through the control API.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Account, AccountCreated, AccountId, ApprovalMode, Page, Plan, PolicyChanges, UNLIMITED};

use crate::args::Json;
use crate::args::accounts::{AccountsCommand, OwnLimits, Retention};
use crate::client::{Connection, Credential, Query, block_on, target};
use crate::keys::set;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields};

pub(crate) fn run(command: &AccountsCommand, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Connection::new(target(settings, Credential::Operator)?, settings.timeout)?;
    match command {
        AccountsCommand::Create { name, plan, approvals, json } => create(&client, name, *plan, *approvals, *json),
        AccountsCommand::List(Json { json }) => list(&client, *json),
        AccountsCommand::SetRetention { account, retention, json } => set_retention(&client, account, retention, *json),
        AccountsCommand::SetPlan { account, plan, json } => {
            show(&change(&client, account, &json!({"plan": plan}))?, *json)
        }
        AccountsCommand::SetLimits { account, limits, json } => set_limits(&client, account, limits, *json),
        AccountsCommand::Update { account, approvals, four_eyes, policy_changes, record_facts, json } => {
            let mut body = json!({});
            set(&mut body, "approvals", approvals.map(ApprovalMode::as_str));
            set(&mut body, "four_eyes", *four_eyes);
            set(&mut body, "policy_changes", policy_changes.map(PolicyChanges::as_str));
            set(&mut body, "record_facts", *record_facts);
            show(&change(&client, account, &body)?, *json)
        }
        AccountsCommand::RequireRunId { account, switch, json } => {
            show(&change(&client, account, &json!({"require_run_id": switch}))?, *json)
        }
    }
}

fn create(
    client: &Connection,
    name: &str,
    plan: Option<Plan>,
    approvals: ApprovalMode,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut body = json!({"name": name, "approvals": approvals});
    set(&mut body, "plan", plan.map(Plan::as_str));
    let created: AccountCreated = block_on(client.call(Method::POST, &["v1", "accounts"], &[], Some(&body)))?;
    out::show(as_json, &created, |created| {
        fields([
            ("account", created.id.to_string()),
            ("name", plain(&created.name)),
            ("plan", created.plan.as_str().to_owned()),
            ("approvals", approvals_of(created)),
        ])
    })
}

fn approvals_of(account: &Account) -> String {
    let four_eyes = if account.four_eyes { "" } else { ", four eyes off" };
    format!("{}{four_eyes}", account.approvals.as_str())
}

fn list(client: &Connection, as_json: bool) -> anyhow::Result<()> {
    let accounts: Page<Account> = block_on(client.list(&["v1", "accounts"], &Query::default(), None))?;
    if as_json {
        return out::json(&accounts);
    }
    let headings = ["ID", "NAME", "PLAN", "OWN LIMITS", "RUN ID", "RETENTION", "APPROVALS", "FACTS", "CREATED"];
    let mut table = Table::new(headings).shrinkable(&[(8, 11), (3, 12), (7, 0), (4, 0), (1, 12), (6, 8)]);
    for account in &accounts.items {
        table.row([
            account.id.to_string(),
            plain(&account.name),
            account.plan.as_str().to_owned(),
            own_limits(account),
            if account.require_run_id { "required" } else { "-" }.to_owned(),
            format!("{}d", account.retention()),
            approvals_of(account),
            if account.record_facts { "recorded" } else { "-" }.to_owned(),
            account.created_at.to_string(),
        ]);
    }
    Ok(table.print()?)
}

fn set_retention(client: &Connection, id: &AccountId, retention: &Retention, as_json: bool) -> anyhow::Result<()> {
    // `null`, for --plan-default, means the plan's retention.
    let account = change(client, id, &json!({"retention_days": retention.days}))?;
    out::show(as_json, &account, |account| {
        let origin = if account.retention_days.is_none() { ", as its plan says" } else { "" };
        let retention = format!("{} days{origin}", account.retention());
        fields([("account", account.id.to_string()), ("retention", retention)])
    })
}

fn set_limits(client: &Connection, id: &AccountId, limits: &OwnLimits, as_json: bool) -> anyhow::Result<()> {
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

fn change(client: &Connection, id: &AccountId, body: &Value) -> anyhow::Result<Account> {
    Ok(block_on(client.call(Method::PATCH, &["v1", "accounts", id.as_str()], &[], Some(body)))?)
}

fn show(account: &Account, as_json: bool) -> anyhow::Result<()> {
    out::show(as_json, account, |account| {
        let limits = own_limits(account);
        fields([
            ("account", account.id.to_string()),
            ("plan", account.plan.as_str().to_owned()),
            ("own limits", if limits.is_empty() { "the plan's".to_owned() } else { limits }),
            ("run id", if account.require_run_id { "required" } else { "not required" }.to_owned()),
            ("approvals", approvals_of(account)),
            ("policy changes", account.policy_changes.as_str().to_owned()),
            ("facts", if account.record_facts { "recorded with decisions" } else { "not recorded" }.to_owned()),
        ])
    })
}

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
    let shown = own.into_iter().filter_map(|(limit, of)| match limit? {
        UNLIMITED => Some(format!("unlimited{of}")),
        limit => Some(format!("{limit}{of}")),
    });
    shown.collect::<Vec<_>>().join(", ")
}
