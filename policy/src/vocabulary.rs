//! The vocabulary of a pack: what words mean to a policy.
//!
//! Owns the lookup of words and their validation at load: each in normal form (another could never match), none twice,
//! no list empty. In the second edition words of side effects, tools and constraints have files of their own; in the
//! first edition `vocabulary.toml` has all words.

mod constraints;
mod effects;
mod first;
mod names;
mod near;
mod phrases;
mod tools;
mod windows;

use std::collections::HashSet;

use serde::Deserialize;
use stage0_contract::visible;
use toml::Spanned;

use crate::files::{Fault, Files, VOCABULARY, line_of};

pub(crate) use effects::{Class, EffectWords, Marks, Meaning};
pub(crate) use first::FirstWords;
pub(crate) use names::{APPROVED, ApprovalWord, Names};
pub(crate) use near::{distance, nearest};
pub(crate) use tools::ToolWords;
pub(crate) use windows::{WindowSpec, Windows, judge, open_windows};

use constraints::Constraints;
use names::{RawApproval, RawEnvironments};
use phrases::Phrases;

/// The edition of the facts that a pack was written for. It fixes what words mean to the pack's rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u8")]
pub(crate) enum Edition {
    /// Words match whole or not at all. The default of a pack that names no edition.
    #[default]
    First = 1,
    /// Words are matched by their parts, and aliases and spellings are folded.
    Second = 2,
}

impl TryFrom<u8> for Edition {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, String> {
        match number {
            1 => Ok(Self::First),
            2 => Ok(Self::Second),
            other => Err(format!("`edition` {other} is not known to this version: use 1 or 2")),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Vocabulary {
    pub(crate) words: EditionWords,
    pub(crate) constraints: Constraints,
    pub(crate) vague_phrases: Phrases,
    /// Empty in a pack of the first edition.
    pub(crate) names: Names,
}

#[derive(Debug)]
pub(crate) enum EditionWords {
    First(FirstWords),
    Second(Box<EffectWords>, Box<ToolWords>),
}

type Words = Vec<Spanned<String>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVocabulary {
    goals: RawGoals,
    environments: RawEnvironments,
    approval: RawApproval,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGoals {
    vague: Words,
}

impl Vocabulary {
    pub(crate) fn edition(&self) -> Edition {
        match &self.words {
            EditionWords::First(_) => Edition::First,
            EditionWords::Second(..) => Edition::Second,
        }
    }

    /// Words of the second edition.
    pub(crate) fn second(&self) -> Option<(&EffectWords, &ToolWords)> {
        match &self.words {
            EditionWords::First(_) => None,
            EditionWords::Second(effects, tools) => Some((effects, tools)),
        }
    }
}

/// Parses the vocabulary and collects its faults. Without a known edition the words are not checked.
pub(super) fn parse(files: &Files, edition: Option<Edition>, faults: &mut Vec<Fault>) -> Option<Vocabulary> {
    match edition? {
        Edition::First => first::parse(files, faults),
        Edition::Second => second(files, faults),
    }
}

fn second(files: &Files, faults: &mut Vec<Fault>) -> Option<Vocabulary> {
    let (effects, tools) = (effects::parse(files, faults), tools::parse(files, faults));
    let constraints = constraints::parse(files, faults);
    let (text, raw): (_, RawVocabulary) = files.toml(VOCABULARY, faults)?;
    let names = names::read(raw.environments, raw.approval, text, faults);
    let vague_phrases = Check { text, faults }.phrases(raw.goals.vague);
    let words = EditionWords::Second(Box::new(effects?), Box::new(tools?));
    Some(Vocabulary { words, constraints: constraints?, vague_phrases, names })
}

const MAX_PHRASES: usize = 500;
const NORMAL: &str = "is not in normal form and would match nothing";

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

    fn phrases(&mut self, words: Words) -> Phrases {
        let phrases = self.words("vague", words, |phrase| visible(phrase) == phrase, NORMAL);
        if phrases.len() > MAX_PHRASES {
            let message = format!("`vague` has {} phrases, and may have {MAX_PHRASES}", phrases.len());
            self.faults.push(Fault::new(VOCABULARY, message));
        }
        let mut phrases: Vec<String> = phrases.into_iter().map(|(phrase, _)| phrase).collect();
        phrases.sort_by_key(|phrase| std::cmp::Reverse(phrase.len()));
        Phrases::of(phrases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../policies/baseline/vocabulary.toml");

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        parse(&Files::embedded().with(VOCABULARY, text), Some(Edition::Second), &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn names_of_environments_and_words_of_approval_are_needed() {
        for table in ["environments", "approval", "goals"] {
            let faults = faults(&GOOD.replacen(&format!("[{table}]"), &format!("[{table}s]"), 1));
            assert!(faults.len() == 1 && faults[0].contains(table), "{faults:?}");
        }
    }

    #[test]
    fn no_word_means_two_environments_or_an_approval() {
        for (from, to, told) in [
            ("\"prod\"", "\"Prod\"", "`Prod` in `production` is not in normal form"),
            ("\"prod\"", "\"stage\"", "`stage` stands for `production` and for `staging`"),
            ("\"prod\"", "\"staging\"", "`staging` is an environment of its own"),
            ("\"pending\"", "\"approved\"", "`approved` in `pending` is an approval"),
            ("\"denied\"", "\"pending\"", "`pending` stands twice in `[approval]`"),
            ("\"denied\"", "\"not approved\"", "`not approved` in `rejected` is not in normal form"),
            ("missing = [\"missing\"]", "missing = []", "`missing` in `[approval]` is empty"),
            ("missing = [\"missing\"]", "approved = [\"ok\"]\nmissing = [\"missing\"]", "unknown field `approved`"),
            ("missing = [\"missing\"]", "mising = [\"missing\"]", "unknown field `mising`, expected one of"),
        ] {
            let faults = faults(&GOOD.replacen(from, to, 1));
            assert!(faults.len() == 1 && faults[0].contains(told), "{to}: {faults:?}");
        }
    }

    #[test]
    fn an_empty_list_and_an_unknown_key_are_refused() {
        assert!(faults(&GOOD.replace("[goals]", "[goals]\nclear = []"))[0].contains("clear"));
        let from = GOOD.find("vague = [").unwrap();
        assert_eq!(faults(&format!("{}vague = []", &GOOD[..from])), ["vocabulary.toml: `vague` is empty"]);
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
