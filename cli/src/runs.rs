//! `stage0 runs`: what the server remembers of a run, its end, and what its checks cost.

use anyhow::Context as _;
use reqwest::Method;
use serde::Deserialize as _;
use serde_json::{Value, json};
use stage0_contract::{Page, RunCost, RunSettled, RunView};

use crate::args::runs::DoRuns;
use crate::client::{Client, ClientError, Query, Target, Whose, block_on};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::Table;

/// Runs of a page.
const PAGE: u32 = 100;

/// Runs one of them.
pub(crate) fn run(command: &DoRuns, settings: &ClientSettings) -> Exit {
    crate::run::finished(act(command, settings))
}

fn act(command: &DoRuns, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Client::new(Target::find(settings, Whose::Account)?, settings.timeout)?;
    match command {
        DoRuns::List { limit, json } => list(&client, *limit, *json),
        DoRuns::Show { run_id, json } => {
            let run: Value = block_on(client.call(Method::GET, &["v1", "runs", run_id], &[], None))?;
            if *json {
                return out::json(&run);
            }
            Ok(out::line(for_people(&read(&run)?))?)
        }
        DoRuns::End { run_id, json } => {
            block_on(client.send(Method::DELETE, &["v1", "runs", run_id], &[], None))?.successful()?;
            if *json {
                return out::json(&json!({"run_id": run_id, "ended": true}));
            }
            Ok(out::line(format!("ended  {}", plain(run_id)))?)
        }
        DoRuns::Settle { run_id, request_id, cost_usd, json } => {
            let body = json!({"request_id": request_id, "actual_cost_usd": cost_usd});
            let path = ["v1", "runs", run_id, "settle"];
            let settled: RunSettled = block_on(client.call(Method::POST, &path, &[], Some(&body)))?;
            if *json {
                return out::json(&settled);
            }
            let (estimated, actual) = (settled.estimated_cost_usd, settled.actual_cost_usd);
            Ok(out::line(format!("settled  {actual} USD, estimated {estimated}\n{}", money(&settled.cost)))?)
        }
    }
}

/// Page after page, until there are enough.
fn list(client: &Client, limit: u32, as_json: bool) -> anyhow::Result<()> {
    let found = match block_on(collect(client, limit)) {
        Err(error @ ClientError::Refused { status: 404 | 405, .. }) => {
            return Err(error).context("this gateway does not list runs: it is older than this command line");
        }
        found => found?,
    };
    if as_json {
        return out::json(&found);
    }
    if found.items.is_empty() {
        out::complain("the server remembers no run of this account");
    }
    let headings = ["RUN", "BEGAN", "CHANGED", "ITERATIONS", "RETRIES", "USD", "NOT SETTLED", "FORGOTTEN"];
    let mut table = Table::new(headings).giving_way(&[(7, 0), (1, 0), (4, 0), (6, 0), (0, 12)]);
    for run in &found.items {
        let run = read(run)?;
        table.row([
            run.run_id.as_str().to_owned(),
            run.first_seen.to_string(),
            run.last_seen.to_string(),
            run.iterations.to_string(),
            run.retries.to_string(),
            run.cost.total_usd.to_string(),
            run.reservations.len().to_string(),
            run.expires_at.to_string(),
        ]);
    }
    table.print()?;
    if found.next_cursor.is_some() {
        out::complain(format!("these are {limit} of them; there are more (--limit)"));
    }
    Ok(())
}

async fn collect(client: &Client, limit: u32) -> Result<Page<Value>, ClientError> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let missing = u32::try_from(most.saturating_sub(items.len())).unwrap_or(PAGE).min(PAGE);
        let query = Query::default().with("limit", Some(missing)).with("cursor", cursor.as_ref());
        let page: Page<Value> = client.call(Method::GET, &["v1", "runs"], &query.pairs(), None).await?;
        items.extend(page.items);
        // A server that says the same page again would keep us here for ever.
        if items.len() >= most || page.next_cursor.is_none() || page.next_cursor == cursor {
            return Ok(Page { items, next_cursor: page.next_cursor });
        }
        cursor = page.next_cursor;
    }
}

/// Read apart from what is printed as JSON, so that nothing of that is lost.
fn read(run: &Value) -> Result<RunView, ClientError> {
    RunView::deserialize(run).map_err(|error| ClientError::Unreadable(plain(&error.to_string())))
}

fn money(cost: &RunCost) -> String {
    format!("cost     {} USD spent, {} reserved, {} in all", cost.spent_usd, cost.reserved_usd, cost.total_usd)
}

fn for_people(run: &RunView) -> String {
    let (id, seen, changed, ends) = (plain(run.run_id.as_str()), run.first_seen, run.last_seen, run.expires_at);
    let mut text = format!(
        "run      {id}\nbegan    {seen}\nchanged  {changed}\nends     {ends}, unless a check names it before\ncounted  {} iterations, {} retries, {} s\n{}",
        run.iterations,
        run.retries,
        run.elapsed_seconds,
        money(&run.cost),
    );
    if !run.tool_calls.is_empty() {
        let mut table = Table::new(["TOOL", "CALLS"]);
        for (tool, calls) in &run.tool_calls {
            table.row([plain(tool), calls.to_string()]);
        }
        text = format!("{text}\n\n{table}");
    }
    if !run.reservations.is_empty() {
        let mut table = Table::new(["NOT SETTLED", "USD", "ALLOWED", "COUNTS AS SPENT"]);
        for open in &run.reservations {
            let (id, usd) = (open.request_id.to_string(), open.estimated_cost_usd.to_string());
            table.row([id, usd, open.reserved_at.to_string(), open.expires_at.to_string()]);
        }
        text = format!("{text}\n\n{table}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_shown_with_its_tools_and_what_is_open() {
        let text = include_str!("../../contract/fixtures/run_view.json");
        let fixture: Value = serde_json::from_str(text).unwrap();
        let mut run: RunView = serde_json::from_value(fixture["done"].clone()).unwrap();
        run.tool_calls.insert("a\u{1b}[2J".to_owned(), 1);
        let shown = for_people(&run);
        for part in ["3 iterations, 1 retries", "1.25 USD spent, 2.5 reserved", "shell", "0190163d-8694"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains('\u{1b}'));
    }
}
