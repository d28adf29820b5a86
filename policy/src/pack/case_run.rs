//! The two optional members of a case that say in which circumstances its request is decided: `caller` and `run`.
//!
//! `run` stands for the state of the run that the request names, as the server would have kept it.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Number;
use stage0_contract::{CheckRequest, Micros, RunId, Verdict};

use crate::facts::{RunHistory, RunSnapshot, TargetHash, ToolCalls, readings, stored_tool};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRun {
    calls: BTreeMap<String, i64>,
    allowed: i64,
    denied: i64,
    deferred: i64,
    last_verdict: Option<Verdict>,
    cost_usd: Number,
    seconds: i64,
    seconds_since_allowed: Option<i64>,
    approved: bool,
    target_tools: BTreeMap<String, Vec<String>>,
}

impl Default for RawRun {
    fn default() -> Self {
        Self {
            calls: BTreeMap::new(),
            allowed: 0,
            denied: 0,
            deferred: 0,
            last_verdict: None,
            cost_usd: 0.into(),
            seconds: 0,
            seconds_since_allowed: None,
            approved: false,
            target_tools: BTreeMap::new(),
        }
    }
}

impl RawRun {
    /// The state of the run before the check, or what is wrong with it.
    pub(super) fn snapshot(self, request: &CheckRequest) -> Result<RunSnapshot, String> {
        if !matches!(RunId::of(request), Ok(Some(_))) {
            return Err("it has a `run`, and its request names none: add `run_id` to `context`".to_owned());
        }
        let cost_micros = Micros::usd(&self.cost_usd).map_err(|error| format!("`run.cost_usd` {error}"))?.get();
        let counts = [
            ("allowed", self.allowed),
            ("denied", self.denied),
            ("deferred", self.deferred),
            ("seconds", self.seconds),
            ("seconds_since_allowed", self.seconds_since_allowed.unwrap_or(0)),
        ];
        let calls = self.calls.iter().map(|(tool, calls)| (tool.as_str(), *calls));
        if let Some((name, _)) = counts.into_iter().chain(calls).find(|(_, count)| *count < 0) {
            return Err(format!("`{name}` in `run` must not be negative"));
        }
        let (mut calls, mut called) = (ToolCalls::default(), ToolCalls::default());
        for (tool, count) in self.calls {
            match stored_tool(&tool) {
                Some(name) => {
                    calls.add(&name, count);
                    readings(&tool).iter().for_each(|reading| called.add(reading, count));
                }
                None => calls.any = calls.any.saturating_add(count),
            }
        }
        let mut target_tools: BTreeMap<_, std::collections::BTreeSet<String>> = BTreeMap::new();
        for (target, tools) in self.target_tools {
            let hash = TargetHash::of_target(&target)
                .ok_or_else(|| format!("`{target}` in `run.target_tools` cannot be read as a target"))?;
            target_tools.entry(hash).or_default().extend(tools.iter().flat_map(|tool| readings(tool)));
        }
        Ok(RunSnapshot {
            iteration: self.allowed.saturating_add(1),
            retries: 0,
            elapsed_micros: self.seconds.saturating_mul(1_000_000),
            cost_micros,
            same_tool_calls: 0,
            history: RunHistory {
                tools: called.known,
                unproven: BTreeMap::new(),
                any: calls.any,
                allowed: self.allowed,
                denied: self.denied,
                deferred: self.deferred,
                last_verdict: self.last_verdict,
                cost_micros,
                seconds: self.seconds,
                seconds_since_allowed: self.seconds_since_allowed,
                approved: self.approved,
                target_tools,
            },
            calls,
        })
    }
}
