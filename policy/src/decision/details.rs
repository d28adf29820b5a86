//! The `details` of an issue: the facts that its rule shows.
//!
//! They are recorded with the decision, so their size is bounded.
//! INVARIANT: where the request holds a secret, no detail holds a word of the request; and no detail shows a secret
//! that is one only in the form of a fact, such as a decoded target.

use serde_json::{Map, Value};

use crate::facts::{Attribute, FactValue, Facts};
use crate::rule::{Detail, Rule};
use crate::secrets::{Detector, REDACTED, mask};

/// The most items of a list that are shown.
const MAX_ITEMS: usize = 20;
/// The most characters of a text that are shown.
const MAX_CHARS: usize = 128;

pub(super) fn details(rule: &Rule, facts: &Facts, detector: &Detector) -> Map<String, Value> {
    let shown = |attribute: Attribute, value| shown(attribute, value, facts, detector);
    let mut details = Map::new();
    for detail in &rule.details {
        match detail {
            Detail::Attribute(attribute) => {
                if let Some(value) = attribute.value(facts) {
                    details.insert(attribute.name().to_owned(), shown(*attribute, value));
                }
            }
            Detail::Member(attribute, member) => {
                if let Some(value) = attribute.value(facts).and_then(|record| record.member(member)) {
                    details.insert(format!("{}.{member}", attribute.name()), shown(*attribute, value));
                }
            }
            Detail::NextOpening => {
                details.insert("next_opening".to_owned(), facts.next_opening.clone().into());
            }
            Detail::Secrets => {
                let secrets = facts.secrets.iter().map(|s| serde_json::json!({"kind": s.kind, "path": s.path}));
                details.insert("secrets".to_owned(), secrets.collect());
            }
        }
    }
    if !rule.fields.is_empty() {
        details.insert("fields".to_owned(), rule.fields.clone().into());
    }
    details
}

fn shown(attribute: Attribute, value: FactValue, facts: &Facts, detector: &Detector) -> Value {
    match attribute.holds_words() {
        true if !facts.secrets.is_empty() => REDACTED.into(),
        true => cut(value, Some(detector)).into(),
        false => cut(value, None).into(),
    }
}

/// The value in a size that an answer can carry, and without the secrets that the detector finds.
fn cut(value: FactValue, detector: Option<&Detector>) -> FactValue {
    let text = |text: String| {
        // Of a secret that is cut a part would show.
        let text = detector.map(|detector| mask(&text, detector)).unwrap_or(text);
        match text.char_indices().nth(MAX_CHARS) {
            Some((end, _)) => text.get(..end).unwrap_or_default().to_owned(),
            None => text,
        }
    };
    match value {
        FactValue::Text(value) => FactValue::Text(text(value)),
        FactValue::Set(values) => FactValue::Set(values.into_iter().take(MAX_ITEMS).map(text).collect()),
        FactValue::Record(members) => {
            FactValue::Record(members.into_iter().map(|(name, value)| (name, cut(value, detector))).collect())
        }
        other => other,
    }
}
