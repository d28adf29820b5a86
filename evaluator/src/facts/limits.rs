//! Limits that nothing is compared with.
//!
//! Owns when a declared limit is enforced: the request brings the counter, or names a run under which the server counts it.
//! The server counts iterations, tools, elapsed time and cost, neither retries nor records. A counter that is malformed is
//! told as such and not again here.

use serde_json::Value;
use stage0_contract::CheckRequest;

use super::declared::Declared;
use super::evidence::Evidence;
use super::run::retries_of;

/// Declared limits, by canonical name, that stop nothing. `counted`: the server counts the run.
pub(super) fn not_enforced(
    declared: &Declared,
    request: &CheckRequest,
    counted: bool,
    evidence: &Evidence<'_>,
) -> Vec<&'static str> {
    let told = |name: &str, nested: &str| evidence.both(name, nested).next().is_some();
    let calls = || told("recent_tools", "repeated_tools");
    let cost = || told("cumulative_cost_usd", "cumulative_cost_usd") || evidence.member("estimated_cost_usd").is_some();
    declared
        .names
        .iter()
        .copied()
        .filter(|name| match *name {
            "max_iterations" => !counted && !told("current_iteration", "current_iteration"),
            "timeout" => !counted && !told("elapsed_seconds", "elapsed_seconds"),
            "max_cost_usd" => !counted && !cost(),
            "same_tool_limit" | "no_repeat_calls" => !counted && !calls(),
            "max_retries" => !retry_counts(request).any(|value| retries_of(value).is_some()),
            "max_records" => evidence.member("record_count").is_none(),
            _ => false,
        })
        .collect()
}

/// Whether `retry_count` is given, and no value of it is a number of retries: it counts as 0.
pub(super) fn retries_unread(request: &CheckRequest) -> bool {
    let mut given = retry_counts(request).peekable();
    given.peek().is_some() && given.all(|value| retries_of(value).is_none())
}

/// In `context` and in `loop_state`, null too.
fn retry_counts(request: &CheckRequest) -> impl Iterator<Item = &Value> {
    const NAME: &str = "retry_count";
    let context = request.context.as_ref();
    let outer = context.and_then(|context| context.get(NAME));
    let inner = context.and_then(|context| context.get("loop_state")).and_then(|state| state.get(NAME));
    outer.into_iter().chain(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Pack;
    use serde_json::json;

    fn not_enforced_in(constraint: &str, context: &Value, counted: bool) -> Vec<&'static str> {
        let pack = Pack::embedded().unwrap();
        let body = json!({"goal": "g", "constraints": [constraint], "context": context});
        let request = CheckRequest::parse(body).unwrap();
        let declared = Declared::read(&request.constraints, pack.vocabulary(), pack.windows()).unwrap();
        not_enforced(&declared, &request, counted, &Evidence::new(request.context.as_ref()))
    }

    #[test]
    fn a_limit_needs_its_counter_or_a_run_that_the_server_counts() {
        for (constraint, name, evidence, counted_in_a_run) in [
            ("max_iterations: 3", "max_iterations", json!({"current_iteration": 1}), true),
            ("timeout: 5m", "timeout", json!({"loop_state": {"elapsed_seconds": 1}}), true),
            ("max_cost_usd: 5", "max_cost_usd", json!({"estimated_cost_usd": 1}), true),
            ("max_cost_usd: 5", "max_cost_usd", json!({"cumulative_cost_usd": 1}), true),
            ("same_tool_limit: 2", "same_tool_limit", json!({"recent_tools": []}), true),
            ("no_repeat_calls", "no_repeat_calls", json!({"loop_state": {"repeated_tools": ["a"]}}), true),
            ("max_retries: 3", "max_retries", json!({"retry_count": 0}), false),
            ("max_retries: 3", "max_retries", json!({"loop_state": {"retry_count": 2}}), false),
            ("max_records: 3", "max_records", json!({"record_count": 1}), false),
        ] {
            assert_eq!(not_enforced_in(constraint, &evidence, false), [""; 0], "{constraint}");
            assert_eq!(not_enforced_in(constraint, &json!({}), false), [name]);
            let in_a_run: &[&str] = if counted_in_a_run { &[] } else { &[name] };
            assert_eq!(not_enforced_in(constraint, &json!({}), true), in_a_run, "{constraint}");
        }
        assert_eq!(not_enforced_in("approval_required", &json!({}), false), [""; 0]);
        assert_eq!(not_enforced_in("max_iterations: 3", &json!({"current_iteration": "x"}), false), [""; 0]);
    }

    #[test]
    fn retries_that_say_nothing_enforce_no_limit() {
        for value in [json!(null), json!(-1), json!("2"), json!(-0.5), json!([])] {
            let context = json!({"retry_count": value});
            assert_eq!(not_enforced_in("max_retries: 3", &context, true), ["max_retries"], "{context}");
            let request = CheckRequest::parse(json!({"goal": "g", "context": context})).unwrap();
            assert!(retries_unread(&request));
        }
        for context in
            [json!({}), json!({"retry_count": 2}), json!({"retry_count": -1, "loop_state": {"retry_count": 2}})]
        {
            let request = CheckRequest::parse(json!({"goal": "g", "context": context})).unwrap();
            assert!(!retries_unread(&request));
        }
    }
}
