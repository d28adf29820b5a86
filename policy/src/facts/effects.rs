//! Side effects: the risk classes of the declared ones, and which of them the pack does not know.
//!
//! An unknown effect counts as high, because it may be irreversible. Similar known words are searched for the first few
//! unknown words only.

mod classify;
mod first;

use super::Culprit;
use super::culprit::MAX_CULPRITS;
use crate::vocabulary::{Class, EditionWords, EffectWords, Vocabulary};

pub(crate) use classify::{Reading, Source, classify};

const MAX_NEAR: usize = 3;

/// The classes of the declared side effects. A Boolean is true if it is true of at least one of them.
#[derive(Debug, Default, Clone)]
pub(crate) struct Effects {
    /// Above class none, so that approvals and guardrails matter.
    pub(crate) any: bool,
    /// More than a word for no effect, so that scopes matter.
    pub(crate) scoped: bool,
    pub(crate) high: bool,
    pub(crate) communication: bool,
    pub(crate) medium: bool,
    pub(crate) looping: bool,
    pub(crate) approval: bool,
    pub(crate) impact: bool,
    pub(crate) customer_visible: bool,
    /// Unknown, so that it counts as high.
    pub(crate) unknown: bool,
    /// Of a known class, with a part that is unknown.
    pub(crate) unknown_part: bool,
    /// Ruled out by `read_only` and `dry_run`.
    pub(crate) writes: bool,
    /// One for each item, in order.
    pub(crate) readings: Vec<Reading>,
}

impl Effects {
    pub(crate) fn read(side_effects: &[String], vocabulary: &Vocabulary) -> Self {
        match &vocabulary.words {
            EditionWords::First(words) => first::read(side_effects, words),
            EditionWords::Second(words, _) => Self::read_by_parts(side_effects, words),
        }
    }

    fn read_by_parts(side_effects: &[String], words: &EffectWords) -> Self {
        let mut effects = Self { readings: Vec::with_capacity(side_effects.len()), ..Self::default() };
        let mut suggested = 0;
        for raw in side_effects {
            let mut reading = classify(raw, words, Source::Effect);
            effects.add_class(reading.class);
            effects.any |= reading.class > Class::None;
            effects.scoped |= !reading.nothing;
            effects.impact |= reading.impact;
            effects.customer_visible |= reading.customer_visible;
            effects.unknown |= reading.unknown;
            effects.unknown_part |= !reading.unknown && !reading.unknown_parts.is_empty();
            effects.writes |= reading.writes;
            if (reading.unknown || !reading.unknown_parts.is_empty()) && suggested < MAX_CULPRITS {
                suggested += 1;
                reading.near = near(raw, &reading.unknown_parts, words);
            }
            effects.readings.push(reading);
        }
        effects
    }

    fn add_class(&mut self, class: Class) {
        match class {
            Class::High => self.high = true,
            Class::Communication => self.communication = true,
            Class::Medium => self.medium = true,
            Class::Loop => self.looping = true,
            Class::Approval => self.approval = true,
            Class::None => {}
        }
    }

    /// Sorted, each once.
    pub(crate) fn classes(&self) -> Vec<&'static str> {
        let mut classes: Vec<&'static str> = self.readings.iter().map(|reading| reading.class.as_str()).collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }

    /// Classes above none, sorted.
    pub(crate) fn above_none(&self) -> Vec<&'static str> {
        let classes = [
            (self.approval, Class::Approval),
            (self.communication, Class::Communication),
            (self.high, Class::High),
            (self.looping, Class::Loop),
            (self.medium, Class::Medium),
        ];
        classes.into_iter().filter(|(declared, _)| *declared).map(|(_, class)| class.as_str()).collect()
    }

    pub(crate) fn culprits(&self, side_effects: &[String], is_wanted: impl Fn(&Reading) -> bool) -> Vec<Culprit> {
        let wanted = self.readings.iter().zip(side_effects).enumerate().filter(|(_, (reading, _))| is_wanted(reading));
        wanted.take(MAX_CULPRITS).map(|(index, (_, raw))| Culprit::item("side_effects", index, raw)).collect()
    }
}

/// Known words similar to the whole text, or else to the first of its unknown parts that has any.
fn near(raw: &str, unknown_parts: &[String], words: &EffectWords) -> Vec<String> {
    let whole = stage0_contract::Word::name(raw);
    let tried = std::iter::once(whole.as_str()).chain(unknown_parts.iter().map(String::as_str)).take(MAX_NEAR + 1);
    tried.map(|word| words.nearest(word, MAX_NEAR)).find(|near| !near.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
