//! Whether a goal says anything: at least two words, and more than a vague phrase with hardly anything beside it.
//!
//! Owns the counting of words in scripts with and without spaces. Which phrases are vague is the vocabulary's.

use stage0_contract::visible;

use crate::pack::Vocabulary;

/// Words that may stand beside a vague phrase before the goal counts as told.
const MOST_BESIDE: usize = 2;

/// One word or less, or a vague phrase with at most two others.
pub(crate) fn is_vague(goal: &str, vocabulary: &Vocabulary) -> bool {
    let goal = visible(goal);
    let words = Words::count(&goal);
    if words.unspaced == 0 && words.spaced <= 1 {
        return true;
    }
    let mut rest = spaced(&goal);
    let mut found = false;
    for phrase in vocabulary.vague_phrases() {
        if let Some(without) = without(&rest, phrase) {
            found = true;
            rest = without;
        }
    }
    found && Words::count(&rest).total() <= MOST_BESIDE
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

/// The text with a blank wherever the phrase stands: anywhere in a script without spaces, else between word boundaries.
/// Nothing where it does not stand at all.
fn without(text: &str, phrase: &str) -> Option<String> {
    let bounded = !phrase.chars().any(is_unspaced);
    let mut places = text.match_indices(phrase).map(|(at, _)| at).filter(|&at| {
        let before = text.get(..at).and_then(|t| t.chars().next_back());
        let after = text.get(at + phrase.len()..).and_then(|t| t.chars().next());
        !bounded || ![before, after].into_iter().flatten().any(char::is_alphanumeric)
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

/// Letters of scripts that are written without spaces: Han, Kana, Thai, Lao, Myanmar, Khmer.
fn is_unspaced(c: char) -> bool {
    c.is_alphabetic()
        && matches!(c,
            '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3005}'..='\u{3007}'
            | '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
            | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Pack;

    fn vague(goal: &str) -> bool {
        is_vague(goal, Pack::embedded().unwrap().vocabulary())
    }

    #[test]
    fn a_goal_of_one_word_or_of_a_vague_phrase_is_vague() {
        for goal in [
            "deploy",
            "??? 🚀",
            "help",
            "help me think",
            "Help me  THINK about it",
            "please help me think now",
            "幫我想一下",
            "幫我 想一下",
            "ＨＥＬＰ me think",
            "he\u{200b}lp me think",
            "ops: 幫我",
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
        ] {
            assert!(!vague(goal), "{goal}");
        }
    }
}
