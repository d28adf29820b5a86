//! Coverage: whether a stop covers a check, and whether a wider grant does.
//!
//! A stop denies, so it covers a check as soon as any reading of it may be meant; a name that is ambiguous or of the
//! wrong type may be any name. A grant allows, so it covers a check only if every reading of it is what was granted.

use serde_json::Value;
use stage0_contract::{Actor, CheckRequest, Grant, RunId, Spelling, Stop, StopScope, is_blank, is_same_environment};

use super::access::environments;
use super::evidence::Evidence;
use super::scope::Environment;
use super::tool_list::{DeniedTools, is_same_tool};
use crate::vocabulary::Vocabulary;

/// Members of `context` that name an environment.
const ENVIRONMENTS: [&str; 2] = ["environment", "target_environment"];
const CURRENT_TOOL: &str = "current_tool";

/// The first of these stops that covers a request of this caller. Whether its time is over is not judged here.
pub(crate) fn covering_stop<'s>(
    stops: impl Iterator<Item = &'s Stop> + Clone,
    request: &CheckRequest,
    asker: &Actor,
    vocabulary: &Vocabulary,
) -> Option<&'s Stop> {
    let environments = NamedEnvironments::of(request, vocabulary);
    let tool = StoppedTool::find(stops.clone().filter(|stop| stop.scope == StopScope::Tool), request);
    let is_of_caller = |key: &str| [&asker.key_id, &asker.holder.workload].iter().any(|id| id.as_str() == key.trim());
    let covers = |stop: &&Stop| match (stop.scope, value(stop)) {
        (StopScope::Account | StopScope::All, _) | (_, None) => true,
        (StopScope::Key, Some(key)) => is_of_caller(key),
        (StopScope::Environment, Some(stopped)) => environments.may_be(stopped),
        (StopScope::Tool, Some(stopped)) => tool.may_be(stopped),
    };
    let mut stops = stops;
    stops.find(covers)
}

/// What a stop is for; one that does not say so is for everything.
fn value(stop: &Stop) -> Option<&str> {
    stop.value.as_deref().filter(|value| !is_blank(value))
}

/// The environments that a request names, for a comparison that denies.
struct NamedEnvironments<'a> {
    vocabulary: &'a Vocabulary,
    named: Vec<(&'a str, Environment)>,
    /// It names none, or one that cannot be read.
    any: bool,
}

impl<'a> NamedEnvironments<'a> {
    fn of(request: &'a CheckRequest, vocabulary: &'a Vocabulary) -> Self {
        let sent = environments(request, &mut Evidence::new(request.context.as_ref()));
        let read = |name| (name, Environment::of(name, &vocabulary.names));
        let named: Vec<(&str, Environment)> = sent.into_iter().map(|(_, name)| read(name)).collect();
        let any = named.is_empty() || ENVIRONMENTS.iter().any(|name| is_mistyped(request, name));
        Self { vocabulary, named, any }
    }

    fn may_be(&self, stopped: &str) -> bool {
        let read = Environment::of(stopped, &self.vocabulary.names);
        self.any || self.named.iter().any(|(name, named)| read.may_be(named) || is_same_environment(stopped, name))
    }
}

/// A proposed tool that is stopped. All stops of tools are compared at once, since a request may propose many tools.
enum StoppedTool<'a> {
    None,
    Named(&'a str),
    /// The current tool cannot be read.
    Any,
}

impl<'a> StoppedTool<'a> {
    fn find<'s>(stops: impl Iterator<Item = &'s Stop>, request: &'a CheckRequest) -> Self {
        let stopped: Vec<String> = stops.filter_map(value).map(str::to_owned).collect();
        if stopped.is_empty() {
            return Self::None;
        }
        if is_mistyped(request, CURRENT_TOOL) {
            return Self::Any;
        }
        let denied = DeniedTools::of(&stopped);
        tools(request).find(|tool| denied.denies(tool)).map_or(Self::None, Self::Named)
    }

    fn may_be(&self, stopped: &str) -> bool {
        match self {
            Self::None => false,
            Self::Named(tool) => DeniedTools::of(&[stopped.to_owned()]).denies(tool),
            Self::Any => true,
        }
    }
}

/// Whether a wider grant covers what a request proposes: its tool, effects, environment and run.
pub(crate) fn grant_covers(grant: &Grant, request: &CheckRequest, vocabulary: &Vocabulary) -> bool {
    grant.tool.as_deref().is_none_or(|tool| proposes_only_tool(request, tool))
        && grant.effects.as_deref().is_none_or(|effects| declares_only_effects(request, effects))
        && grant.environment.as_deref().is_none_or(|name| is_only_in_environment(request, name, vocabulary))
        && grant.run_id.as_deref().is_none_or(|run| is_in_run(request, run))
}

fn proposes_only_tool(request: &CheckRequest, granted: &str) -> bool {
    let mut tools = tools(request).peekable();
    !is_mistyped(request, CURRENT_TOOL) && tools.peek().is_some() && tools.all(|tool| is_same_tool(tool, granted))
}

fn declares_only_effects(request: &CheckRequest, granted: &[String]) -> bool {
    let granted: Vec<Spelling> = granted.iter().map(|effect| Spelling::of(effect)).collect();
    let is_granted = |effect: &String| {
        let effect = Spelling::of(effect);
        granted.iter().any(|granted| granted.is_same(&effect))
    };
    !request.side_effects.is_empty() && request.side_effects.iter().all(is_granted)
}

fn is_only_in_environment(request: &CheckRequest, granted: &str, vocabulary: &Vocabulary) -> bool {
    let named = environments(request, &mut Evidence::new(request.context.as_ref()));
    let names = &vocabulary.names;
    let granted = Spelling::of(granted);
    let is_granted = |name: &str| {
        let name = Spelling::of(name);
        let canonical = |spelling: &Spelling| Some(names.environment(spelling).or(spelling.folded())?.to_owned());
        granted.is_same(&name) || canonical(&granted).is_some_and(|granted| canonical(&name) == Some(granted))
    };
    let is_readable = !ENVIRONMENTS.iter().any(|name| is_mistyped(request, name));
    is_readable && !named.is_empty() && named.iter().all(|(_, name)| is_granted(name))
}

fn is_in_run(request: &CheckRequest, granted: &str) -> bool {
    let canonical = |run: &RunId| run.canonical();
    let named = RunId::of(request).ok().flatten();
    named.is_some_and(|named| RunId::parse(granted).is_ok_and(|granted| canonical(&granted) == canonical(&named)))
}

/// Every tool that the request proposes, the current one too.
fn tools(request: &CheckRequest) -> impl Iterator<Item = &str> {
    let current = member(request, CURRENT_TOOL).and_then(Value::as_str).filter(|tool| !is_blank(tool));
    request.tools.iter().map(String::as_str).chain(current)
}

/// Whether a member of `context` is given and no text.
fn is_mistyped(request: &CheckRequest, name: &str) -> bool {
    member(request, name).is_some_and(|value| !value.is_null() && !value.is_string())
}

fn member<'a>(request: &'a CheckRequest, name: &str) -> Option<&'a Value> {
    request.context.as_ref()?.get(name)
}
