//! `stage0 policy compare`, and what `activate` says where the change is looser and not accepted.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{ComparedCase, DifferenceCount, DifferenceDirection, PolicyComparison, PolicyVersion, Verdict};

use super::{POLICIES, connect, resolve, whose};
use crate::args::policies::{ActivateArgs, CompareArgs, OfAccount, PlaceArgs};
use crate::client::{Client, ClientError, Query, parse};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields};

/// An evaluator decides all cases of both packs.
pub(super) const COMPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// What a refusal that can be accepted says before the number.
const ACCEPT: &str = "`accept_flips`: ";

pub(super) async fn compare(args: &CompareArgs, settings: &ClientSettings) -> anyhow::Result<Exit> {
    let CompareArgs { version, from, environment, floor, allow_looser, of } = args;
    let client = connect(settings, settings.timeout_or(COMPARE_TIMEOUT))?;
    let version = resolve(&client, version, of).await?;
    let from = match from {
        Some(from) => Some(resolve(&client, from, of).await?),
        None => None,
    };
    let query = place(of, &client, environment.as_deref(), *floor).with("from", from.as_ref());
    let answer = fetch(&client, &version, &query).await?;
    let comparison: PolicyComparison = parse(&answer)?;
    if of.json {
        out::json(&answer)?;
    } else {
        table(&comparison).print()?;
        out::line(summary(&comparison))?;
    }
    Ok(if comparison.flips > 0 && !allow_looser { Exit::Failed } else { Exit::Done })
}

fn place(of: &OfAccount, client: &Client, environment: Option<&str>, floor: bool) -> Query {
    // The floor is of every account.
    let query = if floor { Query::default() } else { whose(of, client) };
    query.with("environment", environment).with("floor", floor.then_some(true))
}

async fn fetch(client: &Client, version: &PolicyVersion, query: &Query) -> Result<Value, ClientError> {
    let [v1, policies] = POLICIES;
    client.call(Method::GET, &[v1, policies, version.as_str(), "diff"], &query.pairs(), None).await
}

/// How much an activation would have to accept, if it was refused for that.
pub(super) fn flips(error: &ClientError) -> Option<u64> {
    let ClientError::Refused { status: 409, message, .. } = error else { return None };
    let (_, number) = message.split_once(ACCEPT)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Shows what is looser, and the command that accepts it.
pub(super) async fn refused(
    client: &Client,
    version: &PolicyVersion,
    args: &ActivateArgs,
    flips: u64,
    error: ClientError,
) -> anyhow::Result<Exit> {
    let PlaceArgs { environment, floor, of, .. } = &args.place;
    let query = place(of, client, environment.as_deref(), *floor);
    let Ok(answer) = fetch(client, version, &query).await else { return Err(error.into()) };
    let comparison: PolicyComparison = parse(&answer)?;
    if of.json {
        out::json(&json!({"activated": false, "comparison": answer}))?;
    } else {
        table(&comparison).print()?;
        out::line(summary(&comparison))?;
    }
    out::stderr_line(format!("error: {}", plain(&error.to_string())));
    out::stderr_line(format!("\nto accept it:\n  {}", accepting(version, args, flips, &comparison)));
    Ok(Exit::Failed)
}

/// The command that would accept the change.
fn accepting(version: &PolicyVersion, args: &ActivateArgs, flips: u64, comparison: &PolicyComparison) -> String {
    let PlaceArgs { environment, floor, reason, expected, of } = &args.place;
    let mut words = vec!["stage0".to_owned(), "policy".to_owned(), "activate".to_owned(), version.to_string()];
    let mut with = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            words.extend([name.to_owned(), quoted(value)]);
        }
    };
    with("--environment", environment.as_deref());
    with("--expected", expected.as_deref());
    with("--account", of.account.as_ref().map(stage0_contract::AccountId::as_str));
    with("--accept-flips", Some(&flips.to_string()));
    // An account's first default can take the place of several versions, and the digest is of all of them.
    with("--diff-digest", Some(&*comparison.diff_digest).filter(|_| flips == comparison.flips));
    with("--reason", Some(reason.as_deref().unwrap_or("WHY")));
    for (flag, given) in [("--floor", *floor), ("--all-accounts", of.all_accounts), ("--wait", args.wait)] {
        words.extend(given.then(|| flag.to_owned()));
    }
    words.join(" ")
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@' | '+' | ':');
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", plain(word).replace('\'', r"'\''"))
}

/// What is looser, the gravest first, then what is not.
fn table(comparison: &PolicyComparison) -> Table {
    let mut table = Table::new(["DIRECTION", "WHAT", "NAME", "CHANGE", "ABOUT"]).shrinkable(&[(4, 20), (2, 16)]);
    let mut row = |direction: DifferenceDirection, cells: [String; 4]| {
        let [what, name, change, about] = cells;
        table.row([direction.as_str().to_owned(), what, name, change, about]);
    };
    for case in &comparison.cases {
        row(case.direction, ["case".to_owned(), case.case.clone(), step(case), case.goal.clone()]);
    }
    let kind = |change| serde_json::to_value(change).ok().and_then(|value| value.as_str().map(str::to_owned));
    for rule in &comparison.rules {
        let change = kind(rule.change).unwrap_or_default();
        let change = if rule.differs.is_empty() { change } else { format!("{change}: {}", rule.differs.join(", ")) };
        row(rule.direction, ["rule".to_owned(), rule.rule.clone(), change, rule.message.clone()]);
    }
    for word in &comparison.words {
        let lists = |lists: &[String]| if lists.is_empty() { "none".to_owned() } else { lists.join(", ") };
        let change = format!("{} → {}", lists(&word.from), lists(&word.to));
        row(word.direction, ["word".to_owned(), word.word.clone(), change, word.file.clone()]);
    }
    for value in &comparison.values {
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "none".to_owned(), Value::to_string);
        let change = format!("{} → {}", shown(&value.from), shown(&value.to));
        row(value.direction, ["value".to_owned(), value.name.clone(), change, value.file.clone()]);
    }
    table
}

fn step(case: &ComparedCase) -> String {
    let word = |verdict: Option<Verdict>| verdict.map_or("refused", Verdict::as_str);
    format!("{} → {}", word(case.from), word(case.to))
}

fn summary(comparison: &PolicyComparison) -> String {
    let PolicyComparison { old, new, diff_digest, flips, looser, stricter, neutral, left_out, .. } = comparison;
    let told = |count: &DifferenceCount| format!("{} cases, {} entries", count.cases, count.entries);
    let mut lines = vec![
        String::new(),
        fields([
            ("old", old.to_string()),
            ("new", new.to_string()),
            ("digest", diff_digest.clone()),
            ("looser", format!("{}: {flips} to accept", told(looser))),
            ("stricter", told(stricter)),
            ("neutral", told(neutral)),
        ]),
    ];
    let hidden = left_out.cases + left_out.rules + left_out.words + left_out.values + left_out.weakens;
    if hidden > 0 {
        lines.push(format!("{hidden} differences are not shown: `stage0 policy diff` of the folders has them all"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_for_a_shell_is_quoted_where_it_must_be() {
        for (word, shown) in [
            ("acme@1.2.0+0123456789ab", "acme@1.2.0+0123456789ab"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(rm)", "'$(rm)'"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }

    #[test]
    fn only_a_refusal_that_can_be_accepted_is_shown_with_a_command() {
        let refused = |status, message: &str| ClientError::Refused {
            status,
            message: message.to_owned(),
            request_id: None,
            fields: Vec::new(),
            retry_after: None,
        };
        assert_eq!(flips(&refused(409, "13 are looser; send `accept_flips`: 13 with a `reason`")), Some(13));
        assert_eq!(flips(&refused(409, "nothing is looser, and `accept_flips` is 1: send it without")), None);
        assert_eq!(flips(&refused(409, "`acme@1.0.0+0123456789ab` is not active there")), None);
        assert_eq!(flips(&refused(503, "`accept_flips`: 3")), None);
    }
}
