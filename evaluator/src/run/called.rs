//! The calls that a run was allowed, under every reading of the tools' names, for `run_calls` and `run_tools`.
//!
//! Kept from the first check on whose pack asks for calls, under whatever pack follows. What was counted before, or is
//! left where an evaluator of an earlier version dropped the rest, may only have been reported.
//! INVARIANT: such calls count for limits and are no evidence of a call. Memory is bounded: calls beyond it are not
//! told apart, and count for every tool.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stage0_policy::{RunFacts, RunHistory, ToolCalls};

use super::history::{History, own_tools};
use super::{ANY_TOOL, is_zero, written};

/// Readings that are counted separately, and the total size of their texts.
const MAX_READINGS: usize = 500;
const MAX_READING_BYTES: usize = 16 * 1_024;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Called {
    #[serde(rename = "k", skip_serializing_if = "BTreeMap::is_empty")]
    known: BTreeMap<String, i64>,
    #[serde(rename = "a", skip_serializing_if = "is_zero")]
    any: i64,
    /// Calls from before.
    #[serde(rename = "u", skip_serializing_if = "BTreeMap::is_empty")]
    unproven: BTreeMap<String, i64>,
}

impl Called {
    /// What is known of a run whose calls were not counted under readings: `calls` are those of each tool.
    pub(super) fn before(calls: &BTreeMap<String, i64>, any: i64, history: &History) -> Self {
        let known = calls.iter().map(|(tool, calls)| (tool.clone(), history.without_reported(Some(tool), *calls)));
        let calls = ToolCalls {
            known: known.filter(|(_, calls)| *calls > 0).collect(),
            any: history.without_reported(None, any),
        };
        let mut called = Self::default();
        called.add(&calls.by_reading(), |called| &mut called.unproven);
        called
    }

    /// Counts the calls of an allowed check.
    pub(super) fn count(&mut self, own: &ToolCalls) {
        self.add(own, |called| &mut called.known);
    }

    fn add(&mut self, calls: &ToolCalls, to: fn(&mut Self) -> &mut BTreeMap<String, i64>) {
        let mut beyond = 0;
        for (reading, count) in &calls.known {
            if to(self).contains_key(reading) || self.fits(reading) {
                let own = to(self).entry(reading.clone()).or_default();
                *own = own.saturating_add(*count);
            } else {
                // The readings of one call are one call.
                beyond = beyond.max(*count);
            }
        }
        self.any = self.any.saturating_add(calls.any).saturating_add(beyond);
    }

    fn fits(&self, reading: &str) -> bool {
        let texts = || self.known.keys().chain(self.unproven.keys());
        texts().count() < MAX_READINGS && written(texts()) + written([reading]) <= MAX_READING_BYTES
    }

    /// As the policy reads it.
    pub(super) fn tell(self, history: &mut RunHistory) {
        let mut calls = ToolCalls { known: self.known, any: self.any };
        for (reading, count) in &self.unproven {
            let all = calls.known.entry(reading.clone()).or_default();
            *all = all.saturating_add(*count);
        }
        (history.tools, history.any, history.unproven) = (calls.known, calls.any, self.unproven);
    }
}

/// Takes the calls of a repeated check out of what the run did before it.
pub(super) fn leave_out(history: &mut RunHistory, own: &ToolCalls) {
    let mut beyond = 0;
    for (reading, count) in &own.known {
        match history.tools.get_mut(reading) {
            Some(calls) => *calls = calls.saturating_sub(*count).max(0),
            None => beyond = beyond.max(*count),
        }
    }
    history.any = history.any.saturating_sub(own.any).saturating_sub(beyond).max(0);
}

/// The calls of a check, each under every reading: of all tools that the rules of a pack see which asks for calls, and
/// otherwise of those that every run counts.
pub(super) fn own_calls(facts: &RunFacts) -> ToolCalls {
    if let Some(called) = &facts.called {
        return called.clone();
    }
    let mut calls = ToolCalls::default();
    for tool in own_tools(facts) {
        let count = if tool == ANY_TOOL { &mut calls.any } else { calls.known.entry(tool.to_owned()).or_default() };
        *count = count.saturating_add(1);
    }
    calls.by_reading()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(known: &[(&str, i64)]) -> ToolCalls {
        ToolCalls { known: known.iter().map(|(name, calls)| ((*name).to_owned(), *calls)).collect(), any: 0 }
    }

    fn told(called: Called) -> RunHistory {
        let mut history = RunHistory::default();
        called.tell(&mut history);
        history
    }

    #[test]
    fn earlier_calls_count_under_every_reading_and_are_told_as_unproven() {
        let earlier = calls(&[("mcp__mail__send_email", 2), ("read", 1)]).known;
        let mut called = Called::before(&earlier, 3, &History::default());
        called.count(&calls(&[("send_email", 1), ("sendemail", 1)]));
        let history = told(called);
        let wanted = calls(&[("mcp__mail__send_email", 2), ("send_email", 3), ("sendemail", 1), ("read", 1)]);
        assert_eq!((history.tools, history.any), (wanted.known, 3));
        let unproven = calls(&[("mcp__mail__send_email", 2), ("send_email", 2), ("read", 1)]);
        assert_eq!(history.unproven, unproven.known);
    }

    #[test]
    fn readings_are_bounded_and_a_call_beyond_the_bound_counts_once_for_every_tool() {
        let mut called = Called::default();
        for number in 0..MAX_READINGS {
            called.count(&calls(&[(&format!("tool{number}"), 1)]));
        }
        let own = calls(&[("sendemail", 1), ("send_email", 1), ("tool7", 1)]);
        called.count(&own);
        let mut history = told(called);
        assert_eq!((history.tools.len(), history.any, history.tools["tool7"]), (MAX_READINGS, 1, 2));
        leave_out(&mut history, &own);
        assert_eq!((history.any, history.tools["tool7"]), (0, 1), "a repeat does not see its own call");
        let mut called = Called::default();
        for number in 0..MAX_READINGS {
            called.count(&calls(&[(&format!("{number:0>100}"), 1)]));
        }
        let history = told(called);
        assert!(written(history.tools.keys()) <= MAX_READING_BYTES && history.any > 0);
    }
}
