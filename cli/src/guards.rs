//! `stage0 guards`: which guards there are, and which went silent.

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{Guard, GuardState, Page};

use crate::args::guards::GuardsCommand;
use crate::client::{Connection, Credential, Limit, Query, block_on, parse, target};
use crate::out;
use crate::settings::client::ClientSettings;
use crate::table::{Table, optional, seconds};

const PAGE_SIZE: u32 = 1_000;

pub(crate) fn run(command: &GuardsCommand, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = Connection::new(target(settings, Credential::Account)?, settings.timeout)?;
    match command {
        GuardsCommand::List { state, limit, json } => list(&client, *state, *limit, *json),
        GuardsCommand::Forget { guard_id, json } => {
            block_on(client.execute(Method::DELETE, &["v1", "guards", guard_id.as_str()]))?;
            out::show(*json, &json!({"guard_id": guard_id, "forgotten": true}), |_| format!("forgotten  {guard_id}"))
        }
    }
}

/// All guards of the account that `limit` lets through, as the server lists them.
pub(crate) fn all(client: &Connection, state: Option<GuardState>, limit: u32) -> anyhow::Result<Page<Value>> {
    let query = Query::default().with("state", state.map(GuardState::as_str));
    let limits = Limit { items: limit, per_page: PAGE_SIZE };
    Ok(block_on(client.list(&["v1", "guards"], &query, Some(limits)))?)
}

fn list(client: &Connection, state: Option<GuardState>, limit: u32, as_json: bool) -> anyhow::Result<()> {
    let found = all(client, state, limit)?;
    if as_json {
        return out::json(&found);
    }
    if found.items.is_empty() {
        out::stderr_line(state.map_or_else(
            || "no guards found: `stage0 guard install` sets one up".to_owned(),
            |state| format!("no guard is {}", state.as_str()),
        ));
    }
    let guards: Vec<Guard> = found.items.iter().map(parse).collect::<Result<_, _>>()?;
    table(&guards).print()?;
    if found.next_cursor.is_some() {
        out::stderr_line(format!("these are {limit} of them; there are more (--limit)"));
    }
    Ok(())
}

fn table(guards: &[Guard]) -> Table {
    let headings =
        ["GUARD", "STATE", "KIND", "HOST", "LAST SEEN", "DUE", "ASKED", "REFUSED", "UNDECIDED", "RAN UNDECIDED"];
    let mut table = Table::new(headings).shrinkable(&[(3, 0), (2, 0), (5, 0), (0, 12)]);
    for guard in guards {
        table.row([
            guard.guard_id.to_string(),
            guard.state.as_str().to_owned(),
            guard.kind.clone(),
            optional(guard.host.as_ref()),
            seconds(guard.last_seen).to_string(),
            optional(guard.due_at.map(seconds).as_ref()),
            guard.counts.asked.to_string(),
            guard.counts.refused.to_string(),
            guard.counts.undecided.to_string(),
            guard.counts.ran_undecided.to_string(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_is_a_row_with_its_state_and_what_ran_without_a_decision() {
        let page: Value = serde_json::from_str(include_str!("../../contract/fixtures/guard_page.json")).unwrap();
        let guards: Vec<Guard> = serde_json::from_value(page["done"]["items"].clone()).unwrap();
        let shown = table(&guards).to_string();
        for part in ["laptop-7-claude-code", "silent", "ended", "RAN UNDECIDED", "2026-11-27T18:30:00Z"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
