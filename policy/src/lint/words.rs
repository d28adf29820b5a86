//! Words of a pack's own files that occur in no request of its own cases.

use serde_json::Value;

use super::{Finding, Lint};
use crate::files::{CONSTRAINTS, EFFECTS, Fault, Files, TOOLS, VOCABULARY};

/// As many words are named in a finding.
const SHOWN: usize = 5;

pub(super) fn findings(files: &Files) -> Vec<Finding> {
    let requests = requests(files);
    let mut found = Vec::new();
    for file in [EFFECTS, TOOLS, CONSTRAINTS, VOCABULARY] {
        let Some(text) = files.get(file) else { continue };
        let Ok(content) = toml::from_str::<toml::Value>(text) else { continue };
        let mut lists = Vec::new();
        collect(&content, "", &mut lists);
        found.extend(lists.into_iter().filter_map(|list| unused(file, text, &list, &requests)));
    }
    found
}

/// A list of words, with the name that it has in its file.
struct List<'v> {
    name: String,
    words: Vec<&'v str>,
}

fn collect<'v>(value: &'v toml::Value, name: &str, lists: &mut Vec<List<'v>>) {
    match value {
        toml::Value::Table(members) => members.iter().for_each(|(name, value)| collect(value, name, lists)),
        toml::Value::Array(items) => {
            let words: Vec<&str> = items.iter().filter_map(toml::Value::as_str).collect();
            lists.push(List { name: name.to_owned(), words });
        }
        _ => {}
    }
}

fn unused(file: &str, text: &str, list: &List<'_>, requests: &str) -> Option<Finding> {
    let unused: Vec<&str> = list.words.iter().copied().filter(|word| !requests.contains(&normal(word))).collect();
    let first = unused.first()?;
    let mut shown: Vec<String> = unused.iter().take(SHOWN).map(|word| format!("`{word}`")).collect();
    if unused.len() > SHOWN {
        shown.push(format!("and {} more", unused.len() - SHOWN));
    }
    let message = format!("no case has these words of `{}`: {}", list.name, shown.join(", "));
    let quoted = format!("\"{first}\"");
    let line = text.lines().position(|line| line.contains(&quoted)).map(|index| index + 1);
    let fault = Fault { line, ..Fault::new(file, message) };
    Some(Lint::UnusedWord.finding(fault.help("add a case that shows what the word changes, or take it out")))
}

/// Every text of the requests of the pack's cases, in the form of words.
fn requests(files: &Files) -> String {
    let mut all = String::new();
    for (_, text) in files.cases() {
        let cases: Vec<Value> = serde_json::from_str(text).unwrap_or_default();
        cases.iter().filter_map(|case| case.get("request")).for_each(|request| texts(request, &mut all));
    }
    all
}

fn texts(value: &Value, all: &mut String) {
    match value {
        Value::String(text) => {
            all.push_str(&normal(text));
            all.push('\n');
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, all)),
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            all.push_str(&normal(name));
            all.push('\n');
            texts(value, all);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn normal(text: &str) -> String {
    text.to_lowercase().replace([' ', '-'], "_")
}
