//! `stage0 stop`, `resume` and `stops`: denies checks until a person resumes them.
//!
//! A stop is for emergencies, so it asks nothing: what it covers and how to resume it is printed afterwards.

use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use stage0_contract::{AccountId, KeyId, Page, Stop, StopScope};

use crate::args::stops::{ResumeArgs, StopArgs, StopsArgs};
use crate::client::{Connection, Credential, Query, block_on, parse, target};
use crate::keys::set;
use crate::out::{self, plain};
use crate::settings::client::ClientSettings;
use crate::table::{Table, fields, optional};

const STOPS: [&str; 2] = ["v1", "stops"];

pub(crate) fn stop(args: &StopArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings)?;
    let body = body_of(args, client.account(), Timestamp::now());
    let answer: Value = block_on(client.call(Method::POST, &STOPS, &[], Some(&body)))?;
    if args.json {
        return out::json(&answer);
    }
    let stop: Stop = parse(&answer)?;
    let hint = format!("`stage0 resume {} --reason …` ends it.", stop.id);
    Ok(out::line(format!("{}\n\nEvery gateway denies it within a second. {hint}", for_people(&stop)))?)
}

pub(crate) fn resume(ResumeArgs { stop, reason, json }: &ResumeArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings)?;
    let [v1, stops] = STOPS;
    let path = [v1, stops, stop.as_str(), "resume"];
    let answer: Value = block_on(client.call(Method::POST, &path, &[], Some(&json!({"reason": reason}))))?;
    if *json {
        return out::json(&answer);
    }
    let stop: Stop = parse(&answer)?;
    Ok(out::line(format!("resumed {}: {}", stop.id, covered(&stop)))?)
}

pub(crate) fn list(StopsArgs { account, json }: &StopsArgs, settings: &ClientSettings) -> anyhow::Result<()> {
    let client = connect(settings)?;
    let query = Query::default().with("account", account.as_ref().or(client.account()));
    let stops: Page<Value> = block_on(client.list(&STOPS, &query, None))?;
    if *json {
        return out::json(&stops);
    }
    if stops.items.is_empty() {
        out::stderr_line("no stop holds");
    }
    let headings = ["ID", "COVERS", "SINCE", "UNTIL", "BY", "REASON"];
    let mut table = Table::new(headings).shrinkable(&[(4, 0), (2, 0), (5, 20), (1, 16)]);
    for stop in &stops.items {
        let stop: Stop = parse(stop)?;
        table.row([
            stop.id.to_string(),
            covered(&stop),
            stop.created_at.to_string(),
            optional(stop.until.as_ref()),
            by(&stop),
            stop.reason,
        ]);
    }
    Ok(table.print()?)
}

fn connect(settings: &ClientSettings) -> anyhow::Result<Connection> {
    Ok(Connection::new(target(settings, Credential::AccountOrOperator)?, settings.timeout)?)
}

fn body_of(args: &StopArgs, found_account: Option<&AccountId>, now: Timestamp) -> Value {
    let (scope, value) = match args {
        StopArgs { all: true, .. } => (StopScope::All, None),
        StopArgs { environment: Some(name), .. } => (StopScope::Environment, Some(name.as_str())),
        StopArgs { tool: Some(name), .. } => (StopScope::Tool, Some(name.as_str())),
        StopArgs { key: Some(key), .. } => (StopScope::Key, Some(KeyId::as_str(key))),
        // The parser demands one of them, so that this is --account-wide.
        StopArgs { .. } => (StopScope::Account, None),
    };
    let account = args.account.as_ref().or(found_account).filter(|_| scope != StopScope::All);
    let mut body = json!({"scope": scope, "reason": args.reason});
    set(&mut body, "value", value);
    set(&mut body, "account", account.map(AccountId::as_str));
    set(&mut body, "until", args.until.map(|until| until.at(now).to_string()));
    body
}

fn for_people(stop: &Stop) -> String {
    fields([
        ("stop", stop.id.to_string()),
        ("covers", covered(stop)),
        ("account", stop.account.as_ref().map_or_else(|| "every account".to_owned(), ToString::to_string)),
        ("until", stop.until.map_or_else(|| "it is resumed".to_owned(), |until| until.to_string())),
        ("reason", plain(&stop.reason)),
    ])
}

fn covered(stop: &Stop) -> String {
    let value = plain(stop.value.as_deref().unwrap_or_default());
    match stop.scope {
        StopScope::Account => "the whole account".to_owned(),
        StopScope::Environment => format!("environment {value}"),
        StopScope::Tool => format!("tool {value}"),
        StopScope::Key => format!("key {value}"),
        StopScope::All => "every account".to_owned(),
    }
}

fn by(stop: &Stop) -> String {
    stop.member_id.as_ref().map_or_else(|| format!("key {}", stop.key_id), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, CliCommand};

    fn body(flags: &[&str]) -> Value {
        let arguments = [&["stage0", "stop", "--reason", "r"], flags].concat();
        let CliCommand::Stop(args) = Cli::try_parse_from(arguments).unwrap().command else { panic!("another command") };
        let found = AccountId::parse("acc_1").unwrap();
        body_of(&args, Some(&found), "2026-01-31T12:00:00Z".parse().unwrap())
    }

    #[test]
    fn each_flag_is_a_scope_with_its_value() {
        assert_eq!(body(&["--account-wide"]), json!({"scope": "account", "reason": "r", "account": "acc_1"}));
        for (flag, scope) in [("--environment", "environment"), ("--tool", "tool"), ("--key", "key")] {
            let sent = body(&[flag, "x", "--account", "acc_2", "--until", "2h"]);
            let expected = json!({"scope": scope, "value": "x", "reason": "r", "account": "acc_2",
                "until": "2026-01-31T14:00:00Z"});
            assert_eq!(sent, expected);
        }
        assert_eq!(body(&["--all"]), json!({"scope": "all", "reason": "r"}), "it is of no account");
    }

    #[test]
    fn a_stop_covers_exactly_one_thing() {
        for wrong in [&[][..], &["--account-wide", "--tool", "x"], &["--all", "--account", "a"]] {
            let arguments = [&["stage0", "stop", "--reason", "r"], wrong].concat();
            assert!(Cli::try_parse_from(arguments).is_err(), "{wrong:?}");
        }
        assert!(Cli::try_parse_from(["stage0", "stop", "--all"]).is_err(), "a reason is required");
    }

    #[test]
    fn what_a_stop_covers_is_shown_escaped() {
        let fixture: Value = serde_json::from_str(include_str!("../../contract/fixtures/stop_page.json")).unwrap();
        let mut stop: Stop = serde_json::from_value(fixture["done"]["items"][0].clone()).unwrap();
        (stop.value, stop.reason) = (Some("prod\u{202e}".to_owned()), "r\u{1b}[2J".to_owned());
        let shown = for_people(&stop);
        assert!(shown.contains(r"environment prod\u{202e}") && shown.contains("it is resumed"), "{shown}");
        assert!(!shown.contains(['\u{202e}', '\u{1b}']), "{shown:?}");
        assert_eq!(by(&stop), "mem_1");
    }
}
