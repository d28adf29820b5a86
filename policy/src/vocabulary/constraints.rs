//! `constraints.toml`: other names of constraints, which of them are guardrails, and tags without effect.
//!
//! An alias must be in normal form, must not have another meaning, and must name a constraint of the grammar. A pack of
//! the first edition has no such file: its guardrails stand in its vocabulary.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use stage0_contract::{ConstraintName, NameFault, Names};
use toml::Spanned;

use crate::files::{CONSTRAINTS, Fault, Files, line_of};

/// The most names and tags together, since misspelt names are compared with each of them.
const MAX_NAMES: usize = 2_000;

#[derive(Debug)]
pub(crate) struct Constraints {
    /// `None` for the names of the first edition.
    names: Option<Names>,
    guardrails: HashSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConstraints {
    guardrails: Vec<Spanned<String>>,
    tags: Vec<Spanned<String>>,
    aliases: BTreeMap<Spanned<String>, Vec<Spanned<String>>>,
}

impl Constraints {
    pub(super) fn first(guardrails: HashSet<String>) -> Self {
        Self { names: None, guardrails }
    }

    pub(crate) fn names(&self) -> &Names {
        self.names.as_ref().unwrap_or_else(|| Names::first_edition())
    }

    /// Whether a constraint, by canonical name, guards a high effect.
    pub(crate) fn is_guardrail(&self, name: &str) -> bool {
        self.guardrails.contains(name)
    }
}

pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<Constraints> {
    let (text, raw): (_, RawConstraints) = files.toml(CONSTRAINTS, faults)?;
    let at =
        |word: &Spanned<String>, message: String| Fault::new(CONSTRAINTS, message).at(line_of(text, word.span().start));
    let mut guardrails = HashSet::new();
    for word in &raw.guardrails {
        match known(word.get_ref()) {
            Err(message) => faults.push(at(word, message)),
            Ok(name) if !guardrails.insert(name.as_str().to_owned()) => {
                faults.push(at(word, format!("`{}` stands twice in `guardrails`", name.as_str())));
            }
            Ok(_) => {}
        }
    }
    if raw.guardrails.is_empty() {
        faults.push(Fault::new(CONSTRAINTS, "`guardrails` is empty"));
    }
    let mut aliases: Vec<(&Spanned<String>, ConstraintName)> = Vec::new();
    for (name, words) in &raw.aliases {
        match known(name.get_ref()) {
            Ok(name) => aliases.extend(words.iter().map(|word| (word, name))),
            Err(message) => faults.push(at(name, message)),
        }
    }
    let count = aliases.len() + raw.tags.len();
    if count > MAX_NAMES {
        faults.push(Fault::new(CONSTRAINTS, format!("there are {count} aliases and tags, and may be {MAX_NAMES}")));
        return None;
    }
    let (names, bad) = Names::with(
        aliases.iter().map(|(word, name)| (word.get_ref().as_str(), *name)),
        raw.tags.iter().map(|word| word.get_ref().as_str()),
    );
    for fault in bad {
        let (NameFault::NotNormal(bad) | NameFault::Taken(bad, _)) = &fault;
        let all = aliases.iter().map(|(word, _)| *word).chain(&raw.tags);
        // Of two equal words the second one is the fault.
        let place = all.rev().find(|word| word.get_ref() == bad);
        let line = place.map(|word| line_of(text, word.span().start));
        faults.push(Fault { line, ..Fault::new(CONSTRAINTS, fault.to_string()) });
    }
    Some(Constraints { names: Some(names), guardrails })
}

/// The constraint of a canonical name, or what is wrong with it.
fn known(word: &str) -> Result<ConstraintName, String> {
    ConstraintName::parse(word).ok_or_else(|| {
        let near = Names::built_in().nearest(word);
        let hint = near.first().map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
        format!("`{word}` is no canonical name of a constraint{hint}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../policies/baseline/constraints.toml");

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        parse(&Files::of([(CONSTRAINTS, text)]), &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn the_baseline_has_no_faults() {
        assert_eq!(faults(GOOD), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_reported_with_its_line() {
        let text = GOOD
            .replace("    \"approval_required\", \"require_approval_for\"", "    \"aproval_required\", \"max_records\"")
            .replace("\"read_only_role\"", "\"Read only role\"")
            .replace("\"needs_approval\"", "\"max_retry\"")
            .replace("sandbox = [\"sandboxed\"", "sandbox = [\"budget\"")
            .replace("dry_run = [", "dryrun = [");
        let faults = faults(&text);
        assert_eq!(faults.len(), 6, "{faults:#?}");
        assert!(faults.iter().all(|fault| fault.starts_with("constraints.toml:")), "{faults:#?}");
        for told in [
            "`aproval_required` is no canonical name of a constraint: did you mean `approval_required`?",
            "`max_records` stands twice in `guardrails`",
            "`dryrun` is no canonical name of a constraint: did you mean `dry_run`?",
            "`Read only role` is not in normal form and would match nothing",
            "`max_retry` is known already: it means max_retries",
            "`budget` is known already: it means max_cost_usd",
        ] {
            assert!(faults.iter().any(|fault| fault.ends_with(told)), "{told}: {faults:#?}");
        }
    }

    #[test]
    fn an_unknown_key_and_an_empty_list_of_guardrails_are_refused() {
        assert_eq!(faults(&format!("tag = []\n{GOOD}")).len(), 1);
        let start = GOOD.find("guardrails = [").unwrap();
        let end = start + GOOD[start..].find(']').unwrap();
        let empty = format!("{}guardrails = [{}", &GOOD[..start], &GOOD[end..]);
        assert_eq!(faults(&empty), ["constraints.toml: `guardrails` is empty"]);
    }

    #[test]
    fn there_is_an_end_to_names() {
        let many: String = (0..MAX_NAMES).map(|n| format!("\"tag_number_{n}\", ")).collect();
        let told = faults(&GOOD.replace("tags = [", &format!("tags = [{many}")));
        assert!(told.len() == 1 && told[0].ends_with("aliases and tags, and may be 2000"), "{told:?}");
    }
}
