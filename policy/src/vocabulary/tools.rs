//! `tools.toml`: which tools can do anything, and whether an undeclared effect defers, for packs of the second edition.
//!
//! Words are looked up by the parts of a tool's name. At load each must be in normal form, and none in two lists.

use std::collections::{HashMap, HashSet};
use std::slice;

use serde::Deserialize;
use stage0_contract::parts;

use super::Words;
use crate::files::{Fault, Files, TOOLS, line_of};

/// The outcome for a tool whose name implies an effect that the request does not declare.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Undeclared {
    #[default]
    Advise,
    Defer,
}

#[derive(Debug, Default)]
pub(crate) struct ToolWords {
    undeclared: Undeclared,
    /// By first part: the other parts, and whether the word is sensitive regardless of its neighbours.
    sensitive: HashMap<String, Vec<Sensitive>>,
    reading: HashSet<String>,
    about: HashSet<String>,
}

#[derive(Debug)]
struct Sensitive {
    rest: Vec<String>,
    runs: bool,
}

impl ToolWords {
    pub(crate) fn undeclared_defers(&self) -> bool {
        self.undeclared == Undeclared::Defer
    }

    /// Whether a tool can do anything, by the parts of its name and the first part after a vendor's prefix.
    pub(crate) fn is_sensitive(&self, parts: &[&str], lead: Option<&str>) -> bool {
        let among = |set: &HashSet<String>, part: Option<&&str>| part.is_some_and(|part| set.contains(*part));
        let mut host = false;
        for (index, part) in parts.iter().enumerate() {
            // Both count: a word of the plural must not hide one of the singular.
            let singular = part.strip_suffix('s').and_then(|part| self.sensitive.get(part));
            let rest = parts.get(index + 1..).unwrap_or_default();
            for word in self.sensitive.get(*part).into_iter().chain(singular).flatten() {
                if rest.len() >= word.rest.len() && word.rest.iter().zip(rest).all(|(wanted, part)| wanted == part) {
                    if word.runs {
                        return true;
                    }
                    host = true;
                }
            }
        }
        host && !among(&self.reading, lead.as_ref()) && !(parts.len() > 1 && among(&self.about, parts.last()))
    }

    pub(crate) fn sensitive(&self) -> Vec<String> {
        let mut sensitive = Vec::new();
        for (first, words) in &self.sensitive {
            sensitive.extend(words.iter().map(|word| [slice::from_ref(first), &word.rest].concat().join("_")));
        }
        sensitive.sort_unstable();
        sensitive
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    undeclared_effects: Undeclared,
    sensitive: RawSensitive,
    harmless: RawHarmless,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSensitive {
    runs: Words,
    hosts: Words,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHarmless {
    reading: Words,
    about: Words,
}

pub(super) fn parse(files: &Files, faults: &mut Vec<Fault>) -> Option<ToolWords> {
    let (text, raw): (_, Raw) = files.toml(TOOLS, faults)?;
    let mut seen: HashMap<String, &str> = HashMap::new();
    let mut check = |list: &'static str, words: Words, single: bool| {
        if words.is_empty() {
            faults.push(Fault::new(TOOLS, format!("`{list}` is empty")));
        }
        let mut checked = Vec::with_capacity(words.len());
        for word in words {
            let (at, word) = (word.span().start, word.into_inner());
            let parts = parts(&word);
            let wrong = if parts.is_empty() || (parts.join("_") != word && parts.concat() != word) {
                Some(format!("`{word}` in `{list}` is not in normal form and would match nothing"))
            } else if single && parts.len() != 1 {
                Some(format!("`{word}` in `{list}` has several parts, and may have one"))
            } else {
                seen.insert(word.clone(), list).map(|other| match other == list {
                    true => format!("`{word}` stands twice in `{list}`"),
                    false => format!("`{word}` stands in `{other}` and in `{list}`"),
                })
            };
            match wrong {
                Some(wrong) => faults.push(Fault::new(TOOLS, wrong).at(line_of(text, at))),
                None => checked.push(parts),
            }
        }
        checked
    };
    let mut words = ToolWords { undeclared: raw.undeclared_effects, ..ToolWords::default() };
    for (list, raw, runs) in [("runs", raw.sensitive.runs, true), ("hosts", raw.sensitive.hosts, false)] {
        for parts in check(list, raw, false) {
            let mut parts = parts.into_iter();
            if let Some(first) = parts.next() {
                words.sensitive.entry(first).or_default().push(Sensitive { rest: parts.collect(), runs });
            }
        }
    }
    words.reading = check("reading", raw.harmless.reading, true).into_iter().flatten().collect();
    words.about = check("about", raw.harmless.about, true).into_iter().flatten().collect();
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = include_str!("../../../policies/baseline/tools.toml");

    fn faults(text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        parse(&Files::of([(TOOLS, text)]), &mut faults);
        faults.iter().map(Fault::to_string).collect()
    }

    #[test]
    fn the_baseline_has_no_faults() {
        assert_eq!(faults(GOOD), Vec::<String>::new());
    }

    #[test]
    fn a_word_in_the_plural_hides_none_in_the_singular() {
        let text = GOOD.replacen("\"shell\"", "\"commands_of_ours\", \"shell\"", 1);
        let words = parse(&Files::of([(TOOLS, text.as_str())]), &mut Vec::new()).unwrap();
        assert!(words.is_sensitive(&["run", "commands"], Some("run")), "`command` is a host");
        assert!(words.is_sensitive(&["commands", "of", "ours"], Some("commands")));
        assert!(!words.is_sensitive(&["run", "commandss"], Some("run")));
    }

    #[test]
    fn each_mistake_is_reported_with_its_line() {
        for (from, to, told) in [
            ("\"shell\"", "\"Shell\"", "is not in normal form"),
            ("\"shell\"", "\"exec\"", "`exec` stands in `runs` and in `hosts`"),
            ("\"shell\"", "\"bash\"", "`bash` stands twice in `hosts`"),
            ("\"history\"", "\"shell_history\"", "has several parts"),
            ("\"advise\"\n", "\"deny\"\n", "unknown variant `deny`"),
            ("[harmless]", "[harmles]", "unknown field `harmles`"),
        ] {
            let faults = faults(&GOOD.replacen(from, to, 1));
            assert_eq!(faults.len(), 1, "{faults:#?}");
            assert!(faults[0].starts_with("tools.toml:") && faults[0].contains(told), "{faults:#?}");
        }
    }
}
