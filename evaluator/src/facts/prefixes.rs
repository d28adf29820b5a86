//! Sets of texts that are asked for by prefix.
//!
//! Owns the search: a set is sorted once, and then each question costs a few comparisons, however many entries it has.
//! So a request with long lists and many targets costs their sum and not their product.

/// Texts of which none is a prefix of another, sorted.
#[derive(Debug, Default, Clone)]
pub(super) struct Prefixes(Vec<String>);

impl Prefixes {
    /// Keeps of texts the shortest: what begins with another one adds nothing.
    pub(super) fn of(mut texts: Vec<String>) -> Self {
        texts.sort_unstable();
        // What begins with a kept text follows it at once.
        texts.dedup_by(|text, kept| text.starts_with(kept.as_str()));
        Self(texts)
    }

    /// Whether the text begins with one of them.
    pub(super) fn cover(&self, text: &str) -> bool {
        // A text that begins with an entry is at or behind it, and none of the others can stand between.
        let behind = self.0.partition_point(|entry| entry.as_str() <= text);
        behind.checked_sub(1).and_then(|at| self.0.get(at)).is_some_and(|entry| text.starts_with(entry.as_str()))
    }

    pub(super) fn into_iter(self) -> impl Iterator<Item = String> {
        self.0.into_iter()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &String> {
        self.0.iter()
    }
}

/// Whether one of the sorted texts begins with `prefix`.
pub(super) fn any_begins_with(sorted: &[String], prefix: &str) -> bool {
    let at = sorted.partition_point(|entry| entry.as_str() < prefix);
    sorted.get(at).is_some_and(|entry| entry.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn they_answer_as_a_comparison_with_each_entry_would(
            entries in prop::collection::vec("[ab/é]{0,5}", 0..20), text in "[ab/é]{0,6}"
        ) {
            let covered = entries.iter().any(|entry| text.starts_with(entry.as_str()));
            prop_assert_eq!(Prefixes::of(entries.clone()).cover(&text), covered);
            let begins = entries.iter().any(|entry| entry.starts_with(&text));
            let mut sorted = entries;
            sorted.sort_unstable();
            prop_assert_eq!(any_begins_with(&sorted, &text), begins);
        }
    }
}
