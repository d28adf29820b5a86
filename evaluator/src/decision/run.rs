//! What an issue says of a run that the server remembers: which, what it counts of it, and how to end it.
//!
//! Owns `details.run` of rules of the loop family that defer. It is there only where what is remembered goes beyond what
//! the request itself says: else ending the run would change nothing.
//! INVARIANT: the run's name is the caller's text, and is not told where the request holds a secret.

use serde_json::{Map, Value, json};
use stage0_contract::{CheckRequest, Effect, Micros, RunId};

use super::LOOP;
use crate::facts::Facts;
use crate::pack::Rule;
use crate::secrets::REDACTED;

/// How to end what is remembered.
const END: &str =
    "DELETE /v1/runs/{run_id} (percent-encoded) with a key that has `runs:manage`; or name another run_id";

/// Adds `run` to an issue's details, where the rule defers for what is remembered.
pub(super) fn add(details: &mut Map<String, Value>, rule: &Rule, facts: &Facts, request: &CheckRequest) {
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

/// Of what the rule looks at, all that the server counted beyond what the request says, beside its limit.
fn counted(rule: &Rule, facts: &Facts) -> Map<String, Value> {
    let (run, declared, mut told) = (&facts.run, &facts.declared, Map::new());
    let Some(said) = &run.said else { return told };
    let looks_at = |fact: &str| rule.attributes.iter().any(|attribute| attribute.name() == fact);
    let mut tell =
        |(fact, name, limit_name): (&str, &str, &str), server: Value, limit: Option<Value>, exceeds: bool| {
            if exceeds && looks_at(fact) {
                told.insert(name.to_owned(), server);
                limit.into_iter().for_each(|limit| drop(told.insert(limit_name.to_owned(), limit)));
            }
        };
    let limit = declared.max_iterations.map(Value::from);
    tell(("iteration", "iteration", "max_iterations"), run.iteration.into(), limit, run.iteration > said.iteration);
    let limit = declared.max_retries.map(Value::from);
    tell(("retries", "retries", "max_retries"), run.retries.into(), limit, run.retries > said.retries);
    let limit = declared.timeout.map(|limit| units(limit.get()));
    let longer = run.elapsed_micros > said.elapsed_micros;
    tell(("elapsed_micros", "elapsed_seconds", "timeout"), units(run.elapsed_micros), limit, longer);
    let limit = declared.max_cost.map(|limit| units(limit.get()));
    let spent = run.cost_micros.saturating_sub(run.estimated_cost.map_or(0, Micros::get));
    tell(("cost_micros", "cost_usd", "max_cost_usd"), units(run.cost_micros), limit, spent > said.spent_micros);
    let (limit, calls) = (declared.same_tool_limit.map(Value::from), run.same_tool_calls);
    let more = calls > said.same_tool_calls;
    tell(("same_tool_calls", "same_tool_calls", "same_tool_limit"), calls.into(), limit, more);
    told
}

/// Dollars or seconds, as the caller writes them; nothing is decided by them.
#[expect(clippy::cast_precision_loss, reason = "for display only")]
fn units(micros: i64) -> Value {
    (micros as f64 / 1e6).into()
}
