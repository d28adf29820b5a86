//! `stage0 decisions tail`: prints each decision once as it is recorded, even across restarts of the server.
//!
//! The last page of a list has no cursor, so the last known cursor is requested again and records that were printed are
//! skipped: at most a page of ids is remembered.

use std::collections::HashSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use stage0_contract::Page;

use super::record::{VERDICT, cells};
use super::{DECISIONS, connect};
use crate::client::{Query, parse, runtime};
use crate::out::{self, Painted, Terminal};
use crate::settings::client::ClientSettings;

const POLL_INTERVAL: Duration = Duration::from_secs(1);
const PAGE_SIZE: u32 = 100;

#[derive(Default)]
struct Position {
    cursor: Option<String>,
    printed: HashSet<String>,
}

pub(super) fn tail(settings: &ClientSettings, query: Query, as_json: bool) -> anyhow::Result<()> {
    let query = query.with("limit", Some(PAGE_SIZE));
    let runtime = runtime()?;
    let mut client = connect(settings, settings.timeout)?;
    let mut position = Position::default();
    let mut has_answered = false;
    let mut is_waiting = false;
    loop {
        let query = query.clone().with("cursor", position.cursor.as_ref());
        let more = match runtime.block_on(client.call::<Page<Value>>(Method::GET, &DECISIONS, &query.pairs(), None)) {
            Ok(page) => {
                if !has_answered {
                    out::stderr_line("waiting for decisions; Ctrl-C ends this");
                } else if is_waiting {
                    out::stderr_line("the server answers again");
                }
                has_answered = true;
                is_waiting = false;
                let (new, more) = position.advance(page);
                for record in new {
                    if !print(&record, as_json)? {
                        return Ok(());
                    }
                }
                more
            }
            Err(error) if has_answered && error.is_retryable() => {
                if !is_waiting {
                    out::stderr_line(format!("waiting for the server: {error}"));
                }
                is_waiting = true;
                false
            }
            Err(error) => return Err(error.into()),
        };
        if !more {
            // Sleeps on the runtime, which also drives the connection.
            runtime.block_on(async { tokio::time::sleep(POLL_INTERVAL).await });
        }
        // A restarted dev server may have another port. While its file is missing, the last address is tried.
        if is_waiting && let Ok(found) = connect(settings, settings.timeout) {
            client = found;
        }
    }
}

/// Returns false if the pipe is closed.
fn print(record: &Value, as_json: bool) -> anyhow::Result<bool> {
    if as_json {
        let line = serde_json::to_string(record)?;
        return Ok(out::stream(format!("{}\n", out::json_escaped(&line)).as_bytes())?);
    }
    let mut line = Painted::new(Terminal::of_stdout().colours);
    for (column, cell) in cells(&parse(record)?).iter().enumerate() {
        line.push(if column > 0 { "  " } else { "" });
        if column == VERDICT { line.word(cell) } else { line.push(&out::plain(cell)) }
    }
    Ok(out::painted(&line)?)
}

impl Position {
    /// Returns the records of a page that were not printed yet, and whether the next page is there already.
    fn advance(&mut self, page: Page<Value>) -> (Vec<Value>, bool) {
        let mut new = Vec::new();
        for record in page.items {
            let id = record.get("request_id").and_then(Value::as_str).unwrap_or_default().to_owned();
            if self.printed.insert(id) {
                new.push(record);
            }
        }
        let more = page.next_cursor.is_some() && page.next_cursor != self.cursor;
        if more {
            // The server does not repeat records before the new cursor.
            self.cursor = page.next_cursor;
            self.printed.clear();
        }
        (new, more)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn page(ids: &[&str], next: Option<&str>) -> Page<Value> {
        let items = ids.iter().map(|id| json!({"request_id": id})).collect();
        Page { items, next_cursor: next.map(str::to_owned) }
    }

    fn ids((records, more): (Vec<Value>, bool)) -> (Vec<String>, bool) {
        (records.iter().map(|record| record["request_id"].as_str().unwrap().to_owned()).collect(), more)
    }

    #[test]
    fn a_repeated_record_is_printed_once() {
        let mut position = Position::default();
        assert_eq!(ids(position.advance(page(&["a", "b"], None))), (vec!["a".to_owned(), "b".to_owned()], false));
        assert_eq!(ids(position.advance(page(&["a", "b", "c"], None))), (vec!["c".to_owned()], false));
        assert_eq!(position.cursor, None, "the same cursor is requested again");
        assert_eq!(ids(position.advance(page(&["a", "b", "c", "d"], Some("9.1")))), (vec!["d".to_owned()], true));
        assert_eq!(position.cursor.as_deref(), Some("9.1"));
        assert_eq!(ids(position.advance(page(&["e"], None))), (vec!["e".to_owned()], false));
        assert_eq!(position.cursor.as_deref(), Some("9.1"), "the end of a list keeps the cursor");
    }

    #[test]
    fn at_most_a_page_of_ids_is_remembered() {
        let mut position = Position::default();
        position.advance(page(&["a", "b"], Some("1.2")));
        assert!(position.printed.is_empty());
    }

    #[test]
    fn an_empty_page_advances_and_a_repeated_cursor_does_not() {
        let mut position = Position::default();
        assert_eq!(ids(position.advance(page(&[], Some("5.1")))), (vec![], true));
        assert_eq!(ids(position.advance(page(&[], Some("5.1")))), (vec![], false));
    }
}
