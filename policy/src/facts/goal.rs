//! Whether a goal is vague: a single word, or a vague phrase with hardly any other words.
//!
//! The first edition knows neither parts of identifiers nor the length of a word.

use stage0_contract::{parts, plain, visible};

use crate::vocabulary::{Edition, Vocabulary};

/// With more words than this besides its vague phrases, a goal is not vague.
const MAX_OTHER_WORDS: usize = 2;
/// The same for the letters of a script without spaces, or of Hangul.
const MAX_OTHER_LETTERS: usize = 2;
/// A single word of this many letters is not vague: some languages join whole sentences into one word.
const LONG_WORD_LETTERS: usize = 16;
/// A syllable of Hangul is one character for two or three letters.
const LETTERS_PER_SYLLABLE: usize = 3;

pub(crate) fn is_vague(goal: &str, vocabulary: &Vocabulary) -> bool {
    let shown = visible(goal);
    match vocabulary.edition() {
        Edition::First => {
            let words = Words::count(&shown);
            (words.unspaced == 0 && words.spaced <= 1)
                || VaguePhrases::of(&shown, vocabulary, is_unspaced).leave_few_words()
        }
        Edition::Second => is_one_word(goal, &shown) || VaguePhrases::of(&shown, vocabulary, is_dense).leave_little(),
    }
}

/// Whether the goal has at most one word, and not a long one. Identifiers and paths are split into their parts.
fn is_one_word(goal: &str, shown: &str) -> bool {
    if shown.chars().any(is_unspaced) {
        return false;
    }
    let plain = plain(goal);
    let mut words = 0;
    let mut letters = 0;
    for token in plain.split_whitespace() {
        words += words_of(token);
        letters += token.chars().map(letters_of).sum::<usize>();
    }
    words == 0 || (words == 1 && letters < LONG_WORD_LETTERS)
}

/// The number of words in one token: its parts of more than one letter, and at least 1 if it has a letter or digit.
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
        _ if is_hangul(c) => LETTERS_PER_SYLLABLE,
        _ => 1,
    }
}

struct VaguePhrases {
    /// A phrase of a script with spaces was found, or one of a dense script.
    spaced: bool,
    dense: bool,
    /// The goal without them.
    rest: String,
}

impl VaguePhrases {
    /// Phrases with letters that `is_dense` selects are found anywhere, other phrases only between word boundaries.
    fn of(goal: &str, vocabulary: &Vocabulary, is_dense: fn(char) -> bool) -> Self {
        let mut phrases = Self { spaced: false, dense: false, rest: spaced(goal) };
        if !vocabulary.vague_phrases.may_occur_in(&phrases.rest) {
            return phrases;
        }
        for phrase in vocabulary.vague_phrases.iter() {
            let anywhere = phrase.chars().any(is_dense);
            if let Some(without) = without(&phrases.rest, phrase, anywhere) {
                phrases.spaced |= !anywhere;
                phrases.dense |= anywhere;
                phrases.rest = without;
            }
        }
        phrases
    }

    fn leave_few_words(&self) -> bool {
        (self.spaced || self.dense) && Words::count(&self.rest).total() <= MAX_OTHER_WORDS
    }

    fn leave_little(&self) -> bool {
        let few_letters = || self.rest.chars().filter(|c| c.is_alphabetic()).nth(MAX_OTHER_LETTERS).is_none();
        (self.spaced && self.leave_few_words()) || (self.dense && few_letters())
    }
}

/// The words separated by single spaces, so that punctuation and white space hide no phrase.
fn spaced(goal: &str) -> String {
    let words = goal.split(|c: char| !c.is_alphanumeric() && !is_mark(c)).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

/// Vowel signs and accents that belong to the letter before them.
fn is_mark(c: char) -> bool {
    matches!(c,
        '\u{300}'..='\u{36f}' | '\u{e31}'..='\u{e3a}' | '\u{e47}'..='\u{e4e}' | '\u{900}'..='\u{dff}' | '\'' | '’')
}

/// The text with each occurrence of the phrase replaced by a space; `None` if there is none.
fn without(text: &str, phrase: &str, anywhere: bool) -> Option<String> {
    let mut places = text.match_indices(phrase).map(|(at, _)| at).filter(|&at| {
        let before = text.get(..at).and_then(|t| t.chars().next_back());
        let after = text.get(at + phrase.len()..).and_then(|t| t.chars().next());
        anywhere || ![before, after].into_iter().flatten().any(char::is_alphanumeric)
    });
    let first = places.next()?;
    let mut rest = String::with_capacity(text.len());
    let mut kept = 0;
    for at in std::iter::once(first).chain(places) {
        rest.push_str(text.get(kept..at).unwrap_or_default());
        rest.push(' ');
        kept = at + phrase.len();
    }
    rest.push_str(text.get(kept..).unwrap_or_default());
    Some(rest)
}

/// Counts of words in scripts with spaces, and of characters in scripts without.
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

    /// The number of words: two characters of a script without spaces are about one.
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

/// Syllables of Hangul, which is written with spaces but attaches endings to every word.
fn is_hangul(c: char) -> bool {
    matches!(c, '\u{ac00}'..='\u{d7a3}')
}

/// Characters that stand for a whole syllable or word.
fn is_dense(c: char) -> bool {
    is_unspaced(c) || is_hangul(c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;
    use crate::pack::Pack;

    fn vague(goal: &str) -> bool {
        is_vague(goal, &Pack::embedded().unwrap().vocabulary)
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
    fn a_goal_that_says_what_is_wanted_is_not_vague() {
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
    fn a_goal_of_one_word_is_vague_below_sixteen_letters() {
        assert!(vague("abcdefghijklmno") && vague("abcdefghijklmno2026!!"));
        assert!(!vague("abcdefghijklmnop") && !vague("äbcdefghijklmnöp"));
    }

    #[test]
    fn the_first_edition_judges_goals_by_whole_words_only() {
        let pack = Pack::load(&Files::first_edition()).unwrap();
        for goal in
            ["summarize_quarterly_report", "Quartalsberichtszusammenfassung", "계약서 번역 도와줘", "帮我查天气"]
        {
            assert!(is_vague(goal, &pack.vocabulary) && !vague(goal), "{goal}");
        }
        assert!(!is_vague("Retry workflow", &pack.vocabulary));
    }
}
