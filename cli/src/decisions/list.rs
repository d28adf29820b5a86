//! `stage0 decisions list`: page after page, until there are enough. A page may be short, or empty, and not be the last.

use anyhow::Context as _;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::Value;
use stage0_contract::Page;

use super::record::{GIVING_WAY, HEADINGS, VERDICT, cells};
use super::{DECISIONS, read};
use crate::client::{Client, ClientError, Query, block_on};
use crate::out::{self, Terminal};
use crate::table::Table;

/// The server's most.
const PAGE: u32 = 1_000;

/// What is listed, and how.
pub(super) struct List {
    pub(super) limit: u32,
    pub(super) oldest_first: bool,
    pub(super) as_json: bool,
}

impl List {
    /// Collects, then prints.
    pub(super) fn run(&self, client: &Client, query: &Query) -> anyhow::Result<()> {
        // A gateway that is older than this order is asked without it.
        let query = query.clone().with("order", (!self.oldest_first).then_some("desc"));
        let found = match block_on(collect(client, &query, self.limit)) {
            Err(error) if is_about_order(&error) => {
                return Err(error).context(
                    "this gateway does not list the newest first: it is older than this command line; give --oldest-first",
                );
            }
            found => found?,
        };
        if self.as_json {
            return out::json(&found);
        }
        if found.items.is_empty() {
            out::complain("no decision was found");
        }
        let mut table = Table::new(HEADINGS).giving_way(&GIVING_WAY).coloured(VERDICT);
        let is_narrow = Terminal::of_stdout().width.is_some();
        for record in &found.items {
            let mut cells = cells(&read(record)?);
            if is_narrow && let [recorded, ..] = &mut cells {
                *recorded = in_seconds(recorded);
            }
            table.row(cells);
        }
        table.print()?;
        if found.next_cursor.is_some() {
            let (which, further) = if self.oldest_first { ("oldest", "--from") } else { ("newest", "--to") };
            out::complain(format!("these are the {which} {}; there may be more (--limit, {further})", self.limit));
        }
        Ok(())
    }
}

/// People read seconds; programs, which have no terminal, get the time as it was recorded.
fn in_seconds(time: &str) -> String {
    let whole = |at: Timestamp| Timestamp::from_second(at.as_second()).map_or(at, |at| at);
    time.parse().map_or_else(|_| time.to_owned(), |at| whole(at).to_string())
}

fn is_about_order(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: 422, fields, .. } if fields.iter().any(|field| field == "order"))
}

async fn collect(client: &Client, query: &Query, limit: u32) -> Result<Page<Value>, ClientError> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let missing = u32::try_from(most.saturating_sub(items.len())).unwrap_or(PAGE).min(PAGE);
        let asked = query.clone().with("limit", Some(missing)).with("cursor", cursor.as_ref());
        let page: Page<Value> = client.call(Method::GET, &DECISIONS, &asked.pairs(), None).await?;
        items.extend(page.items);
        // A server that says the same page again would keep us here for ever.
        if items.len() >= most || page.next_cursor.is_none() || page.next_cursor == cursor {
            return Ok(Page { items, next_cursor: page.next_cursor });
        }
        cursor = page.next_cursor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_whole_seconds() {
        assert_eq!(in_seconds("2026-11-26T13:51:15.569Z"), "2026-11-26T13:51:15Z");
        assert_eq!(in_seconds("x"), "x");
    }
}
