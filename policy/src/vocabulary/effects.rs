//! `effects.toml`: what the words of side effects mean, for packs of the second edition.
//!
//! At load each word must be in normal form, none in two classes, and none that is marked may lack a class.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Deserialize;
use stage0_contract::{Spelling, parts, visible};
use toml::Spanned;

use super::Words;
use super::near::nearest;
use crate::files::{EFFECTS, Fault, Files, line_of};

/// The risk class of a side effect, the strictest last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    #[default]
    None,
    Loop,
    Medium,
    Approval,
    Communication,
    High,
}

impl Class {
    pub(crate) const ALL: [Self; 6] =
        [Self::None, Self::Loop, Self::Medium, Self::Approval, Self::Communication, Self::High];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Loop => "loop",
            Self::Medium => "medium",
            Self::Approval => "approval",
            Self::Communication => "communication",
            Self::High => "high",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.as_str() == name)
    }
}

/// Properties of a word besides its class, as a bit set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Marks(u32);

impl Marks {
    /// Harmless: a thing, a name or a filler word.
    pub(crate) const NOUN: Self = Self(1);
    /// Also a common noun.
    pub(crate) const ALSO_NOUN: Self = Self(1 << 1);
    /// Also a common noun, except after the colon.
    pub(crate) const HEAD_NOUN: Self = Self(1 << 2);
    pub(crate) const SERVICE: Self = Self(1 << 3);
    /// Names a channel after the colon.
    pub(crate) const SENDS: Self = Self(1 << 4);
    /// Writes, which contradicts `read_only`.
    pub(crate) const WRITES: Self = Self(1 << 5);
    /// Needs role, environment and approval state.
    pub(crate) const IMPACT: Self = Self(1 << 6);
    pub(crate) const VISIBLE: Self = Self(1 << 7);
    /// Not an effect, such as `none`.
    pub(crate) const NOTHING: Self = Self(1 << 8);
    /// Not an effect, and must not have text after a colon.
    pub(crate) const NO_TEXT: Self = Self(1 << 9);
    /// Weighty, and makes a harmless effect unknown.
    pub(crate) const SENSITIVE: Self = Self(1 << 10);
    /// Weighty: raises the class.
    pub(crate) const HEAVY: Self = Self(1 << 11);
    /// Weighty next to a verb.
    pub(crate) const LIGHT: Self = Self(1 << 12);
    pub(crate) const NEGATION: Self = Self(1 << 13);
    pub(crate) const SEPARATOR: Self = Self(1 << 14);

    /// A listed word of several parts: the name of an effect, and no verb.
    pub(crate) const PHRASE: Self = Self(1 << 15);

    pub(crate) fn any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    pub(crate) const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub(crate) fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Meaning {
    pub(crate) class: Option<Class>,
    pub(crate) marks: Marks,
}

#[derive(Debug, Default)]
pub(crate) struct EffectWords {
    /// Whole effects, folded.
    listed: HashMap<String, Meaning>,
    parts: HashMap<String, Meaning>,
    /// Words of several parts by their first one, the longest first.
    runs: HashMap<String, Vec<Run>>,
    /// The length of the longest part in bytes: a longer one is not looked up.
    longest: usize,
    /// Words with a class, for suggestions.
    known: Vec<String>,
}

#[derive(Debug)]
struct Run {
    rest: Vec<String>,
    meaning: Meaning,
}

/// The longest ending that is removed, in bytes, including a doubled consonant.
const ENDING: usize = 4;

impl EffectWords {
    pub(crate) fn listed(&self, spelling: &Spelling) -> Option<Meaning> {
        let find = |form: Option<&str>| self.listed.get(form?).copied();
        find(spelling.folded()).or_else(|| find(spelling.split()))
    }

    pub(crate) fn part(&self, part: &str) -> Option<Meaning> {
        if part.len() > self.longest + ENDING {
            return None;
        }
        let whole = self.parts.get(part).copied();
        whole.or_else(|| stems(part).iter().find_map(|stem| self.parts.get(stem).copied()))
    }

    /// The longest listed word at the beginning of these parts, and its number of parts.
    pub(crate) fn run<'p>(
        &self,
        first: &str,
        rest: &(impl Iterator<Item = &'p str> + Clone),
    ) -> Option<(usize, Meaning)> {
        let runs = self.runs.get(first)?;
        runs.iter().find_map(|run| {
            let mut others = rest.clone();
            let last = run.rest.len().checked_sub(1)?;
            let fits = run.rest.iter().enumerate().all(|(index, wanted)| {
                others.next().is_some_and(|part| {
                    part == wanted
                        || (index == last
                            && part.len() <= wanted.len() + ENDING
                            && stems(part).iter().any(|stem| stem == wanted))
                })
            });
            fits.then_some((run.rest.len() + 1, run.meaning))
        })
    }

    /// What a word of the pack's files means: of several parts as a whole, of one part also as a form of another word.
    pub(crate) fn meaning(&self, word: &str) -> Option<Meaning> {
        let parts = parts(word);
        let (first, rest) = parts.split_first()?;
        if rest.is_empty() {
            return self.part(first);
        }
        let (length, meaning) = self.run(first, &rest.iter().map(String::as_str))?;
        (length == parts.len()).then_some(meaning)
    }

    pub(crate) fn nearest(&self, word: &str, most: usize) -> Vec<String> {
        nearest(word, self.known.iter().map(String::as_str), most).into_iter().map(str::to_owned).collect()
    }

    /// Every listed word of a class and every verb of it, in alphabetical order.
    pub(crate) fn of_class(&self, class: Class) -> Vec<&str> {
        let mut words: Vec<&str> = self
            .listed
            .iter()
            .chain(&self.parts)
            .filter(|(_, meaning)| meaning.class == Some(class))
            .map(|(word, _)| word.as_str())
            .collect();
        words.sort_unstable();
        words.dedup();
        words
    }

    fn insert(&mut self, word: &str, meaning: Meaning) {
        let mut found = parts(word).into_iter();
        let (Some(first), rest) = (found.next(), found.collect::<Vec<_>>()) else { return };
        if rest.is_empty() {
            self.longest = self.longest.max(first.len());
            self.parts.insert(first, meaning);
            return;
        }
        let runs = self.runs.entry(first).or_default();
        runs.push(Run { rest, meaning });
        runs.sort_by_key(|run| std::cmp::Reverse(run.rest.len()));
    }
}

/// The words that a part may be a form of: without `-s`, `-es`, `-ed` or `-ing`, with the `e` or `y` that the ending
/// replaced, and with a doubled consonant made single.
fn stems(part: &str) -> Vec<String> {
    let mut stems = Vec::new();
    let mut stem = |text: &str, ending: &str| {
        if text.len() >= 2 {
            stems.push(format!("{text}{ending}"));
        }
    };
    if let Some(text) = part.strip_suffix("ies") {
        stem(text, "y");
    }
    if let Some(text) = part.strip_suffix('s').filter(|text| !text.ends_with('s')) {
        stem(text, "");
    }
    if let Some(text) = part.strip_suffix("es") {
        stem(text, "");
    }
    if let Some(text) = part.strip_suffix("ied") {
        stem(text, "y");
    }
    for ending in ["ed", "ing"] {
        let Some(text) = part.strip_suffix(ending) else { continue };
        stem(text, "");
        stem(text, "e");
        let mut letters = text.chars().rev();
        if let (Some(last), true) = (letters.next(), letters.next() == text.chars().next_back()) {
            stem(text.strip_suffix(last).unwrap_or_default(), "");
        }
    }
    stems
}

type Lists = BTreeMap<String, Words>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    listed: Lists,
    verbs: Lists,
    nouns: Lists,
    marks: Lists,
    weights: Lists,
    grammar: Lists,
    irregular: BTreeMap<String, Spanned<String>>,
}

const LISTED: [&str; 8] = ["high", "communication", "approval", "medium", "loop", "none", "nothing", "no_effects"];
const VERBS: [&str; 6] = ["high", "communication", "approval", "medium", "loop", "none"];
const NOUNS: [(&str, Marks); 3] = [("things", Marks::NOUN), ("names", Marks::NOUN), ("fillers", Marks::NOUN)];
const MARKS: [(&str, Marks); 7] = [
    ("verb_and_noun", Marks::ALSO_NOUN),
    ("head_nouns", Marks::HEAD_NOUN),
    ("services", Marks::SERVICE),
    ("sends", Marks::SENDS),
    ("writes", Marks::WRITES),
    ("impact", Marks::IMPACT),
    ("customer_visible", Marks::VISIBLE),
];
const WEIGHTS: [(&str, Marks); 3] =
    [("sensitive", Marks::SENSITIVE), ("heavy", Marks::HEAVY), ("beside_verbs", Marks::LIGHT)];
const GRAMMAR: [(&str, Marks); 2] = [("negations", Marks::NEGATION), ("separators", Marks::SEPARATOR)];

pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<EffectWords> {
    let (text, raw): (_, Raw) = files.toml(EFFECTS, faults)?;
    let mut reader = Reader { text, faults, meanings: BTreeMap::new(), listed: HashSet::new(), forms: HashSet::new() };
    reader.classes("listed", &LISTED, raw.listed);
    reader.classes("verbs", &VERBS, raw.verbs);
    reader.mark("nouns", &NOUNS, raw.nouns);
    reader.mark("marks", &MARKS, raw.marks);
    reader.mark("weights", &WEIGHTS, raw.weights);
    reader.mark("grammar", &GRAMMAR, raw.grammar);
    reader.irregular(raw.irregular);
    Some(reader.words())
}

struct Reader<'a> {
    text: &'a str,
    faults: &'a mut Vec<Fault>,
    meanings: BTreeMap<String, Meaning>,
    listed: HashSet<String>,
    /// Irregular forms; they are never suggested.
    forms: HashSet<String>,
}

impl Reader<'_> {
    fn fault(&mut self, at: usize, message: String) {
        self.faults.push(Fault::new(EFFECTS, message).at(line_of(self.text, at)));
    }

    /// Takes the known lists of a table and validates their words; a missing list is a fault.
    fn lists<'n>(&mut self, table: &str, names: &[&'n str], lists: Lists) -> Vec<(&'n str, Vec<(String, usize)>)> {
        let mut lists = lists;
        let mut read = Vec::with_capacity(names.len());
        for name in names {
            let words = lists.remove(*name).unwrap_or_default();
            if words.is_empty() {
                self.faults.push(Fault::new(EFFECTS, format!("`{name}` in `[{table}]` is missing or empty")));
            }
            let mut seen = HashSet::new();
            let mut checked = Vec::with_capacity(words.len());
            for word in words {
                let (at, word) = (word.span().start, word.into_inner());
                if !is_normal(&word) {
                    self.fault(at, format!("`{word}` in `{name}` is not in normal form and would match nothing"));
                } else if !seen.insert(word.clone()) {
                    self.fault(at, format!("`{word}` stands twice in `{name}`"));
                } else {
                    checked.push((word, at));
                }
            }
            read.push((*name, checked));
        }
        for (unknown, words) in lists {
            let near = nearest(&unknown, names.iter().copied(), 1);
            let near = near.first().map_or(String::new(), |near| format!(": did you mean `{near}`?"));
            let at = words.first().map_or(0, |word| word.span().start);
            self.fault(at, format!("`{unknown}` is no list of `[{table}]`{near}"));
        }
        read
    }

    fn classes(&mut self, table: &str, names: &[&str], lists: Lists) {
        for (name, words) in self.lists(table, names, lists) {
            let marks = match name {
                "nothing" => Marks::NOTHING.and(Marks::NO_TEXT),
                "no_effects" => Marks::NOTHING,
                _ => Marks::default(),
            };
            let class = Class::parse(name).unwrap_or(Class::None);
            for (word, at) in words {
                if let Some(known) = self.meanings.get(&word) {
                    let classes = if known.class == Some(class) { "lists" } else { "classes" };
                    self.fault(at, format!("`{word}` stands in two {classes}"));
                    continue;
                }
                let several = parts(&word).len() > 1;
                let marks = if several { marks.and(Marks::PHRASE) } else { marks };
                if table == "listed" {
                    self.listed.insert(word.clone());
                } else if several {
                    self.fault(at, format!("`{word}` in `{name}` has several parts: it belongs in `[listed]`"));
                }
                self.meanings.insert(word, Meaning { class: Some(class), marks });
            }
        }
    }

    /// Words of `[marks]` must have a class, those of the other tables none.
    fn mark(&mut self, table: &str, marks: &[(&str, Marks)], lists: Lists) {
        let names: Vec<&str> = marks.iter().map(|(name, _)| *name).collect();
        for (name, words) in self.lists(table, &names, lists) {
            let mark = marks.iter().find(|(known, _)| *known == name).map_or(Marks::default(), |(_, mark)| *mark);
            for (word, at) in words {
                let classed = self.meanings.get(&word).is_some_and(|meaning| meaning.class.is_some());
                match (table, classed) {
                    ("marks", false) => self.fault(at, format!("`{word}` in `{name}` stands in no class")),
                    ("marks", true) | (_, false) => {
                        let meaning = self.meanings.entry(word).or_default();
                        meaning.marks = meaning.marks.and(mark);
                    }
                    _ => self.fault(at, format!("`{word}` in `{name}` has a class: mark it in `[marks]`")),
                }
            }
        }
    }

    fn irregular(&mut self, forms: BTreeMap<String, Spanned<String>>) {
        for (form, base) in forms {
            let (at, base) = (base.span().start, base.into_inner());
            let Some(meaning) = self.meanings.get(&base).copied() else {
                self.fault(at, format!("`{base}`, of which `{form}` is a form, stands in no list"));
                continue;
            };
            if !is_normal(&form) || parts(&form).len() != 1 {
                self.fault(at, format!("`{form}` in `[irregular]` is not in normal form and would match nothing"));
            } else if self.meanings.insert(form.clone(), meaning).is_some() {
                self.fault(at, format!("`{form}` stands in `[irregular]` and in another list"));
            } else {
                self.forms.insert(form);
            }
        }
    }

    fn words(self) -> EffectWords {
        let mut words = EffectWords::default();
        for (word, meaning) in self.meanings {
            words.insert(&word, meaning);
            if self.listed.contains(&word) {
                let spelling = Spelling::of(&word);
                words.listed.insert(spelling.folded().unwrap_or_default().to_owned(), meaning);
            }
            if meaning.class.is_some() && !self.forms.contains(&word) {
                words.known.push(word);
            }
        }
        words
    }
}

/// Whether a word is in normal form: small letters with single underscores between parts. `n/a` and `-` are exempt.
fn is_normal(word: &str) -> bool {
    parts(word).join("_") == word || (["n/a", "-"].contains(&word) && visible(word) == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../policies/baseline/effects.toml");

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        parse(&Files::of([(EFFECTS, text)]), &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    fn fault(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        let faults = faults(&GOOD.replacen(from, to, 1));
        assert_eq!(faults.len(), 1, "{faults:#?}");
        faults[0].clone()
    }

    #[test]
    fn the_baseline_has_no_faults() {
        assert_eq!(faults(GOOD), Vec::<String>::new());
    }

    #[test]
    fn each_mistake_is_reported_with_its_line_and_the_near_name() {
        for (from, to, told) in [
            ("\"money_movement\"", "\"Money Movement\"", "is not in normal form"),
            ("\"money_movement\"", "\"write\"", "`write` stands in two classes"),
            ("\"money_movement\"", "\"publish\"", "`publish` stands twice in `high`"),
            ("\"truncate\"", "\"publish\"", "`publish` stands in two lists"),
            ("\"truncate\"", "\"cut_off\"", "has several parts: it belongs in `[listed]`"),
            ("\"filesystem\"", "\"delete\"", "`delete` in `things` has a class"),
            ("sends = [\"send\"", "sends = [\"teleport\"", "`teleport` in `sends` stands in no class"),
            ("wrote = \"write\"", "wrote = \"teleport\"", "`teleport`, of which `wrote` is a form, stands in no list"),
            ("wrote = \"write\"", "sent = \"send\"\ndeleted_ = \"delete\"\nwrote = \"write\"", "duplicate key"),
            ("[grammar]", "[grammar]\nnegation = [\"nay\"]", "is no list of `[grammar]`: did you mean `negations`?"),
            ("[irregular]", "[iregular]", "unknown field `iregular`"),
        ] {
            let fault = fault(from, to);
            assert!(fault.starts_with("effects.toml:") && fault.contains(told), "{fault}");
        }
    }

    #[test]
    fn endings_are_taken_off_and_nothing_else_is() {
        let mut words = EffectWords::default();
        for word in ["write", "push", "stop", "copy", "merge"] {
            words.insert(word, Meaning::default());
        }
        for form in [
            "write", "writes", "writing", "pushes", "pushed", "stopped", "stopping", "copies", "copied", "copying",
            "merged", "merging",
        ] {
            assert!(words.part(form).is_some(), "{form}");
        }
        for other in ["writer", "rewrite", "pusher", "stoped ", "copyist", "sing", "s", "ing", "merger"] {
            assert!(words.part(other).is_none(), "{other}");
        }
    }
}
