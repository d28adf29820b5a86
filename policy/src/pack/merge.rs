//! The words and numbers of a pack that extends another: its own over those of its parent.
//!
//! Both are TOML files, merged before they are parsed, so that one parser checks them as it checks any pack. Tables are
//! merged by key and lists are joined; a word that stands in another list here is taken out of the parent's, and a
//! number or a window is replaced. The merged text has one word a line, and each line knows where it stands in the
//! pack's own file, so that a fault in it names that place. The work is linear in both texts.

mod tree;

use std::collections::{BTreeMap, HashMap};

use crate::files::{CODES, CONSTRAINTS, EFFECTS, Fault, Files, MANIFEST, TOOLS, VOCABULARY, toml_fault};

pub(super) use tree::{Tree, Word};

/// The files that are merged.
pub(super) const MERGED: [&str; 6] = [MANIFEST, VOCABULARY, EFFECTS, TOOLS, CONSTRAINTS, CODES];

/// The files in force of a pack that extends another.
pub(super) struct Merged {
    /// The pack's own files, with the merged ones in the place of its own.
    pub(super) files: Files,
    /// What the pack itself says, by file.
    pub(super) own: BTreeMap<&'static str, Tree>,
    /// By file and line of the merged text: the line of the pack's own file.
    lines: BTreeMap<&'static str, Vec<Option<usize>>>,
}

/// Merges the files of a pack with those in force of its parent; `None` where one cannot be read, which is a fault.
pub(super) fn merge(own: &Files, parent: &Files, faults: &mut Vec<Fault>) -> Option<Merged> {
    let mut merged = Merged { files: own.clone(), own: BTreeMap::new(), lines: BTreeMap::new() };
    let before = faults.len();
    for name in MERGED {
        match (own.get(name), parent.get(name)) {
            (None, None) => {}
            (None, Some(_)) => merged.files.set(name, parent.shared(name).unwrap_or_default()),
            (Some(text), inherited) => {
                let tree = |text: &str| Tree::read(text).map_err(|error| toml_fault(name, text, &error));
                match (tree(text), inherited.map_or_else(|| Ok(Tree::default()), tree)) {
                    (Ok(tree), Ok(inherited)) => {
                        let (text, lines) = combine(name, inherited.inherited(), &tree).written();
                        merged.files.set(name, text);
                        merged.lines.insert(name, lines);
                        merged.own.insert(name, tree);
                    }
                    (own, inherited) => faults.extend([own.err(), inherited.err()].into_iter().flatten()),
                }
            }
        }
    }
    (faults.len() == before).then_some(merged)
}

fn combine(file: &str, mut inherited: Tree, own: &Tree) -> Tree {
    let mut own = own.clone();
    match file {
        MANIFEST => {
            ["name", "version"].into_iter().for_each(|key| inherited.take(&[key]));
            ["extends", "weakens"].into_iter().for_each(|key| own.take(&[key]));
            // A window is one value, and so are the groups that may approve.
            own.keys(&["windows"]).iter().for_each(|window| inherited.take(&["windows", &window.text]));
            for key in ["approvers", "escalate_to"] {
                if own.line(&["approvals", key]).is_some() {
                    inherited.take(&["approvals", key]);
                }
            }
        }
        EFFECTS => {
            let classed = [own.words(&["listed", "verbs"]), own.keys(&["irregular"])].concat();
            let plain = own.words(&["nouns", "weights", "grammar"]);
            inherited.take_words(&["listed", "verbs", "nouns", "weights", "grammar"], &classed);
            inherited.take_words(&["listed", "verbs", "marks"], &plain);
            for word in classed.iter().chain(&plain) {
                inherited.take(&["irregular", &word.text]);
            }
        }
        TOOLS => inherited.take_words(&["sensitive", "harmless"], &own.words(&["sensitive", "harmless"])),
        CONSTRAINTS => inherited.take_words(&["tags", "aliases"], &own.words(&["tags", "aliases"])),
        VOCABULARY => {
            let environments = [own.words(&["environments"]), own.keys(&["environments"])].concat();
            inherited.take_words(&["environments"], &environments);
            inherited.take_words(&["approval"], &own.words(&["approval"]));
        }
        _ => {}
    }
    inherited.with(own)
}

impl Merged {
    /// What the pack itself says in a file.
    pub(super) fn own(&self, file: &str) -> Option<&Tree> {
        self.own.get(file)
    }

    /// Moves faults of merged texts to the pack's own files: to the line that the fault is at, or else to the first
    /// word there that the fault quotes.
    pub(super) fn place(&self, faults: &mut [Fault]) {
        let mut words: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
        for fault in faults {
            let Some((file, lines)) = self.lines.get_key_value(fault.file.as_str()) else { continue };
            let at = fault.line.and_then(|line| lines.get(line.checked_sub(1)?).copied());
            let line = match at {
                Some(Some(line)) => Some(line),
                Some(None) | None => {
                    let places = || self.own(file).map(Tree::places).unwrap_or_default();
                    let words = words.entry(file).or_insert_with(places);
                    fault.message.split('`').skip(1).step_by(2).find_map(|word| words.get(word).copied())
                }
            };
            (fault.line, fault.column, fault.span) = (line, None, None);
        }
    }
}

#[cfg(test)]
mod tests;
