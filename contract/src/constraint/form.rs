//! What looks like a constraint and is none: a misspelt name, another operator, a JSON object.
//!
//! A single identifier with an operator or a number behind it looks like one, as does an identifier that is nearly a
//! known name. Sentences, addresses and known tags are left alone.

use super::names::{ConstraintName, Names, Takes, key};
use super::near::MAX_SUGGESTIONS;
use super::value::unquoted;
use crate::word::is_hyphen;

const OPERATORS: [char; 11] = [':', '=', '<', '>', '≤', '≥', '≦', '≧', '⩽', '⩾', '≠'];
/// Addresses that have no `//` behind their colon.
const SCHEMES: [&str; 6] = ["mailto", "urn", "data", "tel", "sms", "javascript"];
/// A shorter text is part of too much.
const MIN_PART_CHARS: usize = 4;
/// Longer texts are sentences.
const MAX_WORDS: usize = 4;

impl Names {
    /// The constraints that a text may mean which is not understood; nothing for a sentence or a tag.
    pub(super) fn not_understood(&self, text: &str, head: &str) -> Option<Vec<&'static str>> {
        if self.first_edition || self.is_tag(head) {
            return None;
        }
        if text.starts_with('{') {
            let name = text.split(['"', '\'', ':', '{', ',']).map(str::trim).find(|piece| !piece.is_empty());
            return Some(self.meant(name.unwrap_or_default()));
        }
        if let Some((head, rest)) = at_operator(text) {
            if self.is_tag(head) || is_address(head, rest) {
                return None;
            }
            let meant = self.meant(head);
            // Of several words only those that are nearly a name: `Please note: …` is a sentence.
            return (is_identifier(head) || self.is_nearly(head)).then_some(meant);
        }
        self.without_operator(text)
    }

    fn without_operator(&self, text: &str) -> Option<Vec<&'static str>> {
        let mut words = text.split_whitespace();
        let (first, second) = (words.next()?, words.next());
        let third = words.clone().next();
        let rest = words.count();
        let Some(second) = second else {
            let name = first.split(['(', '[', '/', '~', '@', '#']).next().unwrap_or_default();
            let meant = self.nearest(name);
            return (!meant.is_empty()).then_some(meant);
        };
        let numbered = is_number(second);
        if self.is_tag(first) {
            return None;
        }
        if rest == 0 && is_identifier(first) && numbered {
            return Some(self.meant(first));
        }
        // `allowed_tools read, write`, `max_iteration is 3`: no sentence begins with such a word.
        if !first.contains(is_hyphen)
            && compound(first)
            && (self.find(first).is_some() || !self.nearest(first).is_empty())
        {
            return Some(self.meant(first));
        }
        // `env in [staging]`.
        if is_identifier(first)
            && second.eq_ignore_ascii_case("in")
            && third.is_some_and(|third| third.starts_with(['[', '(', '{']))
        {
            return Some(self.meant(first));
        }
        // `allowed_environment staging`, `timeout 30 seconds`.
        let takes_a_value = |name: ConstraintName| !matches!(name.takes, Takes::Flag(_) | Takes::ShortFor(_));
        if rest < MAX_WORDS
            && self.find(first).is_some_and(takes_a_value)
            && (numbered || (rest == 0 && compound(first)))
        {
            return Some(self.meant(first));
        }
        if rest + 2 > MAX_WORDS + 1 {
            return None;
        }
        // `max iterations 3`, `approval requierd`.
        let (name, number) = text.rsplit_once(char::is_whitespace).filter(|(_, last)| is_number(last)).unzip();
        let name = name.unwrap_or(text);
        let meant = if number.is_some() && self.find(name).is_some() { self.meant(name) } else { self.nearly(name) };
        (!meant.is_empty()).then_some(meant)
    }

    /// The constraints that a name may mean, however many letters are wrong.
    fn meant(&self, name: &str) -> Vec<&'static str> {
        if let Some(found) = self.find(name) {
            return vec![found.as_str()];
        }
        let near = self.nearest(name);
        if near.is_empty() { key(unquoted(name)).map(|key| alike(&key)).unwrap_or_default() } else { near }
    }

    /// For several words: one letter may be wrong, in a name that is long enough not to be hit by chance.
    fn nearly(&self, name: &str) -> Vec<&'static str> {
        let long = |key: &String| key.chars().count() >= 8;
        key(unquoted(name)).filter(long).map(|key| self.suggest(&key, 1)).unwrap_or_default()
    }

    fn is_nearly(&self, name: &str) -> bool {
        name.split_whitespace().count() <= MAX_WORDS && (self.find(name).is_some() || !self.nearly(name).is_empty())
    }
}

/// Constraints of whose name the key is a part, or the other way: `change_window`, `timeout_minutes`.
fn alike(name: &str) -> Vec<&'static str> {
    if name.chars().count() < MIN_PART_CHARS {
        return Vec::new();
    }
    let alike = |known: &ConstraintName| {
        key(known.as_str()).is_some_and(|known| known.contains(name) || name.contains(known.as_str()))
    };
    ConstraintName::ALL.into_iter().filter(alike).map(ConstraintName::as_str).take(MAX_SUGGESTIONS).collect()
}

/// The text before the first operator, and the rest from there on.
fn at_operator(text: &str) -> Option<(&str, &str)> {
    let at = text.find(OPERATORS)?;
    let (head, rest) = text.split_at_checked(at)?;
    // `environment != production`: the sign has two letters.
    Some((unquoted(head.trim_end_matches(['!', '~', ' '])), rest))
}

/// `https://…`, `mailto:…`, `E:/…`.
fn is_address(head: &str, rest: &str) -> bool {
    let Some(behind) = rest.strip_prefix(':') else { return false };
    behind.starts_with("//")
        || SCHEMES.iter().any(|scheme| head.eq_ignore_ascii_case(scheme))
        || (head.chars().count() == 1 && behind.starts_with(['/', '\\']))
}

/// One word with a letter in it, of letters, digits, `_`, `-` and `.`.
fn is_identifier(text: &str) -> bool {
    text.chars().any(char::is_alphabetic)
        && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.' || is_hyphen(c))
}

/// More than one word in one: `max_retries`, `max-retries`, `maxRetries`.
fn compound(word: &str) -> bool {
    word.contains(|c: char| c == '_' || is_hyphen(c)) || word.chars().skip(1).any(char::is_uppercase)
}

/// A number, with a sign or a currency before it and a unit behind it.
fn is_number(word: &str) -> bool {
    let digits = word.trim_start_matches(['$', '€', '£', '-', '+', '~', '(']);
    digits.starts_with(|c: char| c.is_numeric())
}
