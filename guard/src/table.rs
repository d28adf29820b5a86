//! What a tool call is asked about: for each tool its effects, the arguments that are sent, and where targets stand.
//!
//! The built-in table is data (`assets/tools.toml`, `assets/commands.toml`). A user's file has the same form and comes
//! first, so an entry of it takes the place of a built-in one. INVARIANT: a tool that no entry knows has the effect
//! `unknown`, which policies count as high. What a tool or its server says about itself is never read.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::agents::Agent;
use crate::effects;
use crate::event::ToolCall;
use crate::shell::{CommandEntry, Commands};

const TOOLS: &str = include_str!("../assets/tools.toml");
const COMMANDS: &str = include_str!("../assets/commands.toml");
/// How agents call a tool of an MCP server: `mcp__<server>__<tool>`.
const MCP_PREFIX: &str = "mcp__";
/// How the MCP guard calls itself. It asks about tools of servers only.
const MCP_GUARD: &str = "mcp";

/// How the effects of a call follow from its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reader {
    /// They do not: the entry's effects hold.
    #[default]
    Plain,
    /// Targets are files that are read.
    Read,
    /// Targets are files that are changed.
    Write,
    /// `command` is a shell command; the entry's effects are not used.
    Shell,
    /// `patch` names the files that it adds, changes and removes.
    Patch,
}

/// One entry for tools by their names at an agent.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ToolEntry {
    /// Agents whose tools these are; none: of every agent.
    #[serde(default)]
    agents: Vec<String>,
    /// Names, each with any number of `*`.
    names: Vec<String>,
    #[serde(flatten)]
    pub(crate) rule: Rule,
}

/// One entry for tools of MCP servers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct McpEntry {
    server: String,
    tool: String,
    #[serde(flatten)]
    pub(crate) rule: Rule,
}

/// What is asked about a tool.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Rule {
    /// The name that is sent; absent: its own.
    #[serde(default, rename = "as")]
    pub(crate) name: Option<String>,
    pub(crate) effects: Vec<String>,
    #[serde(default)]
    pub(crate) reader: Reader,
    /// Arguments that are sent by name. Never the contents of files.
    #[serde(default)]
    pub(crate) send: Vec<String>,
    /// Arguments that name what is touched: paths or addresses, or lists of them.
    #[serde(default)]
    pub(crate) targets: Vec<String>,
    /// Arguments with a shell command, or a patch. Two of them in one call are unknown.
    #[serde(default)]
    pub(crate) text: Vec<String>,
    /// Arguments that name the working directory of the call.
    #[serde(default)]
    pub(crate) cwd: Vec<String>,
    /// Arguments that change nothing about what happens, such as a description; the digest leaves them out.
    #[serde(default)]
    pub(crate) ignore: Vec<String>,
    /// Arguments that ask for more rights than the agent's sandbox gives.
    #[serde(default)]
    pub(crate) escalates: Vec<String>,
    #[serde(default)]
    pub(crate) environment: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tool: Vec<ToolEntry>,
    #[serde(default)]
    mcp: Vec<McpEntry>,
    #[serde(default)]
    command: Vec<CommandEntry>,
    #[serde(default)]
    environment: Option<String>,
    #[serde(default)]
    context: Map<String, Value>,
}

/// Why a user's file is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct TableError {
    /// The file, as the caller named it.
    pub place: String,
    /// What is wrong, with line and column where it is the form.
    pub message: String,
}

/// An effect that a user's file names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedEffect {
    /// Whose it is, such as `the tool x`.
    pub of: String,
    /// The word, as it stands in the file.
    pub effect: String,
}

/// Tools, MCP tools and shell commands with their effects.
#[derive(Debug, Clone)]
pub struct Table {
    tools: Vec<ToolEntry>,
    mcp: Vec<McpEntry>,
    pub(crate) commands: Commands,
    pub(crate) environment: Option<String>,
    pub(crate) context: Map<String, Value>,
}

impl Table {
    /// The built-in table.
    pub fn builtin() -> Result<Self, TableError> {
        let tools = parsed("tools.toml", TOOLS)?;
        let commands = parsed("commands.toml", COMMANDS)?;
        Ok(Self {
            tools: tools.tool,
            mcp: tools.mcp,
            commands: Commands::of(commands.command),
            environment: None,
            context: Map::new(),
        })
    }

    /// This table with a user's file before it. `place` names the file in errors.
    pub fn with(mut self, place: &str, text: &str) -> Result<Self, TableError> {
        let file = parsed(place, text)?;
        self.tools.splice(0..0, file.tool);
        self.mcp.splice(0..0, file.mcp);
        self.commands.put_before(file.command);
        self.environment = file.environment.or(self.environment);
        for (name, value) in file.context {
            self.context.insert(name, value);
        }
        Ok(self)
    }

    /// The effects that a user's file names, each with what has it: whether a policy knows them is its caller's to find
    /// out. One that no policy knows counts as high.
    pub fn named_effects(place: &str, text: &str) -> Result<Vec<NamedEffect>, TableError> {
        let file = parsed(place, text)?;
        let mut named = Vec::new();
        let mut add = |of: String, effects: &[String]| {
            named.extend(effects.iter().map(|effect| NamedEffect { of: of.clone(), effect: effect.clone() }));
        };
        file.tool.iter().for_each(|entry| add(of_tool(entry), &entry.rule.effects));
        file.mcp.iter().for_each(|entry| add(of_mcp(entry), &entry.rule.effects));
        for entry in &file.command {
            entry.named_effects().for_each(|effects| add(format!("the command `{}`", entry.name()), effects));
        }
        Ok(named)
    }

    /// The rule for a call; `None` for a tool that no entry knows.
    pub(crate) fn rule(&self, call: &ToolCall) -> Option<&Rule> {
        match &call.server {
            Some(server) => {
                let fits = |entry: &&McpEntry| matches(&entry.server, server) && matches(&entry.tool, &call.tool);
                self.mcp.iter().find(fits).map(|entry| &entry.rule)
            }
            None => {
                let fits = |entry: &&ToolEntry| {
                    (entry.agents.is_empty() || entry.agents.contains(&call.agent))
                        && entry.names.iter().any(|name| matches(name, &call.tool))
                };
                self.tools.iter().find(fits).map(|entry| &entry.rule)
            }
        }
    }

    /// The effects that the table gives a tool of an MCP server, whatever its arguments are: what a probe asks about.
    pub fn effects_of_mcp_tool(&self, server: &str, tool: &str) -> Vec<String> {
        let call = ToolCall { server: Some(server.to_owned()), tool: tool.to_owned(), ..ToolCall::default() };
        let effects: BTreeSet<String> =
            self.rule(&call).map(|rule| rule.effects.clone()).into_iter().flatten().collect();
        effects::listed(effects)
    }
}

fn parsed(place: &str, text: &str) -> Result<File, TableError> {
    let error = |message: String| TableError { place: place.to_owned(), message };
    let file: File = toml::from_str(text).map_err(|e| error(e.to_string().trim_end().to_owned()))?;
    for entry in &file.tool {
        let name = entry.names.first().map_or("", String::as_str);
        if name.is_empty() {
            return Err(error("`names` of a [[tool]] is empty: write `names = [\"Read\"]`".to_owned()));
        }
        for agent in &entry.agents {
            if agent != MCP_GUARD && agent.parse::<Agent>().is_err() {
                return Err(error(format!(
                    "`agents` of the tool `{name}` has `{agent}`, which is none: it must be \
                    claude-code, codex, cursor, gemini or opencode"
                )));
            }
        }
        fits_some_call(entry).map_err(error)?;
        checked(&entry.rule, &of_tool(entry)).map_err(error)?;
    }
    for entry in &file.mcp {
        if entry.server.is_empty() || entry.tool.is_empty() {
            return Err(error("`server` and `tool` of an [[mcp]] must not be empty: `*` means all".to_owned()));
        }
        checked(&entry.rule, &of_mcp(entry)).map_err(error)?;
    }
    for entry in &file.command {
        entry.check().map_err(error)?;
    }
    Ok(file)
}

fn of_tool(entry: &ToolEntry) -> String {
    format!("the tool `{}`", entry.names.first().map_or("", String::as_str))
}

fn of_mcp(entry: &McpEntry) -> String {
    format!("the tool `{}` of the server `{}`", entry.tool, entry.server)
}

/// Tools of MCP servers are looked up among the `[[mcp]]` entries alone, so a `[[tool]]` for one never holds.
fn fits_some_call(entry: &ToolEntry) -> Result<(), String> {
    let name = entry.names.iter().find(|name| name.starts_with(MCP_PREFIX));
    let of_guard = entry.agents.iter().any(|agent| agent == MCP_GUARD);
    let Some(name) = name.or_else(|| entry.names.first().filter(|_| of_guard)) else { return Ok(()) };
    let (server, tool) = match name.strip_prefix(MCP_PREFIX) {
        Some(rest) => rest.split_once("__").unwrap_or((rest, "*")),
        None => ("*", name.as_str()),
    };
    let or_all = |text: &str| if text.is_empty() { "*".to_owned() } else { text.to_owned() };
    Err(format!(
        "a [[tool]] named `{name}` fits no call, since it is a tool of an MCP server: write [[mcp]] with \
        `server = \"{}\"` and `tool = \"{}\"`",
        or_all(server),
        or_all(tool)
    ))
}

fn checked(rule: &Rule, of: &str) -> Result<(), String> {
    if rule.effects.is_empty() || rule.effects.iter().any(|effect| effect.trim().is_empty()) {
        return Err(format!(
            "`effects` of {of} must name at least one: write `effects = [\"read\"]` if nothing changes"
        ));
    }
    if matches!(rule.reader, Reader::Shell | Reader::Patch) && rule.text.is_empty() {
        return Err(format!("{of} has a reader of text, and `text` does not say which argument holds it"));
    }
    if rule.name.as_deref().is_some_and(|name| name.trim().is_empty()) {
        return Err(format!("`as` of {of} is empty"));
    }
    Ok(())
}

/// Whether a name fits a pattern, in which each `*` stands for any text. Case counts.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(agent: &str, tool: &str) -> ToolCall {
        ToolCall { agent: agent.to_owned(), tool: tool.to_owned(), ..ToolCall::default() }
    }

    fn on_server(server: &str, tool: &str) -> ToolCall {
        ToolCall { server: Some(server.to_owned()), ..call("mcp", tool) }
    }

    fn effects(table: &Table, call: &ToolCall) -> Vec<String> {
        table.rule(call).map(|rule| rule.effects.clone()).unwrap_or_default()
    }

    #[test]
    fn a_pattern_stands_for_any_text_between_its_parts() {
        for (pattern, name) in [("get_*", "get_x"), ("*", ""), ("a*b*c", "axbybc"), ("ab", "ab"), ("*x*", "x")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("get_*", "forget_x"), ("ab", "abc"), ("a*a", "a"), ("a*b*c", "acb"), ("", "x")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn the_built_in_table_knows_the_agents_tools_and_no_servers() {
        let table = Table::builtin().unwrap();
        assert_eq!(effects(&table, &call("claude-code", "Read")), ["read"]);
        assert_eq!(effects(&table, &call("opencode", "write")), ["code_modification"]);
        assert!(table.rule(&call("claude-code", "Frobnicate")).is_none());
        assert!(table.rule(&call("codex", "WebFetch")).is_none(), "a tool of another agent");
        assert!(table.rule(&on_server("github", "get_issue")).is_none());
        assert!(table.rule(&on_server("x", "Read")).is_none(), "a server's tool is not the agent's own of that name");
        assert_eq!(table.effects_of_mcp_tool("github", "get_issue"), ["unknown"]);
    }

    #[test]
    fn an_entry_of_the_user_takes_the_place_of_a_built_in_one() {
        let text = r#"
            environment = "development"
            [context]
            credentials = ["development"]
            [[tool]]
            names = ["WebFetch"]
            effects = ["send"]
            [[mcp]]
            server = "github"
            tool = "get_*"
            effects = ["read"]
            send = ["owner", "repo"]
            [[command]]
            run = ["./scripts/test.sh"]
            effects = ["execute"]
        "#;
        let table = Table::builtin().unwrap().with("guard.toml", text).unwrap();
        assert_eq!(effects(&table, &call("claude-code", "WebFetch")), ["send"]);
        assert_eq!(effects(&table, &call("claude-code", "WebSearch")), ["external_api"], "others stay");
        assert_eq!(table.effects_of_mcp_tool("github", "get_issue"), ["read"]);
        assert_eq!(table.effects_of_mcp_tool("github", "create_issue"), ["unknown"]);
        assert_eq!(table.environment.as_deref(), Some("development"));
    }

    #[test]
    fn an_entry_for_a_servers_tool_in_the_wrong_place_is_refused_with_the_right_one() {
        for (name, server, tool) in [
            ("mcp__crm__update", "crm", "update"),
            ("mcp__crm__*", "crm", "*"),
            ("mcp__a__b__c", "a", "b__c"),
            ("mcp__crm", "crm", "*"),
            ("mcp__*", "*", "*"),
            ("mcp__", "*", "*"),
        ] {
            let text = format!("[[tool]]\nnames = [\"Read\", \"{name}\"]\neffects = [\"read\"]");
            let error = Table::builtin().unwrap().with("guard.toml", &text).unwrap_err().to_string();
            let wanted = format!("write [[mcp]] with `server = \"{server}\"` and `tool = \"{tool}\"`");
            assert!(error.contains(&format!("`{name}`")) && error.ends_with(&wanted), "{error}");
        }
        for name in ["mcp_crm_update", "MCP:update", "mcp", "*", "my_mcp__tool"] {
            let text = format!("[[tool]]\nnames = [\"{name}\"]\neffects = [\"read\"]");
            assert!(Table::builtin().unwrap().with("guard.toml", &text).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_effects_of_a_users_file_are_named_with_what_has_them() {
        let text = r#"
            [[tool]]
            names = ["A", "B"]
            effects = ["read", "sned"]
            [[mcp]]
            server = "crm"
            tool = "*"
            effects = ["external_notification"]
            [[command]]
            run = ["deployctl up", "deployctl"]
            effects = ["deploy"]
            options = { "--wipe" = ["delete"] }
        "#;
        let named = Table::named_effects("guard.toml", text).unwrap();
        let named: Vec<(&str, &str)> = named.iter().map(|named| (named.of.as_str(), named.effect.as_str())).collect();
        assert_eq!(
            named,
            [
                ("the tool `A`", "read"),
                ("the tool `A`", "sned"),
                ("the tool `*` of the server `crm`", "external_notification"),
                ("the command `deployctl up`", "deploy"),
                ("the command `deployctl up`", "delete"),
            ]
        );
        assert!(Table::named_effects("guard.toml", "").unwrap().is_empty());
        assert!(Table::named_effects("guard.toml", "tool = 1").is_err());
    }

    #[test]
    fn a_mistake_in_the_users_file_is_refused_with_its_place() {
        for (text, said) in [
            ("tools = 1", "tools"),
            ("[[tool]]\nnames = [\"A\"]\neffects = [\"read\"]\nefects = []", "efects"),
            ("[[mcp]]\nserver = \"a\"\ntool = \"b\"\neffects = [\"read\"]\nx = 1", "unknown field"),
            ("[[tool]]\nnames = [\"A\"]\neffects = []", "at least one"),
            ("[[tool]]\nnames = [\"A\"]\neffects = [\" \"]", "at least one"),
            ("[[tool]]\nnames = []\neffects = [\"read\"]", "names"),
            ("[[tool]]\nnames = [\"A\"]", "effects"),
            ("[[tool]]\nagents = [\"vim\"]\nnames = [\"A\"]\neffects = [\"read\"]", "vim"),
            ("[[tool]]\nnames = [\"A\"]\neffects = [\"read\"]\nreader = \"guess\"", "guess"),
            ("[[tool]]\nnames = [\"A\"]\neffects = [\"read\"]\nreader = \"shell\"", "text"),
            ("[[tool]]\nnames = [\"A\"]\nas = \"\"\neffects = [\"read\"]", "as"),
            ("[[tool]]\nagents = [\"codex\", \"mcp\"]\nnames = [\"push\"]\neffects = [\"read\"]", "`tool = \"push\"`"),
            ("[[mcp]]\nserver = \"\"\ntool = \"b\"\neffects = [\"read\"]", "server"),
            ("[[command]]\nrun = [\"\"]\neffects = [\"read\"]", "run"),
            ("[[command]]\nrun = [\"x\"]\neffects = []", "effects"),
            ("[[command]]\nrun = [\"x\"]\neffects = [\"read\"]\nopts = 1", "opts"),
        ] {
            let error = Table::builtin().unwrap().with("guard.toml", text).unwrap_err().to_string();
            assert!(error.starts_with("guard.toml: ") && error.contains(said), "{text}: {error}");
        }
        assert!(Table::builtin().unwrap().with("guard.toml", "").is_ok());
    }
}
