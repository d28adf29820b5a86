//! The questions to the Stage0 server: one for each call, one for each list, and the reports about them.
//!
//! INVARIANT: a request id comes back only from a complete, recorded ALLOW. No argument's value is logged here, and
//! none is sent except those that the table names.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use stage0_client::{Action, Client, ConnectionError, GuardReport, OutcomeReport, ToolsProbe};
use stage0_contract::{GuardCounts, GuardId, MAX_PROBED_TOOLS, MayEver as Finding, ProbedTool, RequestId};
use stage0_guard::{Options, Table, ToolCall, ask};

use crate::answer::{NotRun, NotRunKind};
use crate::outcome::Status;
use crate::refused::not_run;

/// The name of this guard in tables, and what it reports as its kind.
pub const KIND: &str = "mcp";
/// The effect of a tool that no table knows.
const UNKNOWN: &str = "unknown";
const READ: &str = "read";
const NOT_FOUND: u16 = 404;
const FORBIDDEN: u16 = 403;

/// Asks the server. Clones share connections and counts.
#[derive(Clone)]
pub struct Asker {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    table: Table,
    options: Options,
    principal: String,
    asked: AtomicU64,
    refused: AtomicU64,
    undecided: AtomicU64,
}

/// What a probe found.
pub(crate) enum MayEver {
    /// For each tool whether it can never be allowed.
    Known(Vec<bool>),
    /// The server has no such question.
    NotAsked,
}

/// A tool of a probe, and its place in the list.
struct Probed {
    index: usize,
    context: Map<String, Value>,
    tool: ProbedTool,
}

/// Why an outcome is not reported.
pub(crate) enum ReportError {
    /// The key may not, and will not.
    MayNot,
    Lost(String),
}

impl Asker {
    /// Asks with this client. `principal` names its key, without being secret.
    pub fn new(client: Client, principal: impl Into<String>, table: Table, options: Options) -> Self {
        let inner = Inner {
            client,
            table,
            options,
            principal: principal.into(),
            asked: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            undecided: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn principal(&self) -> &str {
        &self.inner.principal
    }

    /// A tool call. `answers`: the digest of what people answered to the server's questions, which goes with the call.
    pub(crate) async fn call(
        &self,
        server: &str,
        tool: &str,
        arguments: Map<String, Value>,
        answers: Option<&str>,
    ) -> Result<String, NotRun> {
        let call = tool_call(server, tool, arguments);
        let mut body = ask::body(&self.inner.table, &self.inner.options, &call);
        if let (Some(digest), Some(context)) = (answers, body.get_mut("context").and_then(Value::as_object_mut)) {
            context.insert("input_responses_sha256".to_owned(), digest.into());
        }
        self.check(body).await
    }

    /// A read of a resource or a prompt. A table that has an entry for the method says what it is; else it is a read.
    pub(crate) async fn read(&self, server: &str, method: &str, what: &str) -> Result<String, NotRun> {
        let call = tool_call(server, method, Map::from_iter([("name".to_owned(), what.into())]));
        let mut body = ask::body(&self.inner.table, &self.inner.options, &call);
        if self.inner.table.effects_of_mcp_tool(server, method) == [UNKNOWN]
            && let Some(members) = body.as_object_mut()
        {
            members.insert("side_effects".to_owned(), json!([READ]));
        }
        if let Some(context) = body.get_mut("context").and_then(Value::as_object_mut) {
            context.entry("target_resources").or_insert_with(|| json!([what.chars().take(1_000).collect::<String>()]));
        }
        self.check(body).await
    }

    async fn check(&self, body: Value) -> Result<String, NotRun> {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        count(&self.inner.asked);
        let Value::Object(members) = body else { return Err(NotRun::undecided("the question cannot be made")) };
        match self.inner.client.check(&Action::from_body(members)).await {
            Ok(allowed) => Ok(allowed.request_id().to_string()),
            Err(not_allowed) => {
                let not_run = not_run(&not_allowed);
                let counter =
                    if not_run.kind == NotRunKind::Undecided { &self.inner.undecided } else { &self.inner.refused };
                count(counter);
                let (verdict, request_id) = (not_run.kind.verdict(), not_run.request_id.as_deref().unwrap_or("none"));
                tracing::info!(verdict, request_id, "a call is not passed on");
                Err(not_run)
            }
        }
    }

    /// Which of these tools can never be allowed.
    pub(crate) async fn may_ever(&self, server: &str, tools: &[&str]) -> Result<MayEver, String> {
        let mut hidden = vec![false; tools.len()];
        // A probe is about one environment, and the table can give each tool its own.
        let mut by_environment: BTreeMap<Option<String>, Vec<Probed>> = BTreeMap::new();
        for (index, tool) in tools.iter().enumerate() {
            let (environment, probed) = self.probed(server, tool, index);
            by_environment.entry(environment).or_default().push(probed);
        }
        for (environment, tools) in &by_environment {
            for part in tools.chunks(MAX_PROBED_TOOLS) {
                let asked = part.iter().map(|probed| probed.tool.clone()).collect();
                let context = part.first().map(|probed| probed.context.clone()).unwrap_or_default();
                let probe = ToolsProbe { environment: environment.clone(), context, tools: asked };
                let found = match self.inner.client.probe(&probe).await {
                    Ok(found) => found.tools,
                    Err(ConnectionError::Refused { status: NOT_FOUND, .. }) => return Ok(MayEver::NotAsked),
                    Err(error) => return Err(error.to_string()),
                };
                if found.len() != part.len() || found.iter().zip(part).any(|(found, own)| found.tool != own.tool.tool) {
                    return Err("the answer is about other tools".to_owned());
                }
                for (found, probed) in found.iter().zip(part) {
                    if let Some(hidden) = hidden.get_mut(probed.index) {
                        *hidden = found.may == Finding::Never;
                    }
                }
            }
        }
        Ok(MayEver::Known(hidden))
    }

    /// As a call of the tool would be asked about, without what only a call has.
    fn probed(&self, server: &str, tool: &str, index: usize) -> (Option<String>, Probed) {
        let body = ask::body(&self.inner.table, &self.inner.options, &tool_call(server, tool, Map::new()));
        let name = body.pointer("/tools/0").and_then(Value::as_str).unwrap_or(tool).to_owned();
        let mut context = body.get("context").and_then(Value::as_object).cloned().unwrap_or_default();
        for of_calls in ["current_tool", "arguments_sha256", "arguments", "target_resources", "command"] {
            context.remove(of_calls);
        }
        let environment = body.get("environment").and_then(Value::as_str).map(str::to_owned);
        let side_effects = self.inner.table.effects_of_mcp_tool(server, tool);
        (environment, Probed { index, context, tool: ProbedTool { tool: name, side_effects } })
    }

    pub(crate) async fn report(&self, request_id: &str, status: Status, took: Duration) -> Result<(), ReportError> {
        let id: RequestId = serde_json::from_value(request_id.into()).map_err(|e| ReportError::Lost(e.to_string()))?;
        let report = OutcomeReport::new(status).duration(took);
        match self.inner.client.report_outcome(id, &report).await {
            Ok(_) => Ok(()),
            Err(ConnectionError::Refused { status: FORBIDDEN, .. }) => Err(ReportError::MayNot),
            Err(error) => Err(ReportError::Lost(error.to_string())),
        }
    }

    /// What this process has counted.
    pub(crate) fn counts(&self) -> GuardCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        GuardCounts {
            asked: read(&self.inner.asked),
            refused: read(&self.inner.refused),
            undecided: read(&self.inner.undecided),
            ran_undecided: 0,
        }
    }

    pub(crate) async fn heartbeat(
        &self,
        guard_id: &GuardId,
        host: Option<&str>,
        next: u32,
        counts: GuardCounts,
    ) -> Result<(), String> {
        let report = GuardReport {
            guard_id: guard_id.clone(),
            kind: KIND.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_version: None,
            host: host.map(str::to_owned),
            next_within_seconds: next,
            counts,
        };
        self.inner.client.heartbeat(&report).await.map(drop).map_err(|error| error.to_string())
    }
}

fn tool_call(server: &str, tool: &str, arguments: Map<String, Value>) -> ToolCall {
    ToolCall {
        agent: KIND.to_owned(),
        event: "tools/call".to_owned(),
        server: Some(server.to_owned()),
        tool: tool.to_owned(),
        arguments,
        ..ToolCall::default()
    }
}
