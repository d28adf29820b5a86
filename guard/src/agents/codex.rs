//! Codex: the events of Claude Code, with fewer answers.
//!
//! Codex refuses `allow` and `ask` as unsupported and then runs the tool, so neither is ever sent; exit code 2 denies
//! only with text on standard error. `PostToolUse` has no sign of failure, so an outcome is always unknown.

use serde_json::{Map, Value, json};

use super::{Answer, claude_code};
use crate::Decision;
use crate::event::{Event, Status, Unreadable, optional, required};

const PRE: &str = "PreToolUse";

/// Events that run no tool.
const OTHERS: &[&str] = &[
    "Notification",
    "PermissionRequest",
    "PostCompact",
    "PreCompact",
    "Stop",
    "SubagentStart",
    "SubagentStop",
    "UserPromptSubmit",
];

pub(super) fn read(members: &Map<String, Value>) -> Result<Event, Unreadable> {
    let event = required(members, "hook_event_name").map_err(|_| Unreadable::NoName("hook_event_name"))?;
    let session = optional(members, "session_id")?;
    match event.as_str() {
        PRE => Ok(Event::Call(claude_code::call("codex", event, members)?)),
        "PostToolUse" => claude_code::ended(members, Status::Unknown),
        "SessionStart" => Ok(Event::SessionStarted { session }),
        "SessionEnd" => Ok(Event::SessionEnded { session }),
        name if OTHERS.contains(&name) => Ok(Event::Other { name: event }),
        _ => Err(Unreadable::UnknownEvent),
    }
}

pub(super) fn answer(event: Option<&str>, decision: &Decision) -> Answer {
    let event = event.unwrap_or(PRE);
    match decision.text() {
        None => Answer::allow(json!({"hookSpecificOutput": {"hookEventName": event}})),
        Some(text) => Answer::deny(claude_code::denial(event, text), text),
    }
}
