//! Lists of texts with a `*` at the end of some of them.
//!
//! Owns the question whether a text is on the list, and what is on several lists at once. Both cost no more than sorting
//! the entries, however many lists and texts there are.

use std::collections::HashSet;

use super::prefixes::Prefixes;

/// Texts, and beginnings of texts.
#[derive(Debug, Default, Clone)]
pub(crate) struct Patterns {
    exact: HashSet<String>,
    below: Prefixes,
}

impl Patterns {
    pub(super) fn of(exact: HashSet<String>, beginnings: Vec<String>) -> Self {
        Self { exact, below: Prefixes::of(beginnings) }
    }

    /// Of entries in the form in which they are compared; what ends in `*` is a beginning.
    pub(super) fn of_entries(entries: impl IntoIterator<Item = String>) -> Self {
        let (mut exact, mut below) = (HashSet::new(), Vec::new());
        for entry in entries {
            match entry.strip_suffix('*') {
                Some(beginning) => below.push(beginning.to_owned()),
                None => {
                    exact.insert(entry);
                }
            }
        }
        Self::of(exact, below)
    }

    /// Whether the text is on the list.
    pub(super) fn hold(&self, text: &str) -> bool {
        self.exact.contains(text) || self.below.cover(text)
    }

    /// Whether the text is an entry of its own, and not only covered by one.
    pub(super) fn name(&self, text: &str) -> bool {
        self.exact.contains(text)
    }

    /// What is on every one of several lists; none where there are none. Two by two, so that the work is that of
    /// sorting all entries.
    pub(super) fn all(mut lists: Vec<Self>) -> Option<Self> {
        while lists.len() > 1 {
            let mut pairs = lists.into_iter();
            let mut met = Vec::new();
            while let Some(first) = pairs.next() {
                met.push(match pairs.next() {
                    Some(second) => first.and(second),
                    None => first,
                });
            }
            lists = met;
        }
        lists.pop()
    }

    fn and(mut self, mut other: Self) -> Self {
        self.exact.retain(|text| other.hold(text));
        let covered = |text: &String| self.below.cover(text);
        other.exact.retain(covered);
        let theirs: Vec<String> = other.below.iter().filter(|text| covered(text)).cloned().collect();
        let mut below: Vec<String> = self.below.into_iter().filter(|text| other.below.cover(text)).collect();
        below.extend(theirs);
        self.exact.extend(other.exact);
        Self { exact: self.exact, below: Prefixes::of(below) }
    }
}
