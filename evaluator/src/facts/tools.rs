//! Tools: which tools a request lists and which it calls next, what their names say, and which can do anything.
//!
//! Owns the reading of a tool's name: the server in `mcp__<server>__<tool>` is not the tool, and what stands in
//! brackets is what it is called with. Whether a tool is allowed is `scope`'s to say. A name that mixes scripts may
//! be any tool.

use serde_json::Value;
use stage0_contract::{CheckRequest, Spelling, Word, parts};

use super::culprit::{Culprit, MAX_CULPRITS};
use super::effects::{As, Effects, judge};
use super::evidence::Evidence;
use crate::pack::{Class, ToolWords, Vocabulary};

/// Most tools whose names are recorded, and the longest of these in characters.
const MAX_NAMES: usize = 20;
const MAX_NAME_CHARS: usize = 128;

/// What the name of a tool of an MCP server begins with, and what ends the server.
const MCP: &str = "mcp__";
const MCP_SEPARATOR: &str = "__";

/// The tools of a request: those it lists and the one it calls next.
#[derive(Debug)]
pub(crate) struct ProposedTools {
    listed: Vec<Word>,
    current: Vec<Word>,
}

impl ProposedTools {
    pub(crate) fn read(request: &CheckRequest, evidence: &mut Evidence<'_>) -> Self {
        Self {
            listed: request.tools.iter().map(|t| Word::new(t)).collect(),
            current: evidence.text("current_tool").map(Word::new).into_iter().collect(),
        }
    }

    /// Everything that may be called.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Word> {
        self.listed.iter().chain(&self.current)
    }

    /// What is called next: `current_tool`, else each of `tools`.
    pub(crate) fn proposed(&self) -> &[Word] {
        if self.current.is_empty() { &self.listed } else { &self.current }
    }

    /// The first tools in one spelling, each once: what a record keeps of them.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for tool in self.all() {
            if names.len() == MAX_NAMES {
                break;
            }
            let spelling = Spelling::of(tool.as_str());
            let name: String = spelling.folded().unwrap_or(tool.as_str()).chars().take(MAX_NAME_CHARS).collect();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Whether one of them, or a part of its dotted name, can do anything, as the first edition reads them.
    fn any_sensitive(&self, vocabulary: &Vocabulary) -> bool {
        self.all().any(|tool| {
            let Some(name) = Word::name(tool.as_str()).known().map(str::to_owned) else { return true };
            vocabulary.is_sensitive_tool(&name) || name.split(['.', '/', ':']).any(|p| vocabulary.is_sensitive_tool(p))
        })
    }
}

/// A tool's name in its parts: `mcp__github__push_files` is `push_files` of `github`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ToolName<'n> {
    pub(crate) server: Option<&'n str>,
    pub(crate) tool: &'n str,
}

impl<'n> ToolName<'n> {
    /// Reads a name, whose case does not matter before the server. The server ends at the first `__`, or is the
    /// longest of the listed ones with which the rest begins; these are given as the name is, in lower case or not.
    pub(crate) fn parse<'s>(name: &'n str, servers: impl IntoIterator<Item = &'s str>) -> Self {
        let whole = Self { server: None, tool: name };
        let Some(prefix) = name.get(..MCP.len()).filter(|prefix| prefix.eq_ignore_ascii_case(MCP)) else {
            return whole;
        };
        let rest = name.get(prefix.len()..).unwrap_or_default();
        let ends = |server: &str| rest.strip_prefix(server).and_then(|rest| rest.strip_prefix(MCP_SEPARATOR));
        let listed = servers.into_iter().filter(|server| !server.is_empty() && ends(server).is_some());
        let server = match listed.max_by_key(|server| server.len()).and_then(|server| rest.get(..server.len())) {
            Some(server) => server,
            None => match rest.split_once(MCP_SEPARATOR) {
                Some((server, tool)) if !server.is_empty() && !tool.is_empty() => server,
                _ => return whole,
            },
        };
        Self { server: Some(server), tool: rest.get(server.len() + MCP_SEPARATOR.len()..).unwrap_or_default() }
    }
}

/// What the names of the tools say that they can do.
#[derive(Debug, Default)]
pub(crate) struct Powers {
    /// One can do anything.
    pub(crate) sensitive: bool,
    /// The first that can.
    pub(crate) sensitive_tools: Vec<Culprit>,
    /// The first that say an effect which the request does not declare.
    pub(crate) undeclared: Vec<Culprit>,
}

impl Powers {
    pub(crate) fn read(
        request: &CheckRequest,
        tools: &ProposedTools,
        effects: &Effects,
        vocabulary: &Vocabulary,
    ) -> Self {
        let (Some(words), Some(effect_words)) = (vocabulary.tools(), vocabulary.effects()) else {
            return Self { sensitive: tools.any_sensitive(vocabulary), ..Self::default() };
        };
        let mut powers = Self::default();
        let current = request.context.as_ref().and_then(|context| context.get("current_tool")).and_then(Value::as_str);
        let current = current.filter(|current| !request.tools.iter().any(|tool| tool == current));
        let listed = request.tools.iter().enumerate().map(|(index, tool)| (Some(index), tool.as_str()));
        for (index, raw) in listed.chain(current.map(|current| (None, current))) {
            let at = || match index {
                Some(index) => Culprit::item("tools", index, raw),
                None => Culprit::new("context.current_tool", raw),
            };
            let sensitive = is_sensitive(raw, words);
            powers.sensitive |= sensitive;
            if sensitive && powers.sensitive_tools.len() < MAX_CULPRITS {
                powers.sensitive_tools.push(at());
            }
            let undeclared = (sensitive && !request.side_effects_stated)
                || ((!effects.high || !effects.communication) && {
                    let said = judge(&action(raw), effect_words, As::Tool);
                    match said.class {
                        Class::High => !said.unknown && !effects.high,
                        Class::Communication => !effects.communication,
                        Class::None | Class::Loop | Class::Medium | Class::Approval => false,
                    }
                });
            if undeclared && powers.undeclared.len() < MAX_CULPRITS {
                powers.undeclared.push(at());
            }
        }
        powers
    }
}

/// Whether a tool can do anything, by the parts of its name.
fn is_sensitive(raw: &str, words: &ToolWords) -> bool {
    if Word::new(raw).known().is_none() {
        return true;
    }
    let name = raw.split_once('(').map_or(raw, |(name, _)| name);
    let ToolName { server, tool } = ToolName::parse(name, []);
    let whole = parts(tool);
    let behind_prefix = tool.rsplit(['.', ':', '/']).next().map(parts).unwrap_or_default();
    let lead = behind_prefix.first().map(String::as_str);
    let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
    // A server that runs things has tools such as `run` that need not say what.
    let server = server.filter(|_| whole.len() == 1).map(parts).unwrap_or_default();
    let with_server: Vec<&str> = server.iter().map(String::as_str).chain(whole.iter().copied()).collect();
    words.is_sensitive(&with_server, lead)
}

/// What a tool's name says that it does: without server and vendor's prefix, and with what it is called with behind a
/// colon.
pub(crate) fn action(raw: &str) -> String {
    let (name, called_with) = raw.split_once('(').unwrap_or((raw, ""));
    let tool = ToolName::parse(name, []).tool;
    let tool = tool.rsplit(':').find(|part| !part.trim().is_empty()).unwrap_or(tool);
    if called_with.is_empty() { tool.to_owned() } else { format!("{tool}: {called_with}") }
}

#[cfg(test)]
mod tests;
