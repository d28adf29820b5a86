//! `stage0 decisions delete`: deletes only after a person agreed, or with `--yes`.

use std::io::{self, BufRead, IsTerminal as _};

use jiff::Timestamp;
use reqwest::Method;
use stage0_contract::DecisionsDeleted;

use super::DECISIONS;
use crate::client::{Connection, Query, block_on};
use crate::exit::{Exit, UsageError};
use crate::out;
use crate::table::{fields, optional};

/// Without a terminal a person cannot be asked, so `--yes` is required.
pub(super) fn require_confirmation(yes: bool) -> Result<(), UsageError> {
    if yes || io::stdin().is_terminal() {
        return Ok(());
    }
    Err(UsageError("--yes is required because standard input is not a terminal"))
}

pub(super) fn delete(client: &Connection, before: Timestamp, yes: bool, as_json: bool) -> anyhow::Result<Exit> {
    if !yes {
        let account =
            client.account().map_or_else(|| "the key's account".to_owned(), |account| format!("account {account}"));
        out::prompt(format!(
            "All decisions of {account} at {} recorded before {before} will be deleted for good.\n\
             Type `yes` to delete: ",
            client.url()
        ));
        if !agreed(io::stdin().lock())? {
            out::stderr_line("nothing was deleted");
            return Ok(Exit::Failed);
        }
    }
    let query = Query::default().with("before", Some(before));
    let deleted: DecisionsDeleted = block_on(client.call(Method::DELETE, &DECISIONS, &query.pairs(), None))?;
    out::show(as_json, &deleted, for_people)?;
    Ok(Exit::Done)
}

fn agreed(mut answer: impl BufRead) -> io::Result<bool> {
    let mut line = String::new();
    answer.read_line(&mut line)?;
    Ok(line.trim() == "yes")
}

fn for_people(deleted: &DecisionsDeleted) -> String {
    let DecisionsDeleted { count, before, from, to, mark } = deleted;
    if *count == 0 {
        return format!("deleted   nothing: no decision was recorded before {before}");
    }
    fields([
        ("deleted", format!("{count}, all that were recorded before {before}")),
        ("recorded", format!("{} to {}", optional(from.as_ref()), optional(to.as_ref()))),
        ("mark", format!("{} records it in the log", optional(mark.as_ref()))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_yes_confirms() {
        assert!(agreed(&b"yes\n"[..]).unwrap());
        assert!(agreed(&b" yes"[..]).unwrap());
        for no in ["", "\n", "y\n", "YES\n", "yes please\n", "no\nyes\n"] {
            assert!(!agreed(no.as_bytes()).unwrap(), "{no:?}");
        }
    }
}
