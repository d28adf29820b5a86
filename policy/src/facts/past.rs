//! The facts about a run: what it did before this check.
//!
//! Without a run nothing was counted, and every count is 0; `run_named` tells the two apart.

use super::history::RunHistory;
use super::proposal::Targets;
use super::table::FactValue;

#[derive(Debug, Default)]
pub(crate) struct Past {
    pub(super) history: RunHistory,
    /// Tools that were allowed for every target of this check.
    pub(super) target_tools: Vec<String>,
    /// The tools that the pack counts.
    counted: Vec<String>,
}

impl Past {
    pub(super) fn read(history: RunHistory, targets: &Targets, counted: &[String]) -> Self {
        // A target that cannot be read was never seen before.
        let hashes = targets.are_readable().then(|| targets.hashes()).into_iter().flatten();
        let target_tools = history.tools_of_all(hashes).into_iter().collect();
        Self { history, target_tools, counted: counted.to_vec() }
    }

    pub(super) fn tools(&self) -> Vec<String> {
        self.history.tools()
    }

    /// The calls of each tool that the pack counts; absent for a pack that counts none.
    pub(super) fn calls(&self) -> Option<&Self> {
        (!self.counted.is_empty()).then_some(self)
    }

    /// As a record by tool.
    pub(super) fn record(&self) -> FactValue {
        let calls = self.counted.iter().map(|tool| (tool.clone(), self.history.calls_of(tool).into()));
        FactValue::Record(calls.collect())
    }

    /// The calls of one tool, if the pack counts them.
    pub(super) fn calls_of(&self, tool: &str) -> Option<i64> {
        self.counted.iter().any(|counted| counted == tool).then(|| self.history.calls_of(tool))
    }

    pub(super) fn last_verdict(&self) -> &'static str {
        self.history.last_verdict.map_or("", |verdict| verdict.as_str())
    }
}
