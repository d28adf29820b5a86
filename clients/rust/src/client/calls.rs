//! The calls beside the check: outcomes, costs, approvals, decisions, heartbeats and probes.

use std::time::Duration;

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use stage0_contract::{
    Approval, ApprovalId, Guard, GuardCounts, GuardId, OutcomeStatus, Probe, ProbedTool, ReportedOutcome, RequestId,
    RunSettled, ShownDecision,
};
use tokio::time::Instant;

use super::Client;
use super::exchange::Call;
use crate::connection::{Answer, ConnectionError};
use crate::text::plain;

/// What came of an action: a status word and numbers, never output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutcomeReport {
    status: OutcomeStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_usd: Option<f64>,
}

impl OutcomeReport {
    /// How the action ended. `Unknown` is not `Failed`: it may have had its effects.
    pub fn new(status: OutcomeStatus) -> Self {
        Self { status, tool_call_id: None, duration_ms: None, cost_usd: None }
    }

    /// The tool call as the agent names it.
    #[must_use]
    pub fn tool_call_id(mut self, id: impl Into<String>) -> Self {
        self.tool_call_id = Some(id.into());
        self
    }

    /// How long it took.
    #[must_use]
    pub fn duration(mut self, took: Duration) -> Self {
        self.duration_ms = u64::try_from(took.as_millis()).ok();
        self
    }

    /// What it cost: settles the check in its run. Less than was estimated takes the scope `runs:manage`.
    #[must_use]
    pub fn cost_usd(mut self, cost: f64) -> Self {
        self.cost_usd = Some(cost);
        self
    }
}

/// A sign of life of something that enforces decisions, with what it has counted since it was set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardReport {
    /// Its own name of itself, the same at every report.
    pub guard_id: GuardId,
    /// What it guards, such as `claude-code` or `mcp`.
    pub kind: String,
    /// Its own version.
    pub version: String,
    /// The version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its next report comes within this time; 0: it ends, and is not missed.
    pub next_within_seconds: u32,
    /// What it has counted.
    #[serde(flatten)]
    pub counts: GuardCounts,
}

/// The question which of these tools can ever be allowed. It allows nothing: each call is decided again.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct ToolsProbe {
    /// Where they would run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// Facts that every call would have.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub context: Map<String, Value>,
    /// 1 to 200 tools, each with the effects that a call would declare.
    pub tools: Vec<ProbedTool>,
}

impl Client {
    /// Reports what came of an allowed action. The same report again has the same answer.
    pub async fn report_outcome(
        &self,
        id: RequestId,
        report: &OutcomeReport,
    ) -> Result<ReportedOutcome, ConnectionError> {
        self.call(Method::POST, &["v1", "decisions", &id.to_string(), "outcome"], Some(report)).await
    }

    /// Says what an allowed check has cost its run. Each check is settled once.
    pub async fn settle(
        &self,
        run_id: &str,
        id: RequestId,
        actual_cost_usd: f64,
    ) -> Result<RunSettled, ConnectionError> {
        let body = json!({"request_id": id, "actual_cost_usd": actual_cost_usd});
        self.call(Method::POST, &["v1", "runs", run_id, "settle"], Some(&body)).await
    }

    /// An approval as it stands now.
    pub async fn approval(&self, id: &ApprovalId) -> Result<Approval, ConnectionError> {
        self.call(Method::GET, &["v1", "approvals", id.as_str()], None::<&()>).await
    }

    /// A recorded decision, with what came of it.
    pub async fn decision(&self, id: RequestId) -> Result<ShownDecision, ConnectionError> {
        self.call(Method::GET, &["v1", "decisions", &id.to_string()], None::<&()>).await
    }

    /// Says that a guard is alive, and what it has seen.
    pub async fn heartbeat(&self, report: &GuardReport) -> Result<Guard, ConnectionError> {
        self.call(Method::POST, &["v1", "guards"], Some(report)).await
    }

    /// Asks which tools can never be allowed, for example to hide them from a model. The client's defaults are added.
    pub async fn probe(&self, probe: &ToolsProbe) -> Result<Probe, ConnectionError> {
        let mut probe = probe.clone();
        for (name, value) in &self.context {
            // A run is not advanced by a probe, and what it has counted is not looked at.
            if name != "run_id" && !probe.context.contains_key(name) {
                probe.context.insert(name.clone(), value.clone());
            }
        }
        if probe.environment.is_none() && !probe.context.contains_key("environment") {
            probe.environment.clone_from(&self.environment);
        }
        self.call(Method::POST, &["v1", "probes"], Some(&probe)).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, ConnectionError> {
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| unreadable(&error))?;
        let call = Call { method, path, query: &[], body };
        let answer = self.exchange(&call, None, Instant::now() + self.timeout).await?;
        read(answer)
    }
}

pub(super) fn read<T: DeserializeOwned>(answer: Answer) -> Result<T, ConnectionError> {
    serde_json::from_slice(&answer.successful()?).map_err(|error| unreadable(&error))
}

fn unreadable(error: &serde_json::Error) -> ConnectionError {
    ConnectionError::Unreadable(plain(&error.to_string()))
}
