//! Counters of a run: iterations, retries, elapsed time, cost, and calls of the same tool.
//!
//! `context`, `context.loop_state` and the server's own counts may each give a counter; the largest one counts. A
//! missing counter has its initial value, and one that cannot be read is malformed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};
use stage0_contract::{LimitName, Micros, Word};

use super::declared::Declared;
use super::evidence::{Evidence, as_micros, as_words, whole_number};
use super::history::{RunHistory, TargetHash};
use super::proposal::AMBIGUOUS;
use super::tool_name::readings;
use super::tools::ProposedTools;

/// The longest name of a tool that is stored as it is; a longer one is stored as its hash.
pub(super) const MAX_NAME_BYTES: usize = 128;

/// What the server has counted of a run before this check.
#[derive(Debug, Clone, Default)]
pub struct RunSnapshot {
    /// The number of the next iteration.
    pub iteration: i64,
    /// The highest retry count that was allowed.
    pub retries: i64,
    /// Microseconds since the run began.
    pub elapsed_micros: i64,
    /// Money spent and reserved, in millionths of a dollar.
    pub cost_micros: i64,
    /// Allowed calls by tool.
    pub calls: ToolCalls,
    /// The count of the original check, when this is a repeat of it.
    pub same_tool_calls: i64,
    /// What the run did before this check, for the rules that look back.
    pub history: RunHistory,
}

/// Calls of each tool. Those of an ambiguous name (letters of mixed scripts) count for every tool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCalls {
    /// Calls by normalised name.
    pub known: BTreeMap<String, i64>,
    /// Calls under ambiguous names.
    pub any: i64,
}

/// What a request itself reports of its run, before the server's counts are added.
#[derive(Debug)]
pub struct Reported {
    /// `current_iteration`, at least 1.
    pub iteration: i64,
    /// `retry_count`, at least 0.
    pub retries: i64,
    /// `elapsed_seconds`, in microseconds.
    pub elapsed_micros: i64,
    /// `cumulative_cost_usd`, in millionths of a dollar.
    pub spent_micros: i64,
    /// For each tool, the larger of its counts in the request's lists.
    pub calls: ToolCalls,
    /// Calls of the most called proposed tool, by the request's lists alone.
    pub same_tool_calls: i64,
    /// The tools that this check proposes; `None` for an ambiguous name.
    pub proposed: Vec<Option<String>>,
}

/// The counters of a run as rules see them, and what a decision contributes to the state of its run.
#[derive(Debug)]
pub struct RunFacts {
    /// The iteration that is checked.
    pub iteration: i64,
    /// Retries so far.
    pub retries: i64,
    /// Microseconds since the run began.
    pub elapsed_micros: i64,
    /// Money spent, reserved, and estimated for this check, in millionths of a dollar.
    pub cost_micros: i64,
    /// Calls of the most called proposed tool with this one; if none is proposed, of the most called recent tool.
    pub same_tool_calls: i64,
    /// The estimate of this check.
    pub estimated_cost: Option<Micros>,
    /// What the request reported; only for a run whose snapshot was given.
    pub reported: Option<Reported>,
    /// The request holds a secret, so the names of its tools must not be stored.
    pub has_secrets: bool,
    /// The targets of this check, each once; only for a run, and only if a rule of the pack asks for targets.
    pub targets: Vec<TargetHash>,
    /// One call of each tool that rules see, under each reading of its name; only for a run, and only if a rule of the
    /// pack asks for calls or targets.
    pub called: Option<ToolCalls>,
}

impl RunFacts {
    pub(crate) fn read(
        declared: &Declared,
        tools: &ProposedTools,
        evidence: &mut Evidence<'_>,
        snapshot: Option<&RunSnapshot>,
        has_secrets: bool,
    ) -> Self {
        let estimated_cost = evidence.micros("estimated_cost_usd");
        let iteration = |value: &Value| value.as_number().and_then(whole_number).filter(|n| *n >= 1);
        let mut reported = Reported {
            iteration: counter(evidence, "current_iteration", 1, iteration),
            retries: counter(evidence, "retry_count", 0, retries),
            elapsed_micros: quantity(evidence, "elapsed_seconds"),
            spent_micros: quantity(evidence, "cumulative_cost_usd"),
            calls: ToolCalls::default(),
            same_tool_calls: 0,
            proposed: Vec::new(),
        };
        let proposed = tools.proposed();
        // Counting normalises the name of every recent call, so it is done only for a limit or for the state of a run.
        if declared.limit(LimitName::SameTool).is_some() || snapshot.is_some() {
            reported.calls = recent_calls(evidence);
            reported.same_tool_calls = reported.calls.with_proposed(proposed).max(i64::from(!proposed.is_empty()));
        }
        let spent = reported.spent_micros.max(snapshot.map_or(0, |counted| counted.cost_micros));
        let mut run = Self {
            iteration: reported.iteration,
            retries: reported.retries,
            elapsed_micros: reported.elapsed_micros,
            cost_micros: spent.saturating_add(estimated_cost.map_or(0, Micros::get)),
            same_tool_calls: reported.same_tool_calls,
            estimated_cost,
            reported: None,
            has_secrets,
            targets: Vec::new(),
            called: None,
        };
        if let Some(counted) = snapshot {
            run.iteration = run.iteration.max(counted.iteration);
            run.retries = run.retries.max(counted.retries);
            run.elapsed_micros = run.elapsed_micros.max(counted.elapsed_micros);
            let calls = counted.calls.with_proposed(proposed).max(counted.same_tool_calls);
            run.same_tool_calls = run.same_tool_calls.max(calls);
            reported.proposed = distinct_names(proposed);
            run.reported = Some(reported);
        }
        run
    }
}

/// Each proposed tool once: a list of tools names them but does not say how often each is called.
fn distinct_names(proposed: &[Word]) -> Vec<Option<String>> {
    let mut names: Vec<Option<String>> = Vec::with_capacity(proposed.len());
    for tool in proposed {
        let name = tool.known().map(|name| stored_name(name).into_owned());
        if name.is_none() || !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The name under which a tool is counted and stored. `read-file` and `read_file` are one tool.
pub(super) fn stored_name(name: &str) -> Cow<'_, str> {
    if name.len() > MAX_NAME_BYTES {
        return Cow::Owned(format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(name.as_bytes()))));
    }
    let separators = ['-', ' '];
    if name.contains(separators) { Cow::Owned(name.replace(separators, "_")) } else { Cow::Borrowed(name) }
}

/// The name under which a tool is counted; `None` for a name that may be any tool.
pub(crate) fn stored_tool(tool: &str) -> Option<String> {
    Word::new(tool).known().filter(|name| *name != AMBIGUOUS).map(|name| stored_name(name).into_owned())
}

/// Whether a tool is counted under exactly this name.
pub(crate) fn is_stored_name(name: &str) -> bool {
    !name.is_empty() && stored_tool(name).as_deref() == Some(name)
}

/// The larger value of `context` and `loop_state`, at least `initial`.
fn counter(evidence: &mut Evidence<'_>, name: &'static str, initial: i64, read: impl Fn(&Value) -> Option<i64>) -> i64 {
    let mut highest = initial;
    for value in evidence.with_loop_state(name, name) {
        match read(value) {
            Some(count) => highest = highest.max(count),
            None => evidence.mark_malformed(name),
        }
    }
    highest
}

/// Clients send nulls, negative numbers and texts for "no retries yet"; a fraction or an overflow is malformed.
fn retries(value: &Value) -> Option<i64> {
    let Some(number) = value.as_number() else { return Some(0) };
    let negative = number.as_i64().is_some_and(|n| n < 0) || number.as_f64().is_some_and(|n| n < 0.0);
    if negative { Some(0) } else { whole_number(number) }
}

/// Whether a limit can be compared with the value. A malformed number counts, because it is reported as malformed.
pub(super) fn is_retry_count(value: &Value) -> bool {
    value.as_number().is_some_and(|number| !number.as_f64().is_some_and(|n| n < 0.0))
}

fn quantity(evidence: &mut Evidence<'_>, name: &'static str) -> i64 {
    counter(evidence, name, 0, |value| as_micros(value).map(Micros::get))
}

/// For each tool, the larger of its counts in `recent_tools` and `loop_state.repeated_tools`.
fn recent_calls(evidence: &mut Evidence<'_>) -> ToolCalls {
    const NAME: &str = "recent_tools";
    let mut calls = ToolCalls::default();
    for list in evidence.with_loop_state(NAME, "repeated_tools") {
        match as_words(list) {
            Some(recent) => calls.raise(&ToolCalls::count(&recent)),
            None => evidence.mark_malformed(NAME),
        }
    }
    calls
}

impl ToolCalls {
    fn count(recent: &[Word]) -> Self {
        let mut calls = Self::default();
        for word in recent {
            match word.known() {
                Some(name) => *calls.known.entry(stored_name(name).into_owned()).or_default() += 1,
                None => calls.any += 1,
            }
        }
        calls
    }

    /// The same calls, each under every reading of the tool's name.
    #[must_use]
    pub fn by_reading(&self) -> Self {
        let mut calls = Self { any: self.any, ..Self::default() };
        for (tool, count) in &self.known {
            readings(tool).iter().for_each(|reading| calls.add(reading, *count));
        }
        calls
    }

    pub(crate) fn add(&mut self, name: &str, count: i64) {
        let calls = self.known.entry(name.to_owned()).or_default();
        *calls = calls.saturating_add(count);
    }

    pub(crate) fn raise(&mut self, other: &Self) {
        for (name, count) in &other.known {
            let own = self.known.entry(name.clone()).or_default();
            *own = (*own).max(*count);
        }
        self.any = self.any.max(other.any);
    }

    /// As [`RunFacts::same_tool_calls`].
    fn with_proposed(&self, proposed: &[Word]) -> i64 {
        let highest = self.known.values().copied().max().unwrap_or(0);
        let next = proposed.iter().map(|tool| match tool.known() {
            Some(name) => self.known.get(&*stored_name(name)).copied().unwrap_or(0).saturating_add(1),
            None => highest.saturating_add(1),
        });
        self.any.saturating_add(next.max().unwrap_or(highest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use stage0_contract::CheckRequest;

    fn read(context: impl Into<Value>, tools: &[&str]) -> (RunFacts, Vec<&'static str>) {
        let request = CheckRequest::parse(json!({"goal": "g", "tools": tools, "context": context.into()})).unwrap();
        let mut evidence = Evidence::new(request.context.as_ref());
        let tools = ProposedTools::read(&request, &mut evidence);
        let mut declared = Declared::default();
        declared.add_limit(LimitName::SameTool, 2);
        let run = RunFacts::read(&declared, &tools, &mut evidence, None, false);
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
    fn clients_may_send_no_retries_yet_in_many_ways() {
        for value in [json!(null), json!(-5), json!("5"), json!(-1.5), json!({}), json!(0)] {
            let (run, malformed) = read(json!({"retry_count": value}), &[]);
            assert_eq!((run.retries, malformed), (0, vec![]), "{value}");
        }
    }

    #[test]
    fn the_larger_of_a_counter_and_its_copy_in_loop_state_counts() {
        let (run, malformed) = read(
            json!({"retry_count": 1, "elapsed_seconds": 9, "loop_state": {"retry_count": 4, "elapsed_seconds": 2.5}}),
            &[],
        );
        assert_eq!((run.retries, run.elapsed_micros, run.iteration), (4, 9_000_000, 1));
        assert!(malformed.is_empty());
    }

    #[test]
    fn cost_is_the_money_spent_plus_the_estimate() {
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
            "a look-alike does not avoid the limit"
        );
    }
}
