//! Allow and deny lists: exact texts, and prefixes that end in `*`.
//!
//! To look a text up and to intersect lists costs no more than sorting the entries, however many there are.

use std::collections::HashSet;

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

    /// What every list matches; `None` without a list. Intersects in pairs: the work is that of sorting all entries.
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

/// Sorted texts, none of which is a prefix of another.
#[derive(Debug, Default, Clone)]
pub(super) struct Prefixes(Vec<String>);

impl Prefixes {
    /// Drops every text that starts with another one: it adds nothing.
    pub(super) fn of(mut texts: Vec<String>) -> Self {
        texts.sort_unstable();
        // Sorted, a text follows its prefix with only other texts of that prefix in between.
        texts.dedup_by(|text, kept| text.starts_with(kept.as_str()));
        Self(texts)
    }

    /// Whether one of them is a prefix of the text.
    pub(super) fn match_start_of(&self, text: &str) -> bool {
        // The prefix of a text sorts at or before it, and no other entry can be between the two.
        let after = self.0.partition_point(|entry| entry.as_str() <= text);
        after.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|entry| text.starts_with(entry.as_str()))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &String> {
        self.0.iter()
    }
}

/// Whether one of the sorted texts starts with `prefix`.
pub(super) fn any_starts_with(sorted: &[String], prefix: &str) -> bool {
    let at = sorted.partition_point(|entry| entry.as_str() < prefix);
    sorted.get(at).is_some_and(|entry| entry.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sorted_search_answers_as_a_comparison_with_each_entry_would(
            entries in prop::collection::vec("[ab/é]{0,5}", 0..20), text in "[ab/é]{0,6}"
        ) {
            let expected = entries.iter().any(|entry| text.starts_with(entry.as_str()));
            prop_assert_eq!(Prefixes::of(entries.clone()).match_start_of(&text), expected);
            let expected = entries.iter().any(|entry| entry.starts_with(&text));
            let mut sorted = entries;
            sorted.sort_unstable();
            prop_assert_eq!(any_starts_with(&sorted, &text), expected);
        }
    }
}
