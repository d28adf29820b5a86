//! The `details` of an issue as text: where it is and how to fix it.
//!
//! The server may be newer, so a member of an unexpected shape is shown as JSON. Details may hold the caller's text, so
//! all of it is escaped, and long lists are cut.

use serde_json::{Map, Value};

use crate::out::plain;

const LINE_WIDTH: usize = 100;
const MAX_ITEMS: usize = 12;
const MAX_CHARACTERS: usize = 200;
/// Members of a request that are lists: an `add` appends to them instead of replacing a value.
const LISTS: [&str; 5] = ["constraints", "guardrails", "side_effects", "success_criteria", "tools"];

pub(super) fn lines(details: &Map<String, Value>) -> Vec<String> {
    let named = |name: &str, before: &str| details.get(name).map(|value| format!("{before}{}", shown(value)));
    let members = [("at", "at "), ("found", "found: "), ("allowed", "allowed: "), ("did_you_mean", "did you mean: ")];
    let mut parts: Vec<String> = members.into_iter().filter_map(|(name, before)| named(name, before)).collect();
    let mut edits = Vec::new();
    let mut needed = Vec::new();
    for change in items(details.get("write")) {
        match evidence(change) {
            Some(evidence) => needed.push(evidence),
            None => edits.push(edit(change)),
        }
    }
    if !edits.is_empty() {
        parts.push(format!("write: {}", limited(edits).join(", ")));
    }
    parts.extend(
        details
            .iter()
            .filter(|(name, _)| !KNOWN.contains(&name.as_str()))
            .map(|(name, value)| format!("{}: {}", label(name), shown(value))),
    );
    let mut lines = packed(parts);
    lines.extend(limited(needed));
    lines
}

const KNOWN: [&str; 5] = ["at", "found", "allowed", "did_you_mean", "write"];

fn items(value: Option<&Value>) -> &[Value] {
    match value {
        Some(Value::Array(items)) => items,
        Some(one) => std::slice::from_ref(one),
        None => &[],
    }
}

/// A change that the caller cannot make: evidence from a person or another system.
fn evidence(change: &Value) -> Option<String> {
    let path = plain(change.get("path")?.as_str()?);
    match change.get("by")?.as_str()? {
        "person" => Some(format!("a person must give {path}")),
        "system" => Some(format!("another system must give {path}")),
        other => Some(format!("{} must give {path}", plain(other))),
    }
}

fn edit(change: &Value) -> String {
    let member = |name| change.get(name).and_then(Value::as_str);
    let (Some(path), Some(value)) = (member("path"), change.get("value")) else { return clipped(&change.to_string()) };
    let (path, text) = (plain(path), clipped(&value.to_string()));
    match member("op") {
        Some("add") if LISTS.contains(&path.as_str()) => format!("add {text} to {path}"),
        Some("add" | "replace") => format!("{path} = {text}"),
        Some(_) | None => clipped(&change.to_string()),
    }
}

/// A word of the product in plain letters. A member that a pack declares, such as `custom.order_id`, keeps its name.
fn label(name: &str) -> String {
    if name.contains('.') { plain(name) } else { plain(name).replace('_', " ") }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) if items.is_empty() => "nothing".to_owned(),
        Value::Array(items) => limited(items.iter().map(scalar).collect()).join(", "),
        other => scalar(other),
    }
}

fn scalar(value: &Value) -> String {
    clipped(&value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

fn limited(mut items: Vec<String>) -> Vec<String> {
    let more = items.len().saturating_sub(MAX_ITEMS);
    if more > 0 {
        items.truncate(MAX_ITEMS);
        items.push(format!("and {more} more"));
    }
    items
}

fn clipped(text: &str) -> String {
    let text = plain(text);
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Joins the parts by semicolons, as many to a line as fit.
fn packed(parts: Vec<String>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.chars().count() + part.chars().count() + 2 <= LINE_WIDTH => {
                line.push_str("; ");
                line.push_str(&part);
            }
            Some(_) | None => lines.push(part),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(details: &Value) -> Vec<String> {
        lines(details.as_object().unwrap())
    }

    #[test]
    fn place_finding_and_remedy_are_shown_in_short_lines() {
        assert_eq!(of(&json!({})), [""; 0]);
        assert_eq!(
            of(&json!({"at": ["tools[1]"], "found": "x", "allowed": ["a", 2],
                "write": [{"op": "replace", "path": "constraints[1]", "value": "max_cost_usd: 5"}]})),
            [r#"at tools[1]; found: x; allowed: a, 2; write: constraints[1] = "max_cost_usd: 5""#]
        );
        assert_eq!(
            of(&json!({"write": [{"op": "add", "path": "constraints", "value": "approval_required"},
                {"op": "add", "path": "context.run_id", "value": "run-1"},
                {"path": "context.approval_status", "by": "person"}, {"path": "context.ticket", "by": "system"}]})),
            [
                r#"write: add "approval_required" to constraints, context.run_id = "run-1""#,
                "a person must give context.approval_status",
                "another system must give context.ticket",
            ]
        );
        assert_eq!(of(&json!({"limit_usd": 5, "custom.order_id": "a_b"})), ["limit usd: 5; custom.order_id: a_b"]);
        assert_eq!(
            of(&json!({"at": ["side_effects[0]"], "did_you_mean": ["deploy", "delete"]})),
            ["at side_effects[0]; did you mean: deploy, delete"]
        );
    }

    #[test]
    fn long_values_are_cut_and_unknown_members_shown() {
        let many: Vec<String> = (0..1_000).map(|n| format!("tools[{n}]")).collect();
        let shown = of(&json!({"at": many, "found": "x".repeat(5_000), "limit_usd": 5}));
        assert!(shown[0].ends_with("tools[11], and 988 more"), "{shown:?}");
        assert!(shown[1].starts_with("found: xxx") && shown[1].contains("x…"), "{shown:?}");
        assert!(shown.iter().any(|line| line.ends_with("limit usd: 5")), "{shown:?}");
        assert!(shown.iter().all(|line| line.chars().count() < 250), "{shown:?}");
    }

    #[test]
    fn unexpected_shapes_are_shown_and_escaped() {
        for odd in [
            json!({"write": "x\u{1b}[2J"}),
            json!({"at": {"a": 1}}),
            json!({"write": [{"op": "remove", "path": "a\nb"}]}),
            json!({"write": [{"path": "x", "by": "robot\n"}]}),
            json!({"did_you_mean": null}),
        ] {
            let shown = of(&odd);
            assert_eq!(shown.len(), 1, "{odd}");
            assert!(!shown[0].contains(['\n', '\u{1b}']), "{shown:?}");
        }
    }
}
