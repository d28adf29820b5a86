//! Gemini CLI: `BeforeTool` asks, `AfterTool` says how a call ended.
//!
//! Its hooks run after its own confirmation, so an answer of `allow` replaces none. An event has no id of its call.

use serde_json::{Map, Value, json};

use super::Answer;
use crate::Decision;
use crate::event::{Ended, Event, Status, ToolCall, Unreadable, arguments, optional, required, split_mcp};

/// Events that run no tool.
const OTHERS: &[&str] =
    &["AfterAgent", "AfterModel", "BeforeAgent", "BeforeModel", "BeforeToolSelection", "Notification", "PreCompress"];

pub(super) fn read(members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let event = required(members, "hook_event_name").map_err(|_| Unreadable::NoName("hook_event_name"))?;
    let session = optional(members, "session_id")?;
    match event.as_str() {
        "BeforeTool" => call(event, members),
        "AfterTool" => Ok(Event::Ended(Ended {
            session,
            tool: required(members, "tool_name")?,
            call_id: optional(members, "tool_call_id")?,
            status: status(members),
            duration_ms: None,
        })),
        "SessionStart" => Ok(Event::SessionStarted { session }),
        "SessionEnd" => Ok(Event::SessionEnded { session }),
        name if OTHERS.contains(&name) => Ok(Event::Other { name: event }),
        _ => Err(Unreadable::UnknownEvent),
    }
}

/// A tool of a server comes with `mcp_context`; its name alone (`mcp_<server>_<tool>`) does not say where the server
/// ends.
fn call(event: String, members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let name = required(members, "tool_name")?;
    let (server, tool) = match members.get("mcp_context") {
        Some(Value::Object(context)) => {
            (Some(required(context, "server_name")?), optional(context, "tool_name")?.unwrap_or(name))
        }
        None | Some(Value::Null) => split_mcp(&name),
        Some(_) => return Err(Unreadable::Member("mcp_context")),
    };
    Ok(Event::Call(ToolCall {
        agent: "gemini".to_owned(),
        event,
        session: optional(members, "session_id")?,
        cwd: optional(members, "cwd")?,
        server,
        tool,
        arguments: arguments(members, "tool_input")?,
        call_id: optional(members, "tool_call_id")?,
    }))
}

/// A shell that ran says in its text only how its command ended.
fn status(members: &Map<String, Value>) -> Status {
    let is_shell = members.get("tool_name").and_then(Value::as_str) == Some("run_shell_command");
    match members.get("tool_response") {
        Some(Value::Object(response)) if response.get("error").is_some_and(|error| !error.is_null()) => Status::Failed,
        Some(Value::Object(_)) if !is_shell => Status::Succeeded,
        _ => Status::Unknown,
    }
}

pub(super) fn answer(decision: &Decision) -> Answer {
    match decision.text() {
        None => Answer::allow(json!({"decision": "allow"})),
        Some(text) => Answer::deny(json!({"decision": "deny", "reason": text}), text),
    }
}
