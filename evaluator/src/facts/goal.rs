//! Whether a goal says anything: at least two words, and more than a vague phrase with hardly anything beside it.
//!
//! Owns the counting of words and letters in scripts with and without spaces. Which phrases are vague is the
//! vocabulary's; the first edition knows neither parts of identifiers nor the length of a word.

use stage0_contract::{parts, plain, visible};

use crate::pack::{Edition, Vocabulary};

/// Words that may stand beside a vague phrase before the goal counts as told.
const MOST_BESIDE: usize = 2;
/// Letters that may stand beside a vague phrase of a script without spaces, or of Hangul.
const MOST_LETTERS_BESIDE: usize = 2;
/// A single word of so many letters says enough: languages that join words write whole sentences so.
const LONG_WORD: usize = 16;
/// A syllable of Hangul is one character of two or three letters.
const LETTERS_OF_A_SYLLABLE: usize = 3;

/// One word or less, or a vague phrase with hardly anything beside it.
pub(crate) fn is_vague(goal: &str, vocabulary: &Vocabulary) -> bool {
    let shown = visible(goal);
    match vocabulary.edition() {
        Edition::First => {
            let words = Words::count(&shown);
            (words.unspaced == 0 && words.spaced <= 1) || phrases(&shown, vocabulary, is_unspaced).any_words()
        }
        Edition::Second => is_one_word(goal, &shown) || phrases(&shown, vocabulary, is_dense).says_nothing(),
    }
}

/// Whether it is one word that is not long, or none. Identifiers and paths are read by their parts.
fn is_one_word(goal: &str, shown: &str) -> bool {
    if shown.chars().any(is_unspaced) {
        return false;
    }
    let plain = plain(goal);
    let (mut words, mut letters) = (0, 0);
    for token in plain.split_whitespace() {
        words += words_of(token);
        letters += token.chars().map(letters_of).sum::<usize>();
    }
    words == 0 || (words == 1 && letters < LONG_WORD)
}

/// The words that one token holds: its parts of more than one letter, and at least one where it says anything.
fn words_of(token: &str) -> usize {
    let long = |part: &str| part.chars().filter(|c| c.is_alphabetic()).nth(1).is_some();
    let words = if token.is_ascii() {
        // An apostrophe joins: `don't` is one word.
        parts(&token.replace('\'', "")).iter().filter(|part| long(part)).count()
    } else {
        token.split(|c: char| !c.is_alphanumeric() && !is_mark(c)).filter(|part| long(part)).count()
    };
    words.max(usize::from(token.chars().any(char::is_alphanumeric)))
}

fn letters_of(c: char) -> usize {
    match c {
        _ if !c.is_alphabetic() => 0,
        _ if is_hangul(c) => LETTERS_OF_A_SYLLABLE,
        _ => 1,
    }
}

/// What a goal holds beside the vague phrases in it.
struct Phrases {
    /// One of a script with spaces was found.
    spaced: bool,
    /// One of a script without was found.
    dense: bool,
    rest: String,
}

/// Takes every vague phrase out of a goal. `dense` tells the letters of phrases that stand anywhere, and not only
/// between spaces.
fn phrases(goal: &str, vocabulary: &Vocabulary, dense: fn(char) -> bool) -> Phrases {
    let mut phrases = Phrases { spaced: false, dense: false, rest: spaced(goal) };
    for phrase in vocabulary.vague_phrases() {
        let anywhere = phrase.chars().any(dense);
        if let Some(without) = without(&phrases.rest, phrase, anywhere) {
            phrases.spaced |= !anywhere;
            phrases.dense |= anywhere;
            phrases.rest = without;
        }
    }
    phrases
}

impl Phrases {
    /// As the first edition counts: by words, whatever the script.
    fn any_words(&self) -> bool {
        (self.spaced || self.dense) && Words::count(&self.rest).total() <= MOST_BESIDE
    }

    fn says_nothing(&self) -> bool {
        let few_letters = || self.rest.chars().filter(|c| c.is_alphabetic()).nth(MOST_LETTERS_BESIDE).is_none();
        (self.spaced && self.any_words()) || (self.dense && few_letters())
    }
}

/// The words with one space between them, so that punctuation and white space hide no phrase.
fn spaced(goal: &str) -> String {
    let words = goal.split(|c: char| !c.is_alphanumeric() && !is_mark(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Vowel signs and accents that belong to the letter before them.
fn is_mark(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{e31}'..='\u{e3a}' | '\u{e47}'..='\u{e4e}' | '\u{900}'..='\u{dff}' | '\'' | '’')
}

/// The text with a blank wherever the phrase stands: anywhere, or only between word boundaries. Nothing where it does not
/// stand at all.
fn without(text: &str, phrase: &str, anywhere: bool) -> Option<String> {
    let mut places = text.match_indices(phrase).map(|(at, _)| at).filter(|&at| {
        let before = text.get(..at).and_then(|t| t.chars().next_back());
        let after = text.get(at + phrase.len()..).and_then(|t| t.chars().next());
        anywhere || ![before, after].into_iter().flatten().any(char::is_alphanumeric)
    });
    let first = places.next()?;
    let (mut rest, mut kept) = (String::with_capacity(text.len()), 0);
    for at in std::iter::once(first).chain(places) {
        rest.push_str(text.get(kept..at).unwrap_or_default());
        rest.push(' ');
        kept = at + phrase.len();
    }
    rest.push_str(text.get(kept..).unwrap_or_default());
    Some(rest)
}

/// Words with spaces between them, and characters of scripts without.
struct Words {
    spaced: usize,
    unspaced: usize,
}

impl Words {
    fn count(text: &str) -> Self {
        let mut words = Self { spaced: 0, unspaced: 0 };
        for token in text.split_whitespace() {
            words.unspaced += token.chars().filter(|c| is_unspaced(*c)).count();
            words.spaced += usize::from(token.chars().any(|c| c.is_alphanumeric() && !is_unspaced(c)));
        }
        words
    }

    /// Two characters of a script without spaces are about one word.
    fn total(&self) -> usize {
        self.spaced + self.unspaced.div_ceil(2)
    }
}

/// Letters of scripts that are written without spaces: Han, Kana, Thai, Lao, Burmese, Khmer.
fn is_unspaced(c: char) -> bool {
    c.is_alphabetic()
        && matches!(c,
            '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3005}'..='\u{3007}'
            | '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
            | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

/// Syllables of Hangul: written with spaces, but endings grow onto every word.
fn is_hangul(c: char) -> bool {
    matches!(c, '\u{ac00}'..='\u{d7a3}')
}

/// Letters of which one says as much as a syllable or a word.
fn is_dense(c: char) -> bool {
    is_unspaced(c) || is_hangul(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::{Files, Pack};

    fn vague(goal: &str) -> bool {
        is_vague(goal, Pack::embedded().unwrap().vocabulary())
    }

    #[test]
    fn a_goal_of_one_word_or_of_a_vague_phrase_is_vague() {
        for goal in [
            "deploy",
            "??? 🚀",
            "help",
            "Bash",
            "don't",
            "deploy2",
            "v-2",
            "нужно",
            "नमस्ते",
            "번역해줘",
            "help me think",
            "Help me  THINK about it",
            "help_me_think",
            "please help me think now",
            "幫我想一下",
            "幫我 想一下",
            "ＨＥＬＰ me think",
            "he\u{200b}lp me think",
            "帮我看",
            "도와줘",
            "도와줘요",
            "좀 도와줘",
            "よろしく",
            "help me\t think",
            "help, me - think",
            "help me think help me think, any ideas any ideas",
            "想想想想想 想一下幫我幫我",
        ] {
            assert!(vague(goal), "{goal}");
        }
    }

    #[test]
    fn a_goal_that_says_what_is_wanted_is_not() {
        for goal in [
            "Retry workflow",
            "help me think about the pricing of our new plan",
            "総合的な売上報告書を要約する",
            "總結報告",
            "幫我總結上週的銷售報告",
            "unhelp me thinking caps",
            "สรุปรายงานการขาย",
            "帮我查天气",
            "帮我改段代码",
            "帮我重启nginx",
            "議事録要約よろしく",
            "계약서 번역 도와줘",
            "보고서요약해줘",
            "Quartalsberichtszusammenfassung",
            "summarize_quarterly_report",
            "summarizeReport",
            "reports.summarize.q3",
            "src/billing/invoice.py",
            "read-only-export",
            "résumé_trimestriel",
        ] {
            assert!(!vague(goal), "{goal}");
        }
    }

    #[test]
    fn one_word_is_short_below_sixteen_letters() {
        assert!(vague("abcdefghijklmno") && vague("abcdefghijklmno2026!!"));
        assert!(!vague("abcdefghijklmnop") && !vague("äbcdefghijklmnöp"));
    }

    #[test]
    fn the_first_edition_reads_neither_parts_nor_letters() {
        let pack = Pack::load(&Files::first_edition()).unwrap();
        for goal in
            ["summarize_quarterly_report", "Quartalsberichtszusammenfassung", "계약서 번역 도와줘", "帮我查天气"]
        {
            assert!(is_vague(goal, pack.vocabulary()) && !vague(goal), "{goal}");
        }
        assert!(!is_vague("Retry workflow", pack.vocabulary()));
    }
}
