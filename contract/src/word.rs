//! Words: the one form in which constraint names, side effects, tools, roles and environments are compared.
//!
//! The form is NFKC without invisible characters, trimmed, in lower case.
//! INVARIANT: a word that mixes scripts (`dерloy` with Cyrillic letters) equals nothing, not even itself: a possible
//! look-alike counts as unknown, and unknown is never allowed.

mod spelling;

use std::fmt;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};
use unicode_script::{Script, UnicodeScript};

pub use spelling::{Spelling, parts};

/// The longest word in characters, as long as the longest item of a request.
const LONGEST: usize = 1_000;

/// A normalised word. Compare with [`Word::is`] or [`Word::matches`]; there is no `PartialEq` on purpose.
#[derive(Clone)]
pub struct Word {
    text: String,
    mixed: bool,
}

impl Word {
    /// Normalises a text.
    pub fn new(raw: &str) -> Self {
        let text = visible(raw);
        // A text that normalisation expanded beyond the limit was cut. Its content is unknown, so it equals nothing.
        let cut = text.chars().count() > LONGEST && text.chars().count() > raw.chars().count();
        // The same holds for a text with hidden characters.
        let mixed = cut || hidden(&text).is_some() || mixes_scripts(&text);
        Self { text, mixed }
    }

    /// As [`Word::new`], with runs of spaces, hyphens and underscores as one `_`: names of constraints and side
    /// effects.
    pub fn name(raw: &str) -> Self {
        let mut word = Self::new(raw);
        let mut name = String::with_capacity(word.text.len());
        for c in word.text.chars() {
            let c = if c.is_whitespace() || is_hyphen(c) { '_' } else { c };
            if !(c == '_' && name.ends_with('_')) {
                name.push(c);
            }
        }
        word.text = name.trim_matches('_').to_owned();
        word
    }

    /// The normalised text. Do not compare with it: it does not tell that a word mixes scripts.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The text to look up in a vocabulary; `None` for a word that mixes scripts.
    pub fn known(&self) -> Option<&str> {
        (!self.mixed).then_some(self.text.as_str())
    }

    /// Whether the word is exactly `text` (given in normalised form).
    pub fn is(&self, text: &str) -> bool {
        !self.mixed && self.text == text
    }

    /// Whether both are the same word.
    pub fn matches(&self, other: &Word) -> bool {
        !other.mixed && self.is(&other.text)
    }

    /// Whether no visible character is left.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}{}", self.text, if self.mixed { " (mixed scripts)" } else { "" })
    }
}

/// The text in NFKC without invisible characters, trimmed, in lower case.
pub fn visible(raw: &str) -> String {
    if raw.is_ascii() {
        return raw.trim().to_ascii_lowercase();
    }
    // Lower case may no longer be NFKC (`İ` becomes `i` + dot), so normalise again.
    plain(raw).trim().to_lowercase().nfkc().collect()
}

/// The text in NFKC without invisible characters; case and outer space stay. At most about twice as long as it was: a
/// few characters expand to whole phrases, and the result is cut there.
pub fn plain(raw: &str) -> String {
    // Stripping first lets `e` + zero-width joiner + combining accent compose; NFKC can itself yield ignorables, so
    // twice.
    let stripped: String = raw.chars().filter(|c| !is_invisible(*c)).collect();
    match is_nfkc_quick(stripped.chars()) {
        IsNormalized::Yes => stripped,
        _ => {
            let most = 2 * stripped.chars().count() + 64;
            stripped.nfkc().filter(|c| !is_invisible(*c)).take(most).collect()
        }
    }
}

/// Whether a text has only white space, control and invisible characters.
pub fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || is_hidden(c) || is_invisible(c))
}

/// The first invisible character that would make this name differ from one that looks the same.
pub fn hidden(name: &str) -> Option<char> {
    // Names are ASCII nearly always, and then a byte is a character.
    if name.is_ascii() {
        return name.bytes().find(|byte| is_hidden_ascii(*byte)).map(char::from);
    }
    name.chars().find(|c| is_hidden(*c))
}

/// Characters that no name needs: control characters except white space, noncharacters, the characters of Unicode's
/// category `Cf` that are not removed anyway ([`is_invisible`]), and the few with a glyph that is blank, such as the
/// Braille blank (UAX #44, 16.0).
pub(crate) fn is_hidden(c: char) -> bool {
    if let Ok(byte) = u8::try_from(c)
        && byte.is_ascii()
    {
        return is_hidden_ascii(byte);
    }
    (c.is_control() && !c.is_whitespace())
        || u32::from(c) & 0xfffe == 0xfffe
        || matches!(c,
            '\u{600}'..='\u{605}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{2800}'
            | '\u{fdd0}'..='\u{fdef}' | '\u{fff9}'..='\u{fffc}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{16fe4}' | '\u{1d159}')
}

fn is_hidden_ascii(byte: u8) -> bool {
    byte.is_ascii_control() && !char::from(byte).is_whitespace()
}

/// Characters without a glyph, which only break equality: Unicode's `Default_Ignorable_Code_Point` and the
/// bidirectional controls (UAX #44, DerivedCoreProperties 16.0).
pub fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

pub(crate) fn is_hyphen(c: char) -> bool {
    matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}')
}

/// More than one script among the letters; those that Chinese, Japanese and Korean mix count as one.
fn mixes_scripts(text: &str) -> bool {
    if text.is_ascii() {
        return false;
    }
    let mut seen: Option<Script> = None;
    for c in text.chars() {
        let script = match c.script() {
            Script::Common | Script::Inherited => continue,
            Script::Hiragana | Script::Katakana | Script::Hangul | Script::Bopomofo => Script::Han,
            other => other,
        };
        if seen.is_some_and(|first| first != script) {
            return true;
        }
        seen = Some(script);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_word_are_that_word() {
        for spelling in [
            "deploy",
            "DEPLOY",
            "  deploy\t",
            "ｄｅｐｌｏｙ",
            "de\u{200b}ploy",
            "\u{202e}deploy\u{202c}",
            "ＤＥＰ\u{feff}ＬＯＹ",
        ] {
            assert!(Word::new(spelling).is("deploy"), "{spelling:?}");
        }
    }

    #[test]
    fn a_word_that_mixes_scripts_matches_nothing() {
        let mixed = Word::new("d\u{435}ploy");
        assert!(!mixed.is("deploy") && !mixed.is(mixed.as_str()) && !mixed.matches(&mixed));
        assert!(mixed.known().is_none());
    }

    #[test]
    fn a_word_with_a_hidden_character_matches_nothing() {
        for hidden in ["shell\u{0}", "sh\u{2800}ell", "\u{1b}shell", "shell\u{fff9}"] {
            let word = Word::new(hidden);
            assert!(word.known().is_none() && !word.is("shell") && !word.matches(&Word::new(hidden)), "{hidden:?}");
        }
        assert!(Word::new("two\twords").known().is_some());
    }

    #[test]
    fn a_japanese_word_is_one_script() {
        assert!(Word::new("本番デプロイ").known().is_some());
    }

    #[test]
    fn names_join_with_one_underscore() {
        for spelling in [
            "external notification",
            "External-Notification",
            "external _ notification",
            "external\u{2011}notification",
            " -external  notification_",
        ] {
            assert!(Word::name(spelling).is("external_notification"), "{spelling:?}");
        }
    }

    #[test]
    fn a_character_that_stands_for_a_phrase_does_not_blow_a_word_up() {
        let phrase = "\u{fdfa}".repeat(1_000);
        assert!(visible(&phrase).chars().count() <= 2_100);
        assert!(Word::new(&phrase).known().is_none());
        assert!(Word::new(&"ａ".repeat(1_000)).known().is_some());
    }

    /// The ASCII shortcut and the full search must agree.
    #[test]
    fn a_hidden_ascii_character_is_found_in_an_ascii_name_as_in_any_other() {
        for byte in 0..=127_u8 {
            let c = char::from(byte);
            let (ascii, mixed) = (format!("run{c}1"), format!("rün{c}1"));
            assert_eq!(hidden(&ascii), hidden(&mixed), "{c:?}");
            let seen = !c.is_ascii_control() || c.is_whitespace();
            assert_eq!(hidden(&ascii).is_none(), seen, "{c:?}");
        }
        assert_eq!(hidden("a\u{1}b\u{2}"), Some('\u{1}'), "the first");
    }

    #[test]
    fn invisible_text_is_blank() {
        assert!(is_blank(" \u{200b}\u{0}\n\u{2800}"));
        assert!(!is_blank("."));
    }
}
