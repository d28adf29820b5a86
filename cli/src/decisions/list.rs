//! `stage0 decisions list`: the newest or the oldest decisions that match.

use anyhow::Context as _;
use jiff::Timestamp;
use serde_json::Value;
use stage0_contract::Page;

use super::DECISIONS;
use super::record::{HEADINGS, SHRINKABLE, VERDICT, cells};
use crate::client::{Connection, Limit, Query, block_on, parse};
use crate::out::{self, Terminal};
use crate::table::Table;

const PAGE_SIZE: u32 = 1_000;

pub(super) fn list(
    client: &Connection,
    query: Query,
    limit: u32,
    oldest_first: bool,
    as_json: bool,
) -> anyhow::Result<()> {
    // Older gateways know no order, and their lists begin with the oldest.
    let query = query.with("order", (!oldest_first).then_some("desc"));
    let limits = Limit { items: limit, per_page: PAGE_SIZE };
    let found: Page<Value> = match block_on(client.list(&DECISIONS, &query, Some(limits))) {
        Err(error) if error.is_about("order") => {
            return Err(error).context(
                "this gateway cannot list newest first: it is older than this command line; give --oldest-first",
            );
        }
        found => found?,
    };
    if as_json {
        return out::json(&found);
    }
    if found.items.is_empty() {
        out::stderr_line("no decisions found");
    }
    let mut table = Table::new(HEADINGS).shrinkable(&SHRINKABLE).coloured(VERDICT);
    let is_terminal = Terminal::of_stdout().width.is_some();
    for record in &found.items {
        let mut cells = cells(&parse(record)?);
        if is_terminal && let [recorded, ..] = &mut cells {
            *recorded = in_seconds(recorded);
        }
        table.row(cells);
    }
    table.print()?;
    if found.next_cursor.is_some() {
        let (which, further) = if oldest_first { ("oldest", "--from") } else { ("newest", "--to") };
        out::stderr_line(format!("these are the {which} {limit}; there may be more (--limit, {further})"));
    }
    Ok(())
}

/// On a terminal whole seconds are enough; elsewhere the exact time is printed.
fn in_seconds(time: &str) -> String {
    let whole = |at: Timestamp| Timestamp::from_second(at.as_second()).map_or(at, |at| at);
    time.parse().map_or_else(|_| time.to_owned(), |at| whole(at).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_on_a_terminal_are_whole_seconds() {
        assert_eq!(in_seconds("2026-11-26T13:51:15.569Z"), "2026-11-26T13:51:15Z");
        assert_eq!(in_seconds("x"), "x");
    }
}
