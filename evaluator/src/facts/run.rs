//! The run: how often, how long, how dear, and the same call again.
//!
//! Owns the counters of contract section 6. `context`, `context.loop_state` and what the server remembers of the run may all tell
//! one: the largest counts. A counter that is absent starts at its beginning; one that cannot be read is malformed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};
use stage0_contract::{Micros, RunId, Word};

use super::declared::Declared;
use super::evidence::{Evidence, as_micros, as_words, whole};
use super::tools::ProposedTools;

/// The longest name of a tool that is kept, in bytes.
const MOST_NAME_BYTES: usize = 128;

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
    /// What the request itself said, before the server's memory: only within a run that the server remembers.
    pub(crate) said: Option<Said>,
}

/// What the server remembers of a run, as a check finds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Past {
    /// The one that comes next.
    pub(crate) iteration: i64,
    pub(crate) retries: i64,
    pub(crate) elapsed_micros: i64,
    /// Spent and reserved.
    pub(crate) cost_micros: i64,
    pub(crate) calls: Calls,
    /// What a check that is asked again counted the first time.
    pub(crate) same_tool_calls: i64,
}

/// How often each tool was called. A name that cannot be told apart may be any tool, so it counts for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    pub(crate) known: BTreeMap<String, i64>,
    pub(crate) any: i64,
}

/// What a request says of its run.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) iteration: i64,
    pub(crate) retries: i64,
    pub(crate) elapsed_micros: i64,
    pub(crate) spent_micros: i64,
    /// The busiest of its lists, tool by tool.
    pub(crate) calls: Calls,
    /// Of the busiest proposed tool, by its lists alone.
    pub(crate) same_tool_calls: i64,
    /// What is called next; none for a name that cannot be told apart.
    pub(crate) proposed: Vec<Option<String>>,
}

impl Run {
    pub(crate) fn read(
        declared: &Declared,
        tools: &ProposedTools,
        evidence: &mut Evidence<'_>,
        past: Option<&Past>,
    ) -> Self {
        let estimated_cost = evidence.micros("estimated_cost_usd");
        let mut said = Said {
            iteration: counter(evidence, "current_iteration", 1, |value| {
                value.as_number().and_then(whole).filter(|n| *n >= 1)
            }),
            retries: counter(evidence, "retry_count", 0, retries),
            elapsed_micros: quantity(evidence, "elapsed_seconds"),
            spent_micros: quantity(evidence, "cumulative_cost_usd"),
            calls: Calls::default(),
            same_tool_calls: 0,
            proposed: Vec::new(),
        };
        let mut same_tool_calls = 0;
        // Counting normalises every recent call: only for those who limit it, and for a run that is remembered.
        if declared.same_tool_limit.is_some() || past.is_some() {
            said.calls = recent_calls(evidence);
            let proposed = tools.proposed();
            same_tool_calls = said.calls.most(proposed).max(i64::from(!proposed.is_empty()));
            said.same_tool_calls = same_tool_calls;
            if let Some(past) = past {
                same_tool_calls = same_tool_calls.max(past.calls.most(proposed)).max(past.same_tool_calls);
            }
        }
        let most = |said: i64, past: fn(&Past) -> i64, by: Option<&Past>| by.map_or(said, |by| said.max(past(by)));
        let spent = most(said.spent_micros, |past| past.cost_micros, past);
        said.proposed = past.map_or(Vec::new(), |_| told_apart(tools.proposed()));
        Self {
            iteration: most(said.iteration, |past| past.iteration, past),
            retries: most(said.retries, |past| past.retries, past),
            elapsed_micros: most(said.elapsed_micros, |past| past.elapsed_micros, past),
            cost_micros: spent.saturating_add(estimated_cost.map_or(0, Micros::get)),
            same_tool_calls,
            estimated_cost,
            said: past.map(|_| said),
        }
    }
}

/// What is called next, each once: a list of tools says which, and not how often.
fn told_apart(proposed: &[Word]) -> Vec<Option<String>> {
    let mut names: Vec<Option<String>> = Vec::with_capacity(proposed.len());
    for tool in proposed {
        let name = tool.known().map(|name| short(name).into_owned());
        if name.is_none() || !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A tool's name as it is counted and kept: a hash stands for a long one.
fn short(name: &str) -> Cow<'_, str> {
    if name.len() <= MOST_NAME_BYTES {
        // `read-file` and `read_file` are calls of one tool.
        let separates = |c: char| c == '-' || c == ' ';
        let folded = name.contains(separates).then(|| Cow::Owned(name.replace(separates, "_")));
        return folded.unwrap_or(Cow::Borrowed(name));
    }
    Cow::Owned(format!("sha256:{}", HEXLOWER.encode(&Sha256::digest(name.as_bytes()))))
}

/// A run that cannot be told from its name may have counted anything.
pub(crate) fn mark_unless_named(run: &Result<Option<RunId>, stage0_contract::IdError>, evidence: &mut Evidence<'_>) {
    if run.is_err() {
        for name in ["current_iteration", "retry_count", "elapsed_seconds", "cumulative_cost_usd", "recent_tools"] {
            evidence.mark(name);
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

/// A number of retries that a limit can be compared with: what is malformed is told as such.
pub(super) fn retries_of(value: &Value) -> Option<()> {
    let number = value.as_number()?;
    (!number.as_f64().is_some_and(|n| n < 0.0)).then_some(())
}

fn quantity(evidence: &mut Evidence<'_>, name: &'static str) -> i64 {
    counter(evidence, name, 0, |value| as_micros(value).map(Micros::get))
}

/// The busiest of both lists, tool by tool.
fn recent_calls(evidence: &mut Evidence<'_>) -> Calls {
    const NAME: &str = "recent_tools";
    let mut most = Calls::default();
    for list in evidence.both(NAME, "repeated_tools") {
        match as_words(list) {
            Some(recent) => most.raise(&Calls::count(&recent)),
            None => evidence.mark(NAME),
        }
    }
    most
}

impl Calls {
    fn count(recent: &[Word]) -> Self {
        let mut calls = Self::default();
        for word in recent {
            match word.known() {
                Some(name) => *calls.known.entry(short(name).into_owned()).or_default() += 1,
                None => calls.any += 1,
            }
        }
        calls
    }

    /// Takes the larger count of each tool.
    pub(crate) fn raise(&mut self, other: &Self) {
        for (name, count) in &other.known {
            let own = self.known.entry(name.clone()).or_default();
            *own = (*own).max(*count);
        }
        self.any = self.any.max(other.any);
    }

    /// The calls of the busiest proposed tool if it is called once more; without one, of the busiest.
    fn most(&self, proposed: &[Word]) -> i64 {
        let busiest = self.known.values().copied().max().unwrap_or(0);
        let next = proposed.iter().map(|tool| match tool.known() {
            Some(name) => self.known.get(&*short(name)).copied().unwrap_or(0).saturating_add(1),
            None => busiest.saturating_add(1),
        });
        self.any.saturating_add(next.max().unwrap_or(busiest))
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
        let run = Run::read(&declared, &tools, &mut evidence, None);
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
