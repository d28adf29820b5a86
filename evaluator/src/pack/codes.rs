//! `codes.toml`: what each code of a pack means and what settles it, for people and agents who read an answer.
//!
//! Owns the check that every code that a rule of the pack gives is told, and that none is told that no rule gives. A pack
//! of the first edition has no such file.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use stage0_contract::IssueCode;

use super::fault::Fault;
use super::files::{CODES, Files};
use super::manifest::{Edition, toml_fault};
use super::rule::Rule;

/// What a code is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Meaning {
    pub(crate) meaning: String,
    pub(crate) remedy: String,
}

/// Codes by name.
pub(crate) type Codes = BTreeMap<IssueCode, Meaning>;

/// Reads the meanings and notes what is wrong with them.
pub(super) fn parse(
    files: &Files,
    edition: Edition,
    rules: &BTreeMap<String, Rule>,
    faults: &mut Vec<Fault>,
) -> Option<Codes> {
    if edition == Edition::First && files.get(CODES).is_none() {
        return Some(Codes::new());
    }
    let text = files.needed(CODES, faults)?;
    let codes: Codes = match toml::from_str(text) {
        Ok(codes) => codes,
        Err(error) => {
            faults.push(toml_fault(CODES, text, &error));
            return None;
        }
    };
    if !faults.is_empty() {
        // A rule with a fault gives no code yet: that would be told twice.
        return Some(codes);
    }
    let mut given: BTreeSet<&IssueCode> = rules.values().map(|rule| &rule.code).collect();
    let policy_error = IssueCode::policy_error();
    given.insert(&policy_error);
    for code in given.iter().filter(|code| !codes.contains_key(code)) {
        faults.push(Fault::new(CODES, format!("`{code}` is missing: a rule gives it, or the evaluator does")));
    }
    for (code, meaning) in &codes {
        let line = text.lines().position(|line| line.trim() == format!("[{code}]")).map_or(1, |index| index + 1);
        let mut fault = |message: String| faults.push(Fault::new(CODES, message).at(line));
        if !given.contains(code) {
            fault(format!("`{code}` is given by no rule"));
        }
        if meaning.meaning.trim().is_empty() || meaning.remedy.trim().is_empty() {
            fault(format!("`{code}` needs a `meaning` and a `remedy`"));
        }
    }
    Some(codes)
}
