//! Words that stand in other lists than before: of effects, tools, constraints, names, goals and secrets.
//!
//! Files are compared as they are in force, so that a word that a pack inherits is no difference. The work is linear in
//! their sizes.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value};

use super::values::{self, ValueDiff, Values};
use super::{Change, Compared, Direction};
use crate::files::{CONSTRAINTS, EFFECTS, SECRETS, TOOLS, VOCABULARY};
use crate::pack::{Pack, WordLists};

/// A word that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WordDiff {
    /// The file that it is from.
    pub file: &'static str,
    /// The word, or the pattern of a form of secrets.
    pub word: String,
    /// What became of it.
    pub change: Change,
    /// Lists that it has left, such as `verbs.high`.
    pub from: Vec<String>,
    /// Lists that it has come to.
    pub to: Vec<String>,
    /// What that does.
    pub direction: Direction,
}

/// What a file of words says.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) lists: WordLists,
    values: Values,
}

const FILES: [&str; 4] = [EFFECTS, TOOLS, CONSTRAINTS, VOCABULARY];
/// The end of a list of patterns whose finds need a proof.
const PROVEN: &str = " proof)";
const UNDECLARED: &str = "undeclared_effects";

/// Lists that catch the more, the longer they are, whatever `[weakens]` has to name.
const CATCHING: [(&str, &str); 11] = [
    (TOOLS, "sensitive."),
    (VOCABULARY, "goals.vague"),
    (SECRETS, "forms."),
    (SECRETS, "names.phrases"),
    (SECRETS, "names.passwords"),
    (SECRETS, "names.secrets"),
    (SECRETS, "names.tokens"),
    (SECRETS, "names.hints"),
    (SECRETS, "names.keeps_meaning"),
    (SECRETS, "names.links"),
    // A limit under a name that is not known limits nothing.
    (CONSTRAINTS, "aliases."),
];

pub(super) fn differences(compared: &Compared<'_>, secrets: &[Content; 2]) -> (Vec<WordDiff>, Vec<ValueDiff>) {
    let (mut words, mut values) = (Vec::new(), Vec::new());
    for file in FILES {
        let read = |pack: &Pack| pack.files().get(file).map(|text| content(file, text)).unwrap_or_default();
        let [old, new] = [compared.old, compared.new].map(read);
        words.extend(between(compared, file, &old.lists, &new.lists));
        values.extend(values::between(file, &old.values, &new.values, |name, from, to| {
            if name == UNDECLARED {
                // `advise` before `defer`, as they are in the alphabet.
                Direction::of_greater(&from.map(Value::to_string), &to.map(Value::to_string))
            } else {
                of_word(compared, file, name.rsplit('.').next().unwrap_or(name), &[], &[])
            }
        }));
    }
    words.extend(between(compared, SECRETS, &secrets[0].lists, &secrets[1].lists));
    (words, values)
}

fn between(compared: &Compared<'_>, file: &'static str, old: &WordLists, new: &WordLists) -> Vec<WordDiff> {
    let [before, after] = [old, new].map(by_word);
    let words: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    let none = BTreeSet::new();
    let one = |word: &str| {
        let [before, after] = [&before, &after].map(|lists| lists.get(word).unwrap_or(&none));
        let only = |some: &BTreeSet<&str>, others: &BTreeSet<&str>| -> Vec<String> {
            some.difference(others).map(ToString::to_string).collect()
        };
        let (from, to) = (only(before, after), only(after, before));
        let change = match (from.is_empty(), to.is_empty()) {
            (true, true) => return None,
            (true, false) => Change::Added,
            (false, true) => Change::Removed,
            (false, false) => Change::Moved,
        };
        let direction = of_word(compared, file, word, &from, &to);
        Some(WordDiff { file, word: word.to_owned(), change, from, to, direction })
    };
    words.into_iter().filter_map(one).collect()
}

/// By word: its lists.
fn by_word(lists: &WordLists) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut words: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (list, members) in lists {
        for word in members {
            words.entry(word).or_default().insert(list);
        }
    }
    words
}

fn of_word(compared: &Compared<'_>, file: &'static str, word: &str, from: &[String], to: &[String]) -> Direction {
    // Lists of secrets mean the same in both editions.
    if !compared.is_judged() && file != SECRETS {
        return Direction::Unclear;
    }
    let catches = |lists: &[String]| {
        let is_in = |(of, prefix): &(&str, &str)| *of == file && lists.iter().any(|list| list.starts_with(prefix));
        CATCHING.iter().any(is_in)
    };
    let is_proven = |lists: &[String]| lists.iter().any(|list| list.ends_with(PROVEN));
    if file == SECRETS && !from.is_empty() && !to.is_empty() && is_proven(from) != is_proven(to) {
        return Direction::of(is_proven(to), is_proven(from));
    }
    let (caught, catches) = (catches(from), catches(to));
    let listed = Direction::of(caught && !catches, !caught && catches && file != CONSTRAINTS);
    let judged = compared.direction(file, word).and(listed);
    // What the other pack does not know counts there as an effect that cannot be undone.
    let is_new = file == EFFECTS && from.is_empty() && !to.is_empty();
    if is_new && judged == Direction::Unclear { Direction::Looser } else { judged }
}

/// The words of lists that others do not have.
pub(super) fn added(old: &WordLists, new: &WordLists) -> WordLists {
    let none = BTreeSet::new();
    let more = |(list, words): (&String, &BTreeSet<String>)| {
        let known = old.get(list).unwrap_or(&none);
        (list.clone(), words.difference(known).cloned().collect())
    };
    new.iter().map(more).collect()
}

fn content(file: &str, text: &str) -> Content {
    let mut content = Content::default();
    if file == TOOLS {
        content.values.insert(UNDECLARED.to_owned(), "advise".into());
    }
    // The loader has parsed this file before.
    let parsed: Map<String, Value> = toml::from_str(text).unwrap_or_default();
    parsed.into_iter().for_each(|(key, value)| content.add(key, value));
    content
}

/// The forms of secrets in force: each text adds to those before it.
pub(super) fn of_secrets(pack: &Pack) -> Content {
    let mut content = Content::default();
    for text in pack.secret_texts() {
        let mut parsed: Map<String, Value> = toml::from_str(text).unwrap_or_default();
        parsed.remove("extends");
        if let Some(Value::Array(forms)) = parsed.remove("forms") {
            forms.into_iter().for_each(|form| content.add_form(form));
        }
        parsed.into_iter().for_each(|(key, value)| content.add(key, value));
    }
    content
}

impl Content {
    fn add(&mut self, name: String, value: Value) {
        match value {
            Value::Object(members) => {
                members.into_iter().for_each(|(key, value)| self.add(format!("{name}.{key}"), value));
            }
            Value::Array(items) => {
                let words = items.into_iter().filter_map(|item| item.as_str().map(str::to_owned));
                self.lists.entry(name).or_default().extend(words);
            }
            value => drop(self.values.insert(name, value)),
        }
    }

    /// A pattern that asks for a proof finds less than without.
    fn add_form(&mut self, mut form: Value) {
        let text = |name: &str| form.get(name).and_then(Value::as_str);
        let proof = text("proof").map_or_else(String::new, |proof| format!(" ({proof}{PROVEN}"));
        let list = format!("forms.{}{proof}", text("kind").unwrap_or_default());
        if let Some(patterns) = form.get_mut("patterns") {
            self.add(list, patterns.take());
        }
    }
}
