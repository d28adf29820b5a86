//! `stage0 approvals watch`: prints each approval as it is opened and each time that it changes, even across restarts
//! of the server.
//!
//! Pending approvals are listed; one that was seen and is no longer among them is read on its own until it has ended.
//! One that is opened and ends between two looks is not seen: `stage0 approvals list` has it.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::Value;
use stage0_contract::{Approval, ApprovalId, Page};

use super::{APPROVALS, cells, connect, path};
use crate::client::{Connection, ConnectionError, Query, parse, runtime};
use crate::out::{self, Painted, Terminal, plain};
use crate::settings::client::ClientSettings;
use crate::table::seconds;

const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// What was printed of each approval that has not ended.
#[derive(Default)]
struct Seen(BTreeMap<ApprovalId, String>);

pub(super) fn watch(settings: &ClientSettings, group: Option<&str>, as_json: bool) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut client = connect(settings)?;
    let mut seen = Seen::default();
    let (mut has_answered, mut is_waiting) = (false, false);
    loop {
        match runtime.block_on(look(&client, group, &seen)) {
            Ok(found) => {
                if !has_answered {
                    out::stderr_line("waiting for approvals; Ctrl-C ends this");
                } else if is_waiting {
                    out::stderr_line("the server answers again");
                }
                (has_answered, is_waiting) = (true, false);
                for answer in found {
                    let approval = parse(&answer)?;
                    if seen.is_news(&approval) && !print(&approval, &answer, as_json)? {
                        return Ok(());
                    }
                }
            }
            Err(error) if has_answered && error.is_retryable() => {
                if !is_waiting {
                    out::stderr_line(format!("waiting for the server: {error}"));
                }
                is_waiting = true;
            }
            Err(error) => return Err(error.into()),
        }
        runtime.block_on(async { tokio::time::sleep(POLL_INTERVAL).await });
        // A restarted dev server may have another port. While its file is missing, the last address is tried.
        if is_waiting && let Ok(found) = connect(settings) {
            client = found;
        }
    }
}

/// Those that are pending, the oldest first, and those that were seen before.
async fn look(client: &Connection, group: Option<&str>, seen: &Seen) -> Result<Vec<Value>, ConnectionError> {
    let query = Query::default().with("status", Some("pending")).with("group", group);
    let pending: Page<Value> = client.list(&APPROVALS, &query, None).await?;
    let mut found: Vec<Value> = pending.items.into_iter().rev().collect();
    let ids: Vec<String> = found.iter().filter_map(|one| Some(one.get("id")?.as_str()?.to_owned())).collect();
    for id in seen.0.keys().filter(|id| !ids.iter().any(|listed| listed == id.as_str())) {
        match client.call(Method::GET, &path(id, &[]), &[], None).await {
            Ok(approval) => found.push(approval),
            // It is not shown any longer.
            Err(ConnectionError::Refused { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

impl Seen {
    /// Whether it is new, or has changed since it was printed. One that has ended is forgotten.
    fn is_news(&mut self, approval: &Approval) -> bool {
        let facts = format!(
            "{:?} {:?} {:?} {:?}",
            approval.status,
            approval.votes.len(),
            approval.stopped,
            approval.expires_at
        );
        let is_news = self.0.get(&approval.id) != Some(&facts);
        if approval.status.is_final() {
            self.0.remove(&approval.id);
        } else {
            self.0.insert(approval.id.clone(), facts);
        }
        is_news
    }
}

/// Returns false if the pipe is closed.
fn print(approval: &Approval, answer: &Value, as_json: bool) -> anyhow::Result<bool> {
    if as_json {
        let line = serde_json::to_string(answer)?;
        return Ok(out::stream(format!("{}\n", out::json_escaped(&line)).as_bytes())?);
    }
    let mut line = Painted::new(Terminal::of_stdout().colours);
    line.push(&seconds(Timestamp::now()).to_string());
    for (column, cell) in cells(approval).iter().enumerate() {
        line.push("  ");
        let cell = if cell.is_empty() { "-" } else { cell };
        if column == 1 { line.word(cell) } else { line.push(&plain(cell)) }
    }
    Ok(out::painted(&line)?)
}

#[cfg(test)]
mod tests {
    use stage0_contract::ApprovalStatus;

    use super::super::tests::fixtures;
    use super::*;

    #[test]
    fn an_approval_is_news_when_it_is_new_and_each_time_that_it_changes() {
        let mut seen = Seen::default();
        let mut approval = fixtures().remove(0);
        assert!(seen.is_news(&approval));
        assert!(!seen.is_news(&approval), "nothing has changed");
        let vote = approval.votes[0].clone();
        approval.votes.push(vote);
        assert!(seen.is_news(&approval), "one more person has voted");
        approval.stopped = Some("incident 12".to_owned());
        assert!(seen.is_news(&approval));
        approval.status = ApprovalStatus::Approved;
        assert!(seen.is_news(&approval) && !seen.is_news(&approval));
        approval.status = ApprovalStatus::Consumed;
        assert!(seen.is_news(&approval), "its end is printed");
        assert!(seen.0.is_empty(), "and it is no longer followed");
    }
}
