//! The check that asks about a tool call.
//!
//! INVARIANT: the same call gives the same body. Approvals are of the body's digest, so no id, time or count that
//! changes from call to call is in it; of the arguments only their digest and what the table names are.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use stage0_contract::canonical_hash;

use crate::effects::{self, DELETE, PRIVILEGE, READ_SECRET, UNKNOWN};
use crate::event::ToolCall;
use crate::path::{Base, OwnFiles, Place, pattern_names_secret};
use crate::shell::{self, Address, address_kind};
use crate::table::{Reader, Rule, Table};

/// A tool that the check itself denies, so that every policy does: for trying a guard without harm.
pub const MUST_DENY_TOOL: &str = "stage0_must_deny";
/// The longest part of a goal that comes from the call, in characters.
const MAX_SUBJECT_CHARS: usize = 300;
/// The longest argument that is sent by name, in bytes of its JSON.
const MAX_SENT_BYTES: usize = 4_000;
/// The longest command that is sent, in bytes. A longer one counts as unknown.
const MAX_COMMAND_BYTES: usize = 50_000;
/// The most targets that are sent. More count as unknown.
const MAX_TARGETS: usize = 200;
/// The longest target, in bytes. A longer one counts as unknown.
const MAX_TARGET_BYTES: usize = 1_000;

/// What a person or an installer chose for this guard.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the agent works, such as `development`, for tools whose entry names none.
    pub environment: Option<String>,
    /// The agent's id; absent: its name.
    pub agent_id: Option<String>,
    /// Further members of `context`, such as `credentials` and `branch` for the pack `coding-agent`.
    pub context: Map<String, Value>,
    /// An ALLOW also answers the agent's own permission prompt, where the agent has an answer for that.
    pub grant_permission: bool,
    /// The guard's own files and directories, as absolute paths or such that begin with `~/`: its table, its key, its
    /// program. To change one of them, or anything below one, changes what the guard does. They are never sent.
    pub own_files: Vec<String>,
}

/// The effects of a call and what it touches.
#[derive(Default)]
struct Judged {
    effects: BTreeSet<String>,
    targets: Vec<String>,
    /// The command, if the call is one.
    command: Option<String>,
    /// What could not be read of it.
    unread: Vec<&'static str>,
}

impl Judged {
    fn add(&mut self, effect: &str) {
        self.effects.insert(effect.to_owned());
    }

    fn target(&mut self, target: &str) {
        if target.len() > MAX_TARGET_BYTES || self.targets.len() >= MAX_TARGETS {
            self.add(UNKNOWN);
        } else if !self.targets.iter().any(|known| known == target) {
            self.targets.push(target.to_owned());
        }
    }
}

/// The body of the check about a call: what `POST /check` takes.
pub fn body(table: &Table, options: &Options, call: &ToolCall) -> Value {
    let unknown = Rule { effects: vec![UNKNOWN.to_owned()], ..Rule::default() };
    let rule = table.rule(call).unwrap_or(&unknown);
    let judged = judge(table, rule, call, &OwnFiles::of(&options.own_files));
    let tool = sent_name(rule, call);
    let mut context = options.context.clone();
    for (name, value) in &table.context {
        context.entry(name.clone()).or_insert_with(|| value.clone());
    }
    // What the guard itself saw comes last: nothing that was configured replaces it.
    context.insert("agent_id".to_owned(), json!(options.agent_id.as_deref().unwrap_or(&call.agent)));
    context.insert("current_tool".to_owned(), json!(tool));
    context.insert("arguments_sha256".to_owned(), json!(digest(rule, &call.arguments)));
    put(&mut context, "run_id", call.session.as_deref().map(Value::from));
    let shown = call.cwd.as_deref().map(|cwd| shortened(cwd, MAX_TARGET_BYTES));
    put(&mut context, "working_directory", shown.as_deref().map(Value::from));
    // What is shown of a long or an odd directory is not all of it, and an approval is of exactly one.
    let exact = call
        .cwd
        .as_deref()
        .filter(|cwd| shown.as_deref() != Some(*cwd))
        .map(|cwd| canonical_hash(&Map::from_iter([("working_directory".to_owned(), Value::from(cwd))])));
    put(&mut context, "working_directory_sha256", exact.map(Value::from));
    put(&mut context, "active_mcp_servers", call.server.as_ref().map(|server| json!([server])));
    put(&mut context, "target_resources", (!judged.targets.is_empty()).then(|| json!(judged.targets)));
    put(&mut context, "command", judged.command.as_deref().map(Value::from));
    put(&mut context, "unread", (!judged.unread.is_empty()).then(|| json!(judged.unread)));
    let named = named_arguments(rule, &call.arguments);
    put(&mut context, "arguments", (!named.is_empty()).then_some(Value::Object(named)));
    let mut body = json!({
        "goal": goal(call, &judged),
        "success_criteria": ["the tool call ends without an error"],
        "tools": [tool],
        "side_effects": effects::listed(judged.effects),
        "context": context,
    });
    let environment = rule.environment.as_ref().or(options.environment.as_ref()).or(table.environment.as_ref());
    if let Value::Object(members) = &mut body {
        put(members, "environment", environment.map(|environment| json!(environment)));
        let rule = if call.tool == MUST_DENY_TOOL { "denied_tools" } else { "allowed_tools" };
        put(members, "constraints", is_plain(&tool).then(|| json!([format!("{rule}: {tool}")])));
    }
    body
}

/// What could not be read of the call, by the check about it: kinds of things such as `eval`, and nothing of its text.
pub fn unread(body: &Value) -> Vec<String> {
    let kinds = body.pointer("/context/unread").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    kinds.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The digest of a call's arguments, as `context.arguments_sha256` has it for a tool without arguments to ignore.
pub fn arguments_sha256(arguments: &Map<String, Value>) -> String {
    canonical_hash(arguments)
}

fn put(members: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    match value {
        Some(value) => members.insert(name.to_owned(), value),
        None => members.remove(name),
    };
}

fn digest(rule: &Rule, arguments: &Map<String, Value>) -> String {
    if !rule.ignore.iter().any(|name| arguments.contains_key(name)) {
        return canonical_hash(arguments);
    }
    let mut bound = arguments.clone();
    bound.retain(|name, _| !rule.ignore.contains(name));
    canonical_hash(&bound)
}

fn sent_name(rule: &Rule, call: &ToolCall) -> String {
    match (&rule.name, &call.server) {
        (Some(name), _) => name.clone(),
        (None, Some(server)) => format!("mcp__{server}__{}", call.tool),
        (None, None) => call.tool.clone(),
    }
}

/// Whether a tool's name can stand in a constraint. This check is about one tool only, and says so: that is also the
/// guardrail without which a policy denies what it could defer.
fn is_plain(tool: &str) -> bool {
    !tool.is_empty() && tool.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'))
}

fn judge(table: &Table, rule: &Rule, call: &ToolCall, own: &OwnFiles) -> Judged {
    let mut judged = Judged::default();
    let texts = |names: &[String]| names.iter().filter(|name| call.arguments.contains_key(*name)).count();
    if texts(&rule.text) > 1 || texts(&rule.cwd) > 1 {
        // The agent may run the other one.
        judged.add(UNKNOWN);
    }
    if rule.escalates.iter().any(|name| call.arguments.get(name).is_some_and(asks_for_more)) {
        judged.add(PRIVILEGE);
    }
    if rule.reader == Reader::Shell && call.arguments.get("shell").is_some_and(|shell| !shell.is_null()) {
        judged.add(UNKNOWN);
    }
    // A directory that the call names is a `cd`: the project stays where the session is.
    let moved = rule.cwd.iter().find_map(|name| call.arguments.get(name)?.as_str()).filter(|path| !path.is_empty());
    let moved = moved.filter(|moved| Some(*moved) != call.cwd.as_deref());
    let cwd = call.cwd.as_deref().filter(|cwd| cwd.len() <= shell::MAX_DIRECTORY_BYTES);
    let long = moved.is_some_and(|moved| moved.len() > shell::MAX_DIRECTORY_BYTES);
    if cwd.is_none() && call.cwd.is_some() || long {
        judged.add(UNKNOWN);
    }
    let base = Base { cwd, moved: moved.filter(|_| !long), own };
    match rule.reader {
        Reader::Shell => judge_command(table, rule, call, base, &mut judged),
        Reader::Patch => judge_patch(rule, call, base, &mut judged),
        Reader::Plain | Reader::Read | Reader::Write => {
            judged.effects.extend(rule.effects.iter().cloned());
            for target in named_targets(rule, &call.arguments, &mut judged) {
                judge_target(rule.reader, &target, base, &mut judged);
            }
        }
    }
    judged
}

/// Whether an argument asks for more rights than the agent's sandbox gives. The usual words for none are known.
fn asks_for_more(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !matches!(text.as_str(), "" | "use_default"),
        Value::Array(items) => !items.is_empty(),
        _ => true,
    }
}

fn judge_target(reader: Reader, target: &str, base: Base<'_>, judged: &mut Judged) {
    if reader == Reader::Plain {
        if target.contains(':') {
            match address_kind(target) {
                Address::Web => {}
                Address::Metadata => judged.add(READ_SECRET),
                Address::Other => judged.add(UNKNOWN),
            }
        }
        return judged.target(target);
    }
    if pattern_names_secret(target) {
        judged.add(READ_SECRET);
    }
    let place = Place::of(base.cwd, &shell::joined(base.moved.unwrap_or_default(), target), base.own);
    let usual = effects::READ;
    judged.add(if reader == Reader::Write { place.write(usual) } else { place.read() });
    judged.target(&place.text);
}

/// The targets that the arguments name. One that is there and is neither text nor a list of texts is unknown.
fn named_targets(rule: &Rule, arguments: &Map<String, Value>, judged: &mut Judged) -> Vec<String> {
    let mut targets = Vec::new();
    for name in &rule.targets {
        match arguments.get(name) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => targets.push(text.clone()),
            Some(Value::Array(items)) if items.iter().all(Value::is_string) => {
                targets.extend(items.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            Some(_) => judged.add(UNKNOWN),
        }
    }
    // A tool that changes files and does not say which could change any.
    if targets.is_empty() && rule.reader == Reader::Write {
        judged.add(UNKNOWN);
    }
    targets
}

fn judge_command(table: &Table, rule: &Rule, call: &ToolCall, base: Base<'_>, judged: &mut Judged) {
    let value = rule.text.iter().find_map(|name| call.arguments.get(name));
    let Some(command) = value.and_then(shell::command_text) else { return judged.add(UNKNOWN) };
    let reading = shell::classify_in(table, &command, base);
    judged.effects.extend(reading.effects);
    judged.unread = reading.unread;
    for target in &reading.targets {
        judged.target(target);
    }
    if command.len() > MAX_COMMAND_BYTES {
        judged.add(UNKNOWN);
    } else {
        judged.command = Some(command);
    }
}

/// A patch in the form of Codex and OpenCode: `*** Add File: path`, `Update`, `Delete`, `Move to`.
fn judge_patch(rule: &Rule, call: &ToolCall, base: Base<'_>, judged: &mut Judged) {
    let value = rule.text.iter().find_map(|name| call.arguments.get(name));
    let Some(patch) = value.and_then(Value::as_str) else { return judged.add(UNKNOWN) };
    judged.effects.extend(rule.effects.iter().cloned());
    let mut named = false;
    for line in patch.lines() {
        let Some(header) = line.trim().strip_prefix("*** ") else { continue };
        let Some((kind, path)) = header.split_once(": ") else { continue };
        match kind {
            "Add File" | "Update File" | "Move to" => {}
            "Delete File" => judged.add(DELETE),
            _ => continue,
        }
        named = true;
        judge_target(Reader::Write, path.trim(), base, judged);
    }
    if !named {
        judged.add(UNKNOWN);
    }
}

fn named_arguments(rule: &Rule, arguments: &Map<String, Value>) -> Map<String, Value> {
    let mut named = Map::new();
    for name in &rule.send {
        if let Some(value) = arguments.get(name).filter(|value| value.to_string().len() <= MAX_SENT_BYTES) {
            named.insert(name.clone(), value.clone());
        }
    }
    named
}

/// What a person reads who approves, and what the policy takes for the goal.
fn goal(call: &ToolCall, judged: &Judged) -> String {
    let tool = match &call.server {
        Some(server) => format!("{} of the MCP server {server}", call.tool),
        None => call.tool.clone(),
    };
    let subject = judged.command.as_deref().or(judged.targets.first().map(String::as_str)).unwrap_or_default();
    let subject = shortened(subject, MAX_SUBJECT_CHARS);
    let separator = if subject.is_empty() { "" } else { ": " };
    let (tool, agent) = (shortened(&tool, MAX_SUBJECT_CHARS), shortened(&call.agent, MAX_SUBJECT_CHARS));
    format!("Run the tool {tool} for the agent {agent}{separator}{subject}")
}

fn shortened(text: &str, most: usize) -> String {
    let mut shown: String = text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        shown.push('…');
    }
    shown.trim().to_owned()
}
