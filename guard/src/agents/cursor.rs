//! Cursor: one event per kind of action, and `preToolUse` for all tools.
//!
//! A shell command or an MCP call fires `preToolUse` and its own event. Both are asked alike, so that either can be
//! installed; with both installed each call is asked twice, and a single-use approval does not last for two.
//! `ask` is ignored in places and is never sent.

use serde_json::{Map, Value, json};
use stage0_contract::parse_strict;

use super::Answer;
use crate::Decision;
use crate::event::{Ended, Event, Status, ToolCall, Unreadable, arguments, flag, optional, required, split_mcp};

/// Events that run no tool.
const OTHERS: &[&str] = &[
    "afterAgentResponse",
    "afterAgentThought",
    "afterFileEdit",
    "afterTabFileEdit",
    "beforeSubmitPrompt",
    "preCompact",
    "stop",
    "subagentStart",
    "subagentStop",
    "workspaceOpen",
];

pub(super) fn read(members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let event = required(members, "hook_event_name").map_err(|_| Unreadable::NoName("hook_event_name"))?;
    let session = session(members)?;
    match event.as_str() {
        "preToolUse" => tool(event, members),
        "beforeShellExecution" => {
            let command = required(members, "command")?;
            named(event, members, "Shell", json!({"command": command}))
        }
        "beforeMCPExecution" => mcp(event, members),
        "beforeReadFile" | "beforeTabFileRead" => {
            let path = required(members, "file_path")?;
            named(event, members, "Read", json!({"file_path": path}))
        }
        "postToolUse" => ended(members, required(members, "tool_name")?, Status::Succeeded),
        "postToolUseFailure" => ended(members, required(members, "tool_name")?, failure(members)),
        "afterShellExecution" => ended(members, "Shell".to_owned(), Status::Unknown),
        "afterMCPExecution" => ended(members, required(members, "tool_name")?, mcp_status(members)),
        "sessionStart" => Ok(Event::SessionStarted { session }),
        "sessionEnd" => Ok(Event::SessionEnded { session }),
        name if OTHERS.contains(&name) => Ok(Event::Other { name: event }),
        _ => Err(Unreadable::UnknownEvent),
    }
}

fn session(members: &Map<String, Value>) -> Result<Option<String>, Unreadable> {
    Ok(optional(members, "conversation_id")?.or(optional(members, "session_id")?))
}

/// The event's own directory, else the only root of the workspace.
fn cwd(members: &Map<String, Value>) -> Result<Option<String>, Unreadable> {
    let roots = members.get("workspace_roots").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let only = match roots {
        [root] => root.as_str().map(str::to_owned),
        _ => None,
    };
    Ok(optional(members, "cwd")?.or(only))
}

fn named(event: String, members: &Map<String, Value>, tool: &str, input: Value) -> Result<Event, Unreadable> {
    let Value::Object(arguments) = input else { return Err(Unreadable::NoObject) };
    call(event, members, None, tool.to_owned(), arguments)
}

fn call(
    event: String,
    members: &Map<String, Value>,
    server: Option<String>,
    tool: String,
    arguments: Map<String, Value>,
) -> Result<Event, Unreadable> {
    Ok(Event::Call(ToolCall {
        agent: "cursor".to_owned(),
        event,
        session: session(members)?,
        cwd: cwd(members)?,
        server,
        tool,
        arguments,
        call_id: optional(members, "tool_use_id")?,
    }))
}

/// `preToolUse`: an MCP tool is called `MCP:<tool>`, without its server.
fn tool(event: String, members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let name = required(members, "tool_name")?;
    let input = arguments(members, "tool_input")?;
    if let Some(tool) = name.strip_prefix("MCP:") {
        return call(event, members, Some("unknown".to_owned()), tool.trim().to_owned(), input);
    }
    let (server, tool) = split_mcp(&name);
    call(event, members, server, tool, input)
}

/// `beforeMCPExecution` names no server either: only its address or its command.
fn mcp(event: String, members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let name = required(members, "tool_name")?;
    let (server, tool) = split_mcp(name.strip_prefix("MCP:").unwrap_or(&name));
    let server = server.or(optional(members, "server_name")?).unwrap_or_else(|| "unknown".to_owned());
    call(event, members, Some(server), tool, arguments(members, "tool_input")?)
}

fn ended(members: &Map<String, Value>, tool: String, status: Status) -> Result<Event, Unreadable> {
    Ok(Event::Ended(Ended {
        session: session(members)?,
        tool,
        call_id: optional(members, "tool_use_id")?,
        status,
        duration_ms: members.get("duration").and_then(Value::as_f64).filter(|ms| *ms >= 0.0).map(|ms| ms as u64),
    }))
}

fn failure(members: &Map<String, Value>) -> Status {
    if flag(members, "is_interrupt") {
        return Status::Unknown;
    }
    match members.get("failure_type").and_then(Value::as_str) {
        Some("error") => Status::Failed,
        Some("permission_denied") => Status::Skipped,
        _ => Status::Unknown,
    }
}

fn mcp_status(members: &Map<String, Value>) -> Status {
    let text = members.get("result_json").and_then(Value::as_str).unwrap_or_default();
    match parse_strict(text.as_bytes()) {
        Ok(Value::Object(result)) if flag(&result, "isError") => Status::Failed,
        Ok(Value::Object(result)) if result.contains_key("content") => Status::Succeeded,
        _ => Status::Unknown,
    }
}

pub(super) fn answer(decision: &Decision, grant: bool) -> Answer {
    match decision.text() {
        None if grant => Answer::allow(json!({"permission": "allow"})),
        None => Answer::allow(json!({"continue": true})),
        Some(text) => Answer::deny(json!({"agent_message": text, "permission": "deny", "user_message": text}), text),
    }
}
