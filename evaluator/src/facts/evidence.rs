//! Evidence: the typed reading of `context`. A member is absent (missing, null, blank), usable, or malformed.
//!
//! Owns the rule of contract section 2: the wrong type or range is malformed and remembered by name. What then follows is a
//! rule's business. `context` and `context.loop_state` are read together.

use serde_json::{Map, Number, Value};
use stage0_contract::{Micros, Word, is_blank};

/// What `context` says, and what of it could not be used.
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
            // Any counter may have stood in it.
            Some(_) => {
                for name in
                    ["current_iteration", "retry_count", "elapsed_seconds", "cumulative_cost_usd", "recent_tools"]
                {
                    evidence.mark(name);
                }
            }
        }
        evidence
    }

    /// Remembers that a member cannot be used.
    pub(crate) fn mark(&mut self, name: &'static str) {
        self.malformed.push(name);
    }

    /// The members that could not be used, sorted, each once.
    pub(crate) fn malformed(mut self) -> Vec<&'static str> {
        self.malformed.sort_unstable();
        self.malformed.dedup();
        self.malformed
    }

    /// A member that is neither missing nor null.
    pub(crate) fn member(&self, name: &str) -> Option<&'a Value> {
        self.context.and_then(|c| c.get(name)).filter(|v| !v.is_null())
    }

    /// The same fact in `context` and in `loop_state`.
    pub(crate) fn both(&self, name: &str, nested: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let inner = self.loop_state.and_then(|s| s.get(nested)).filter(|v| !v.is_null());
        self.member(name).into_iter().chain(inner)
    }

    /// A text that is not blank.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<&'a str> {
        match self.member(name)? {
            Value::String(text) => Some(text.as_str()).filter(|t| !is_blank(t)),
            _ => {
                self.mark(name);
                None
            }
        }
    }

    /// True or false.
    pub(crate) fn flag(&mut self, name: &'static str) -> Option<bool> {
        let value = self.member(name)?;
        if value.as_bool().is_none() {
            self.mark(name);
        }
        value.as_bool()
    }

    /// A whole number from 0.
    pub(crate) fn count(&mut self, name: &'static str) -> Option<i64> {
        let count = self.member(name).map(|v| v.as_number().and_then(whole).filter(|n| *n >= 0))?;
        if count.is_none() {
            self.mark(name);
        }
        count
    }

    /// A quantity from 0.
    pub(crate) fn micros(&mut self, name: &'static str) -> Option<Micros> {
        let micros = self.member(name).map(as_micros)?;
        if micros.is_none() {
            self.mark(name);
        }
        micros
    }

    /// A ticket is a text or a whole number.
    pub(crate) fn ticket(&mut self) -> bool {
        match self.member("ticket_id") {
            Some(Value::Number(number)) if whole(number).is_some() => true,
            _ => self.text("ticket_id").is_some(),
        }
    }
}

/// All items as words, or nothing when one is no string.
pub(crate) fn as_words(value: &Value) -> Option<Vec<Word>> {
    Some(as_texts(value)?.into_iter().map(Word::new).collect())
}

/// All items that are not blank, or nothing when one is no string.
fn as_texts(value: &Value) -> Option<Vec<&str>> {
    let texts: Option<Vec<&str>> = value.as_array()?.iter().map(Value::as_str).collect();
    Some(texts?.into_iter().filter(|t| !is_blank(t)).collect())
}

/// A quantity that fits.
pub(crate) fn as_micros(value: &Value) -> Option<Micros> {
    Micros::from_evidence(value.as_number()?).ok()
}

/// The number if it is whole and fits; `5.0` is 5.
pub(crate) fn whole(number: &Number) -> Option<i64> {
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
    fn the_wrong_type_is_malformed_and_null_is_absent() {
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
            assert_eq!(with(json!({"ticket_id": ticket}), |e| e.ticket()), (named, vec![]));
        }
        assert_eq!(with(json!({"ticket_id": 1.5}), |e| e.ticket()), (false, vec!["ticket_id"]));
    }

    #[test]
    fn a_null_in_an_array_makes_it_unusable() {
        for items in [json!([null]), json!(["a", null]), json!([["a"]])] {
            assert!(as_words(&items).is_none(), "{items}");
        }
        assert_eq!(as_words(&json!(["a", " "])).map(|words| words.len()), Some(1));
    }

    #[test]
    fn a_loop_state_that_is_no_object_spoils_every_counter() {
        let (_, malformed) = with(json!({"loop_state": [1]}), |_| ());
        assert_eq!(malformed.len(), 5);
    }
}
