//! How each coding agent asks, and how it is answered.
//!
//! One module per agent; [`read`] and [`answer`] choose. INVARIANT: an answer that is not to an ALLOW denies in that
//! agent's own form, by exit code and by body, so that it holds even if one of the two is lost. A denial ends with 2
//! wherever a process answers: agents take 0 with an unreadable body, 1 and 127 for "run the tool".
//!
//! An ALLOW never says `allow` to the agent's own permission system: it only does not object, so the agent's prompts,
//! rules and modes still hold. Both must agree, as a person who installs a second lock expects. Who wants Stage0 to
//! replace the prompts sets [`Options::grant_permission`](crate::Options::grant_permission). The body of an ALLOW is
//! never empty: what relays it can tell it from an accidental `{}`.

mod claude_code;
mod codex;
mod cursor;
mod gemini;
mod opencode;

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::{Decision, Event, Options, Unreadable, event};

/// A coding agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the agents' names")]
pub enum Agent {
    ClaudeCode,
    Codex,
    Cursor,
    Gemini,
    OpenCode,
}

impl Agent {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 5] = [Self::ClaudeCode, Self::Codex, Self::Cursor, Self::Gemini, Self::OpenCode];

    /// The name in commands, paths and the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude-code",
            Self::Codex => "codex",
            Self::Cursor => "cursor",
            Self::Gemini => "gemini",
            Self::OpenCode => "opencode",
        }
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Agent {
    type Err = UnknownAgent;

    fn from_str(text: &str) -> Result<Self, UnknownAgent> {
        Self::ALL.into_iter().find(|agent| agent.as_str() == text).ok_or(UnknownAgent)
    }
}

/// A name that is no agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be claude-code, codex, cursor, gemini or opencode")]
pub struct UnknownAgent;

/// What an agent gets: over HTTP the body, always with status 200; from a process all three.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The body; a process prints it on standard output.
    pub body: Value,
    /// Text for standard error; empty if there is none.
    pub stderr: String,
    /// 0 or 2, never anything else.
    pub exit_code: u8,
}

impl Answer {
    fn allow(body: Value) -> Self {
        Self { body, stderr: String::new(), exit_code: 0 }
    }

    fn deny(body: Value, text: &str) -> Self {
        Self { body, stderr: text.to_owned(), exit_code: 2 }
    }

    /// For an event that asks nothing.
    fn nothing() -> Self {
        Self::allow(json!({}))
    }

    /// What a process writes on standard output: one line. Nothing where the body is empty.
    pub fn stdout(&self) -> String {
        if self.body == json!({}) { String::new() } else { format!("{}\n", self.body) }
    }
}

/// Reads an event of an agent. What it refuses is answered by [`answer`] with [`Decision::undecided`].
pub fn read(agent: Agent, bytes: &[u8]) -> Result<Event, Unreadable> {
    let members = event::members(bytes)?;
    match agent {
        Agent::ClaudeCode => claude_code::read(&members),
        Agent::Codex => codex::read(&members),
        Agent::Cursor => cursor::read(&members),
        Agent::Gemini => gemini::read(&members),
        Agent::OpenCode => opencode::read(&members),
    }
}

/// The answer to an event. `event` is `None` where it could not be read: it is then denied, whatever
/// the decision.
///
/// A decision counts for calls only. Every other event that could be read gets an empty answer.
pub fn answer(agent: Agent, event: Option<&Event>, decision: &Decision, options: &Options) -> Answer {
    if event.is_some_and(|event| !matches!(event, Event::Call(_))) {
        return Answer::nothing();
    }
    let name = event.and_then(Event::name);
    let grant = options.grant_permission;
    let denied;
    let decision = if event.is_none() && decision.is_allow() {
        denied = Decision::undecided("the event could not be read");
        &denied
    } else {
        decision
    };
    match agent {
        Agent::ClaudeCode => claude_code::answer(name, decision, grant),
        Agent::Codex => codex::answer(name, decision),
        Agent::Cursor => cursor::answer(decision, grant),
        Agent::Gemini => gemini::answer(decision),
        Agent::OpenCode => opencode::answer(decision),
    }
}
