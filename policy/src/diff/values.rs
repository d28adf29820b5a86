//! Single values that differ: numbers, windows, terms of approvals, declared members, texts of codes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};
use stage0_contract::IssueCode;

use super::{Compared, Direction};
use crate::files::{CODES, MANIFEST, SCHEMA};
use crate::pack::Pack;

/// A value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ValueDiff {
    /// The file that it is from.
    pub file: &'static str,
    /// Its name, such as `scores.floor.deny`.
    pub name: String,
    /// The value in the old pack; null if it has none.
    pub from: Option<Value>,
    /// The value in the new pack.
    pub to: Option<Value>,
    /// What that does.
    pub direction: Direction,
}

pub(super) type Values = BTreeMap<String, Value>;

pub(super) fn differences(compared: &Compared<'_>) -> Vec<ValueDiff> {
    let manifest = |pack: &Pack| manifest(pack.files().get(MANIFEST).unwrap_or_default());
    let [old, new] = [compared.old, compared.new];
    let mut found =
        between(MANIFEST, &manifest(old), &manifest(new), |name, from, to| of_manifest(compared, name, from, to));
    found.extend(between(SCHEMA, &types(old), &types(new), |name, from, to| match (from, to) {
        _ if name.starts_with(RUN_CALLS) => Direction::Neutral,
        // A declared member of the wrong type defers.
        (None, Some(_)) => Direction::Stricter,
        (Some(_), None) => Direction::Looser,
        _ => Direction::Unclear,
    }));
    found.extend(between(CODES, &codes(old), &codes(new), |_, _, _| Direction::Neutral));
    found
}

/// The values of one file that differ.
pub(super) fn between(
    file: &'static str,
    old: &Values,
    new: &Values,
    direction: impl Fn(&str, Option<&Value>, Option<&Value>) -> Direction,
) -> Vec<ValueDiff> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let one = |name: &String| {
        let (from, to) = (old.get(name), new.get(name));
        let differs = || ValueDiff {
            file,
            name: name.clone(),
            from: from.cloned(),
            to: to.cloned(),
            direction: direction(name, from, to),
        };
        (from != to).then(differs)
    };
    names.into_iter().filter_map(one).collect()
}

fn of_manifest(compared: &Compared<'_>, name: &str, from: Option<&Value>, to: Option<&Value>) -> Direction {
    match (name, from, to) {
        (EDITION, ..) => Direction::Unclear,
        // A request that names it is refused.
        (name, Some(_), None) if name.starts_with("windows.") => Direction::Stricter,
        _ => compared.direction(MANIFEST, name),
    }
}

const EDITION: &str = "edition";
/// What names and numbers a pack, and how it comes to what else it says.
const IDENTITY: [&str; 4] = ["name", "version", "extends", "weakens"];
/// Lists of these are sets, and tables of these are one value.
const SETS: [&str; 2] = ["approvals", "windows"];

fn manifest(text: &str) -> Values {
    let mut values = Values::from([(EDITION.to_owned(), 1.into())]);
    let parsed: Map<String, Value> = toml::from_str(text).unwrap_or_default();
    for (key, mut value) in parsed.into_iter().filter(|(key, _)| !IDENTITY.contains(&key.as_str())) {
        match &mut value {
            Value::Object(members) if SETS.contains(&key.as_str()) => {
                for (name, value) in members {
                    sort_lists(value);
                    values.insert(format!("{key}.{name}"), value.take());
                }
            }
            _ => flatten(&key, value, &mut values),
        }
    }
    values
}

fn sort_lists(value: &mut Value) {
    match value {
        Value::Array(items) => items.sort_by_key(Value::to_string),
        Value::Object(members) => members.values_mut().for_each(sort_lists),
        _ => {}
    }
}

fn flatten(name: &str, value: Value, values: &mut Values) {
    match value {
        Value::Object(members) => {
            members.into_iter().for_each(|(key, value)| flatten(&format!("{name}.{key}"), value, values));
        }
        value => drop(values.insert(name.to_owned(), value)),
    }
}

const RUN_CALLS: &str = "RunCalls.";

fn types(pack: &Pack) -> Values {
    let custom = pack.custom.iter().map(|(name, kind)| (format!("Custom.{name}"), kind.as_str().into()));
    let calls = pack.run_calls.iter().map(|tool| (format!("{RUN_CALLS}{tool}"), "Long".into()));
    custom.chain(calls).collect()
}

/// The texts of the codes that the pack can give. One that extends another has those of rules that it leaves out, too.
fn codes(pack: &Pack) -> Values {
    let built_in = [
        IssueCode::policy_error(),
        IssueCode::stopped(),
        IssueCode::outcome_unknown(),
        IssueCode::approval_status_invalid(),
        IssueCode::context_required(),
    ];
    let given: BTreeSet<&str> =
        pack.rules.values().map(|rule| &rule.code).chain(&built_in).map(IssueCode::as_str).collect();
    let parsed: Map<String, Value> =
        pack.files().get(CODES).and_then(|text| toml::from_str(text).ok()).unwrap_or_default();
    parsed.into_iter().filter(|(code, _)| given.contains(code.as_str())).collect()
}
