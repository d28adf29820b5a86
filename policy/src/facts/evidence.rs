//! Evidence: the typed reading of `context`. A member is absent (missing, null, blank), usable, or malformed.
//!
//! A member of the wrong type or range is malformed and remembered by name; rules decide what
//! follows from that.

use serde_json::{Map, Number, Value};
use stage0_contract::{Micros, Word, is_blank};

const COUNTERS: [&str; 5] =
    ["current_iteration", "retry_count", "elapsed_seconds", "cumulative_cost_usd", "recent_tools"];

pub(crate) struct Evidence<'a> {
    context: Option<&'a Map<String, Value>>,
    loop_state: Option<&'a Map<String, Value>>,
    malformed: Vec<&'static str>,
}

impl<'a> Evidence<'a> {
    pub(crate) fn new(context: Option<&'a Map<String, Value>>) -> Self {
        let mut evidence = Self { context, loop_state: None, malformed: Vec::new() };
        match evidence.member("loop_state") {
            None => {}
            Some(Value::Object(state)) => evidence.loop_state = Some(state),
            // It may have been meant to hold any of them.
            Some(_) => evidence.mark_counters_malformed(),
        }
        evidence
    }

    pub(crate) fn mark_malformed(&mut self, name: &'static str) {
        self.malformed.push(name);
    }

    /// Takes the marks of members away that do not count, because something else takes their place.
    pub(crate) fn unmark(&mut self, names: &[&str]) {
        self.malformed.retain(|name| !names.contains(name));
    }

    pub(crate) fn mark_counters_malformed(&mut self) {
        self.malformed.extend(COUNTERS);
    }

    pub(crate) fn malformed(mut self) -> Vec<&'static str> {
        self.malformed.sort_unstable();
        self.malformed.dedup();
        self.malformed
    }

    /// A member that is neither missing nor null.
    pub(crate) fn member(&self, name: &str) -> Option<&'a Value> {
        self.context.and_then(|c| c.get(name)).filter(|v| !v.is_null())
    }

    /// A member of `context`, then the member of `loop_state` that says the same.
    pub(crate) fn with_loop_state(&self, name: &str, nested: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let inner = self.loop_state.and_then(|s| s.get(nested)).filter(|v| !v.is_null());
        self.member(name).into_iter().chain(inner)
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Option<&'a str> {
        let text = self.typed(name, Value::as_str)?;
        Some(text).filter(|text| !is_blank(text))
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> Option<bool> {
        self.typed(name, Value::as_bool)
    }

    pub(crate) fn count(&mut self, name: &'static str) -> Option<i64> {
        self.typed(name, |value| value.as_number().and_then(whole_number).filter(|n| *n >= 0))
    }

    pub(crate) fn micros(&mut self, name: &'static str) -> Option<Micros> {
        self.typed(name, as_micros)
    }

    /// Whether there is a ticket: a text or a whole number.
    pub(crate) fn has_ticket(&mut self) -> bool {
        match self.member("ticket_id") {
            Some(Value::Number(number)) if whole_number(number).is_some() => true,
            _ => self.text("ticket_id").is_some(),
        }
    }

    /// A member that is there and that `read` does not take is malformed.
    fn typed<T>(&mut self, name: &'static str, read: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = read(self.member(name)?);
        if value.is_none() {
            self.mark_malformed(name);
        }
        value
    }
}

/// The items of an array that are not blank; `None` when one of them is not a string.
pub(crate) fn as_words(value: &Value) -> Option<Vec<Word>> {
    let texts: Option<Vec<&str>> = value.as_array()?.iter().map(Value::as_str).collect();
    Some(texts?.into_iter().filter(|text| !is_blank(text)).map(Word::new).collect())
}

pub(crate) fn as_micros(value: &Value) -> Option<Micros> {
    Micros::from_evidence(value.as_number()?).ok()
}

/// The number if it is whole and in range; `5.0` is 5.
pub(crate) fn whole_number(number: &Number) -> Option<i64> {
    number.as_i64().or_else(|| {
        let micros = Micros::from_evidence(number).ok()?.get();
        (micros % 1_000_000 == 0).then_some(micros / 1_000_000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with<T>(context: impl Into<Value>, read: impl FnOnce(&mut Evidence<'_>) -> T) -> (T, Vec<&'static str>) {
        let context = context.into();
        let mut evidence = Evidence::new(context.as_object());
        let value = read(&mut evidence);
        (value, evidence.malformed())
    }

    #[test]
    fn a_member_of_the_wrong_type_is_malformed_and_null_is_absent() {
        assert_eq!(with(json!({"a": 1}), |e| e.text("a").is_some()), (false, vec!["a"]));
        assert_eq!(with(json!({"a": null}), |e| e.text("a").is_some()), (false, vec![]));
        assert_eq!(with(json!({"a": " \u{200b}"}), |e| e.text("a").is_some()), (false, vec![]));
        assert_eq!(with(json!({"a": "yes"}), |e| e.flag("a")), (None, vec!["a"]));
        assert_eq!(with(json!({"a": -1}), |e| e.count("a")), (None, vec!["a"]));
        assert_eq!(with(json!({"a": 1.5}), |e| e.count("a")), (None, vec!["a"]));
        assert_eq!(with(json!({"a": 2.0}), |e| e.count("a")), (Some(2), vec![]));
        assert_eq!(with(json!({"a": -0.5}), |e| e.micros("a").is_some()), (false, vec!["a"]));
    }

    #[test]
    fn a_ticket_is_a_text_or_a_whole_number() {
        for (ticket, named) in [(json!("OPS-1"), true), (json!(7), true), (json!(" "), false), (json!(null), false)] {
            assert_eq!(with(json!({"ticket_id": ticket}), |e| e.has_ticket()), (named, vec![]));
        }
        assert_eq!(with(json!({"ticket_id": 1.5}), |e| e.has_ticket()), (false, vec!["ticket_id"]));
    }

    #[test]
    fn an_array_with_an_item_that_is_no_string_is_unusable() {
        for items in [json!([null]), json!(["a", null]), json!([["a"]])] {
            assert!(as_words(&items).is_none(), "{items}");
        }
        assert_eq!(as_words(&json!(["a", " "])).map(|words| words.len()), Some(1));
    }

    #[test]
    fn a_loop_state_that_is_no_object_makes_every_counter_malformed() {
        let (_, malformed) = with(json!({"loop_state": [1]}), |_| ());
        assert_eq!(malformed.len(), 5);
    }
}
