//! Claude Code: `PreToolUse` asks; `PostToolUse` and `PostToolUseFailure` say how a call ended.
//!
//! A call that was sent to the background has not ended when `PostToolUse` comes, so its outcome is unknown. An answer
//! names the event it answers; one without `permissionDecision` leaves the agent's own permissions as they are.

use serde_json::{Map, Value, json};

use super::Answer;
use crate::Decision;
use crate::event::{Ended, Event, Status, ToolCall, Unreadable, arguments, flag, optional, required, split_mcp};

const PRE: &str = "PreToolUse";

/// Events that run no tool. `PermissionRequest` follows a `PreToolUse` of the same call, which was decided.
const OTHERS: &[&str] = &[
    "ConfigChange",
    "CwdChanged",
    "DirectoryAdded",
    "Elicitation",
    "ElicitationResult",
    "FileChanged",
    "InstructionsLoaded",
    "MessageDisplay",
    "Notification",
    "PermissionDenied",
    "PermissionRequest",
    "PostCompact",
    "PostModelSwitch",
    "PostToolBatch",
    "PreCompact",
    "PreModelSwitch",
    "Setup",
    "Stop",
    "StopFailure",
    "SubagentStart",
    "SubagentStop",
    "TaskCompleted",
    "TaskCreated",
    "TeammateIdle",
    "UserPromptExpansion",
    "UserPromptSubmit",
    "WorktreeCreate",
    "WorktreeRemove",
];

pub(super) fn read(members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let event = required(members, "hook_event_name").map_err(|_| Unreadable::NoName("hook_event_name"))?;
    let session = optional(members, "session_id")?;
    match event.as_str() {
        PRE => Ok(Event::Call(call("claude-code", event, members)?)),
        "PostToolUse" => ended(members, if in_background(members) { Status::Unknown } else { Status::Succeeded }),
        "PostToolUseFailure" => {
            ended(members, if flag(members, "is_interrupt") { Status::Unknown } else { Status::Failed })
        }
        "SessionStart" => Ok(Event::SessionStarted { session }),
        "SessionEnd" => Ok(Event::SessionEnded { session }),
        name if OTHERS.contains(&name) => Ok(Event::Other { name: event }),
        _ => Err(Unreadable::UnknownEvent),
    }
}

/// A call in the members that Claude Code and Codex share.
pub(super) fn call(agent: &str, event: String, members: &Map<String, Value>) -> Result<ToolCall, Unreadable> {
    let name = required(members, "tool_name")?;
    // Where the event names the server, its name may hold the separator. In the tool's name it is normalised.
    let named = members.get("mcp_server").and_then(|server| server.as_str().or_else(|| server.get("name")?.as_str()));
    let stated = named.and_then(|server| {
        let normal: String = server.chars().map(normalised).collect();
        let tool = name.strip_prefix("mcp__")?.strip_prefix(&normal)?.strip_prefix("__")?;
        Some((Some(server.to_owned()), tool.to_owned()))
    });
    let (server, tool) = stated.unwrap_or_else(|| split_mcp(&name));
    Ok(ToolCall {
        agent: agent.to_owned(),
        event,
        session: optional(members, "session_id")?,
        cwd: optional(members, "cwd")?,
        server,
        tool,
        arguments: arguments(members, "tool_input")?,
        call_id: optional(members, "tool_use_id")?,
    })
}

fn normalised(c: char) -> char {
    if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '_' }
}

/// An end in the members that Claude Code and Codex share.
pub(super) fn ended(members: &Map<String, Value>, status: Status) -> Result<Event, Unreadable> {
    Ok(Event::Ended(Ended {
        session: optional(members, "session_id")?,
        tool: required(members, "tool_name")?,
        call_id: optional(members, "tool_use_id")?,
        status,
        duration_ms: members.get("duration_ms").and_then(Value::as_u64),
    }))
}

fn in_background(members: &Map<String, Value>) -> bool {
    let inside = |outer: &str, name: &str| members.get(outer).and_then(|outer| outer.get(name));
    let says = |value: Option<&Value>| value == Some(&Value::Bool(true));
    says(inside("tool_input", "run_in_background"))
        || says(inside("tool_response", "interrupted"))
        || inside("tool_response", "backgroundTaskId").is_some_and(|id| !id.is_null())
}

pub(super) fn answer(event: Option<&str>, decision: &Decision, grant: bool) -> Answer {
    let event = event.unwrap_or(PRE);
    match decision.text() {
        None if grant => Answer::allow(json!({"hookSpecificOutput": {"hookEventName": event,
            "permissionDecision": "allow", "permissionDecisionReason": "allowed by Stage0"}})),
        None => Answer::allow(json!({"hookSpecificOutput": {"hookEventName": event}})),
        Some(text) => Answer::deny(denial(event, text), text),
    }
}

pub(super) fn denial(event: &str, text: &str) -> Value {
    json!({"hookSpecificOutput": {"hookEventName": event,
        "permissionDecision": "deny", "permissionDecisionReason": text}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server_and_tool(event: &Value) -> (Option<String>, String) {
        let Ok(Event::Call(call)) = read(event.as_object().unwrap()) else { panic!("no call: {event}") };
        (call.server, call.tool)
    }

    #[test]
    fn a_server_that_the_event_names_is_that_server_whatever_separators_are_in_its_name() {
        for (name, server, found) in [
            ("mcp__a__b__update", json!({"name": "a__b", "source": "dynamic"}), ("a__b", "update")),
            ("mcp__a__b__update", json!("a__b"), ("a__b", "update")),
            ("mcp__my_crm__update", json!({"name": "my.crm"}), ("my.crm", "update")),
            ("mcp__a__b__update", Value::Null, ("a", "b__update")),
            // A name that does not fit the tool's decides nothing.
            ("mcp__a__b__update", json!({"name": "crm"}), ("a", "b__update")),
        ] {
            let event = json!({"hook_event_name": PRE, "tool_name": name, "mcp_server": server, "tool_input": {}});
            assert_eq!(server_and_tool(&event), (Some(found.0.to_owned()), found.1.to_owned()), "{event}");
        }
    }
}
