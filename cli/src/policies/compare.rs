//! `stage0 policy compare`, and what `activate` says where the change is looser and not accepted.

use std::time::Duration;

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{
    ComparedCase, DifferenceCount, DifferenceDirection, PolicyComparison, PolicyReplay, PolicyVersion, Verdict,
};

use super::next::{accepting, other_key, quoted};
use super::{POLICIES, connect, replay, resolve, whose};
use crate::args::policies::{ActivateArgs, CompareArgs, OfAccount, PlaceArgs};
use crate::client::{Connection, ConnectionError, Query, parse};
use crate::exit::Exit;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields};

/// An evaluator decides all cases of both packs.
pub(super) const COMPARE_TIMEOUT: Duration = Duration::from_secs(60);
/// What a refusal that can be accepted says before the number.
const ACCEPT: &str = "`accept_flips`: ";
/// What it says before the time, where recorded decisions were replayed.
const REPLAYED: &str = "`replayed_until`: ";

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

fn place(of: &OfAccount, client: &Connection, environment: Option<&str>, floor: bool) -> Query {
    // The floor is of every account.
    let query = if floor { Query::default() } else { whose(of, client) };
    query.with("environment", environment).with("floor", floor.then_some(true))
}

async fn fetch(client: &Connection, version: &PolicyVersion, query: &Query) -> Result<Value, ConnectionError> {
    let [v1, policies] = POLICIES;
    client.call(Method::GET, &[v1, policies, version.as_str(), "diff"], &query.pairs(), None).await
}

/// What an activation that was refused for it would have to accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looser {
    pub(super) flips: u64,
    /// Until when recorded decisions were replayed; none: none were.
    pub(super) replayed_until: Option<Timestamp>,
}

pub(super) fn looser(error: &ConnectionError) -> Option<Looser> {
    let ConnectionError::Refused { status: 409, message, .. } = error else { return None };
    let (_, number) = message.split_once(ACCEPT)?;
    let flips = number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    let until = message.split_once(REPLAYED).and_then(|(_, until)| {
        let is_of_time = |c: char| c.is_ascii_digit() || matches!(c, '-' | ':' | '.' | 'T' | 'Z');
        until.trim_start_matches(['`', '"']).split(|c: char| !is_of_time(c)).next()?.parse().ok()
    });
    Some(Looser { flips, replayed_until: until })
}

/// Shows what is looser, and the command that accepts it.
pub(super) async fn refused(
    client: &Connection,
    version: &PolicyVersion,
    args: &ActivateArgs,
    looser: Looser,
    error: ConnectionError,
    settings: &ClientSettings,
) -> anyhow::Result<Exit> {
    let PlaceArgs { environment, floor, of, .. } = &args.place;
    let query = place(of, client, environment.as_deref(), *floor);
    let Ok(answer) = fetch(client, version, &query).await else { return Err(error.into()) };
    let comparison: PolicyComparison = parse(&answer)?;
    let replay = match looser.replayed_until {
        Some(until) => {
            let query = Query::default()
                .with("environment", environment.as_deref())
                .with("until", Some(until))
                .with("gate", Some(true));
            // The operator reads no decisions: it accepts what the refusal counts.
            replay::fetch(client, version, &query).await.ok()
        }
        None => None,
    };
    let replayed = replay.as_ref().map(parse::<PolicyReplay>).transpose()?;
    if of.json {
        let mut told = json!({"activated": false, "comparison": answer});
        crate::keys::set(&mut told, "replay", replay);
        out::json(&told)?;
    } else {
        table(&comparison).print()?;
        out::line(summary(&comparison))?;
        if let Some(replayed) = &replayed {
            out::line("")?;
            replay::print(replayed)?;
        }
    }
    out::stderr_line(format!("error: {}", plain(&error.to_string())));
    if let Some(until) = looser.replayed_until.filter(|_| replayed.is_none()) {
        let at = environment.as_deref().map_or_else(String::new, |name| format!(" --environment {}", quoted(name)));
        let command = other_key(&format!("stage0 policy replay {version}{at} --until {until} --gate"), settings);
        out::stderr_line(format!("\nwhich recorded decisions differ, with a key of the account:\n  {command}"));
    }
    let shown = comparison.flips + replayed.as_ref().map_or(0, |replayed| replayed.flips);
    // An account's first default can take the place of several versions, and the digest is of all of them.
    let digest = Some(&*comparison.diff_digest).filter(|_| looser.flips == shown);
    let parts = parts(looser, &comparison, replayed.as_ref()).map_or_else(String::new, |parts| format!(" ({parts})"));
    let command = accepting(version, args, looser, digest, settings);
    out::stderr_line(format!("\nto accept it{parts}:\n  {command}"));
    Ok(Exit::Failed)
}

/// What the number that is to be accepted is the sum of; none where it was not shown whole.
fn parts(looser: Looser, comparison: &PolicyComparison, replayed: Option<&PolicyReplay>) -> Option<String> {
    let (flips, compared) = (looser.flips, comparison.flips);
    match replayed {
        Some(replay) if compared + replay.flips == flips => {
            Some(format!("{flips}: {compared} of cases and entries, {} of recorded decisions", replay.flips))
        }
        None if looser.replayed_until.is_none() && compared == flips => {
            Some(format!("{flips} of cases and entries; no recorded decisions were replayed"))
        }
        Some(_) | None => None,
    }
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
            ("looser", format!("{}: {flips} of cases and entries to accept", told(looser))),
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
    fn only_a_refusal_that_can_be_accepted_is_shown_with_a_command() {
        let refused = |status, message: &str| ConnectionError::Refused {
            status,
            message: message.to_owned(),
            request_id: None,
            fields: Vec::new(),
            retry_after: None,
        };
        let flips = |status, message: &str| looser(&refused(status, message)).map(|looser| looser.flips);
        assert_eq!(flips(409, "13 are looser; send `accept_flips`: 13 with a `reason`"), Some(13));
        assert_eq!(flips(409, "nothing is looser, and `accept_flips` is 1: send it without"), None);
        assert_eq!(flips(409, "`acme@1.0.0+0123456789ab` is not active there"), None);
        assert_eq!(flips(503, "`accept_flips`: 3"), None);
        let until = |message: &str| looser(&refused(409, message)).unwrap().replayed_until;
        assert_eq!(until("send `accept_flips`: 3 with a `reason`"), None);
        let at = "2026-03-16T12:00:00.25Z".parse().ok();
        for form in [
            "send `accept_flips`: 5 and `replayed_until`: 2026-03-16T12:00:00.25Z with a `reason`",
            "send `accept_flips`: 5, `replayed_until`: \"2026-03-16T12:00:00.25Z\", and a `reason`",
        ] {
            assert_eq!(until(form), at, "{form}");
        }
    }
}
