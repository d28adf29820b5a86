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
    pub(super) fn calls(&self) -> Option<FactValue> {
        let calls = self.counted.iter().map(|tool| (tool.clone(), self.history.calls_of(tool).into()));
        (!self.counted.is_empty()).then(|| FactValue::Record(calls.collect()))
    }

    pub(super) fn last_verdict(&self) -> String {
        self.history.last_verdict.map(|verdict| verdict.as_str().to_owned()).unwrap_or_default()
    }
}
