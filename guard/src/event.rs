//! What an agent's event means, whichever agent sent it.

use serde_json::{Map, Value};
use stage0_contract::{JsonError, parse_strict};

/// The largest event that is read, in bytes.
pub const MAX_EVENT_BYTES: usize = 1_000_000;

/// One event of an agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A tool is about to run: ask, and let it run only on an ALLOW.
    Call(ToolCall),
    /// A tool has run, or was not run: report the outcome. No decision.
    Ended(Ended),
    /// A session begins. No decision.
    SessionStarted {
        /// The agent's name for it.
        session: Option<String>,
    },
    /// A session ends. No decision.
    SessionEnded {
        /// The agent's name for it.
        session: Option<String>,
    },
    /// An event that is about no tool call. No decision.
    Other {
        /// Its name.
        name: String,
    },
}

impl Event {
    /// The event's own name, as the answer must repeat it for some agents.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Call(call) => Some(&call.event),
            Self::Other { name } => Some(name),
            Self::Ended(_) | Self::SessionStarted { .. } | Self::SessionEnded { .. } => None,
        }
    }
}

/// A tool that is about to be called.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ToolCall {
    /// Who calls: `claude-code`, …, or `mcp` for the MCP guard. It selects the entries of the table.
    pub agent: String,
    /// The event's own name, such as `PreToolUse`.
    pub event: String,
    /// The session, which becomes the run.
    pub session: Option<String>,
    /// The working directory, as an absolute path.
    pub cwd: Option<String>,
    /// The MCP server, if the tool is one of a server.
    pub server: Option<String>,
    /// The tool's name at the agent, or at its server.
    pub tool: String,
    /// The call's arguments.
    pub arguments: Map<String, Value>,
    /// The agent's id of this call. It joins the outcome to the decision and is never part of what is asked.
    pub call_id: Option<String>,
}

/// A tool call that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The session.
    pub session: Option<String>,
    /// The tool's name at the agent.
    pub tool: String,
    /// The agent's id of the call, as in [`ToolCall::call_id`].
    pub call_id: Option<String>,
    /// How it ended.
    pub status: Status,
    /// How long it took, where the agent says so.
    pub duration_ms: Option<u64>,
}

/// How a tool call ended; the words of `POST /v1/decisions/{request_id}/outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the contract")]
pub enum Status {
    Succeeded,
    Failed,
    Unknown,
    Skipped,
}

impl Status {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
            Self::Skipped => "skipped",
        }
    }
}

/// Why an event was refused. It is always answered with a denial. The texts quote nothing of the event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say what is wrong")]
pub enum Unreadable {
    #[error("the event is empty")]
    Empty,
    #[error("the event is larger than {MAX_EVENT_BYTES} bytes")]
    TooLarge,
    #[error("the event cannot be read: {}", .0.to_string().replace("the body", "it"))]
    Json(JsonError),
    #[error("the event is not a JSON object")]
    NoObject,
    #[error("the event does not say which one it is: `{0}` is missing or no text")]
    NoName(&'static str),
    #[error("this version does not know the event, and it could be a tool call")]
    UnknownEvent,
    #[error("the event's member `{0}` is missing or of the wrong type")]
    Member(&'static str),
}

/// The members of an event, read strictly.
pub(crate) fn members(bytes: &[u8]) -> Result<Map<String, Value>, Unreadable> {
    if bytes.len() > MAX_EVENT_BYTES {
        return Err(Unreadable::TooLarge);
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Unreadable::Empty);
    }
    match parse_strict(bytes).map_err(Unreadable::Json)? {
        Value::Object(members) => Ok(members),
        _ => Err(Unreadable::NoObject),
    }
}

/// A member that must be a text with something in it.
pub(crate) fn required(members: &Map<String, Value>, name: &'static str) -> Result<String, Unreadable> {
    match members.get(name) {
        Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
        _ => Err(Unreadable::Member(name)),
    }
}

/// A member that may be absent, null or empty, and is a text otherwise.
pub(crate) fn optional(members: &Map<String, Value>, name: &'static str) -> Result<Option<String>, Unreadable> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.trim().is_empty())),
        Some(_) => Err(Unreadable::Member(name)),
    }
}

/// The arguments of a call: an object, or the JSON text of one. Absent and null mean none.
pub(crate) fn arguments(members: &Map<String, Value>, name: &'static str) -> Result<Map<String, Value>, Unreadable> {
    match members.get(name) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(arguments)) => Ok(arguments.clone()),
        Some(Value::String(text)) => match parse_strict(text.as_bytes()) {
            Ok(Value::Object(arguments)) => Ok(arguments),
            _ => Err(Unreadable::Member(name)),
        },
        Some(_) => Err(Unreadable::Member(name)),
    }
}

pub(crate) fn flag(members: &Map<String, Value>, name: &str) -> bool {
    members.get(name) == Some(&Value::Bool(true))
}

/// `mcp__server__tool` as server and tool. A server's name ends at the first separator.
pub(crate) fn split_mcp(name: &str) -> (Option<String>, String) {
    let parts = name.strip_prefix("mcp__").and_then(|rest| rest.split_once("__"));
    match parts.filter(|(server, tool)| !server.is_empty() && !tool.is_empty()) {
        Some((server, tool)) => (Some(server.to_owned()), tool.to_owned()),
        None => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_bounded_and_read_strictly() {
        let deep = format!("{}{}", "[".repeat(40), "]".repeat(40));
        for (bytes, why) in [
            (b"".to_vec(), "empty"),
            (b" \n".to_vec(), "empty"),
            (vec![b' '; MAX_EVENT_BYTES + 1], "larger"),
            (br#"{"a":1,"a":2}"#.to_vec(), "twice"),
            (deep.into_bytes(), "deeper"),
            (b"[1]".to_vec(), "object"),
            (b"{".to_vec(), "JSON"),
            (vec![0xff], "UTF-8"),
        ] {
            let error = members(&bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let mut longest = br#"{"a":1}"#.to_vec();
        longest.resize(MAX_EVENT_BYTES, b' ');
        assert_eq!(members(&longest).unwrap().len(), 1);
    }

    #[test]
    fn a_server_ends_at_the_first_separator_and_a_broken_name_has_none() {
        assert_eq!(split_mcp("mcp__git__push"), (Some("git".into()), "push".into()));
        assert_eq!(split_mcp("mcp__a__b__c"), (Some("a".into()), "b__c".into()));
        for name in ["mcp__git", "mcp____x", "mcp__git__", "Bash"] {
            assert_eq!(split_mcp(name), (None, name.to_owned()));
        }
    }

    #[test]
    fn arguments_are_an_object_or_its_text() {
        let read = |text: &str| arguments(&members(text.as_bytes()).unwrap(), "i");
        assert_eq!(read(r#"{"i":{"a":1}}"#), read(r#"{"i":"{\"a\":1}"}"#));
        assert_eq!(read("{}").unwrap(), Map::new());
        for bad in [r#"{"i":[1]}"#, r#"{"i":"x"}"#, r#"{"i":"{\"a\":1,\"a\":2}"}"#, r#"{"i":7}"#] {
            assert_eq!(read(bad), Err(Unreadable::Member("i")), "{bad}");
        }
    }
}
