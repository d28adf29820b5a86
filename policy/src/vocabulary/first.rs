//! `vocabulary.toml` as the first edition has it: every word in one file, each whole or unknown.
//!
//! Packs of that edition keep this format for good, so that they decide as they always did.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use stage0_contract::{Names as ConstraintNames, Word};

use super::constraints::Constraints;
use super::effects::Class;
use super::names::Names;
use super::{Check, EditionWords, NORMAL, RawGoals, Vocabulary, Words};
use crate::files::{Fault, Files, VOCABULARY};

const CLASSED: &str = "stands in no class";
const CONSTRAINT: &str = "is no canonical name of a constraint";

/// Words of side effects and tools, whole and in normal form.
#[derive(Debug)]
pub(crate) struct FirstWords {
    pub(crate) classes: HashMap<String, Class>,
    pub(crate) impact: HashSet<String>,
    pub(crate) customer_visible: HashSet<String>,
    pub(crate) sensitive_tools: HashSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFirst {
    classes: RawClasses,
    effects: RawEffects,
    tools: RawTools,
    constraints: RawConstraints,
    goals: RawGoals,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawClasses {
    high: Words,
    communication: Words,
    medium: Words,
    #[serde(rename = "loop")]
    looping: Words,
    approval: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEffects {
    impact: Words,
    customer_visible: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTools {
    sensitive: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConstraints {
    guardrails: Words,
}

pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<Vocabulary> {
    let (text, raw): (_, RawFirst) = files.toml(VOCABULARY, faults)?;
    let mut check = Check { text, faults };
    let name = |word: &str| Word::name(word).is(word);
    let guardrail = |word: &str| ConstraintNames::first_edition().find(word).is_some_and(|name| name.as_str() == word);
    let mut classes = HashMap::new();
    for (class, list, words) in [
        (Class::High, "high", raw.classes.high),
        (Class::Communication, "communication", raw.classes.communication),
        (Class::Medium, "medium", raw.classes.medium),
        (Class::Loop, "loop", raw.classes.looping),
        (Class::Approval, "approval", raw.classes.approval),
    ] {
        for (word, at) in check.words(list, words, name, NORMAL) {
            if classes.insert(word.clone(), class).is_some() {
                check.fault(at, format!("`{word}` stands in two classes"));
            }
        }
    }
    let is_effect = |word: &str| classes.contains_key(word);
    let impact = check.set("impact", raw.effects.impact, is_effect, CLASSED);
    let customer_visible = check.set("customer_visible", raw.effects.customer_visible, is_effect, CLASSED);
    let sensitive_tools = check.set("sensitive", raw.tools.sensitive, name, NORMAL);
    let guardrails = check.set("guardrails", raw.constraints.guardrails, guardrail, CONSTRAINT);
    let vague_phrases = check.phrases(raw.goals.vague);
    let words = FirstWords { classes, impact, customer_visible, sensitive_tools };
    Some(Vocabulary {
        words: EditionWords::First(words),
        constraints: Constraints::first(guardrails),
        vague_phrases,
        names: Names::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../tests/fixtures/first-edition/vocabulary.toml");

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        parse(&Files::of([(VOCABULARY, text)]), &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn words_that_could_never_match_are_refused_with_their_line() {
        let text = GOOD
            .replace("\"money_movement\"", "\"Money Movement\"")
            .replace("\"send_email\"", "\"publish\"")
            .replace("impact = [", "impact = [\"earthquake\", ")
            .replace("guardrails = [", "guardrails = [\"prayer\", ")
            .replace("[\"loop\", \"retry\"", "[\"loop\", \"loop\"");
        let faults = faults(&text);
        assert_eq!(faults.len(), 6, "{faults:#?}");
        assert!(faults.iter().all(|f| f.starts_with("vocabulary.toml:")), "{faults:#?}");
    }

    #[test]
    fn an_empty_list_and_words_of_the_second_edition_are_refused() {
        let empty = GOOD.replace("approval = [\"requires_approval\", \"sensitive_operation\"]", "approval = []");
        assert_eq!(faults(&empty), ["vocabulary.toml: `approval` is empty"]);
        assert_eq!(faults(&format!("{GOOD}\n[environments]\nproduction = [\"prod\"]\n")).len(), 1);
        assert_eq!(faults(GOOD), Vec::<String>::new());
    }
}
