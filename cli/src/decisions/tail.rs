//! `stage0 decisions tail`: each decision once, as it is recorded, across restarts of the server.
//!
//! A list that ends has no cursor, so the last one that was given is asked again and what was printed since is left out: at most a
//! page of ids is remembered, and at most a page of the log's newest is read twice. Nothing is lost when an answer breaks.

use std::collections::HashSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use stage0_contract::Page;

use super::record::{VERDICT, cells};
use super::{DECISIONS, connect, read};
use crate::client::{Query, runtime};
use crate::out::{self, Painted, Terminal};
use crate::settings::client::ClientSettings;

const EVERY: Duration = Duration::from_secs(1);
const PAGE: u32 = 100;

/// What was printed, and where to go on.
#[derive(Default)]
struct Place {
    cursor: Option<String>,
    printed: HashSet<String>,
}

/// Goes on until the process is ended, or nobody reads any more.
pub(super) fn tail(settings: &ClientSettings, query: Query, as_json: bool) -> anyhow::Result<()> {
    let query = query.with("limit", Some(PAGE));
    let (runtime, mut client) = (runtime()?, connect(settings, settings.timeout)?);
    let (mut place, mut has_answered, mut waits) = (Place::default(), false, false);
    loop {
        let asked = query.clone().with("cursor", place.cursor.as_ref());
        let more = match runtime.block_on(client.call::<Page<Value>>(Method::GET, &DECISIONS, &asked.pairs(), None)) {
            Ok(page) => {
                if !has_answered {
                    out::complain("waiting for decisions; Ctrl-C ends this");
                } else if waits {
                    out::complain("the server answers again");
                }
                (has_answered, waits) = (true, false);
                let (new, more) = place.advance(page);
                for record in new {
                    if !print(&record, as_json)? {
                        return Ok(());
                    }
                }
                more
            }
            Err(error) if has_answered && error.may_pass() => {
                if !waits {
                    out::complain(format!("waiting for the server: {error}"));
                }
                waits = true;
                false
            }
            Err(error) => return Err(error.into()),
        };
        if !more {
            // On the runtime, so that the connection is looked after meanwhile.
            runtime.block_on(async { tokio::time::sleep(EVERY).await });
        }
        // A dev server that was started again may have another port; while its file is missing, the last one is asked.
        if waits && let Ok(found) = connect(settings, settings.timeout) {
            client = found;
        }
    }
}

/// False once nobody reads any more.
fn print(record: &Value, as_json: bool) -> anyhow::Result<bool> {
    if as_json {
        let line = serde_json::to_string(record)?;
        return Ok(out::stream(format!("{}\n", out::json_escaped(&line)).as_bytes())?);
    }
    let mut line = Painted::new(Terminal::of_stdout().colours);
    // The record's own time comes first, whenever it is printed.
    for (column, cell) in cells(&read(record)?).iter().enumerate() {
        line.push(if column > 0 { "  " } else { "" });
        if column == VERDICT { line.word(cell) } else { line.push(&out::plain(cell)) }
    }
    Ok(out::painted(&line)?)
}

impl Place {
    /// What of a page was not printed yet, and whether the next page is there already.
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
            // What stands before the new cursor is not sent again.
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
    fn what_is_sent_again_is_printed_once() {
        let mut place = Place::default();
        assert_eq!(ids(place.advance(page(&["a", "b"], None))), (vec!["a".to_owned(), "b".to_owned()], false));
        assert_eq!(ids(place.advance(page(&["a", "b", "c"], None))), (vec!["c".to_owned()], false));
        assert_eq!(place.cursor, None, "the same place is asked again");
        assert_eq!(ids(place.advance(page(&["a", "b", "c", "d"], Some("9.1")))), (vec!["d".to_owned()], true));
        assert_eq!(place.cursor.as_deref(), Some("9.1"));
        assert_eq!(ids(place.advance(page(&["e"], None))), (vec!["e".to_owned()], false));
        assert_eq!(place.cursor.as_deref(), Some("9.1"), "the end of a list takes no place away");
    }

    #[test]
    fn only_a_page_of_ids_is_remembered() {
        let mut place = Place::default();
        place.advance(page(&["a", "b"], Some("1.2")));
        assert!(place.printed.is_empty());
    }

    #[test]
    fn an_empty_page_moves_on_and_the_same_cursor_again_does_not() {
        let mut place = Place::default();
        assert_eq!(ids(place.advance(page(&[], Some("5.1")))), (vec![], true));
        assert_eq!(ids(place.advance(page(&[], Some("5.1")))), (vec![], false));
    }
}
