//! `stage0 decisions delete`: nothing is deleted that nobody has agreed to.

use std::io::{self, BufRead, IsTerminal as _};

use jiff::Timestamp;
use reqwest::Method;
use stage0_contract::DecisionsDeleted;

use super::DECISIONS;
use crate::client::{Client, Query, block_on};
use crate::exit::{AskedWrongly, Exit};
use crate::out;
use crate::table::optional;

/// Where nobody can be asked, it must have been said.
pub(super) fn refuse_unasked(yes: bool) -> Result<(), AskedWrongly> {
    if yes || io::stdin().is_terminal() {
        return Ok(());
    }
    Err(AskedWrongly("--yes is needed where standard input is no terminal: nobody can be asked"))
}

/// Asks a person, unless that is done, then the server.
pub(super) fn delete(client: &Client, before: Timestamp, yes: bool, as_json: bool) -> anyhow::Result<Exit> {
    if !yes {
        let whose =
            client.account().map_or_else(|| "the key's account".to_owned(), |account| format!("account {account}"));
        out::prompt(format!(
            "Every decision of {whose} at {} that was recorded before {before} will be gone for good.\nType `yes` to delete: ",
            client.url()
        ));
        if !agreed(io::stdin().lock())? {
            out::complain("nothing was deleted");
            return Ok(Exit::Failed);
        }
    }
    let query = Query::default().with("before", Some(before));
    let deleted: DecisionsDeleted = block_on(client.call(Method::DELETE, &DECISIONS, &query.pairs(), None))?;
    if as_json {
        out::json(&deleted)?;
    } else {
        out::line(for_people(&deleted))?;
    }
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
    format!(
        "deleted   {count}, all that was recorded before {before}\nrecorded  {} to {}\nmark      {} says so in the log",
        optional(from.as_ref()),
        optional(to.as_ref()),
        optional(mark.as_ref()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_yes_is_one() {
        assert!(agreed(&b"yes\n"[..]).unwrap());
        assert!(agreed(&b" yes"[..]).unwrap());
        for no in ["", "\n", "y\n", "YES\n", "yes please\n", "no\nyes\n"] {
            assert!(!agreed(no.as_bytes()).unwrap(), "{no:?}");
        }
    }
}
