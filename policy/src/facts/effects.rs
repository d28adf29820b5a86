//! Side effects: the risk classes of the declared ones, and which of them the pack does not know.
//!
//! Sums up the items of a request; `classify` finds the class of one text, and `first` does so for packs of the first
//! edition. An unknown effect counts as high, because it may be irreversible. Similar known words are searched for the
//! first few unknown words only.

mod classify;
mod first;

use super::Culprit;
use super::culprit::MAX_CULPRITS;
use crate::vocabulary::{Class, EffectWords, Vocabulary};

pub(crate) use classify::{Source, classify};

/// The most similar known words that are suggested for an unknown one.
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

/// How one declared side effect is read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// The item's index in `side_effects`.
    pub(crate) index: usize,
    pub(crate) class: Class,
    /// Unknown, so that it counts as high.
    pub(crate) unknown: bool,
    /// Its unknown parts, where the answer reports them.
    pub(crate) unknown_parts: Vec<String>,
    /// Known words similar to the unknown ones.
    pub(crate) near: Vec<String>,
    pub(crate) writes: bool,
    pub(crate) impact: bool,
    pub(crate) customer_visible: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            index: 0,
            class: Class::None,
            unknown: false,
            unknown_parts: Vec::new(),
            near: Vec::new(),
            writes: false,
            impact: false,
            customer_visible: false,
        }
    }
}

impl Effects {
    pub(crate) fn read(side_effects: &[String], vocabulary: &Vocabulary) -> Self {
        match vocabulary.effects() {
            None => first::read(side_effects, vocabulary),
            Some(words) => Self::read_by_parts(side_effects, words),
        }
    }

    fn read_by_parts(side_effects: &[String], words: &EffectWords) -> Self {
        let mut effects = Self { readings: Vec::with_capacity(side_effects.len()), ..Self::default() };
        let mut suggested = 0;
        for (index, raw) in side_effects.iter().enumerate() {
            let classified = classify(raw, words, Source::Effect);
            effects.add_class(classified.class);
            effects.any |= classified.class > Class::None;
            effects.scoped |= !classified.nothing;
            effects.impact |= classified.impact;
            effects.customer_visible |= classified.customer_visible;
            effects.unknown |= classified.unknown;
            effects.unknown_part |= !classified.unknown && !classified.unknown_parts.is_empty();
            effects.writes |= classified.writes;
            let mut reading = Reading {
                index,
                class: classified.class,
                unknown: classified.unknown,
                unknown_parts: classified.unknown_parts,
                near: Vec::new(),
                writes: classified.writes,
                impact: classified.impact,
                customer_visible: classified.customer_visible,
            };
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

    /// The classes for the decision record, sorted, each once.
    pub(crate) fn classes(&self) -> Vec<&'static str> {
        let mut classes: Vec<&'static str> = self.readings.iter().map(|reading| reading.class.as_str()).collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }

    /// The first items that `is_wanted` selects, as the request words them.
    pub(crate) fn culprits(&self, side_effects: &[String], is_wanted: impl Fn(&Reading) -> bool) -> Vec<Culprit> {
        let wanted = self.readings.iter().filter(|reading| is_wanted(reading)).take(MAX_CULPRITS);
        wanted
            .filter_map(|reading| Some(Culprit::item("side_effects", reading.index, side_effects.get(reading.index)?)))
            .collect()
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
