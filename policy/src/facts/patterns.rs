//! Allow and deny lists: exact texts, and prefixes that end in `*`.
//!
//! Owns whether a text is on a list, and the intersection of several lists. Both cost no more than sorting the entries,
//! however many lists and texts there are.

use std::collections::HashSet;

use super::prefixes::Prefixes;

#[derive(Debug, Default, Clone)]
pub(crate) struct Patterns {
    exact: HashSet<String>,
    prefixes: Prefixes,
}

impl Patterns {
    pub(super) fn of(exact: HashSet<String>, prefixes: Vec<String>) -> Self {
        Self { exact, prefixes: Prefixes::of(prefixes) }
    }

    /// Takes normalised entries; one that ends in `*` is a prefix.
    pub(super) fn of_entries(entries: impl IntoIterator<Item = String>) -> Self {
        let mut exact = HashSet::new();
        let mut prefixes = Vec::new();
        for entry in entries {
            match entry.strip_suffix('*') {
                Some(prefix) => prefixes.push(prefix.to_owned()),
                None => {
                    exact.insert(entry);
                }
            }
        }
        Self::of(exact, prefixes)
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        self.exact.contains(text) || self.prefixes.match_start_of(text)
    }

    /// Whether the text is an entry itself, not only matched by a prefix.
    pub(super) fn contains_exactly(&self, text: &str) -> bool {
        self.exact.contains(text)
    }

    /// What every list matches; `None` without a list. Intersects in pairs, so that the work is that of sorting all
    /// entries.
    pub(super) fn intersection(mut lists: Vec<Self>) -> Option<Self> {
        while lists.len() > 1 {
            let mut rest = lists.into_iter();
            let mut paired = Vec::new();
            while let Some(first) = rest.next() {
                paired.push(match rest.next() {
                    Some(second) => first.intersect(second),
                    None => first,
                });
            }
            lists = paired;
        }
        lists.pop()
    }

    fn intersect(mut self, mut other: Self) -> Self {
        self.exact.retain(|text| other.matches(text));
        other.exact.retain(|text| self.prefixes.match_start_of(text));
        let of_other = other.prefixes.iter().filter(|text| self.prefixes.match_start_of(text)).cloned();
        let both = self.prefixes.iter().filter(|text| other.prefixes.match_start_of(text)).cloned().chain(of_other);
        let prefixes = Prefixes::of(both.collect());
        self.exact.extend(other.exact);
        Self { exact: self.exact, prefixes }
    }
}
