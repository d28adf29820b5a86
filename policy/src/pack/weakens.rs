//! What a pack makes milder than the pack that it extends: it must say so by name, in `[weakens]` of `pack.toml`.
//!
//! A difference that could let something pass counts, even where another one makes up for it: what is compared is the
//! meaning of each word and number, not what a request comes to. Named and not milder is a fault too, so that the
//! section is never longer than the truth. As a second proof the cases of the parent are run against the pack.

mod numbers;
mod verdicts;
mod words;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stage0_contract::is_blank;
use toml::Spanned;

use super::manifest::{Outcomes, Pro, Scores};
use super::merge::{Merged, Word};
use super::{Approvals, Pack};
use crate::files::{Fault, Files, MANIFEST, line_of, toml_fault};
use crate::rule::Rule;
use crate::vocabulary::{Vocabulary, Windows};

pub(super) use numbers::terms as milder_terms;
pub(super) use verdicts::compare as compare_verdicts;

const MAX_REASON_CHARS: usize = 500;

/// What a pack makes milder than the pack that it extends, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Weakened {
    /// Why its authors do so, in their words.
    pub reason: String,
    /// Rules of the parent that are left out.
    pub without: Vec<String>,
    /// Rules of the parent with a rule of the same `@id` in their place.
    pub replaces: Vec<String>,
    /// Words with a milder meaning.
    pub words: Vec<String>,
    /// Scores, windows and terms of approvals that are milder.
    pub numbers: Vec<String>,
}

/// `[weakens]`, with the line of each name.
#[derive(Debug, Default)]
pub(super) struct Section {
    /// The line of the header, and the reason; `None` without a section.
    given: Option<(usize, String)>,
    without: Vec<Word>,
    replaces: Vec<Word>,
    words: Vec<Word>,
    numbers: Vec<Word>,
}

/// The parsed parts of a pack that extends another.
pub(super) struct Child<'a> {
    pub(super) vocabulary: &'a Vocabulary,
    pub(super) windows: &'a Windows,
    pub(super) scores: &'a Scores,
    pub(super) pro: &'a Pro,
    pub(super) approvals: &'a Approvals,
    pub(super) outcomes: &'a Outcomes,
}

/// The list of `[weakens]` that something belongs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum List {
    Words,
    Numbers,
}

/// Something that is milder than in the parent, and where the pack says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Weaker {
    list: List,
    pub(super) name: String,
    pub(super) file: &'static str,
    line: Option<usize>,
    /// What is milder, as in "`refund` is medium here and high in `baseline@2.0.0`".
    what: String,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    reason: Option<Spanned<String>>,
    without: Vec<Spanned<String>>,
    replaces: Vec<Spanned<String>>,
    words: Vec<Spanned<String>>,
    numbers: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
struct RawManifest {
    weakens: Option<Spanned<Raw>>,
}

/// Reads `[weakens]`; `None` where it is malformed, which is a fault.
pub(super) fn section(files: &Files, faults: &mut Vec<Fault>) -> Option<Section> {
    let text = files.get(MANIFEST).unwrap_or_default();
    let manifest: RawManifest =
        toml::from_str(text).map_err(|error| faults.push(toml_fault(MANIFEST, text, &error))).ok()?;
    let Some(raw) = manifest.weakens else { return Some(Section::default()) };
    let (line, raw) = (line_of(text, raw.span().start), raw.into_inner());
    let before = faults.len();
    let mut fault = |at: usize, message: String| faults.push(Fault::new(MANIFEST, message).at(at));
    let reason = raw.reason.map(|reason| (line_of(text, reason.span().start), reason.into_inner()));
    let reason = match reason {
        None => {
            fault(line, "`[weakens]` needs a `reason`".to_owned());
            String::new()
        }
        Some((at, reason)) => {
            if is_blank(&reason) || reason.chars().count() > MAX_REASON_CHARS {
                fault(at, format!("`reason` in `[weakens]` must be a text of at most {MAX_REASON_CHARS} characters"));
            }
            reason
        }
    };
    let mut list = |name: &str, words: Vec<Spanned<String>>| {
        let mut seen = HashSet::new();
        let mut read = Vec::with_capacity(words.len());
        for word in words {
            let (at, text) = (line_of(text, word.span().start), word.into_inner());
            if !seen.insert(text.clone()) {
                fault(at, format!("`{text}` stands twice in `{name}`"));
            }
            read.push(Word { text, line: Some(at) });
        }
        read
    };
    let section = Section {
        without: list("without", raw.without),
        replaces: list("replaces", raw.replaces),
        words: list("words", raw.words),
        numbers: list("numbers", raw.numbers),
        given: Some((line, reason)),
    };
    if [&section.without, &section.replaces, &section.words, &section.numbers].iter().all(|names| names.is_empty())
        && faults.len() == before
    {
        faults.push(Fault::new(MANIFEST, "`[weakens]` names nothing: take it out").at(line));
    }
    (faults.len() == before).then_some(section)
}

fn at_word(word: &Word, message: String) -> Fault {
    Fault { line: word.line, ..Fault::new(MANIFEST, message) }
}

impl Section {
    /// What the section says, for a pack that has been checked.
    pub(super) fn weakened(&self) -> Option<Weakened> {
        let (_, reason) = self.given.as_ref()?;
        let texts = |words: &[Word]| words.iter().map(|word| word.text.clone()).collect();
        Some(Weakened {
            reason: reason.clone(),
            without: texts(&self.without),
            replaces: texts(&self.replaces),
            words: texts(&self.words),
            numbers: texts(&self.numbers),
        })
    }

    /// The rules of the parent that the pack does not take over. `own` are its own rules, if they can be read.
    pub(super) fn left_out(
        &self,
        parent: &BTreeMap<String, Arc<Rule>>,
        own: Option<&BTreeMap<String, Rule>>,
        label: &str,
        faults: &mut Vec<Fault>,
    ) -> HashSet<&str> {
        let mut left_out = HashSet::new();
        for (list, words) in [("without", &self.without), ("replaces", &self.replaces)] {
            for word in words {
                let id = word.text.as_str();
                let wrong = match (parent.contains_key(id), list, own.map(|own| own.contains_key(id))) {
                    (false, ..) => Some(format!("`{id}` in `{list}` is no rule of `{label}`")),
                    (true, "without", Some(true)) => {
                        Some(format!("`{id}` in `without` has a rule of the same `@id` here: name it in `replaces`"))
                    }
                    (true, "replaces", Some(false)) => {
                        Some(format!("`{id}` in `replaces` has no rule of that `@id` here: name it in `without`"))
                    }
                    _ => None,
                };
                faults.extend(wrong.map(|wrong| at_word(word, wrong)));
                left_out.insert(id);
            }
        }
        left_out
    }

    /// Compares what is milder with what is named.
    pub(super) fn compare(&self, found: &[Weaker], label: &str, faults: &mut Vec<Fault>) {
        for (list, name, words) in [(List::Words, "words", &self.words), (List::Numbers, "numbers", &self.numbers)] {
            let named: HashSet<&str> = words.iter().map(|word| word.text.as_str()).collect();
            let mut milder: HashSet<&str> = HashSet::new();
            for weaker in found.iter().filter(|weaker| weaker.list == list) {
                // One name stands for all that the word is in.
                if milder.insert(&weaker.name) && !named.contains(weaker.name.as_str()) {
                    faults.push(self.unsaid(weaker, name));
                }
            }
            for word in words.iter().filter(|word| !milder.contains(word.text.as_str())) {
                let message = format!("`{}` in `{name}` is not milder than in `{label}`: take it out", word.text);
                faults.push(at_word(word, message));
            }
        }
    }

    fn unsaid(&self, weaker: &Weaker, list: &str) -> Fault {
        let Weaker { name, file, line, what, .. } = weaker;
        let help = match &self.given {
            Some(_) => format!("add {name:?} to `{list}` in `[weakens]` of pack.toml"),
            None => format!("write `[weakens]` in pack.toml, with a `reason` and `{list} = [{name:?}]`"),
        };
        let message = format!("{what}: what is milder must be said");
        Fault { line: *line, ..Fault::new(file, message).help(help) }
    }
}

/// All that is milder in a pack than in its parent, except its rules.
pub(super) fn find(parent: &Pack, child: &Child<'_>, own: &Merged) -> Vec<Weaker> {
    let mut found = words::find(parent, child.vocabulary, own);
    found.extend(numbers::find(parent, child, own));
    found
}
