//! Sets of prefixes: whether a text starts with one of them.
//!
//! A set is sorted once, and then each look-up costs a few comparisons. So a request with long lists and many targets
//! costs their sum and not their product.

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
