//! Near misses: members whose names look like known ones, so that a misspelt member is refused instead of ignored.
//!
//! A member that differs from a known one of its level only in case, separators or a final `s`, or that stands at the
//! wrong level, is a bad field; others are tolerated. An error quotes a name only if it is a
//! plain identifier, because names are the caller's text.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::members::{CONTEXT_MEMBERS, LOOP_STATE_MEMBERS, REQUEST_MEMBERS, RequestMember, holds};
use super::{FieldError, is_plain_name};
use crate::word::visible;

/// Arrays of the request that are often put into `context` by mistake.
const ALSO_IN_CONTEXT: [&str; 3] = ["side_effects", "constraints", "success_criteria"];

/// Known names of one level, by their reduced form ([`bare`]).
type Level = HashMap<String, &'static str>;

pub(super) fn in_request(unknown: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    static LEVEL: LazyLock<Level> = LazyLock::new(|| level(REQUEST_MEMBERS, &[]));
    for name in unknown.keys() {
        if holds(CONTEXT_MEMBERS, name) {
            errors.push(FieldError::new(name, format!("belongs in `context`: write `context.{name}`")));
        } else if let Some(known) = near(&LEVEL, name) {
            errors.push(FieldError::new(told(name), format!("is not known: write `{known}`")));
        }
    }
}

pub(super) fn in_context(context: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    static LEVEL: LazyLock<Level> = LazyLock::new(|| level(CONTEXT_MEMBERS, &ALSO_IN_CONTEXT));
    static LOOP_STATE: LazyLock<Level> = LazyLock::new(|| level(LOOP_STATE_MEMBERS, &[]));
    for name in context.keys().filter(|name| !holds(CONTEXT_MEMBERS, name)) {
        let message = if holds(REQUEST_MEMBERS, name) {
            format!("belongs beside `context`, not in it: write `{name}` at the top level")
        } else {
            match near(&LEVEL, name) {
                Some(known) if ALSO_IN_CONTEXT.contains(&known) => {
                    format!("is not known: write `{known}` at the top level, beside `context`")
                }
                Some(known) => format!("is not known: write `context.{known}`"),
                None => continue,
            }
        };
        errors.push(FieldError::new(format!("context.{}", told(name)), message));
    }
    let Some(Value::Object(state)) = context.get("loop_state") else { return };
    for name in state.keys().filter(|name| !holds(LOOP_STATE_MEMBERS, name)) {
        if let Some(known) = near(&LOOP_STATE, name) {
            let path = format!("context.loop_state.{}", told(name));
            errors.push(FieldError::new(path, format!("is not known: write `context.loop_state.{known}`")));
        }
    }
}

fn level(members: &[RequestMember], more: &[&'static str]) -> Level {
    members.iter().map(|member| member.name).chain(more.iter().copied()).map(|name| (bare(name), name)).collect()
}

fn near(level: &Level, name: &str) -> Option<&'static str> {
    let known = level.get(&bare(name)).copied()?;
    (known != name).then_some(known)
}

/// The reduced form of a name: lower case, without `_`, `-`, blanks, invisible characters and a final `s`.
fn bare(name: &str) -> String {
    let mut bare: String = visible(name).chars().filter(|c| !matches!(c, '_' | '-') && !c.is_whitespace()).collect();
    if bare.ends_with('s') {
        bare.pop();
    }
    bare
}

/// The name for an error text; `*` if it is not a plain identifier.
pub(super) fn told(name: &str) -> &str {
    if is_plain_name(name) { name } else { "*" }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::CheckRequest;

    fn errors(mut body: Value) -> Vec<String> {
        body["goal"] = json!("read a report");
        match CheckRequest::parse(body) {
            Ok(_) => vec![],
            Err(rejected) => rejected.errors.into_iter().map(|e| format!("{}: {}", e.path, e.message)).collect(),
        }
    }

    #[test]
    fn no_two_names_of_a_level_miss_each_other() {
        for (members, more) in
            [(REQUEST_MEMBERS, &[][..]), (CONTEXT_MEMBERS, &ALSO_IN_CONTEXT[..]), (LOOP_STATE_MEMBERS, &[][..])]
        {
            assert_eq!(level(members, more).len(), members.len() + more.len());
        }
    }

    #[test]
    fn every_spelling_of_a_member_of_the_request_names_the_known_one() {
        for (name, known) in [
            ("sideEffects", "side_effects"),
            ("side_effect", "side_effects"),
            ("SIDE-EFFECTS", "side_effects"),
            ("tool", "tools"),
            ("Constraint", "constraints"),
            ("goals", "goal"),
            ("successCriteria", "success_criteria"),
            ("environments", "environment"),
            ("policyPackVersion", "policy_pack_version"),
            ("Context", "context"),
        ] {
            assert_eq!(errors(json!({name: ["x"]})), [format!("{name}: is not known: write `{known}`")]);
        }
        assert_eq!(errors(json!({"side_effects\u{200b}": []})), ["*: is not known: write `side_effects`"]);
        assert_eq!(errors(json!({"side effects": null})), ["*: is not known: write `side_effects`"]);
    }

    #[test]
    fn every_spelling_of_a_member_of_the_context_names_the_known_one() {
        for (name, known) in [
            ("approvalStatus", "context.approval_status"),
            ("approval-status", "context.approval_status"),
            ("approvedBy", "context.approved_by"),
            ("runId", "context.run_id"),
            ("target_resource", "context.target_resources"),
            ("loopState", "context.loop_state"),
            ("Environment", "context.environment"),
        ] {
            assert_eq!(
                errors(json!({"context": {name: "x"}})),
                [format!("context.{name}: is not known: write `{known}`")]
            );
        }
        for (name, known) in
            [("sideEffects", "side_effects"), ("constraint", "constraints"), ("successCriteria", "success_criteria")]
        {
            let told = format!("context.{name}: is not known: write `{known}` at the top level, beside `context`");
            assert_eq!(errors(json!({"context": {name: []}})), [told]);
        }
        assert_eq!(
            errors(json!({"context": {"loop_state": {"retryCount": 3, "repeated_tool": []}}})).len(),
            2,
            "also within `loop_state`"
        );
    }

    #[test]
    fn a_known_name_at_the_wrong_level_is_told_where_it_belongs() {
        assert_eq!(
            errors(json!({"approval_status": "approved", "run_id": 1})),
            [
                "approval_status: belongs in `context`: write `context.approval_status`",
                "run_id: belongs in `context`: write `context.run_id`"
            ]
        );
        let mut found = errors(json!({"context": {"tools": ["x"], "pro": true, "goal": "x", "context": {}}}));
        found.sort_unstable();
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[3], "context.tools: belongs beside `context`, not in it: write `tools` at the top level");
    }

    #[test]
    fn what_only_resembles_a_member_is_tolerated() {
        let body = json!({
            "colour": 1, "user": "u", "approvalStatus": "x", "": 1, "goal_id": 7, "x".repeat(300): 1,
            "metadata": {"sideEffects": 1},
            "environment": "dev",
            "context": {
                "tool": "Bash", "goals": ["x"], "environment": "dev", "approved": true, "tool_input": {"goal": 1},
                "s": 1, "-": 2,
                "retries": 1, "loop_state": {"retry_count": 1, "tools": ["x"], "note": "x"},
                "nested": {"approvalStatus": "x"}
            }
        });
        assert_eq!(errors(body), Vec::<String>::new());
    }
}
