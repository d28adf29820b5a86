//! Phrases that a text is searched for, all at once: most texts have none of them.

use aho_corasick::AhoCorasick;

#[derive(Debug)]
pub(crate) struct Phrases {
    /// The longest first, so that a short phrase does not hide a longer one.
    longest_first: Vec<String>,
    /// None for phrases that are too many to be searched for at once.
    search: Option<AhoCorasick>,
}

impl Phrases {
    pub(super) fn of(longest_first: Vec<String>) -> Self {
        Self { search: AhoCorasick::new(&longest_first).ok(), longest_first }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &String> {
        self.longest_first.iter()
    }

    /// Whether a phrase stands anywhere in a text, within a word too. Without one each of them can be passed over.
    pub(crate) fn may_occur_in(&self, text: &str) -> bool {
        self.search.as_ref().is_none_or(|search| search.is_match(text))
    }
}
