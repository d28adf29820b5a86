//! Spellings: when two words that are written differently are the same word, and the parts of a word.
//!
//! One `-`, one `_` and one blank are the same, and camel case is read as parts. A run of
//! separators is never shortened: `a__b` is not `a_b`. A word that mixes scripts is no known word in any spelling.

use super::{Word, is_hyphen, plain};

/// A word in the two forms in which it is compared.
#[derive(Debug, Clone)]
pub struct Spelling {
    /// Lower case, every separator a `_`.
    folded: String,
    /// As `folded`, with camel case split first: `readFile` is `read_file`.
    split: String,
    known: bool,
}

impl Spelling {
    /// Both forms of a text.
    pub fn of(raw: &str) -> Self {
        let word = Word::new(raw);
        let folded = fold(word.as_str());
        let split = if raw.bytes().any(|b| b.is_ascii_uppercase()) || !raw.is_ascii() {
            fold(Word::new(&split_camel(&plain(raw))).as_str())
        } else {
            folded.clone()
        };
        Self { folded, split, known: word.known().is_some() }
    }

    /// Lower case with every separator a `_`; none for a word that mixes scripts.
    pub fn folded(&self) -> Option<&str> {
        self.known.then_some(self.folded.as_str())
    }

    /// As [`Self::folded`], with camel case split first.
    pub fn split(&self) -> Option<&str> {
        self.known.then_some(self.split.as_str())
    }

    /// Whether both are the same word: for a list that allows.
    pub fn is_same(&self, other: &Self) -> bool {
        self.known && other.known && (self.folded == other.folded || self.split == other.split)
    }

    /// Whether any reading of the one is any reading of the other: for a list that denies.
    pub fn may_be(&self, other: &Self) -> bool {
        self.is_same(other) || (self.known && other.known && (self.folded == other.split || self.split == other.folded))
    }
}

/// One blank, `-` or `_` is a `_` each; several stay several.
fn fold(text: &str) -> String {
    text.chars().map(|c| if c.is_whitespace() || is_hyphen(c) { '_' } else { c }).collect()
}

/// Puts a `_` before each capital that begins a new part: `HTTPServer2Go` is `HTTP_Server2_Go`.
fn split_camel(text: &str) -> String {
    let mut split = String::with_capacity(text.len() + 8);
    let mut before: Option<char> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c.is_uppercase() {
            let after_small = before.is_some_and(|b| b.is_lowercase() || b.is_numeric());
            let ends_acronym = before.is_some_and(char::is_uppercase) && chars.peek().is_some_and(|n| n.is_lowercase());
            if after_small || ends_acronym {
                split.push('_');
            }
        }
        split.push(c);
        before = Some(c);
    }
    split
}

/// The parts of a text in lower case: split at every character that is no letter or digit, at camel case, and between
/// letters and digits. Linear in the text.
pub fn parts(raw: &str) -> Vec<String> {
    let split = split_camel(&plain(raw));
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut digits = false;
    for c in split.chars() {
        let digit = c.is_numeric();
        if !c.is_alphanumeric() || (!part.is_empty() && digit != digits) {
            if !part.is_empty() {
                parts.push(std::mem::take(&mut part));
            }
            if !c.is_alphanumeric() {
                continue;
            }
        }
        digits = digit;
        part.extend(c.to_lowercase());
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        Spelling::of(a).is_same(&Spelling::of(b))
    }

    #[test]
    fn separators_and_camel_case_make_no_other_word() {
        for spelling in ["list_queries", "list-queries", "List Queries", "LIST_QUERIES", "listQueries", "ListQueries"] {
            assert!(same(spelling, "list_queries"), "{spelling}");
        }
        assert!(same("readFile", "readfile") && same("ＰＬＡＴＦＯＲＭ Admin", "platform_admin"));
    }

    #[test]
    fn runs_of_separators_and_joined_words_stay_apart() {
        assert!(!same("a__b", "a_b") && !same("readfile", "read_file") && !same("mcp__x", "mcp_x"));
        assert!(Spelling::of("readFile").may_be(&Spelling::of("read_file")));
        assert!(!same("d\u{435}ploy", "d\u{435}ploy"));
    }

    #[test]
    fn parts_are_split_at_separators_camel_case_and_digits() {
        assert_eq!(parts("bulkDeleteIssues"), ["bulk", "delete", "issues"]);
        assert_eq!(parts("HTTPServer2Go"), ["http", "server", "2", "go"]);
        assert_eq!(parts("mcp__github__push-files"), ["mcp", "github", "push", "files"]);
        assert_eq!(parts("DROP TABLE"), ["drop", "table"]);
        assert_eq!(parts("s3:DeleteObject"), ["s", "3", "delete", "object"]);
        assert_eq!(parts("--"), [""; 0]);
    }
}
