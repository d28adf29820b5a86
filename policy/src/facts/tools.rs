//! Tools: which ones a request lists, which one it calls next, which effects their names announce and which are
//! sensitive.
//!
//! `mcp__<server>__<tool>` is split into server and tool, and text in brackets is read as arguments. `scope` decides
//! whether a tool is allowed. An ambiguous name (letters of mixed scripts) may be any tool.

use serde_json::Value;
use stage0_contract::{CheckRequest, Spelling, Word, parts};

use super::culprit::{Culprit, MAX_CULPRITS};
use super::effects::{Effects, Source, classify};
use super::evidence::Evidence;
use super::mcp;
use crate::vocabulary::{Class, EditionWords, FirstWords, ToolWords, Vocabulary};

const MAX_NAMES: usize = 20;
/// The length at which a recorded name is cut, in characters.
const MAX_NAME_CHARS: usize = 128;

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

    pub(crate) fn all(&self) -> impl Iterator<Item = &Word> {
        self.listed.iter().chain(&self.current)
    }

    /// The tools that may be called next: `current_tool`, or without it each of `tools`.
    pub(crate) fn proposed(&self) -> &[Word] {
        if self.current.is_empty() { &self.listed } else { &self.current }
    }

    /// The names for the decision record: the first tools, normalised, each once.
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

    /// Whether one of them is sensitive in the first edition: by its whole name or a part of its dotted name.
    fn any_sensitive(&self, words: &FirstWords) -> bool {
        self.all().any(|tool| {
            let Some(name) = Word::name(tool.as_str()).known().map(str::to_owned) else { return true };
            let is_sensitive = |part: &str| words.sensitive_tools.contains(part);
            is_sensitive(&name) || name.split(['.', '/', ':']).any(is_sensitive)
        })
    }
}

/// A tool's name in its parts: `mcp__github__push_files` is `push_files` of `github`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ToolName<'n> {
    server: Option<&'n str>,
    tool: &'n str,
}

impl<'n> ToolName<'n> {
    /// The server ends at the first `__`. A name without server or tool is a tool of no server.
    fn parse(name: &'n str) -> Self {
        match mcp::split(name) {
            Some((server, Some(tool))) if !server.is_empty() && !tool.is_empty() => Self { server: Some(server), tool },
            _ => Self { server: None, tool: name },
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct ToolRisks {
    /// A tool is sensitive: it can do anything, as a shell can.
    pub(crate) sensitive: bool,
    pub(crate) sensitive_tools: Vec<Culprit>,
    /// The first tools whose names announce an effect that the request does not declare.
    pub(crate) undeclared: Vec<Culprit>,
}

impl ToolRisks {
    pub(crate) fn read(
        request: &CheckRequest,
        tools: &ProposedTools,
        effects: &Effects,
        vocabulary: &Vocabulary,
    ) -> Self {
        let (effect_words, words) = match &vocabulary.words {
            EditionWords::First(words) => return Self { sensitive: tools.any_sensitive(words), ..Self::default() },
            EditionWords::Second(effect_words, words) => (effect_words, words),
        };
        let mut risks = Self::default();
        let current = request.context.as_ref().and_then(|context| context.get("current_tool")).and_then(Value::as_str);
        let current = current.filter(|current| !request.tools.iter().any(|tool| tool == current));
        let listed = request.tools.iter().enumerate().map(|(index, tool)| (Some(index), tool.as_str()));
        for (index, raw) in listed.chain(current.map(|current| (None, current))) {
            let culprit = || match index {
                Some(index) => Culprit::item("tools", index, raw),
                None => Culprit::new("context.current_tool", raw),
            };
            let sensitive = is_sensitive(raw, words);
            risks.sensitive |= sensitive;
            if sensitive && risks.sensitive_tools.len() < MAX_CULPRITS {
                risks.sensitive_tools.push(culprit());
            }
            let announces_undeclared = || {
                let announced = classify(&effect_text(raw), effect_words, Source::Tool);
                match announced.class {
                    Class::High => !announced.unknown && !effects.high,
                    Class::Communication => !effects.communication,
                    Class::None | Class::Loop | Class::Medium | Class::Approval => false,
                }
            };
            let all_declared = effects.high && effects.communication;
            let undeclared = (sensitive && !request.side_effects_stated) || (!all_declared && announces_undeclared());
            if undeclared && risks.undeclared.len() < MAX_CULPRITS {
                risks.undeclared.push(culprit());
            }
        }
        risks
    }
}

fn is_sensitive(raw: &str, words: &ToolWords) -> bool {
    if Word::new(raw).known().is_none() {
        return true;
    }
    let name = raw.split_once('(').map_or(raw, |(name, _)| name);
    let ToolName { server, tool } = ToolName::parse(name);
    let whole = parts(tool);
    let own = tool.rsplit(['.', ':', '/']).next().map(parts).unwrap_or_default();
    let lead = own.first().map(String::as_str);
    let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
    // The tools of a server that runs things need not say so: `run` of `mcp__shell__run`.
    let server = server.filter(|_| whole.len() == 1).map(parts).unwrap_or_default();
    let with_server: Vec<&str> = server.iter().map(String::as_str).chain(whole.iter().copied()).collect();
    words.is_sensitive(&with_server, lead)
}

/// A tool's name as the text of a side effect: without its server and vendor's prefix, and with its arguments after a
/// colon.
pub(crate) fn effect_text(raw: &str) -> String {
    let (name, arguments) = raw.split_once('(').unwrap_or((raw, ""));
    let tool = ToolName::parse(name).tool;
    let tool = tool.rsplit(':').find(|part| !part.trim().is_empty()).unwrap_or(tool);
    if arguments.is_empty() { tool.to_owned() } else { format!("{tool}: {arguments}") }
}

#[cfg(test)]
mod tests;
