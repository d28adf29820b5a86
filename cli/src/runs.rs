//! `stage0 runs`: what the server remembers of a run, its end, and what its checks cost.

use reqwest::Method;
use serde_json::json;
use stage0_contract::{RunCost, RunSettled, RunView};

use crate::args::runs::DoRuns;
use crate::client::{Client, Target, Whose, block_on};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::Table;

/// Runs one of them.
pub(crate) fn run(command: &DoRuns, settings: &ClientSettings) -> Exit {
    crate::run::finished(act(command, settings))
}

fn act(command: &DoRuns, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Client::new(Target::find(settings, Whose::Account)?, settings.timeout)?;
    match command {
        DoRuns::Show { run_id, json } => {
            let run: RunView = block_on(client.call(Method::GET, &["v1", "runs", run_id], &[], None))?;
            let shown = if *json { serde_json::to_string_pretty(&run)? } else { for_people(&run) };
            Ok(out::line(shown)?)
        }
        DoRuns::End { run_id } => {
            block_on(client.send(Method::DELETE, &["v1", "runs", run_id], &[], None))?.successful()?;
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

fn money(cost: &RunCost) -> String {
    format!("cost     {} USD spent, {} reserved, {} in all", cost.spent_usd, cost.reserved_usd, cost.total_usd)
}

fn for_people(run: &RunView) -> String {
    let (id, seen, changed, ends) = (plain(run.run_id.as_str()), run.first_seen, run.last_seen, run.expires_at);
    let mut text = format!(
        "run      {id}\nbegan    {seen}, changed {changed}, forgotten {ends}\ncounted  {} iterations, {} retries, {} s\n{}",
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
    use serde_json::Value;

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
