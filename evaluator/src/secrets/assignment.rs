//! Values that stand beside a telling name in a text: `password=…`, `"api_key": "…"`, `--token …`,
//! `<pwd>…</pwd>`.
//!
//! Owns where a name ends, what stands between it and its value, and where the value ends. What a name tells is
//! `names`', whether a value is one is `value`'s. After `=` or in quotes nearly everything is a value; after a
//! bare `:` only what no sentence contains, since people write "password: required".

use std::ops::Range;

use super::detector::Hit;
use super::names::{Names, Tells};
use super::value::{Judge, QUOTES, ends_value};

/// Bytes around what was found of a name that are read of it.
const MAX_NAME_BYTES: usize = 64;
/// Bytes of the words before a name that may belong to it: `api key`.
const MAX_WORDS_BYTES: usize = 48;
/// Blanks and closing quotes between a name and its value.
const MAX_BETWEEN: usize = 64;
/// Words of the shortest phrase that a wallet is made of, and the bytes of the longest.
const MIN_SEED_WORDS: usize = 12;
const MAX_SEED_BYTES: usize = 24 * 9;
const LEAST_AFTER_EQUALS: usize = 4;
const LEAST_AFTER_COLON: usize = 6;

/// The places of one text where a name stands, each with its value if that is a secret.
pub(super) struct Assignments<'t> {
    text: &'t str,
    names: &'t Names,
    places: Box<dyn Iterator<Item = Range<usize>> + 't>,
    /// Where the last name ended.
    done: usize,
    values: Values<'t>,
}

/// How a value stands behind its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    /// After `=`, `=>`, `:=`.
    Assigned,
    /// Between two tags.
    Tagged,
    /// After a colon, or after an option of a command.
    Bare,
    /// After `is`.
    Told,
    /// Straight after the name.
    Blurted,
}

impl<'t> Assignments<'t> {
    pub(super) fn of(text: &'t str, names: &'t Names, judge: &'t Judge) -> Self {
        let places = Box::new(names.places(text));
        Self { text, names, places, done: 0, values: Values::of(text, names, judge) }
    }

    /// The secret beside the name that an anchor stands in.
    fn at(&mut self, anchor: &Range<usize>) -> Option<Hit> {
        let name = self.name_around(anchor);
        self.done = name.end;
        let tells = self.tells(&name)?;
        let (start, stands) = self.value_after(&name, tells)?;
        let value = self.values.at(start, stands, tells)?;
        let whole = name.start..value.end;
        let quoted = self.text.get(value.clone()).is_some_and(|value| value.ends_with(QUOTES));
        Some(Hit { phrase: tells == Tells::Phrase && !quoted, whole, value })
    }

    fn name_around(&self, anchor: &Range<usize>) -> Range<usize> {
        let text = self.text;
        let belongs = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        let least =
            text.ceil_char_boundary(anchor.start.saturating_sub(MAX_NAME_BYTES)).max(self.done.min(anchor.start));
        let before = text.get(least..anchor.start).unwrap_or_default();
        let start = anchor.start - before.chars().rev().take_while(belongs).map(char::len_utf8).sum::<usize>();
        let found = text.get(anchor.clone()).unwrap_or_default();
        // Where words are written without spaces, what follows is no part of the name.
        let unspaced = found.chars().next_back().is_some_and(|c| c >= '\u{e00}' && !c.is_lowercase());
        let most = text.floor_char_boundary(anchor.end + MAX_NAME_BYTES);
        let after = text.get(anchor.end..most).unwrap_or_default();
        let more = if unspaced { 0 } else { after.chars().take_while(belongs).map(char::len_utf8).sum::<usize>() };
        start..anchor.end + more
    }

    fn tells(&self, name: &Range<usize>) -> Option<Tells> {
        let alone = self.names.tells(self.text.get(name.clone())?);
        if alone >= Some(Tells::Secret) {
            return alone;
        }
        let least = self.text.ceil_char_boundary(name.start.saturating_sub(MAX_WORDS_BYTES));
        let before = self.text.get(least..name.start).unwrap_or_default();
        let belongs = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | ' ');
        let start = name.start - before.chars().rev().take_while(belongs).map(char::len_utf8).sum::<usize>();
        self.names.tells(self.text.get(start..name.end)?)
    }

    /// Where a value would begin.
    fn value_after(&self, name: &Range<usize>, tells: Tells) -> Option<(usize, Stands)> {
        let closed = self.skip(name.end, |c| QUOTES.contains(&c) || matches!(c, '\\' | ')' | ']' | '*' | '?'));
        let at = self.skip(closed, char::is_whitespace);
        let rest = self.text.get(at..)?;
        let equals = ["===", "==", "=>", ":=", "->", "=", "%3D", "%3d"].into_iter().find(|sign| rest.starts_with(sign));
        let begins = |at: usize| self.skip(at, |c| c.is_whitespace() || c == '*');
        if let Some(sign) = equals {
            return Some((begins(at + sign.len()), Stands::Assigned));
        }
        if let Some(colon) = [':', '：'].into_iter().find(|colon| rest.starts_with(*colon)) {
            // Between colons without a blank stand the parts of one name: `arn:aws:…:secret:db/main`.
            let part = rest.starts_with("::") || self.text.get(..name.start)?.ends_with(':') && !rest.starts_with(": ");
            return (!part).then(|| (begins(at + colon.len_utf8()), Stands::Bare));
        }
        let before = self.text.get(..name.start)?;
        if rest.starts_with('>') && before.ends_with('<') {
            return Some((at + 1, Stands::Tagged));
        }
        if let Some(at) = self.value_of_pair(at) {
            return Some((begins(at), Stands::Assigned));
        }
        if self.text.get(name.clone())?.starts_with('-') && at > closed {
            return Some((at, Stands::Bare));
        }
        for link in self.values.judge.links() {
            if let Some(behind) = rest.strip_prefix(link)
                && (behind.starts_with([' ', ':']) || !link.is_ascii())
            {
                let colon = self.skip(at + link.len(), |c| c.is_whitespace() || c == ':');
                return Some((colon, Stands::Told));
            }
        }
        (at > closed && tells > Tells::Hint).then_some((at, Stands::Blurted))
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

/// For each place none or a secret, so that a caller can look at the time between them.
impl Iterator for Assignments<'_> {
    type Item = Option<Hit>;

    fn next(&mut self) -> Option<Option<Hit>> {
        let anchor = self.places.next()?;
        Some(if anchor.end <= self.done { None } else { self.at(&anchor) })
    }
}

/// The values of one text. Names may stand within each other's values (`secret=secret=…`): where a value ends is looked
/// for once.
pub(super) struct Values<'t> {
    text: &'t str,
    names: &'t Names,
    judge: &'t Judge,
    /// The last value without quotes.
    unquoted: Range<usize>,
    telling: Next,
    upper: Next,
    lower: Next,
}

/// Where the next character of a kind stands, for every start between the first one that was asked for and that place.
#[derive(Default)]
struct Next {
    asked: Range<usize>,
}

impl<'t> Values<'t> {
    pub(super) fn of(text: &'t str, names: &'t Names, judge: &'t Judge) -> Self {
        let [telling, upper, lower] = [Next::default(), Next::default(), Next::default()];
        Self { text, names, judge, unquoted: 0..0, telling, upper, lower }
    }

    /// Where the secret is that begins at `start`, if it is one.
    pub(super) fn at(&mut self, start: usize, stands: Stands, tells: Tells) -> Option<Range<usize>> {
        let rest = self.text.get(start..)?;
        let (begin, inner, length) = match opening(rest) {
            Some((opening, quote)) => {
                let inner = rest.get(opening.len()..)?;
                let end = closing(inner, opening, quote);
                let closed = inner.get(end..)?.starts_with(opening);
                (opening.len(), inner.get(..end)?, opening.len() + end + if closed { opening.len() } else { 0 })
            }
            None if stands == Stands::Bare
                && tells == Tells::Phrase
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
                let value = if stands == Stands::Tagged { value.get(..value.find("</")?)? } else { value };
                (0, value, value.len())
            }
        };
        let quoted = begin > 0;
        // A sentence in quotes is one still.
        let sentence = quoted && tells < Tells::Phrase && inner.contains(' ') && !inner.contains(is_telling);
        let plausible = !sentence
            && match stands {
                Stands::Assigned | Stands::Tagged => self.judge.is_secret(inner, tells, LEAST_AFTER_EQUALS),
                Stands::Bare if quoted => self.judge.is_secret(inner, tells, LEAST_AFTER_EQUALS),
                Stands::Bare => {
                    let judged = inner.get(..inner.floor_char_boundary(256)).unwrap_or(inner);
                    let judged = judged.trim_end_matches(['.', ',', ';', ')', ']', '}', '!', '?']);
                    !self.is_prose(start..start + judged.len()) && self.judge.is_secret(inner, tells, LEAST_AFTER_COLON)
                }
                Stands::Told if quoted => self.judge.is_secret(inner, tells, LEAST_AFTER_COLON),
                Stands::Told => self.judge.is_told(inner, tells),
                Stands::Blurted if quoted => self.judge.is_told(inner, tells),
                Stands::Blurted => self.judge.is_blurted(inner, tells),
            };
        (plausible && !self.judge.is_variable(inner, self.names)).then(|| start..start + length)
    }

    /// Could stand in a sentence: letters and hyphens only, at most the first a capital.
    fn is_prose(&mut self, value: Range<usize>) -> bool {
        let Some(first) = self.text.get(value.clone()).and_then(|text| text.chars().next()) else { return true };
        let inner = value.start + first.len_utf8()..value.end;
        let inner_capital = self.upper.stands_in(self.text, &inner, char::is_uppercase)
            && self.lower.stands_in(self.text, &value, char::is_lowercase);
        !inner_capital && !self.telling.stands_in(self.text, &value, is_telling)
    }
}

/// What a sentence has seldom and a password often.
fn is_telling(c: char) -> bool {
    c.is_ascii_digit() || "!@#$%^&*+=~\\|".contains(c)
}

/// The bytes of the words of a wallet, if the text begins with so many of them as no sentence has.
fn seed_words(text: &str) -> Option<usize> {
    let line = text.get(..text.floor_char_boundary(MAX_SEED_BYTES))?.lines().next()?;
    let line = line.split(|c: char| !c.is_ascii_lowercase() && c != ' ').next()?;
    let words = line.split(' ').take_while(|word| (3..=8).contains(&word.len()));
    let (count, bytes) = words.fold((0, 0), |(count, bytes), word| (count + 1, bytes + word.len() + 1));
    (count >= MIN_SEED_WORDS).then(|| bytes - 1)
}

/// The quote that a value begins with, and the character that it is: `"` or, in JSON within JSON, `\"`.
fn opening(text: &str) -> Option<(&str, char)> {
    let escapes = text.bytes().take(MAX_BETWEEN).take_while(|byte| *byte == b'\\').count();
    let quote = text.get(escapes..)?.chars().next().filter(|c| QUOTES.contains(c))?;
    Some((text.get(..=escapes)?, quote))
}

/// Where a value ends that is quoted in this way: at its quote, or with the line.
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
        // Two of them are one that escapes nothing.
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
        fn what_is_remembered_of_a_text_changes_no_judgement(text in "[a-cA1=: '\"\\\\\n!é]{0,40}", bare in any::<bool>()) {
            let detector = baseline();
            let stands = if bare { Stands::Bare } else { Stands::Assigned };
            let mut values = detector.values_of(&text);
            for (start, _) in text.char_indices() {
                let alone = detector.values_of(&text).at(start, stands, Tells::Password);
                prop_assert_eq!(values.at(start, stands, Tells::Password), alone, "{}", start);
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
