//! OpenCode: its plugin hooks have no process form, so the form is ours and our plugin speaks it.
//!
//! The plugin sends `{"hook_event_name": "tool.execute.before", "tool", "sessionID", "callID", "args", "directory"}`
//! and throws unless the answer is `{"decision": "allow"}`. After a call it sends `tool.execute.after` with `metadata`,
//! of which only the exit code of a shell says how it ended. Subagents of some versions run tools without the hook.

use serde_json::{Map, Value, json};

use super::Answer;
use crate::Decision;
use crate::event::{Ended, Event, Status, ToolCall, Unreadable, arguments, optional, required, split_mcp};

pub(super) fn read(members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let event = required(members, "hook_event_name").map_err(|_| Unreadable::NoName("hook_event_name"))?;
    let session = optional(members, "sessionID")?;
    match event.as_str() {
        "tool.execute.before" => {
            let (server, tool) = split_mcp(&required(members, "tool")?);
            Ok(Event::Call(ToolCall {
                agent: "opencode".to_owned(),
                event,
                session,
                cwd: optional(members, "directory")?,
                server,
                tool,
                arguments: arguments(members, "args")?,
                call_id: optional(members, "callID")?,
            }))
        }
        "tool.execute.after" => Ok(Event::Ended(Ended {
            session,
            tool: required(members, "tool")?,
            call_id: optional(members, "callID")?,
            status: status(members),
            duration_ms: None,
        })),
        "session.created" => Ok(Event::SessionStarted { session }),
        "session.deleted" => Ok(Event::SessionEnded { session }),
        // `permission.ask` is typed and never fires; a version that fires it follows it with the tool's own event.
        name if is_other(name) => Ok(Event::Other { name: event }),
        _ => Err(Unreadable::UnknownEvent),
    }
}

fn is_other(name: &str) -> bool {
    ["session.", "message.", "file.", "lsp.", "tui.", "todo.", "chat.", "permission.", "installation.", "server."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

fn status(members: &Map<String, Value>) -> Status {
    match members.get("metadata").and_then(|metadata| metadata.get("exit")).and_then(Value::as_i64) {
        Some(0) => Status::Succeeded,
        Some(_) => Status::Failed,
        None => Status::Unknown,
    }
}

pub(super) fn answer(decision: &Decision) -> Answer {
    match decision.text() {
        None => Answer::allow(json!({"decision": "allow", "request_id": decision.request_id()})),
        Some(text) => Answer::deny(json!({"decision": "deny", "reason": text}), text),
    }
}
