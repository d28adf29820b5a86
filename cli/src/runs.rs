//! `stage0 runs`: lists, shows, ends and settles runs.

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Page, RunCost, RunSettled, RunView};

use crate::args::runs::RunsCommand;
use crate::client::{Connection, ConnectionError, Credential, Limit, Query, block_on, parse, target};
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields};

const PAGE_SIZE: u32 = 100;

pub(crate) fn run(command: &RunsCommand, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Connection::new(target(settings, Credential::Account)?, settings.timeout)?;
    match command {
        RunsCommand::List { limit, json } => list(&client, *limit, *json),
        RunsCommand::Show { run_id, json } => {
            let run: Value = block_on(client.call(Method::GET, &["v1", "runs", run_id], &[], None))?;
            if *json {
                return out::json(&run);
            }
            Ok(out::line(for_people(&parse(&run)?))?)
        }
        RunsCommand::End { run_id, json } => {
            block_on(client.execute(Method::DELETE, &["v1", "runs", run_id]))?;
            out::show(*json, &json!({"run_id": run_id, "ended": true}), |_| format!("ended  {}", plain(run_id)))
        }
        RunsCommand::Settle { run_id, request_id, cost_usd, json } => {
            let body = json!({"request_id": request_id, "actual_cost_usd": cost_usd});
            let path = ["v1", "runs", run_id, "settle"];
            let settled: RunSettled = block_on(client.call(Method::POST, &path, &[], Some(&body)))?;
            out::show(*json, &settled, |settled| {
                let (actual, estimated) = (settled.actual_cost_usd, settled.estimated_cost_usd);
                format!("settled  {actual} USD, estimated {estimated}\n{}", cost_line(&settled.cost))
            })
        }
    }
}

fn list(client: &Connection, limit: u32, as_json: bool) -> anyhow::Result<()> {
    let limits = Limit { items: limit, per_page: PAGE_SIZE };
    let found: Page<Value> = match block_on(client.list(&["v1", "runs"], &Query::default(), Some(limits))) {
        Err(error @ ConnectionError::Refused { status: 404 | 405, .. }) => {
            return Err(error).context("this gateway does not list runs: it is older than this command line");
        }
        found => found?,
    };
    if as_json {
        return out::json(&found);
    }
    if found.items.is_empty() {
        out::stderr_line("this account has no runs that the server still remembers");
    }
    let headings = ["RUN", "BEGAN", "CHANGED", "ITERATIONS", "RETRIES", "USD", "NOT SETTLED", "FORGOTTEN"];
    let mut table = Table::new(headings).shrinkable(&[(7, 0), (1, 0), (4, 0), (6, 0), (0, 12)]);
    for run in &found.items {
        let run: RunView = parse(run)?;
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
        out::stderr_line(format!("these are {limit} of them; there are more (--limit)"));
    }
    Ok(())
}

fn cost_line(cost: &RunCost) -> String {
    format!("cost     {} USD spent, {} reserved, {} in all", cost.spent_usd, cost.reserved_usd, cost.total_usd)
}

fn for_people(run: &RunView) -> String {
    let counts = format!("{} iterations, {} retries, {} s", run.iterations, run.retries, run.elapsed_seconds);
    let mut text = fields([
        ("run", plain(run.run_id.as_str())),
        ("began", run.first_seen.to_string()),
        ("changed", run.last_seen.to_string()),
        ("ends", format!("{}, unless another check names it before", run.expires_at)),
        ("counted", counts),
    ]);
    text = format!("{text}\n{}", cost_line(&run.cost));
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
    fn a_run_is_shown_with_its_tools_and_open_reservations() {
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
