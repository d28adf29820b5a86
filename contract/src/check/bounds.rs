//! Bounds on names and amounts in `context`: no hidden characters, no absurd amounts.
//!
//! A name with an invisible character is not what it looks like, and an amount beyond [`MAX_USD`] is a mistake or an
//! attack: both are a `422`. Evidence of the wrong type is malformed, which the policy decides.

use serde_json::{Map, Value};

use super::{CheckRequest, FieldError};
use crate::number::{MAX_USD, Micros, NumberError};
use crate::word::hidden;

/// Members of `context` and of `context.loop_state`.
const NAMES: [&str; 2] = ["run_id", "current_tool"];
const AMOUNTS: [&str; 2] = ["estimated_cost_usd", "cumulative_cost_usd"];

impl CheckRequest {
    /// Reports every name with a hidden character and every amount that is too large.
    pub(super) fn out_of_bounds(&self, errors: &mut Vec<FieldError>) {
        // A side effect with such a character is an unknown effect, which the policy decides.
        for (member, items) in [("tools", &self.tools), ("constraints", &self.constraints)] {
            for (index, item) in items.iter().enumerate() {
                name(item, || format!("{member}[{index}]"), errors);
            }
        }
        if let Some(environment) = &self.environment {
            name(environment, || "environment".to_owned(), errors);
        }
        let Some(context) = &self.context else { return };
        members(context, "context", errors);
        if let Some(Value::Object(state)) = context.get("loop_state") {
            members(state, "context.loop_state", errors);
        }
    }
}

fn members(members: &Map<String, Value>, place: &str, errors: &mut Vec<FieldError>) {
    for member in NAMES {
        if let Some(Value::String(text)) = members.get(member) {
            name(text, || format!("{place}.{member}"), errors);
        }
    }
    for member in AMOUNTS {
        let Some(Value::Number(number)) = members.get(member) else { continue };
        let too_large =
            number.as_f64().is_some_and(|number| number > 0.0) && Micros::usd(number) == Err(NumberError::OutOfRange);
        if too_large {
            errors.push(FieldError::new(format!("{place}.{member}"), format!("must be at most {MAX_USD} US dollars")));
        }
    }
}

fn name(name: &str, path: impl Fn() -> String, errors: &mut Vec<FieldError>) {
    if let Some(hidden) = hidden(name) {
        let message = format!("has the character U+{:04X}, which nobody sees: leave it out", u32::from(hidden));
        errors.push(FieldError::new(path(), message));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(body: Value) -> Vec<String> {
        match CheckRequest::parse(body) {
            Ok(_) => vec![],
            Err(rejected) => rejected.errors.into_iter().map(|e| format!("{}: {}", e.path, e.message)).collect(),
        }
    }

    #[test]
    fn a_name_with_an_invisible_character_is_refused_with_its_path() {
        for (hidden, code) in [
            ("\u{0}", "U+0000"),
            ("\u{1b}", "U+001B"),
            ("\u{7f}", "U+007F"),
            ("\u{9b}", "U+009B"),
            ("\u{2800}", "U+2800"),
            ("\u{fff9}", "U+FFF9"),
            ("\u{13430}", "U+13430"),
            ("\u{fffe}", "U+FFFE"),
            ("\u{1d159}", "U+1D159"),
        ] {
            let bad = format!("a{hidden}b");
            let said = format!("has the character {code}, which nobody sees: leave it out");
            for (body, path) in [
                (json!({"goal": "g", "tools": ["fine", bad]}), "tools[1]"),
                (json!({"goal": "g", "environment": bad}), "environment"),
                (json!({"goal": "g", "context": {"run_id": bad}}), "context.run_id"),
                (json!({"goal": "g", "context": {"loop_state": {"run_id": bad}}}), "context.loop_state.run_id"),
                (json!({"goal": "g", "context": {"current_tool": bad}}), "context.current_tool"),
            ] {
                assert_eq!(errors(body), [format!("{path}: {said}")], "{bad:?}");
            }
        }
        assert_eq!(errors(json!({"goal": "g", "constraints": ["max_iterations\u{0}: 2"]})).len(), 1);
        assert!(errors(json!({"goal": "g", "side_effects": ["deploy\u{0}"]})).is_empty(), "unknown, and so denied");
    }

    #[test]
    fn names_of_all_peoples_and_what_joins_emoji_pass() {
        for name in [
            "größe",
            "本番デプロイ",
            "ラン\u{3000}1",
            "👨‍👩‍👧",
            "❤\u{fe0f}",
            "नमस्ते",
            "می\u{200c}روم",
            " padded\n",
            "two\twords\u{2028}and\nmore",
            "e\u{301}",
        ] {
            let body = json!({"goal": "line\nbreak", "tools": [name], "environment": name,
                "context": {"run_id": name, "current_tool": name, "note": "\u{0}"}});
            assert_eq!(errors(body), Vec::<String>::new(), "{name:?}");
        }
    }

    #[test]
    fn an_amount_is_at_most_a_billion_dollars_and_malformed_ones_stay_malformed() {
        for member in AMOUNTS {
            let path = |inner: &str| vec![format!("context.{inner}{member}: must be at most 1000000000 US dollars")];
            for large in
                [json!(1_000_000_001_i64), json!(1_000_000_000.000_001), json!(1e12), json!(u64::MAX), json!(1e300)]
            {
                assert_eq!(errors(json!({"goal": "g", "context": {member: large}})), path(""), "{large}");
                let inner = json!({"goal": "g", "context": {"loop_state": {member: large}}});
                assert_eq!(errors(inner), path("loop_state."), "{large}");
            }
            for fine in [json!(1_000_000_000), json!(0.000_001), json!(-1e12), json!("1e12"), json!(null)] {
                assert!(errors(json!({"goal": "g", "context": {member: fine}})).is_empty(), "{fine}");
            }
        }
    }
}
