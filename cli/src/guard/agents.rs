//! What differs between coding agents: where their settings are, how a hook stands in them, and what a hook of each
//! cannot hold back. The facts are those of the agents' own documents; each module of `stage0-guard` names its traps.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use stage0_guard::Agent;

/// How long an agent waits for a hook: longer than the hook's own deadline, which answers first.
pub(super) const AGENT_TIMEOUT_SECONDS: u32 = 30;

/// Whose settings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    User,
    /// Of the machine: users cannot change them.
    Managed,
    /// Of the working directory.
    Project,
}

/// How hooks stand in the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `hooks.<Event>: [{matcher, hooks: [{type, command, timeout}]}]`
    Groups,
    /// `hooks.<event>: [{command, timeout, failClosed}]` beside `version: 1`.
    List,
    /// A JavaScript file.
    Plugin,
}

/// What an agent can do when its hook crashes, is killed or answers too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailClosed {
    /// A member of the hook's entry makes it deny, from this version on.
    Switch { member: &'static str, since: Option<[u64; 3]> },
    /// It runs the tool. Nothing can be set.
    Never,
    /// An exception stops the tool.
    Always,
}

/// What is known of an agent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Profile {
    pub(super) agent: Agent,
    /// The program whose `--version` says which version is there.
    pub(super) program: &'static str,
    pub(super) form: Form,
    /// The event before each tool call.
    pub(super) ask: &'static str,
    /// Events that say how calls end, and that sessions begin and end.
    pub(super) others: &'static [&'static str],
    pub(super) fail_closed: FailClosed,
    /// A switch that turns all hooks off, as a path of members, and the value that does it.
    pub(super) off: &'static [(&'static [&'static str], bool)],
    /// What must be done by hand after installing; empty: nothing.
    pub(super) by_hand: &'static str,
    pub(super) not_covered: &'static [&'static str],
}

const CLAUDE_CODE: Profile = Profile {
    agent: Agent::ClaudeCode,
    program: "claude",
    form: Form::Groups,
    ask: "PreToolUse",
    others: &["PostToolUse", "PostToolUseFailure", "SessionStart", "SessionEnd"],
    fail_closed: FailClosed::Switch { member: "onFailure", since: Some([2, 1, 295]) },
    off: &[(&["disableAllHooks"], true)],
    by_hand: "",
    not_covered: &[
        "`--bare`, `--safe-mode` and `disableAllHooks` switch hooks off; only managed settings outlast them",
        "tools that run at the model's provider, such as its own web search, are no tool calls here",
    ],
};

const CODEX: Profile = Profile {
    agent: Agent::Codex,
    program: "codex",
    form: Form::Groups,
    ask: "PreToolUse",
    others: &["PostToolUse", "SessionStart", "SessionEnd"],
    fail_closed: FailClosed::Never,
    off: &[],
    by_hand: "start `codex`, open `/hooks`, trust the new hooks: until then Codex skips them, also in `codex exec`",
    not_covered: &[
        "a hook that is not trusted yet, or was changed, is skipped and the tool runs",
        "a hook that crashes, is killed, or is later than its timeout lets the tool run",
        "a session whose working directory was deleted runs no hooks",
        "`[features] hooks = false` in config.toml switches hooks off",
    ],
};

const CURSOR: Profile = Profile {
    agent: Agent::Cursor,
    program: "cursor",
    form: Form::List,
    ask: "preToolUse",
    others: &["postToolUse", "postToolUseFailure", "sessionStart", "sessionEnd"],
    fail_closed: FailClosed::Switch { member: "failClosed", since: None },
    off: &[],
    by_hand: "",
    not_covered: &[
        "versions that do not know `failClosed` run the tool when a hook crashes or is too late",
        "completions that Cursor writes while a person types are no tool calls",
    ],
};

const GEMINI: Profile = Profile {
    agent: Agent::Gemini,
    program: "gemini",
    form: Form::Groups,
    ask: "BeforeTool",
    others: &["AfterTool", "SessionStart", "SessionEnd"],
    fail_closed: FailClosed::Never,
    off: &[(&["hooksConfig", "enabled"], false), (&["hooks", "enabled"], false), (&["tools", "enableHooks"], false)],
    by_hand: "",
    not_covered: &[
        "a session whose working directory was deleted runs no hooks",
        "a hook that the agent kills, or that is later than its timeout, is a warning, and the tool runs",
        "tools that run at the model's provider are no tool calls here",
    ],
};

const OPENCODE: Profile = Profile {
    agent: Agent::OpenCode,
    program: "opencode",
    form: Form::Plugin,
    ask: "tool.execute.before",
    others: &["tool.execute.after"],
    fail_closed: FailClosed::Always,
    off: &[],
    by_hand: "",
    not_covered: &["some versions do not fire the plugin's hook for the tool calls of subagents (opencode#5894)"],
};

impl Profile {
    pub(super) fn of(agent: Agent) -> &'static Self {
        match agent {
            Agent::ClaudeCode => &CLAUDE_CODE,
            Agent::Codex => &CODEX,
            Agent::Cursor => &CURSOR,
            Agent::Gemini => &GEMINI,
            Agent::OpenCode => &OPENCODE,
        }
    }

    /// The file that holds the hooks; none where this agent has no such settings that we can write.
    pub(super) fn file(&self, scope: Scope, home: &Path) -> Option<PathBuf> {
        let managed = |path: &str| Some(PathBuf::from(path));
        let variable = |name: &str, otherwise: &str| {
            let named = std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
            named.unwrap_or_else(|| home.join(otherwise))
        };
        match (self.agent, scope) {
            (Agent::ClaudeCode, Scope::User) => Some(variable("CLAUDE_CONFIG_DIR", ".claude").join("settings.json")),
            (Agent::ClaudeCode, Scope::Project) => Some(".claude/settings.json".into()),
            (Agent::ClaudeCode, Scope::Managed) if cfg!(target_os = "macos") => {
                managed("/Library/Application Support/ClaudeCode/managed-settings.json")
            }
            (Agent::ClaudeCode, Scope::Managed) => managed("/etc/claude-code/managed-settings.json"),
            (Agent::Codex, Scope::User) => Some(variable("CODEX_HOME", ".codex").join("hooks.json")),
            (Agent::Codex, Scope::Project) => Some(".codex/hooks.json".into()),
            (Agent::Codex, Scope::Managed) => None,
            (Agent::Cursor, Scope::User) => Some(home.join(".cursor/hooks.json")),
            (Agent::Cursor, Scope::Project) => Some(".cursor/hooks.json".into()),
            (Agent::Cursor, Scope::Managed) if cfg!(target_os = "macos") => {
                managed("/Library/Application Support/Cursor/hooks.json")
            }
            (Agent::Cursor, Scope::Managed) => managed("/etc/cursor/hooks.json"),
            (Agent::Gemini, Scope::User) => Some(home.join(".gemini/settings.json")),
            (Agent::Gemini, Scope::Project) => Some(".gemini/settings.json".into()),
            (Agent::Gemini, Scope::Managed) if cfg!(target_os = "macos") => {
                managed("/Library/Application Support/GeminiCli/settings.json")
            }
            (Agent::Gemini, Scope::Managed) => managed("/etc/gemini-cli/settings.json"),
            (Agent::OpenCode, Scope::User) => {
                Some(variable("XDG_CONFIG_HOME", ".config").join("opencode/plugin/stage0.js"))
            }
            (Agent::OpenCode, Scope::Project) => Some(".opencode/plugin/stage0.js".into()),
            (Agent::OpenCode, Scope::Managed) => None,
        }
    }

    pub(super) fn events(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.ask).chain(self.others.iter().copied())
    }

    /// The entry of one event, as it is written.
    pub(super) fn entry(&self, event: &str, command: &str) -> Value {
        let mut hook = Map::new();
        if self.form == Form::Groups {
            hook.insert("type".to_owned(), json!("command"));
        }
        hook.insert("command".to_owned(), json!(command));
        // Gemini counts in milliseconds.
        let unit = if self.agent == Agent::Gemini { 1_000 } else { 1 };
        // Codex allows no more for this one, and warns at each start.
        let seconds = if (self.agent, event) == (Agent::Codex, "SessionEnd") { 3 } else { AGENT_TIMEOUT_SECONDS };
        hook.insert("timeout".to_owned(), json!(seconds * unit));
        if self.agent == Agent::Gemini {
            hook.insert("name".to_owned(), json!("stage0"));
        }
        if let (true, FailClosed::Switch { member, .. }) = (event == self.ask, self.fail_closed) {
            let value = if member == "failClosed" { json!(true) } else { json!("block") };
            hook.insert(member.to_owned(), value);
        }
        if self.form == Form::List {
            return Value::Object(hook);
        }
        let is_about_tools = event.contains("Tool");
        let matcher = match self.agent {
            Agent::Gemini => ".*",
            _ => "*",
        };
        let mut group = Map::new();
        if is_about_tools {
            group.insert("matcher".to_owned(), json!(matcher));
        }
        group.insert("hooks".to_owned(), json!([hook]));
        Value::Object(group)
    }
}
