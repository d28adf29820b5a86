//! The action of an approval: first what it does and where, then what it is for, then everything else.
//!
//! INVARIANT: every member of the action is shown once, members that this version does not know included. Those that
//! the digest leaves out stand apart, because they may differ when the action runs.

use serde_json::{Map, Value};
use stage0_contract::{Approval, VOLATILE_CONTEXT_MEMBERS, VOLATILE_CONTEXT_PREFIXES};

use super::show::Page;
use crate::out::hidden_characters;

/// Members that stand in their own places.
const PLACED: [&str; 7] =
    ["goal", "side_effects", "tools", "environment", "constraints", "success_criteria", "context"];
/// Deeper values are not indented further.
const MAX_INDENT: usize = 40;

pub(super) struct Action<'a> {
    members: Option<&'a Map<String, Value>>,
    context: Map<String, Value>,
    /// Members of the context that the digest leaves out.
    unbound: Map<String, Value>,
}

impl<'a> Action<'a> {
    pub(super) fn of(approval: &'a Approval) -> Self {
        let members = approval.action.as_ref();
        let context = members.and_then(|members| members.get("context")).and_then(Value::as_object);
        let (mut bound, mut unbound) = (Map::new(), Map::new());
        for (name, value) in context.into_iter().flatten() {
            match value {
                _ if is_volatile(name) => {
                    unbound.insert(name.clone(), value.clone());
                }
                Value::Object(state) if name == "loop_state" => {
                    let (run, rest): (Map<_, _>, Map<_, _>) =
                        state.clone().into_iter().partition(|(name, _)| name == "run_id");
                    let parts = [(&mut bound, run), (&mut unbound, rest)];
                    for (part, members) in parts.into_iter().filter(|(_, members)| !members.is_empty()) {
                        part.insert(name.clone(), members.into());
                    }
                }
                value => {
                    bound.insert(name.clone(), value.clone());
                }
            }
        }
        Self { members, context: bound, unbound }
    }

    /// Effects, tools and environment, after the issues.
    pub(super) fn risks(&self, approval: &Approval, page: &mut Page) {
        let hidden = self.members.map_or(0, |members| hidden(&Value::from(members.clone())));
        if hidden > 0 {
            let (are, they) = if hidden == 1 { ("character is", "it is") } else { ("characters are", "they are") };
            let text = format!("{hidden} {are} invisible, or reorder or control text: {they} shown as \\u{{…}} below");
            page.line("look out", &text);
        }
        if let Some(members) = self.members {
            texts(page, "side effects", members.get("side_effects"), "none stated");
            texts(page, "tools", members.get("tools"), "none");
            if let Some(tool) = self.context.get("current_tool") {
                texts(page, "current tool", Some(tool), "");
            }
        }
        let environment = approval.environment.as_str();
        page.exact("environment", if environment.is_empty() { "unknown: the action names none" } else { environment });
    }

    /// Goal, limits and facts, and last what the digest leaves out.
    pub(super) fn rest(&self, page: &mut Page) {
        let Some(members) = self.members else {
            page.text.push(
                "\n  The action is not shown to this key. Its workload sees it, and members who may decide about it, \
                 until it is\n  deleted some time after the end.",
            );
            return;
        };
        texts(page, "goal", members.get("goal"), "none");
        texts(page, "constraints", members.get("constraints"), "none");
        texts(page, "success when", members.get("success_criteria"), "none");
        if let Some(environment) = members.get("environment").filter(|value| !value.is_null()) {
            texts(page, "environment", Some(environment), "");
        }
        match members.get("context") {
            None | Some(Value::Null) => page.line("context", "none"),
            Some(Value::Object(_)) => object(page, "context", &self.context),
            Some(other) => {
                page.name("context");
                value(page, other, 18);
            }
        }
        let others = members.iter().filter(|(name, value)| !PLACED.contains(&name.as_str()) && !value.is_null());
        let others: Map<String, Value> = others.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !others.is_empty() {
            object(page, "further members", &others);
        }
        if !self.unbound.is_empty() {
            object(page, "not part of what is approved: may differ when the action runs", &self.unbound);
        }
    }
}

fn is_volatile(name: &str) -> bool {
    VOLATILE_CONTEXT_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || VOLATILE_CONTEXT_MEMBERS.contains(&name)
}

fn hidden(value: &Value) -> usize {
    match value {
        Value::String(text) => hidden_characters(text),
        Value::Array(items) => items.iter().map(hidden).sum(),
        Value::Object(members) => members.iter().map(|(name, value)| hidden_characters(name) + hidden(value)).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// A text or a list of texts; what has another shape is shown as JSON is.
fn texts(page: &mut Page, name: &str, found: Option<&Value>, absent: &str) {
    match found {
        None | Some(Value::Null) => page.line(name, absent),
        Some(Value::String(text)) if text.is_empty() => page.line(name, "(an empty text)"),
        Some(Value::String(text)) => page.exact(name, text),
        Some(Value::Array(items)) if items.is_empty() => page.line(name, "none"),
        Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
            for (index, text) in items.iter().filter_map(Value::as_str).enumerate() {
                let name = if index == 0 { name } else { "" };
                if text.is_empty() { page.line(name, "(an empty text)") } else { page.exact(name, text) }
            }
        }
        Some(other) => {
            page.name(name);
            value(page, other, 18);
        }
    }
}

fn object(page: &mut Page, name: &str, members: &Map<String, Value>) {
    page.text.push(&format!("\n  {name}"));
    if members.is_empty() {
        page.text.push(": none");
    }
    self::members(page, members, 4);
}

fn members(page: &mut Page, members: &Map<String, Value>, indent: usize) {
    let indent = indent.min(MAX_INDENT);
    for (name, found) in members {
        page.text.push(&format!("\n{:indent$}", ""));
        if is_plain_name(name) {
            page.text.push(name);
        } else {
            page.text.exact(&format!("\"{name}\""), page.width, indent + 2);
        }
        page.text.push(": ");
        value(page, found, indent + 4);
    }
}

/// A value of JSON: texts are quoted, so that `"1"` and `1` are told apart. Each item has lines of its own.
fn value(page: &mut Page, found: &Value, indent: usize) {
    let indent = indent.min(MAX_INDENT);
    match found {
        Value::String(text) => page.text.exact(&format!("\"{text}\""), page.width, indent),
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                page.text.push(&format!("\n{:indent$}- ", ""));
                value(page, item, indent + 2);
            }
        }
        Value::Object(inner) if !inner.is_empty() => members(page, inner, indent),
        other => page.text.push(&other.to_string()),
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::show::for_people;
    use super::super::tests::pending;
    use crate::out::Terminal;

    fn shown(action: &serde_json::Value, width: Option<usize>, colours: bool) -> String {
        for_people(&pending(action), Terminal { width, colours }).as_str().to_owned()
    }

    #[test]
    fn no_character_of_an_action_can_hide_or_reorder_text_or_make_a_heading() {
        let hostile = json!({
            "goal": "read a report\n\nApproval\n  digest  0000\u{1b}[2J",
            "tools": ["re\u{202e}daer", "ok\u{200b}"], "side_effects": ["none\u{feff}"],
            "constraints": ["max_cost_usd: 5\u{2066}"],
            "context": {"note\u{202e}": {"in\u{200d}ner": ["a\u{ad}"]}, "ticket_id": "x\u{e0041}"},
            "extra\u{9b}": "\u{7f}",
        });
        for colours in [false, true] {
            let shown = shown(&hostile, None, colours);
            let without_colours = shown.replace("\u{1b}[30;45m", "").replace("\u{1b}[0m", "");
            let without_colours = without_colours.replace("\u{1b}[33m", "");
            assert!(without_colours.is_ascii() || !without_colours.contains('\u{202e}'), "{shown:?}");
            let hidden =
                |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{200b}\u{feff}\u{2066}\u{200d}".contains(c);
            assert!(!without_colours.chars().any(hidden), "{without_colours:?}");
            for part in [
                r"re\u{202e}daer",
                r"ok\u{200b}",
                r"none\u{feff}",
                r"max_cost_usd: 5\u{2066}",
                r#""note\u{202e}": "#,
                r#""in\u{200d}ner": "#,
                r#"- "a\u{ad}""#,
                r#"ticket_id: "x\u{e0041}""#,
                r#""extra\u{9b}": "\u{7f}""#,
                r"digest  0000\u{1b}[2J",
                "look out        11 characters are invisible",
            ] {
                assert!(without_colours.contains(part), "{part}: {without_colours}");
            }
            let headings = without_colours.lines().filter(|line| *line == "Approval").count();
            assert_eq!(headings, 1, "foreign text begins no line: {without_colours}");
        }
        assert!(shown(&hostile, None, true).contains("re\u{1b}[30;45m\\u{202e}\u{1b}[0mdaer"));
    }

    #[test]
    fn long_values_are_wrapped_and_nothing_is_left_out() {
        let words: Vec<String> = (0..400).map(|n| format!("word{n}")).collect();
        let action = json!({"goal": words.join(" "), "tools": ["t".repeat(300)],
            "constraints": (0..200).map(|n| format!("limit_{n}: 1")).collect::<Vec<_>>(),
            "context": {"deep": {"a": {"b": {"c": [1, "1", null, [], {}, {"d": true}]}}}}});
        let shown = shown(&action, Some(60), false);
        let joined = shown.split('\n').map(|line| line.trim_start().trim_start_matches("↳ ")).collect::<String>();
        assert!(joined.contains(&words.join(" ")) && joined.contains(&"t".repeat(300)), "{shown}");
        assert!((0..200).all(|n| shown.contains(&format!("limit_{n}: 1\n"))), "{shown}");
        for part in ["- 1\n", "- \"1\"\n", "- null\n", "- []\n", "- {}\n", "d: true"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(!shown.contains('…'), "{shown}");
        let wide = shown.lines().filter(|line| line.chars().count() > 60).collect::<Vec<_>>();
        assert!(wide.iter().all(|line| !line.contains("word")), "{wide:?}");
    }

    #[test]
    fn what_the_digest_leaves_out_stands_apart() {
        let action = json!({"goal": "g", "debug_store_input": false, "pro": null, "context": {
            "approval_status": "approved", "approved_by": "ceo", "current_iteration": 3, "ticket_id": "T-1",
            "loop_state": {"run_id": "r-1", "retry_count": 2}}});
        let shown = shown(&action, None, false);
        let (bound, unbound) = shown.split_once("  not part of what is approved").unwrap();
        for part in ["ticket_id: \"T-1\"", "run_id: \"r-1\"", "further members\n    debug_store_input: false"] {
            assert!(bound.contains(part) && !unbound.contains(part), "{part}: {shown}");
        }
        for part in ["approval_status: \"approved\"", "approved_by: \"ceo\"", "current_iteration: 3", "retry_count: 2"]
        {
            assert!(unbound.contains(part) && !bound.contains(part), "{part}: {shown}");
        }
        assert!(bound.contains("side effects    none stated") && bound.contains("tools           none"), "{shown}");
    }
}
