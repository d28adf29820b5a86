//! `stage0 outcomes`: what came of allowed actions, and of which nothing is known.

use std::collections::BTreeMap;

use jiff::Timestamp;
use reqwest::Method;
use serde::Serialize;
use serde_json::{Value, json};
use stage0_contract::{Guard, OutcomeFilter, Page, ReportedOutcome, ShownDecision, Verdict};

use crate::args::outcomes::{OutcomesCommand, Report};
use crate::client::{Connection, Credential, Limit, Query, block_on, parse, target};
use crate::guards;
use crate::out;
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional, seconds};

const PAGE_SIZE: u32 = 1_000;
/// As many as an account can have.
const MAX_GUARDS: u32 = 10_000;
const DECISIONS: [&str; 2] = ["v1", "decisions"];

pub(crate) fn run(command: &OutcomesCommand, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Connection::new(target(settings, Credential::Account)?, settings.timeout)?;
    let now = Timestamp::now();
    match command {
        OutcomesCommand::Summary { period, json } => {
            let (from, to) = period.at(now)?;
            let query = Query::default().with("from", from).with("to", to);
            let summary = summary(&client, query.with("verdict", Some(Verdict::Allow)))?;
            out::show(*json, &summary, for_people)
        }
        OutcomesCommand::List { period, outcome, limit, json } => {
            let (from, to) = period.at(now)?;
            let query = Query::default().with("from", from).with("to", to).with("order", Some("desc"));
            let query = query.with("verdict", Some(Verdict::Allow)).with("outcome", Some(outcome.as_str()));
            list(&client, &query, *limit, *json)
        }
        OutcomesCommand::Report(report) => self::report(&client, report),
    }
}

/// How many allowed actions ended in which way.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Summary {
    allowed: u64,
    /// By status; `none`: nothing was reported.
    outcomes: BTreeMap<&'static str, u64>,
    /// Reported more than an hour after the decision.
    late: u64,
    /// Tool calls that ran without a decision, as guards saw.
    ran_undecided: u64,
    /// Guards that are silent now.
    silent_guards: u64,
}

fn summary(client: &Connection, query: Query) -> anyhow::Result<Summary> {
    let decisions: Page<ShownDecision> = {
        let query = query.with("outcome", Some(OutcomeFilter::Any.as_str()));
        block_on(client.list(&DECISIONS, &query, Some(Limit { items: u32::MAX, per_page: PAGE_SIZE })))?
    };
    let guards: Vec<Guard> =
        guards::all(client, None, MAX_GUARDS)?.items.iter().map(parse).collect::<Result<_, _>>()?;
    Ok(counted(&decisions.items, &guards))
}

fn counted(decisions: &[ShownDecision], guards: &[Guard]) -> Summary {
    let mut summary = Summary::default();
    for decision in decisions {
        summary.allowed += 1;
        let status = decision.outcome.as_ref().map_or("none", |outcome| outcome.status.as_str());
        *summary.outcomes.entry(status).or_default() += 1;
        summary.late += u64::from(decision.outcome.as_ref().is_some_and(|outcome| outcome.late));
    }
    for guard in guards {
        summary.ran_undecided += guard.counts.ran_undecided;
        summary.silent_guards += u64::from(guard.state == stage0_contract::GuardState::Silent);
    }
    summary
}

fn for_people(summary: &Summary) -> String {
    let count = |status: &str| summary.outcomes.get(status).copied().unwrap_or_default().to_string();
    fields([
        ("allowed", summary.allowed.to_string()),
        ("succeeded", count("succeeded")),
        ("failed", count("failed")),
        ("unknown", format!("{}  (`outcomes list --outcome unknown`)", count("unknown"))),
        ("skipped", count("skipped")),
        ("not reported", format!("{}  (`outcomes list --outcome none`): they may never have run", count("none"))),
        ("reported late", summary.late.to_string()),
        ("ran without a decision", format!("{}, as guards saw", summary.ran_undecided)),
        ("silent guards", format!("{}  (`guards list --state silent`)", summary.silent_guards)),
    ])
}

fn list(client: &Connection, query: &Query, limit: u32, as_json: bool) -> anyhow::Result<()> {
    let limits = Limit { items: limit, per_page: PAGE_SIZE };
    let found: Page<Value> = block_on(client.list(&DECISIONS, query, Some(limits)))?;
    if as_json {
        return out::json(&found);
    }
    if found.items.is_empty() {
        out::stderr_line("no decisions found");
    }
    let headings = ["RECORDED", "OUTCOME", "REPORTED", "TOOLS", "RUN", "KEY", "REQUEST"];
    let mut table = Table::new(headings).shrinkable(&[(5, 0), (4, 0), (2, 0), (3, 8)]);
    for decision in &found.items {
        let ShownDecision { record, outcome } = parse(decision)?;
        let status = outcome.as_ref().map(|outcome| outcome.status.as_str());
        table.row([
            seconds(record.recorded_at).to_string(),
            optional(status.as_ref()),
            optional(outcome.map(|outcome| seconds(outcome.reported_at)).as_ref()),
            record.circumstances.tools.join(","),
            optional(record.circumstances.run_id.as_ref()),
            record.circumstances.key_id.to_string(),
            record.response.request_id.to_string(),
        ]);
    }
    table.print()?;
    if found.next_cursor.is_some() {
        out::stderr_line(format!("these are the newest {limit}; there may be more (--limit, --to)"));
    }
    Ok(())
}

fn report(client: &Connection, report: &Report) -> anyhow::Result<()> {
    let members = [
        ("status", Some(json!(report.status))),
        ("tool_call_id", report.tool_call_id.as_ref().map(|id| json!(id))),
        ("duration_ms", report.duration_ms.map(|ms| json!(ms))),
        ("cost_usd", report.cost_usd.map(|usd| json!(usd))),
    ];
    let given = members.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let body = Value::Object(given.collect());
    let id = report.request_id.to_string();
    let path = ["v1", "decisions", id.as_str(), "outcome"];
    let kept: ReportedOutcome = block_on(client.call(Method::POST, &path, &[], Some(&body)))?;
    out::show(report.json, &kept, |kept| {
        let late = if kept.outcome.late { ", more than an hour after the decision" } else { "" };
        let settled = kept.settled.as_ref().map_or_else(String::new, |settled| {
            format!("\nsettled   {} USD, estimated {}", settled.actual_cost_usd, settled.estimated_cost_usd)
        });
        format!("reported  {}{late}{settled}", kept.outcome.status.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_is_known_of_is_counted_and_never_taken_for_a_success() {
        let fixture = include_str!("../../contract/fixtures/shown_decision.json");
        let done: ShownDecision = serde_json::from_str(fixture).unwrap();
        let silent = ShownDecision { outcome: None, ..done.clone() };
        let page: Value = serde_json::from_str(include_str!("../../contract/fixtures/guard_page.json")).unwrap();
        let guards: Vec<Guard> = serde_json::from_value(page["done"]["items"].clone()).unwrap();
        let summary = counted(&[done, silent.clone(), silent], &guards);
        assert_eq!(summary.outcomes, BTreeMap::from([("none", 2), ("succeeded", 1)]));
        assert_eq!((summary.allowed, summary.late, summary.silent_guards), (3, 0, 1));
        let shown = for_people(&summary);
        assert!(shown.contains("not reported            2"), "{shown}");
    }
}
