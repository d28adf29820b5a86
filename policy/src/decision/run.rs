//! `details.run` of an issue: the run's id, the server's counts of it, and how to end it.
//!
//! Only rules of the loop family that defer have it, and only where ending the run would change something.
//! INVARIANT: the run's id is the caller's text, so it is redacted where the request holds a secret.

use serde_json::{Map, Value, json};
use stage0_contract::{CheckRequest, Effect, LimitName, Micros, RunId};

use super::LOOP;
use super::about::units;
use crate::facts::Facts;
use crate::rule::Rule;
use crate::secrets::REDACTED;

const END: &str =
    "DELETE /v1/runs/{run_id} (percent-encoded) with a key that has `runs:manage`; or name another run_id";

/// Adds `run` to an issue's details, if the rule defers because of the server's counts.
pub(super) fn add_details(details: &mut Map<String, Value>, rule: &Rule, facts: &Facts, request: &CheckRequest) {
    if rule.family != LOOP || rule.effect != Effect::Defer {
        return;
    }
    let counted = counted(rule, facts);
    let run = RunId::of(request).ok().flatten();
    if let Some(run) = run.filter(|_| !counted.is_empty()) {
        let run_id = if facts.secrets.is_empty() { run.as_str() } else { REDACTED };
        details.insert("run".to_owned(), json!({"run_id": run_id, "counted": counted, "end": END}));
    }
}

/// The counters that the rule reads and the server has higher than the request reports, each with its limit.
fn counted(rule: &Rule, facts: &Facts) -> Map<String, Value> {
    let run = &facts.run;
    let declared = &facts.declared;
    let mut counted = Map::new();
    let Some(reported) = &run.reported else { return counted };
    let reads = |fact: &str| rule.attributes.iter().any(|attribute| attribute.name() == fact);
    let mut add = |name: &str, count: Value, limit_name: &str, limit: Option<Value>| {
        counted.insert(name.to_owned(), count);
        if let Some(limit) = limit {
            counted.insert(limit_name.to_owned(), limit);
        }
    };
    if run.iteration > reported.iteration && reads("iteration") {
        let limit = declared.limit(LimitName::MaxIterations).map(Value::from);
        add("iteration", run.iteration.into(), "max_iterations", limit);
    }
    if run.retries > reported.retries && reads("retries") {
        let limit = declared.limit(LimitName::MaxRetries).map(Value::from);
        add("retries", run.retries.into(), "max_retries", limit);
    }
    if run.elapsed_micros > reported.elapsed_micros && reads("elapsed_micros") {
        let limit = declared.limit(LimitName::Timeout).map(units);
        add("elapsed_seconds", units(run.elapsed_micros), "timeout", limit);
    }
    let spent = run.cost_micros.saturating_sub(run.estimated_cost.map_or(0, Micros::get));
    if spent > reported.spent_micros && reads("cost_micros") {
        let limit = declared.limit(LimitName::MaxCost).map(units);
        add("cost_usd", units(run.cost_micros), "max_cost_usd", limit);
    }
    if run.same_tool_calls > reported.same_tool_calls && reads("same_tool_calls") {
        let limit = declared.limit(LimitName::SameTool).map(Value::from);
        add("same_tool_calls", run.same_tool_calls.into(), "same_tool_limit", limit);
    }
    counted
}
