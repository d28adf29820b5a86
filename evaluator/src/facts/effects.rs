//! Side effects and their risk classes.
//!
//! Owns the reading of one side effect: the name before a colon is classified, and every word after it that the vocabulary
//! knows counts too. What the vocabulary does not know counts as high: unknown means irreversible.

use stage0_contract::Word;

use crate::pack::{Class, Vocabulary};

/// Which classes the declared side effects fall in.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Effects {
    pub(crate) any: bool,
    pub(crate) high: bool,
    pub(crate) communication: bool,
    pub(crate) medium: bool,
    pub(crate) looping: bool,
    pub(crate) approval: bool,
    pub(crate) impact: bool,
    pub(crate) customer_visible: bool,
    pub(crate) unknown: bool,
}

impl Effects {
    pub(crate) fn read(side_effects: &[String], vocabulary: &Vocabulary) -> Self {
        let mut effects = Self { any: !side_effects.is_empty(), ..Self::default() };
        for raw in side_effects {
            let whole = Word::new(raw);
            if whole.known().is_none() {
                effects.unknown();
                continue;
            }
            let (name, value) = whole.as_str().split_once(':').unwrap_or((whole.as_str(), ""));
            if !effects.add(&Word::name(name), vocabulary) {
                effects.unknown();
            }
            for piece in value.split([',', ';', ':', '/', '|']).filter(|p| !p.is_empty()) {
                let piece = Word::name(piece);
                effects.add(&piece, vocabulary);
                for part in piece.as_str().split(|c: char| !c.is_alphanumeric()) {
                    effects.add(&Word::name(part), vocabulary);
                }
            }
        }
        effects
    }

    fn unknown(&mut self) {
        self.high = true;
        self.unknown = true;
    }

    fn add(&mut self, word: &Word, vocabulary: &Vocabulary) -> bool {
        let Some((text, class)) = word.known().and_then(|text| Some((text, vocabulary.class(text)?))) else {
            return false;
        };
        match class {
            Class::High => self.high = true,
            Class::Communication => self.communication = true,
            Class::Medium => self.medium = true,
            Class::Loop => self.looping = true,
            Class::Approval => self.approval = true,
        }
        self.impact |= vocabulary.has_impact(text);
        self.customer_visible |= vocabulary.is_customer_visible(text);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Pack;

    fn read(effect: &str) -> Effects {
        Effects::read(&[effect.to_owned()], Pack::embedded().unwrap().vocabulary())
    }

    #[test]
    fn a_word_that_is_not_known_counts_as_high() {
        for word in ["teleport", "d\u{435}ploy", "wr\u{456}te", "writes", "🚀", "none", "\u{200b}x"] {
            let effects = read(word);
            assert!(effects.high && effects.unknown, "{word:?}");
        }
        assert!(!read("write").high);
    }

    #[test]
    fn spellings_do_not_change_the_class() {
        for word in ["External-Notification", "ｅxternal notification", "external\u{200b}_notification"] {
            let effects = read(word);
            assert!(effects.communication && effects.customer_visible && !effects.high, "{word:?}");
        }
    }

    #[test]
    fn words_after_a_colon_count_too() {
        assert!(read("write: production").high);
        assert!(read("write: a, money movement").high);
        assert!(read("notification: then publish it").high);
        let effects = read("write: disk");
        assert!(effects.medium && !effects.high && !effects.unknown);
        assert!(read("teleport: write").high);
    }

    #[test]
    fn no_side_effect_has_no_class() {
        let effects = Effects::read(&[], Pack::embedded().unwrap().vocabulary());
        assert!(!effects.any && !effects.high && !effects.unknown);
    }
}
