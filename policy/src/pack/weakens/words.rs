//! Words with a milder meaning than in the parent.
//!
//! Only words that the pack itself lists are compared. The rules are strict: a word that the parent does not know
//! counts as an effect that cannot be undone, so any other meaning is milder; rules that object to one class do not see
//! a word that has left it; and beside a negation only a word of the class `none` is read as unknown.

use std::collections::HashSet;

use stage0_contract::Spelling;

use super::{List, Weaker};
use crate::facts::{EffectReading, Source, classify};
use crate::files::{CONSTRAINTS, EFFECTS, SECRETS, TOOLS, VOCABULARY};
use crate::pack::Pack;
use crate::pack::merge::{Merged, Tree, Word};
use crate::vocabulary::{ApprovalWord, Class, EffectWords, Marks, Meaning, Vocabulary};

/// Marks that let a word pass for something harmless.
const SOFT: Marks = Marks::NOUN
    .and(Marks::ALSO_NOUN)
    .and(Marks::HEAD_NOUN)
    .and(Marks::SERVICE)
    .and(Marks::NOTHING)
    .and(Marks::SEPARATOR);
/// Marks that make a text stricter. Rules about vague goals ask whether a word says that there is no effect.
const STRICT: Marks = Marks::NO_TEXT
    .and(Marks::NOTHING)
    .and(Marks::SENDS)
    .and(Marks::WRITES)
    .and(Marks::IMPACT)
    .and(Marks::VISIBLE)
    .and(Marks::SENSITIVE)
    .and(Marks::HEAVY)
    .and(Marks::LIGHT)
    .and(Marks::NEGATION);
/// Marks that matter beside an effect that cannot be undone, too.
const STRICT_BESIDE_HIGH: Marks = Marks::WRITES.and(Marks::IMPACT).and(Marks::VISIBLE).and(Marks::NOTHING);

/// The lists of names of secrets, the weakest first, without the strongest. The last word of a name decides what it
/// reveals, so a word in a weaker list hides a stronger word before it.
const WEAKER_LISTS: [&str; 4] = ["hints", "tokens", "secrets", "passwords"];

pub(super) fn find(parent: &Pack, vocabulary: &Vocabulary, own: &Merged) -> Vec<Weaker> {
    let mut found = Found { label: parent.label(), weaker: Vec::new() };
    if let (Some(tree), Some((before, _)), Some((after, _))) =
        (own.own(EFFECTS), parent.vocabulary.second(), vocabulary.second())
    {
        let rules_name_classes = parent.reads("effect_classes");
        found.effects(tree, before, after, rules_name_classes);
    }
    let inherited = |file: &str| Tree::of(&parent.lineage.files, file);
    if let Some(tree) = own.own(TOOLS) {
        found.tools(tree, &inherited(TOOLS));
    }
    if let Some(tree) = own.own(CONSTRAINTS) {
        found.constraints(tree, &inherited(CONSTRAINTS), &parent.vocabulary);
    }
    if let Some(tree) = own.own(VOCABULARY) {
        found.names(tree, parent, vocabulary);
    }
    found.secrets(&Tree::of(&own.files, SECRETS));
    found.weaker
}

struct Found<'a> {
    label: &'a str,
    weaker: Vec<Weaker>,
}

impl Found<'_> {
    fn add(&mut self, file: &'static str, word: &Word, what: &str) {
        let what = format!("`{}` {what} `{}`", word.text, self.label);
        self.weaker.push(Weaker { list: List::Words, name: word.text.clone(), file, line: word.line, what });
    }

    fn effects(&mut self, own: &Tree, before: &EffectWords, after: &EffectWords, rules_name_classes: bool) {
        let lists = own.words(&["listed", "verbs", "nouns", "marks", "weights", "grammar"]);
        let mut seen = HashSet::new();
        for word in lists.into_iter().chain(own.keys(&["irregular"])) {
            if !seen.insert(word.text.clone()) {
                continue;
            }
            let (from, to) = (before.meaning(&word.text), after.meaning(&word.text));
            let class = |meaning: Option<Meaning>| meaning.and_then(|meaning| meaning.class);
            let leaves_class = rules_name_classes && class(from).is_some() && class(from) != class(to);
            let compared = Compared { from, to, before, after, rules_name_classes };
            if leaves_class || compared.is_milder(&word.text) {
                self.add(EFFECTS, &word, &format!("is {} here and {} in", described(to, from), described(from, to)));
            }
        }
    }

    fn tools(&mut self, own: &Tree, inherited: &Tree) {
        for list in ["reading", "about"] {
            for word in added(own, inherited, &["harmless", list]) {
                self.add(TOOLS, &word, &format!("in `{list}` makes tools harmless that are sensitive in"));
            }
        }
        let runs = texts(inherited.list(&["sensitive", "runs"]));
        for word in own.list(&["sensitive", "hosts"]).iter().filter(|word| runs.contains(&word.text)) {
            self.add(TOOLS, word, "is in `hosts` here, which other words can make harmless, and in `runs` in");
        }
    }

    fn constraints(&mut self, own: &Tree, inherited: &Tree, before: &Vocabulary) {
        for word in added(own, inherited, &["guardrails"]) {
            self.add(CONSTRAINTS, &word, "is a guardrail here and none in");
        }
        for word in added(own, inherited, &["tags"]) {
            self.add(CONSTRAINTS, &word, "is a tag without effect here and none in");
        }
        for constraint in own.keys(&["aliases"]) {
            for word in own.list(&["aliases", &constraint.text]) {
                let known = before.constraints.names().find(&word.text);
                if known.is_none_or(|known| known.as_str() != constraint.text) {
                    self.add(CONSTRAINTS, &word, &format!("means `{}` here and does not in", constraint.text));
                }
            }
        }
    }

    fn names(&mut self, own: &Tree, parent: &Pack, after: &Vocabulary) {
        let before = &parent.vocabulary;
        for word in own.keys(&["environments"]).into_iter().chain(own.words(&["environments"])) {
            let [from, to] = [before, after].map(|words| words.names.canonical(&word.text));
            // Callers have lists of environments too, so no name is the stricter one for all of them.
            if from != to {
                self.add(VOCABULARY, &word, &format!("is the environment `{to}` here and `{from}` in"));
            }
        }
        for word in own.words(&["approval"]) {
            let [from, to] = [before, after].map(|words| words.names.approval(&Spelling::of(&word.text)));
            if from != to && to != Some(ApprovalWord::Rejected) {
                self.add(VOCABULARY, &word, "has another meaning for an approval here than in");
            }
        }
    }

    fn secrets(&mut self, own: &Tree) {
        for list in ["other_before", "ends_meaning"] {
            for word in own.list(&["names", list]) {
                self.add(SECRETS, &word, &format!("in `{list}` hides secrets that are found in"));
            }
        }
        for word in own.words(&["values"]) {
            self.add(SECRETS, &word, "in `[values]` hides secrets that are found in");
        }
        for list in WEAKER_LISTS {
            for word in own.list(&["names", list]) {
                self.add(SECRETS, &word, &format!("in `{list}` hides secrets behind stronger names that are found in"));
            }
        }
    }
}

fn texts(words: Vec<Word>) -> HashSet<String> {
    words.into_iter().map(|word| word.text).collect()
}

/// The words of a list that the parent's list does not have.
fn added(own: &Tree, inherited: &Tree, path: &[&str]) -> Vec<Word> {
    let known = texts(inherited.list(path));
    own.list(path).into_iter().filter(|word| !known.contains(&word.text)).collect()
}

/// A word of an effect before and after.
struct Compared<'a> {
    from: Option<Meaning>,
    to: Option<Meaning>,
    before: &'a EffectWords,
    after: &'a EffectWords,
    rules_name_classes: bool,
}

impl Compared<'_> {
    /// Whether the word is milder than before, or could be in some text.
    fn is_milder(&self, word: &str) -> bool {
        let marks = |meaning: Option<Meaning>| meaning.map(|meaning| meaning.marks).unwrap_or_default();
        let class = |meaning: Option<Meaning>| meaning.and_then(|meaning| meaning.class);
        let (from, to) = (self.from, self.to);
        let strict = if class(to) == Some(Class::High) { STRICT_BESIDE_HIGH } else { STRICT };
        let gained = marks(to).without(marks(from)).any(SOFT);
        let lost = marks(from).without(marks(to)).any(strict);
        let swallows = from.is_none() && word.contains('_') && self.hides_its_parts(word, class(to));
        gained || lost || swallows || !is_as_strict(class(from), class(to))
    }

    /// Whether a new word of several parts hides what its parts mean: a class that has rules of its own, or marks.
    fn hides_its_parts(&self, word: &str, to: Option<Class>) -> bool {
        let [parts, whole] = [self.before, self.after].map(|words| classify(word, words, Source::Effect));
        let leaves_class = self.rules_name_classes && Some(parts.class) != to;
        to != Some(Class::High) || leaves_class || !is_as_strict(Some(parts.class), to) || loses_marks(&parts, &whole)
    }
}

fn loses_marks(from: &EffectReading, to: &EffectReading) -> bool {
    (from.impact && !to.impact) || (from.customer_visible && !to.customer_visible) || (from.writes && !to.writes)
}

/// Whether a class is as strict as another beyond doubt. The upper classes each have rules of their own, and "not"
/// makes a word of the class `none` unknown, which is stricter than `medium`.
fn is_as_strict(from: Option<Class>, to: Option<Class>) -> bool {
    from == to || matches!((from, to), (None | Some(Class::None | Class::Medium), Some(Class::High)))
}

/// A meaning in words, with the marks that it has beyond another one.
fn described(meaning: Option<Meaning>, other: Option<Meaning>) -> String {
    let others = other.map(|other| other.marks).unwrap_or_default();
    let Some(Meaning { class, marks }) = meaning else { return "unknown, which counts as high,".to_owned() };
    let class = match class {
        Some(_) if marks.any(Marks::NOTHING) => "no effect at all",
        Some(class) => class.as_str(),
        None if marks.any(Marks::SEPARATOR) => "a separator",
        None if marks.any(Marks::NOUN) => "a harmless noun",
        None => "a word without a class",
    };
    let mut told = class.to_owned();
    for (mark, name) in [
        (Marks::ALSO_NOUN, "also a noun"),
        (Marks::HEAD_NOUN, "also a noun before a colon"),
        (Marks::SERVICE, "a service"),
        (Marks::NO_TEXT, "without text behind it"),
        (Marks::WRITES, "writing"),
        (Marks::SENDS, "sending"),
        (Marks::IMPACT, "of impact"),
        (Marks::VISIBLE, "visible to customers"),
    ] {
        if marks.without(others).any(mark) {
            told.push_str(", ");
            told.push_str(name);
        }
    }
    told
}
