//! Side effects as the first edition reads them: a word is known whole or not at all.
//!
//! The reading for packs of that edition does not change: the name before a colon is classified, every known word after
//! it counts too, and a word that the vocabulary does not know counts as high.

use stage0_contract::Word;

use super::{Effects, Reading};
use crate::vocabulary::{Class, FirstWords};

pub(super) fn read(side_effects: &[String], words: &FirstWords) -> Effects {
    let any = !side_effects.is_empty();
    let mut effects = Effects { any, scoped: any, ..Effects::default() };
    for raw in side_effects {
        let mut reading = Reading::default();
        effects.add_item(raw, words, &mut reading);
        effects.readings.push(reading);
    }
    effects
}

impl Effects {
    fn add_item(&mut self, raw: &str, words: &FirstWords, reading: &mut Reading) {
        let whole = Word::new(raw);
        if whole.known().is_none() {
            self.add_unknown(reading);
            return;
        }
        let (name, value) = whole.as_str().split_once(':').unwrap_or((whole.as_str(), ""));
        if !self.add_word(&Word::name(name), words, reading) {
            self.add_unknown(reading);
        }
        for piece in value.split([',', ';', ':', '/', '|']).filter(|p| !p.is_empty()) {
            let piece = Word::name(piece);
            self.add_word(&piece, words, reading);
            for part in piece.as_str().split(|c: char| !c.is_alphanumeric()) {
                self.add_word(&Word::name(part), words, reading);
            }
        }
    }

    fn add_unknown(&mut self, reading: &mut Reading) {
        self.high = true;
        self.unknown = true;
        reading.class = Class::High;
        reading.unknown = true;
    }

    fn add_word(&mut self, word: &Word, words: &FirstWords, reading: &mut Reading) -> bool {
        let Some((text, class)) = word.known().and_then(|text| Some((text, *words.classes.get(text)?))) else {
            return false;
        };
        self.add_class(class);
        reading.class = reading.class.max(class);
        self.impact |= words.impact.contains(text);
        self.customer_visible |= words.customer_visible.contains(text);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Pack;

    fn read(effect: &str) -> Effects {
        Effects::read(&[effect.to_owned()], &Pack::first_edition().vocabulary)
    }

    #[test]
    fn an_unknown_word_counts_as_high_in_the_first_edition() {
        for word in ["teleport", "d\u{435}ploy", "wr\u{456}te", "writes", "🚀", "none", "\u{200b}x"] {
            let effects = read(word);
            assert!(effects.high && effects.unknown, "{word:?}");
        }
        assert!(!read("write").high);
    }

    #[test]
    fn the_spelling_of_a_side_effect_does_not_change_its_class() {
        for word in ["External-Notification", "ｅxternal notification", "external\u{200b}_notification"] {
            let effects = read(word);
            assert!(effects.communication && effects.customer_visible && !effects.high, "{word:?}");
        }
    }

    #[test]
    fn words_of_a_side_effect_after_a_colon_count_too() {
        assert!(read("write: production").high);
        assert!(read("write: a, money movement").high);
        assert!(read("notification: then publish it").high);
        let effects = read("write: disk");
        assert!(effects.medium && !effects.high && !effects.unknown);
        assert!(read("teleport: write").high);
    }

    #[test]
    fn a_request_without_side_effects_has_no_class() {
        let effects = Effects::read(&[], &Pack::first_edition().vocabulary);
        assert!(!effects.any && !effects.high && !effects.unknown);
    }
}
