//! The run: how often, how long, how dear, and the same call again.
//!
//! Owns the counters of contract section 6. `context` and `context.loop_state` may both tell one: the larger counts. A counter that
//! is absent starts at its beginning; one that cannot be read is malformed.

use std::collections::HashMap;

use serde_json::Value;
use stage0_contract::{Micros, Word};

use super::declared::Declared;
use super::evidence::{Evidence, as_micros, as_words, whole};
use super::scope::ProposedTools;

/// The counters of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) iteration: i64,
    pub(crate) retries: i64,
    pub(crate) elapsed_micros: i64,
    /// What was spent and what this will cost.
    pub(crate) cost_micros: i64,
    /// Calls of the busiest proposed tool, this one included; without a proposed tool, of the busiest recent one.
    pub(crate) same_tool_calls: i64,
    pub(crate) estimated_cost: Option<Micros>,
}

impl Run {
    pub(crate) fn read(declared: &Declared, tools: &ProposedTools, evidence: &mut Evidence<'_>) -> Self {
        let estimated_cost = evidence.micros("estimated_cost_usd");
        let spent = quantity(evidence, "cumulative_cost_usd");
        let cost_micros = spent.saturating_add(estimated_cost.map_or(0, Micros::get));
        let counted = declared.same_tool_limit.is_some();
        Self {
            iteration: counter(evidence, "current_iteration", 1, |value| {
                value.as_number().and_then(whole).filter(|n| *n >= 1)
            }),
            retries: counter(evidence, "retry_count", 0, retries),
            elapsed_micros: quantity(evidence, "elapsed_seconds"),
            cost_micros,
            // Counting normalises every recent call: only for those who limit it.
            same_tool_calls: if counted { same_tool_calls(tools, evidence) } else { 0 },
            estimated_cost,
        }
    }
}

/// The larger of both places; `first` where neither tells.
fn counter(evidence: &mut Evidence<'_>, name: &'static str, first: i64, read: impl Fn(&Value) -> Option<i64>) -> i64 {
    let mut highest = first;
    for value in evidence.both(name, name) {
        match read(value) {
            Some(count) => highest = highest.max(count),
            None => evidence.mark(name),
        }
    }
    highest
}

/// Clients send nulls, negatives and texts as "no retries yet"; a fraction or an overflow is none of these.
fn retries(value: &Value) -> Option<i64> {
    let Some(number) = value.as_number() else { return Some(0) };
    let negative = number.as_i64().is_some_and(|n| n < 0) || number.as_f64().is_some_and(|n| n < 0.0);
    if negative { Some(0) } else { whole(number) }
}

fn quantity(evidence: &mut Evidence<'_>, name: &'static str) -> i64 {
    counter(evidence, name, 0, |value| as_micros(value).map(Micros::get))
}

fn same_tool_calls(tools: &ProposedTools, evidence: &mut Evidence<'_>) -> i64 {
    const NAME: &str = "recent_tools";
    let mut most = i64::from(!tools.proposed().is_empty());
    for list in evidence.both(NAME, "repeated_tools") {
        match as_words(list) {
            Some(recent) => most = most.max(Calls::count(&recent).most(tools.proposed())),
            None => evidence.mark(NAME),
        }
    }
    most
}

/// How often each tool was called. A name that mixes scripts may be any tool, so it counts for all.
struct Calls<'a> {
    known: HashMap<&'a str, i64>,
    any: i64,
}

impl<'a> Calls<'a> {
    fn count(recent: &'a [Word]) -> Self {
        let mut calls = Self { known: HashMap::with_capacity(recent.len()), any: 0 };
        for word in recent {
            match word.known() {
                Some(name) => *calls.known.entry(name).or_default() += 1,
                None => calls.any += 1,
            }
        }
        calls
    }

    fn most(&self, proposed: &[Word]) -> i64 {
        let busiest = self.known.values().copied().max().unwrap_or(0);
        let next = proposed.iter().map(|tool| match tool.known() {
            Some(name) => self.known.get(name).copied().unwrap_or(0) + 1,
            None => busiest + 1,
        });
        self.any + next.max().unwrap_or(busiest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use stage0_contract::CheckRequest;

    fn read(context: impl Into<Value>, tools: &[&str]) -> (Run, Vec<&'static str>) {
        let request = CheckRequest::parse(json!({"goal": "g", "tools": tools, "context": context.into()})).unwrap();
        let mut evidence = Evidence::new(request.context.as_ref());
        let tools = ProposedTools::read(&request, &mut evidence);
        let declared = Declared { same_tool_limit: Some(2), ..Declared::default() };
        let run = Run::read(&declared, &tools, &mut evidence);
        (run, evidence.malformed())
    }

    #[test]
    fn a_counter_that_cannot_be_read_is_malformed() {
        for (name, value) in [
            ("current_iteration", json!(0)),
            ("current_iteration", json!(-1)),
            ("current_iteration", json!(1.5)),
            ("current_iteration", json!("2")),
            ("retry_count", json!(1.5)),
            ("retry_count", json!(18_446_744_073_709_551_615_u64)),
            ("elapsed_seconds", json!(-1)),
            ("elapsed_seconds", json!("60")),
            ("cumulative_cost_usd", json!(true)),
            ("estimated_cost_usd", json!(-0.01)),
            ("recent_tools", json!("a")),
            ("recent_tools", json!(["a", 1])),
        ] {
            assert_eq!(read(json!({name: value}), &[]).1, [name], "{name} {value}");
        }
    }

    #[test]
    fn no_retries_yet_is_said_in_many_ways() {
        for value in [json!(null), json!(-5), json!("5"), json!(-1.5), json!({}), json!(0)] {
            let (run, malformed) = read(json!({"retry_count": value}), &[]);
            assert_eq!((run.retries, malformed), (0, vec![]), "{value}");
        }
    }

    #[test]
    fn the_larger_of_two_counters_counts() {
        let (run, malformed) = read(
            json!({"retry_count": 1, "elapsed_seconds": 9, "loop_state": {"retry_count": 4, "elapsed_seconds": 2.5}}),
            &[],
        );
        assert_eq!((run.retries, run.elapsed_micros, run.iteration), (4, 9_000_000, 1));
        assert!(malformed.is_empty());
    }

    #[test]
    fn cost_is_what_was_spent_and_what_comes() {
        let (run, _) = read(json!({"cumulative_cost_usd": 1.99, "estimated_cost_usd": 0.02}), &[]);
        assert_eq!(run.cost_micros, 2_010_000);
    }

    #[test]
    fn the_proposed_call_counts_as_one_more() {
        let calls = |context: Value, tools: &[&str]| read(context, tools).0.same_tool_calls;
        assert_eq!(calls(json!({"recent_tools": ["a", "A ", "b"]}), &["a"]), 3);
        assert_eq!(calls(json!({"recent_tools": ["a", "a", "b"], "current_tool": "b"}), &["a"]), 2);
        assert_eq!(calls(json!({"recent_tools": ["a", "a", "b"]}), &[]), 2);
        assert_eq!(calls(json!({}), &["a"]), 1);
        assert_eq!(calls(json!({}), &[]), 0);
        assert_eq!(calls(json!({"recent_tools": ["a"], "loop_state": {"repeated_tools": ["a", "a"]}}), &["a"]), 3);
        assert_eq!(
            calls(json!({"recent_tools": ["a", "a"]}), &["\u{430}b"]),
            3,
            "a look-alike is no way round the limit"
        );
    }
}
