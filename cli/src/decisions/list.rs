//! `stage0 decisions list`: page after page, until there are enough. A page may be short, or empty, and not be the last.

use reqwest::Method;
use serde_json::Value;
use stage0_contract::Page;

use super::record::{HEADINGS, cells};
use super::{DECISIONS, read};
use crate::client::{Client, ClientError, Query, block_on};
use crate::out;
use crate::table::Table;

/// The server's most.
const PAGE: u32 = 1_000;

/// Collects, then prints.
pub(super) fn list(client: &Client, query: &Query, limit: u32, as_json: bool) -> anyhow::Result<()> {
    let found = block_on(collect(client, query, limit))?;
    if as_json {
        return out::json(&found);
    }
    let mut table = Table::new(HEADINGS);
    for record in &found.items {
        table.row(cells(&read(record)?));
    }
    out::line(table)?;
    if found.next_cursor.is_some() {
        out::complain(format!("these are the first {limit}; there may be more (--limit, --from)"));
    }
    Ok(())
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
