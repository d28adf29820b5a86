//! Values that follow a revealing name in a text: `password=…`, `"api_key": "…"`, `--token …`, `<pwd>…</pwd>`.
//!
//! `names` classifies the name and `value` the value. After `=` or in quotes nearly everything counts as a value; after
//! a bare `:` only text that does not occur in sentences, since people write "password: required".

use std::ops::Range;

use super::detector::Hit;
use super::names::{NameKind, Names};
use super::value::{QUOTES, ValueClassifier, ends_value};

/// How many bytes around an anchor are read to find the whole name.
const MAX_NAME_BYTES: usize = 64;
/// How many bytes before a name may belong to it, as in `api key`.
const MAX_WORDS_BYTES: usize = 48;
/// The most blanks and closing quotes between a name and its value.
const MAX_BETWEEN: usize = 64;
/// The fewest words of a wallet's seed phrase, and the most bytes.
const MIN_SEED_WORDS: usize = 12;
const MAX_SEED_BYTES: usize = 24 * 9;
const MIN_AFTER_EQUALS: usize = 4;
const MIN_AFTER_COLON: usize = 6;

pub(super) struct Assignments<'t> {
    text: &'t str,
    names: &'t Names,
    places: Box<dyn Iterator<Item = Range<usize>> + 't>,
    done: usize,
    values: Values<'t>,
}

/// What stands between a name and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Joiner {
    /// `=`, `=>` or `:=`.
    Sign,
    /// The end of an opening tag; a closing tag ends the value.
    Tags,
    /// A colon, or the name is an option of a command.
    Colon,
    /// The word `is`.
    Is,
    Nothing,
}

impl<'t> Assignments<'t> {
    pub(super) fn of(text: &'t str, names: &'t Names, classifier: &'t ValueClassifier) -> Self {
        let places = Box::new(names.places(text));
        Self { text, names, places, done: 0, values: Values::of(text, names, classifier) }
    }

    fn at(&mut self, anchor: &Range<usize>) -> Option<Hit> {
        let name = self.name_around(anchor);
        self.done = name.end;
        let kind = self.kind(&name)?;
        let (start, joiner) = self.value_after(&name, kind)?;
        let value = self.values.at(start, joiner, kind)?;
        let whole = name.start..value.end;
        let quoted = self.text.get(value.clone()).is_some_and(|value| value.ends_with(QUOTES));
        Some(Hit { phrase: kind == NameKind::Phrase && !quoted, whole, value })
    }

    fn name_around(&self, anchor: &Range<usize>) -> Range<usize> {
        let text = self.text;
        let belongs = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let least =
            text.ceil_char_boundary(anchor.start.saturating_sub(MAX_NAME_BYTES)).max(self.done.min(anchor.start));
        let before = text.get(least..anchor.start).unwrap_or_default();
        let start = anchor.start - before.chars().rev().take_while(belongs).map(char::len_utf8).sum::<usize>();
        let found = text.get(anchor.clone()).unwrap_or_default();
        // In scripts without spaces, the following characters do not belong to the name.
        let unspaced = found.chars().next_back().is_some_and(|c| c >= '\u{e00}' && !c.is_lowercase());
        let most = text.floor_char_boundary(anchor.end + MAX_NAME_BYTES);
        let after = text.get(anchor.end..most).unwrap_or_default();
        let more = if unspaced { 0 } else { after.chars().take_while(belongs).map(char::len_utf8).sum::<usize>() };
        start..anchor.end + more
    }

    fn kind(&self, name: &Range<usize>) -> Option<NameKind> {
        let alone = self.names.kind(self.text.get(name.clone())?);
        if alone >= Some(NameKind::Secret) {
            return alone;
        }
        let least = self.text.ceil_char_boundary(name.start.saturating_sub(MAX_WORDS_BYTES));
        let before = self.text.get(least..name.start).unwrap_or_default();
        let belongs = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ');
        let start = name.start - before.chars().rev().take_while(belongs).map(char::len_utf8).sum::<usize>();
        self.names.kind(self.text.get(start..name.end)?)
    }

    fn value_after(&self, name: &Range<usize>, kind: NameKind) -> Option<(usize, Joiner)> {
        let closed = self.skip(name.end, |c| QUOTES.contains(&c) || matches!(c, '\\' | ')' | ']' | '*' | '?'));
        let at = self.skip(closed, char::is_whitespace);
        let rest = self.text.get(at..)?;
        let equals = ["===", "==", "=>", ":=", "->", "=", "%3D", "%3d"].into_iter().find(|sign| rest.starts_with(sign));
        let begins = |at: usize| self.skip(at, |c| c.is_whitespace() || c == '*');
        if let Some(sign) = equals {
            return Some((begins(at + sign.len()), Joiner::Sign));
        }
        if let Some(colon) = [':', '：'].into_iter().find(|colon| rest.starts_with(*colon)) {
            // Colons without blanks separate the parts of one name: `arn:aws:…:secret:db/main`.
            let part = rest.starts_with("::") || self.text.get(..name.start)?.ends_with(':') && !rest.starts_with(": ");
            return (!part).then(|| (begins(at + colon.len_utf8()), Joiner::Colon));
        }
        let before = self.text.get(..name.start)?;
        if rest.starts_with('>') && before.ends_with('<') {
            return Some((at + 1, Joiner::Tags));
        }
        if let Some(at) = self.value_of_pair(at) {
            return Some((begins(at), Joiner::Sign));
        }
        if self.text.get(name.clone())?.starts_with('-') && at > closed {
            return Some((at, Joiner::Colon));
        }
        for link in self.values.classifier.links() {
            if let Some(behind) = rest.strip_prefix(link)
                && (behind.starts_with([' ', ':']) || !link.is_ascii())
            {
                let colon = self.skip(at + link.len(), |c| c.is_whitespace() || c == ':');
                return Some((colon, Joiner::Is));
            }
        }
        (at > closed && kind > NameKind::Hint).then_some((at, Joiner::Nothing))
    }

    /// Of `"name": "DB_PASSWORD", "value": "…"` and `name="password" value="…"` where the value begins.
    fn value_of_pair(&self, at: usize) -> Option<usize> {
        let quote = |c: char| QUOTES.contains(&c) || c == '\\';
        let at = self.skip(at, |c| c.is_whitespace() || c == ',');
        let at = self.skip(at, quote);
        let at = self.text.get(at..)?.starts_with("value").then(|| self.skip(at + "value".len(), quote))?;
        let at = self.skip(at, char::is_whitespace);
        self.text.get(at..)?.starts_with([':', '=']).then_some(at + 1)
    }

    fn skip(&self, at: usize, is: impl Fn(char) -> bool) -> usize {
        let rest = self.text.get(at..).unwrap_or_default();
        at + rest.chars().take(MAX_BETWEEN).take_while(|c| is(*c)).map(char::len_utf8).sum::<usize>()
    }
}

/// Yields an item for every name, with or without a secret, so that the caller can check its time limit in between.
impl Iterator for Assignments<'_> {
    type Item = Option<Hit>;

    fn next(&mut self) -> Option<Option<Hit>> {
        let anchor = self.places.next()?;
        Some(if anchor.end <= self.done { None } else { self.at(&anchor) })
    }
}

/// The values of one text. Names may occur in each other's values (`secret=secret=…`), so the end of a value is cached.
pub(super) struct Values<'t> {
    text: &'t str,
    names: &'t Names,
    classifier: &'t ValueClassifier,
    unquoted: Range<usize>,
    telling: Next,
    upper: Next,
    lower: Next,
}

/// Caches the position of the next character of a kind for all starts up to that position.
#[derive(Default)]
struct Next {
    asked: Range<usize>,
}

impl<'t> Values<'t> {
    pub(super) fn of(text: &'t str, names: &'t Names, classifier: &'t ValueClassifier) -> Self {
        let [telling, upper, lower] = [Next::default(), Next::default(), Next::default()];
        Self { text, names, classifier, unquoted: 0..0, telling, upper, lower }
    }

    /// The range of the value at `start`, if it is a secret.
    pub(super) fn at(&mut self, start: usize, joiner: Joiner, kind: NameKind) -> Option<Range<usize>> {
        let rest = self.text.get(start..)?;
        let (begin, inner, length) = match opening(rest) {
            Some((opening, quote)) => {
                let inner = rest.get(opening.len()..)?;
                let end = closing(inner, opening, quote);
                let closed = inner.get(end..)?.starts_with(opening);
                (opening.len(), inner.get(..end)?, opening.len() + end + if closed { opening.len() } else { 0 })
            }
            None if joiner == Joiner::Colon
                && kind == NameKind::Phrase
                && let Some(words) = seed_words(rest) =>
            {
                return Some(start..start + words);
            }
            None => {
                if !self.unquoted.contains(&start) {
                    self.unquoted = start..start + rest.find(ends_value).unwrap_or(rest.len());
                }
                let length = self.unquoted.end - start;
                let value = rest.get(..length)?;
                let value = if joiner == Joiner::Tags { value.get(..value.find("</")?)? } else { value };
                (0, value, value.len())
            }
        };
        let quoted = begin > 0;
        // A quoted sentence is still a sentence.
        let sentence = quoted && kind < NameKind::Phrase && inner.contains(' ') && !inner.contains(is_telling);
        let plausible = !sentence
            && match joiner {
                Joiner::Sign | Joiner::Tags => self.classifier.is_secret(inner, kind, MIN_AFTER_EQUALS),
                Joiner::Colon if quoted => self.classifier.is_secret(inner, kind, MIN_AFTER_EQUALS),
                Joiner::Colon => {
                    let judged = inner.get(..inner.floor_char_boundary(256)).unwrap_or(inner);
                    let judged = judged.trim_end_matches(['.', ',', ';', ')', ']', '}', '!', '?']);
                    !self.is_prose(start..start + judged.len())
                        && self.classifier.is_secret(inner, kind, MIN_AFTER_COLON)
                }
                Joiner::Is if quoted => self.classifier.is_secret(inner, kind, MIN_AFTER_COLON),
                Joiner::Is => self.classifier.is_secret_after_is(inner, kind),
                Joiner::Nothing if quoted => self.classifier.is_secret_after_is(inner, kind),
                Joiner::Nothing => self.classifier.is_secret_after_nothing(inner, kind),
            };
        (plausible && !self.classifier.is_variable(inner, self.names)).then(|| start..start + length)
    }

    /// Could be a word of a sentence: letters and hyphens only, at most the first one a capital.
    fn is_prose(&mut self, value: Range<usize>) -> bool {
        let Some(first) = self.text.get(value.clone()).and_then(|text| text.chars().next()) else { return true };
        let inner = value.start + first.len_utf8()..value.end;
        let inner_capital = self.upper.stands_in(self.text, &inner, char::is_uppercase)
            && self.lower.stands_in(self.text, &value, char::is_lowercase);
        !inner_capital && !self.telling.stands_in(self.text, &value, is_telling)
    }
}

/// Characters that are rare in sentences and common in passwords.
fn is_telling(c: char) -> bool {
    c.is_ascii_digit() || "!@#$%^&*+=~\\|".contains(c)
}

fn seed_words(text: &str) -> Option<usize> {
    let line = text.get(..text.floor_char_boundary(MAX_SEED_BYTES))?.lines().next()?;
    let line = line.split(|c: char| !c.is_ascii_lowercase() && c != ' ').next()?;
    let words = line.split(' ').take_while(|word| (3..=8).contains(&word.len()));
    let (count, bytes) = words.fold((0, 0), |(count, bytes), word| (count + 1, bytes + word.len() + 1));
    (count >= MIN_SEED_WORDS).then(|| bytes - 1)
}

/// The quote that a value begins with: `"` or, in JSON within JSON, `\"`.
fn opening(text: &str) -> Option<(&str, char)> {
    let escapes = text.bytes().take(MAX_BETWEEN).take_while(|byte| *byte == b'\\').count();
    let quote = text.get(escapes..)?.chars().next().filter(|c| QUOTES.contains(c))?;
    Some((text.get(..=escapes)?, quote))
}

/// Where a quoted value ends: at its closing quote or at the end of the line.
fn closing(inner: &str, opening: &str, quote: char) -> usize {
    let escapes = opening.len() - 1;
    let mut before = 0;
    for (at, c) in inner.char_indices() {
        if c == '\n' {
            return at;
        }
        if c == quote && before <= escapes {
            return at - before;
        }
        // Two backslashes are an escaped backslash.
        before = if c == '\\' { if escapes == 0 { (before + 1) % 2 } else { before + 1 } } else { 0 };
    }
    inner.len()
}

impl Next {
    /// Whether such a character begins in the range.
    fn stands_in(&mut self, text: &str, range: &Range<usize>, is: impl Fn(char) -> bool) -> bool {
        if !(self.asked.start..=self.asked.end).contains(&range.start) || self.asked.is_empty() {
            let rest = text.get(range.start..).unwrap_or_default();
            self.asked = range.start..range.start + rest.find(is).unwrap_or(rest.len());
        }
        self.asked.end < range.end
    }
}

#[cfg(test)]
mod tests {
    use super::super::baseline;
    use super::*;
    use crate::time_limit::TimeLimit;
    use proptest::prelude::*;

    fn replaced(text: &str) -> String {
        baseline().replace(text, TimeLimit::NONE)
    }

    proptest! {
        #[test]
        fn cached_ends_of_values_change_no_result(
            text in "[a-cA1=: '\"\\\\\n!é]{0,40}",
            bare in any::<bool>(),
        ) {
            let detector = baseline();
            let joiner = if bare { Joiner::Colon } else { Joiner::Sign };
            let mut values = detector.values_of(&text);
            for (start, _) in text.char_indices() {
                let alone = detector.values_of(&text).at(start, joiner, NameKind::Password);
                prop_assert_eq!(values.at(start, joiner, NameKind::Password), alone, "{}", start);
            }
        }
    }

    #[test]
    fn values_within_values_are_each_found_and_cut_out_as_one() {
        let found = |text: &str| -> Vec<String> {
            let hits = baseline().hits(text, TimeLimit::NONE);
            hits.into_iter().map(|(_, hit)| hit.value(text).to_owned()).collect()
        };
        assert_eq!(found("secret=a1b2:password=hunter22 x"), ["a1b2:password=hunter22", "hunter22"]);
        assert_eq!(found("secret=none! password=hunter22 passwd='two words 2' x"), ["hunter22", "'two words 2'"]);
        for (text, masked) in [
            ("x secret=a1b2password=hunter22 y", "x [redacted] y"),
            ("x secret=a1b2:passphrase=correct horse\ny", "x [redacted]\ny"),
            ("x passphrase=correct horse secret=hunter22 battery\ny", "x [redacted]\ny"),
            ("AKIAIOSFODNN7EXAMPLE.AKIAIOSFODNN7EXAMPLE. y", "[redacted] y"),
            ("pwd=hunter22 pwd=hunter23 y", "[redacted] [redacted] y"),
        ] {
            assert_eq!(replaced(text), masked, "{text}");
        }
    }

    #[test]
    fn what_clings_to_a_value_goes_with_it() {
        for (text, masked) in [
            ("open postgres://app:p@ss:w0rd@db/main now", "open [redacted] now"),
            ("passphrase=correct horse battery\nthen", "[redacted]\nthen"),
            ("passphrase: \"correct horse\" then", "[redacted] then"),
            (r#"{"password": "ab\"cd efgh", "x": 1}"#, r#"{"[redacted] "x": 1}"#),
            (r#"{\"password\": \"ab cd 1\", \"x\": 1}"#, r#"{\"[redacted] \"x\": 1}"#),
            ("Bearer abc123def456ghi789:more x", "[redacted] x"),
        ] {
            assert_eq!(replaced(text), masked, "{text}");
        }
    }
}
