//! What a request proposes, in the words that rules compare: tools, servers, effects, targets, tenants, environment,
//! agent.
//!
//! Read only for a pack that names one of these facts.
//! INVARIANT: a word that cannot be read, or that may be several words, becomes `?`, which no allow list holds. A name
//! with several readings is in a set in each of them, so that a list that forbids finds it and one that allows must
//! hold them all.

use std::collections::BTreeSet;

use serde_json::Value;
use stage0_contract::{CheckRequest, Spelling, Word, is_blank};

use super::access::canonical_environments;
use super::effects::Effects;
use super::history::TargetHash;
use super::mcp;
use super::target::Target;
use super::tool_name::NamedTools;
use crate::time_limit::{OutOfTime, TimeLimit};
use crate::vocabulary::Vocabulary;

/// Stands for a word that cannot be read, or that may be any word.
pub(crate) const AMBIGUOUS: &str = "?";

#[derive(Debug, Default)]
pub(crate) struct Proposal {
    /// In every reading.
    pub(super) tools: Vec<String>,
    pub(super) tool_names: Vec<String>,
    pub(super) tool_count: i64,
    pub(super) mcp_servers: Vec<String>,
    pub(super) effects: Vec<String>,
    pub(super) effect_classes: Vec<String>,
    pub(super) targets: Vec<String>,
    pub(super) target_count: i64,
    pub(super) tenant: String,
    pub(super) target_tenants: Vec<String>,
    pub(super) environment: String,
    pub(super) agent: String,
}

impl Proposal {
    /// Checks `limit` for each tool and between steps.
    pub(super) fn read(
        request: &CheckRequest,
        tools: &NamedTools,
        effects: &Effects,
        vocabulary: &Vocabulary,
        limit: TimeLimit,
    ) -> Result<Self, OutOfTime> {
        let targets = Targets::read(request);
        limit.check()?;
        let mcp_servers = servers(request, limit)?.into_texts();
        Ok(Self {
            tool_count: tools.count(),
            tools: tools.all_readings(),
            tool_names: tools.names(),
            mcp_servers,
            effects: named_effects(&request.side_effects).into_texts(),
            effect_classes: effects.above_none().into_iter().map(str::to_owned).collect(),
            target_count: targets.names.count(),
            targets: targets.names.into_texts(),
            tenant: text(request, "tenant_id"),
            target_tenants: list(request, "target_tenants", |tenant| Word::new(tenant).known().map(str::to_owned))
                .into_texts(),
            environment: environment(request, vocabulary),
            agent: text(request, "agent_id"),
        })
    }
}

/// Words, each once, and how many more could not be read.
#[derive(Debug, Default)]
struct Names {
    known: BTreeSet<String>,
    ambiguous: i64,
}

impl Names {
    fn add(&mut self, name: Option<String>) {
        match name {
            Some(name) => {
                self.known.insert(name);
            }
            None => self.ambiguous = self.ambiguous.saturating_add(1),
        }
    }

    /// Each word that cannot be read may be another one.
    fn count(&self) -> i64 {
        i64::try_from(self.known.len()).unwrap_or(i64::MAX).saturating_add(self.ambiguous)
    }

    fn into_texts(mut self) -> Vec<String> {
        if self.ambiguous > 0 {
            self.known.insert(AMBIGUOUS.to_owned());
        }
        self.known.into_iter().collect()
    }
}

/// The servers that are active, and those whose tools are proposed.
fn servers(request: &CheckRequest, limit: TimeLimit) -> Result<Names, OutOfTime> {
    let mut names = list(request, "active_mcp_servers", |server| Word::new(server).known().map(str::to_owned));
    let current = member(request, "current_tool").and_then(Value::as_str);
    for tool in request.tools.iter().map(String::as_str).chain(current) {
        limit.check()?;
        let is_readable = Word::new(tool).known().is_some();
        for server in mcp::servers(tool) {
            names.add(is_readable.then_some(server));
        }
        if mcp::has_more_ends(tool) {
            names.add(None);
        }
    }
    Ok(names)
}

fn named_effects(side_effects: &[String]) -> Names {
    let mut names = Names::default();
    for raw in side_effects {
        let spelling = Spelling::of(raw);
        names.add(spelling.folded().map(str::to_owned));
        if let Some(split) = spelling.split() {
            names.add(Some(split.to_owned()));
        }
    }
    names
}

/// The targets of a request: `target_resources` and `resource_scope` of its context.
pub(super) struct Targets {
    /// In canonical form.
    names: Names,
    /// The hashes under which a run remembers them. One that cannot be read has none.
    hashes: BTreeSet<TargetHash>,
}

impl Targets {
    pub(super) fn read(request: &CheckRequest) -> Self {
        let mut hashes = BTreeSet::new();
        let mut read = |target: &str| {
            let canonical = Target::read(target).map(Target::into_text)?;
            hashes.insert(TargetHash::of(target));
            Some(canonical)
        };
        let mut names = list(request, "target_resources", &mut read);
        if let Some(scope) = member(request, "resource_scope") {
            names.add(scope.as_str().and_then(read));
        }
        Self { names, hashes }
    }

    pub(super) fn hashes(&self) -> impl Iterator<Item = &TargetHash> {
        self.hashes.iter()
    }

    pub(super) fn are_readable(&self) -> bool {
        self.names.ambiguous == 0
    }
}

/// The environment by the pack's name for it. A request that names several, or one that cannot be read, is in none of
/// them for certain.
fn environment(request: &CheckRequest, vocabulary: &Vocabulary) -> String {
    let mut named = canonical_environments(request, vocabulary);
    match (named.pop_first(), named.is_empty()) {
        (None, _) => String::new(),
        (Some(Some(one)), true) => one,
        _ => AMBIGUOUS.to_owned(),
    }
}

/// A text of `context` as a word; empty where it is not given.
fn text(request: &CheckRequest, name: &str) -> String {
    let Some(value) = member(request, name) else { return String::new() };
    let word = value.as_str().map(Word::new);
    word.as_ref().and_then(Word::known).unwrap_or(AMBIGUOUS).to_owned()
}

/// The items of a list of `context` that are not blank. A list that cannot be read is one word that cannot.
fn list(request: &CheckRequest, name: &str, mut read: impl FnMut(&str) -> Option<String>) -> Names {
    let mut names = Names::default();
    match member(request, name) {
        None => {}
        Some(Value::Array(items)) => {
            for item in items.iter().filter(|item| !item.as_str().is_some_and(is_blank)) {
                names.add(item.as_str().and_then(&mut read));
            }
        }
        Some(_) => names.add(None),
    }
    names
}

/// A member of `context` that is neither missing, null nor blank.
pub(super) fn member<'a>(request: &'a CheckRequest, name: &str) -> Option<&'a Value> {
    let value = request.context.as_ref()?.get(name)?;
    (!value.is_null() && !value.as_str().is_some_and(is_blank)).then_some(value)
}
