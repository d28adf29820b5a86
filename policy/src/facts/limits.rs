//! Declared limits that nothing enforces, because the counter that they are compared with is missing.
//!
//! A limit is enforced if the request brings its counter, or names a run for which the server keeps it. A malformed
//! counter is reported as malformed and not here again.

use serde_json::Value;
use stage0_contract::CheckRequest;

use super::declared::Declared;
use super::evidence::Evidence;
use super::run::is_retry_count;

struct Limit {
    name: &'static str,
    /// Members of `context` and of `context.loop_state` that hold the counter.
    members: [&'static str; 2],
    counted_by_server: bool,
}

const LIMITS: [Limit; 7] = [
    limit("max_iterations", ["current_iteration", "current_iteration"], true),
    limit("timeout", ["elapsed_seconds", "elapsed_seconds"], true),
    limit("max_cost_usd", ["cumulative_cost_usd", "cumulative_cost_usd"], true),
    limit("same_tool_limit", ["recent_tools", "repeated_tools"], true),
    limit("no_repeat_calls", ["recent_tools", "repeated_tools"], true),
    limit("max_retries", ["retry_count", "retry_count"], false),
    limit("max_records", ["record_count", "record_count"], false),
];

const fn limit(name: &'static str, members: [&'static str; 2], counted_by_server: bool) -> Limit {
    Limit { name, members, counted_by_server }
}

impl Limit {
    fn has_counter(&self, request: &CheckRequest, evidence: &Evidence<'_>) -> bool {
        let [member, nested] = self.members;
        match self.name {
            "max_retries" => retry_counts(request).any(is_retry_count),
            "max_records" => evidence.member(member).is_some(),
            "max_cost_usd" if evidence.member("estimated_cost_usd").is_some() => true,
            _ => evidence.with_loop_state(member, nested).next().is_some(),
        }
    }
}

/// The member of `context` that would enforce a limit.
pub(crate) fn counter_of(limit: &str) -> Option<&'static str> {
    LIMITS.iter().find(|known| known.name == limit).map(|known| known.members[0])
}

/// Declared limits, by canonical name, that stop nothing. `has_run`: the server counts for a run of this request.
pub(super) fn not_enforced(
    declared: &Declared,
    request: &CheckRequest,
    has_run: bool,
    evidence: &Evidence<'_>,
) -> Vec<&'static str> {
    let is_enforced = |limit: &Limit| (has_run && limit.counted_by_server) || limit.has_counter(request, evidence);
    let names = declared.names.iter().copied();
    names.filter(|name| LIMITS.iter().any(|limit| limit.name == *name && !is_enforced(limit))).collect()
}

/// Whether `retry_count` is given and no value of it is a number of retries: it then counts as 0.
pub(super) fn retry_count_unusable(request: &CheckRequest) -> bool {
    let mut given = retry_counts(request).peekable();
    given.peek().is_some() && !given.any(is_retry_count)
}

/// `retry_count` of `context` and of `loop_state`, null included.
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

    fn not_enforced_in(constraint: &str, context: &Value, has_run: bool) -> Vec<&'static str> {
        let pack = Pack::embedded().unwrap();
        let body = json!({"goal": "g", "constraints": [constraint], "context": context});
        let request = CheckRequest::parse(body).unwrap();
        let declared = Declared::read(&request.constraints, &pack.vocabulary, &pack.windows).unwrap();
        not_enforced(&declared, &request, has_run, &Evidence::new(request.context.as_ref()))
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
    fn an_unusable_retry_count_enforces_no_limit() {
        for value in [json!(null), json!(-1), json!("2"), json!(-0.5), json!([])] {
            let context = json!({"retry_count": value});
            assert_eq!(not_enforced_in("max_retries: 3", &context, true), ["max_retries"], "{context}");
            let request = CheckRequest::parse(json!({"goal": "g", "context": context})).unwrap();
            assert!(retry_count_unusable(&request));
        }
        for context in
            [json!({}), json!({"retry_count": 2}), json!({"retry_count": -1, "loop_state": {"retry_count": 2}})]
        {
            let request = CheckRequest::parse(json!({"goal": "g", "context": context})).unwrap();
            assert!(!retry_count_unusable(&request));
        }
    }
}
