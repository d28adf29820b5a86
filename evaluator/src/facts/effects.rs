//! Side effects: which risk classes the declared ones fall in, and what of them is not known.
//!
//! Owns the sum over a request's items; how one text gets its class is `judge`'s, and `first`'s for packs of the first
//! edition. What is not known counts as high: unknown means irreversible. Near words are looked for only where a word
//! is not known, and only for the first few.

mod first;
mod judge;

use super::Culprit;
use super::culprit::MAX_CULPRITS;
use crate::pack::{Class, EffectWords, Vocabulary};

pub(crate) use judge::{As, judge};

/// Most near words of one that is not known.
const MAX_NEAR: usize = 3;

/// Which classes the declared side effects fall in.
#[derive(Debug, Default, Clone)]
pub(crate) struct Effects {
    /// One is above none: approvals and guardrails matter.
    pub(crate) any: bool,
    /// One is declared that is more than a word for nothing: scopes matter.
    pub(crate) scoped: bool,
    pub(crate) high: bool,
    pub(crate) communication: bool,
    pub(crate) medium: bool,
    pub(crate) looping: bool,
    pub(crate) approval: bool,
    pub(crate) impact: bool,
    pub(crate) customer_visible: bool,
    /// One is not known and counts as high.
    pub(crate) unknown: bool,
    /// One has a known class beside a part that is not known.
    pub(crate) unknown_part: bool,
    /// One is what `read_only` and `dry_run` rule out.
    pub(crate) writes: bool,
    /// One for each item, in their order.
    pub(crate) readings: Vec<Reading>,
}

/// How one declared side effect is read.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    /// In `side_effects`.
    pub(crate) index: usize,
    pub(crate) class: Class,
    /// It is not known and counts as high.
    pub(crate) unknown: bool,
    /// Its parts that no list knows, where they are to be told.
    pub(crate) unknown_parts: Vec<String>,
    /// Known words near to what is not known.
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
            Some(words) => Self::by_parts(side_effects, words),
        }
    }

    fn by_parts(side_effects: &[String], words: &EffectWords) -> Self {
        let mut effects = Self { readings: Vec::with_capacity(side_effects.len()), ..Self::default() };
        let mut named = 0;
        for (index, raw) in side_effects.iter().enumerate() {
            let judged = judge(raw, words, As::Effect);
            effects.add_class(judged.class);
            effects.any |= judged.class > Class::None;
            effects.scoped |= !judged.nothing;
            effects.impact |= judged.impact;
            effects.customer_visible |= judged.customer_visible;
            effects.unknown |= judged.unknown;
            effects.unknown_part |= !judged.unknown && !judged.unknown_parts.is_empty();
            effects.writes |= judged.writes;
            let mut reading = Reading {
                index,
                class: judged.class,
                unknown: judged.unknown,
                unknown_parts: judged.unknown_parts,
                near: Vec::new(),
                writes: judged.writes,
                impact: judged.impact,
                customer_visible: judged.customer_visible,
            };
            if (reading.unknown || !reading.unknown_parts.is_empty()) && named < MAX_CULPRITS {
                named += 1;
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

    /// The classes of the declared side effects, sorted, each once: what a record keeps of them.
    pub(crate) fn classes(&self) -> Vec<&'static str> {
        let mut classes: Vec<&'static str> = self.readings.iter().map(|reading| reading.class.as_str()).collect();
        classes.sort_unstable();
        classes.dedup();
        classes
    }

    /// The first items that are so, as the request words them.
    pub(crate) fn culprits(&self, side_effects: &[String], is_so: impl Fn(&Reading) -> bool) -> Vec<Culprit> {
        let told = self.readings.iter().filter(|reading| is_so(reading)).take(MAX_CULPRITS);
        told.filter_map(|reading| Some(Culprit::item("side_effects", reading.index, side_effects.get(reading.index)?)))
            .collect()
    }
}

/// Known words near to the whole text, or to the first of its unknown parts that has such.
fn near(raw: &str, unknown_parts: &[String], words: &EffectWords) -> Vec<String> {
    let whole = stage0_contract::Word::name(raw);
    let tried = std::iter::once(whole.as_str()).chain(unknown_parts.iter().map(String::as_str)).take(MAX_NEAR + 1);
    tried.map(|word| words.nearest(word, MAX_NEAR)).find(|near| !near.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
