//! `vocabulary.toml`: what words mean to a policy.
//!
//! Owns the look-up of words and their check at load: each in normal form (another could never match), none twice, no list empty,
//! every guardrail a constraint that the grammar knows.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use stage0_contract::{Constraint, Word, visible};
use toml::Spanned;

use super::fault::{Fault, line_of};
use super::files::{Files, VOCABULARY};
use super::manifest::toml_fault;

/// The risk class of a side effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    High,
    Communication,
    Medium,
    Loop,
    Approval,
}

/// Words by meaning.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    classes: HashMap<String, Class>,
    impact: HashSet<String>,
    customer_visible: HashSet<String>,
    sensitive_tools: HashSet<String>,
    guardrails: HashSet<String>,
    /// The longest first, so that a short phrase does not break a long one.
    vague_phrases: Vec<String>,
}

type Words = Vec<Spanned<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVocabulary {
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGoals {
    vague: Words,
}

impl Vocabulary {
    /// The class of a side effect in normal form.
    pub(crate) fn class(&self, word: &str) -> Option<Class> {
        self.classes.get(word).copied()
    }

    pub(crate) fn has_impact(&self, word: &str) -> bool {
        self.impact.contains(word)
    }

    pub(crate) fn is_customer_visible(&self, word: &str) -> bool {
        self.customer_visible.contains(word)
    }

    pub(crate) fn is_sensitive_tool(&self, word: &str) -> bool {
        self.sensitive_tools.contains(word)
    }

    /// Whether a constraint, by canonical name, guards a high effect.
    pub(crate) fn is_guardrail(&self, name: &str) -> bool {
        self.guardrails.contains(name)
    }

    pub(crate) fn vague_phrases(&self) -> impl Iterator<Item = &str> {
        self.vague_phrases.iter().map(String::as_str)
    }
}

/// Reads the vocabulary and notes what is wrong with it.
pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<Vocabulary> {
    let text = files.needed(VOCABULARY, faults)?;
    let raw: RawVocabulary = match toml::from_str(text) {
        Ok(raw) => raw,
        Err(error) => {
            faults.push(toml_fault(VOCABULARY, text, &error));
            return None;
        }
    };
    let mut check = Check { text, faults };
    let name = |word: &str| Word::name(word).is(word);
    let guardrail = |word: &str| {
        // Every recognised constraint takes a number, a list or nothing: `1` is all of these.
        matches!(Constraint::parse(&format!("{word}: 1")), Ok(Some(constraint)) if constraint.name() == word)
    };
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
    let phrases = check.words("vague", raw.goals.vague, |phrase| visible(phrase) == phrase, NORMAL);
    if phrases.len() > MAX_PHRASES {
        check
            .faults
            .push(Fault::new(VOCABULARY, format!("`vague` has {} phrases, and may have {MAX_PHRASES}", phrases.len())));
    }
    let mut vague_phrases: Vec<String> = phrases.into_iter().map(|(phrase, _)| phrase).collect();
    vague_phrases.sort_by_key(|phrase| std::cmp::Reverse(phrase.len()));
    Some(Vocabulary { classes, impact, customer_visible, sensitive_tools, guardrails, vague_phrases })
}

/// Phrases are looked for one by one in each goal.
const MAX_PHRASES: usize = 500;
const NORMAL: &str = "is not in normal form and would match nothing";
const CLASSED: &str = "stands in no class";
const CONSTRAINT: &str = "is no canonical name of a constraint";

struct Check<'a> {
    text: &'a str,
    faults: &'a mut Vec<Fault>,
}

impl Check<'_> {
    fn fault(&mut self, at: usize, message: String) {
        self.faults.push(Fault::new(VOCABULARY, message).at(line_of(self.text, at)));
    }

    fn words(
        &mut self,
        list: &str,
        words: Words,
        holds: impl Fn(&str) -> bool,
        otherwise: &str,
    ) -> Vec<(String, usize)> {
        if words.is_empty() {
            self.faults.push(Fault::new(VOCABULARY, format!("`{list}` is empty")));
        }
        let mut seen = HashSet::new();
        let mut checked = Vec::with_capacity(words.len());
        for word in words {
            let (at, word) = (word.span().start, word.into_inner());
            if word.is_empty() || !holds(&word) {
                self.fault(at, format!("`{word}` in `{list}` {otherwise}"));
            }
            if !seen.insert(word.clone()) {
                self.fault(at, format!("`{word}` stands twice in `{list}`"));
            }
            checked.push((word, at));
        }
        checked
    }

    fn set(&mut self, list: &str, words: Words, holds: impl Fn(&str) -> bool, otherwise: &str) -> HashSet<String> {
        self.words(list, words, holds, otherwise).into_iter().map(|(word, _)| word).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../policies/baseline/vocabulary.toml");

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
            .replace("\"require_ticket\"", "\"ticket_please\"")
            .replace("[\"loop\", \"retry\"", "[\"loop\", \"loop\"");
        let faults = faults(&text);
        assert_eq!(faults.len(), 6, "{faults:#?}");
        assert!(faults.iter().all(|f| f.starts_with("vocabulary.toml:")), "{faults:#?}");
    }

    #[test]
    fn an_empty_list_and_an_unknown_key_are_refused() {
        let empty = GOOD.replace("approval = [\"requires_approval\", \"sensitive_operation\"]", "approval = []");
        assert_eq!(faults(&empty), ["vocabulary.toml: `approval` is empty"]);
        assert_eq!(faults(&GOOD.replace("[goals]", "[goals]\nclear = []")).len(), 1);
    }

    #[test]
    fn each_phrase_costs_time_for_each_goal() {
        let phrases = |count: usize| (0..count).map(|n| format!("\"think {n}\", ")).collect::<String>();
        let with = |count: usize| GOOD.replace("vague = [", &format!("vague = [{}", phrases(count)));
        assert_eq!(faults(&with(MAX_PHRASES / 2)), Vec::<String>::new());
        assert!(faults(&with(MAX_PHRASES))[0].ends_with("phrases, and may have 500"));
    }

    #[test]
    fn the_baseline_has_no_faults() {
        assert_eq!(faults(GOOD), Vec::<String>::new());
    }
}
