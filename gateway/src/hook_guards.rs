//! Signs of life of hooks that ask over HTTP, on their behalf: such a hook sends its event and nothing else.
//!
//! One guard for each key and agent. No request waits for its report, a lost one is not repeated before the next call
//! of a tool, and the counts stay 0: every call that such a hook asks about is in the log. Memory is bounded: what does
//! not fit is reported more often.

use std::error::Error;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header::USER_AGENT;
use moka::future::Cache;
use stage0_contract::{Guard, GuardCounts, GuardId, KeyId, KeyIdentity, ManageReply, ReportGuard, is_guard_text};
use stage0_guard::Agent;

use crate::state::AppState;

const REPORT_INTERVAL: Duration = Duration::from_secs(60);
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_GUARDS: u64 = 10_000;
/// A person may be away for a weekend.
const NEXT_WITHIN_SECONDS: u32 = 3 * 24 * 3_600;
const MAX_ID_CHARS: usize = 64;
/// The version of a hook that names none of ours.
const UNNAMED: &str = "http";

/// Which have reported within the last minute.
#[derive(Clone)]
pub(crate) struct HookGuards {
    recent: Cache<(KeyId, Agent), ()>,
}

impl Default for HookGuards {
    fn default() -> Self {
        Self { recent: Cache::builder().max_capacity(MAX_GUARDS).time_to_live(REPORT_INTERVAL).build() }
    }
}

impl HookGuards {
    /// Reports the guard beside the request, if none of its requests did so within the last minute.
    pub(crate) async fn seen(&self, state: &AppState, identity: &KeyIdentity, agent: Agent, request: &HttpRequest) {
        let entry = self.recent.entry((identity.key_id.clone(), agent)).or_insert(()).await;
        if !entry.is_fresh() {
            return;
        }
        let Some(report) = report(identity, agent, request) else { return };
        let state = state.clone();
        actix_web::rt::spawn(async move {
            let reply: Result<ManageReply<Guard>, _> = state.requests().request(&report, REPORT_TIMEOUT).await;
            match reply {
                Ok(ManageReply::Done(_)) => {}
                Ok(reply) => tracing::info!(guard_id = %report.guard_id, ?reply, "the report of a hook is not kept"),
                Err(error) => {
                    let error = &error as &dyn Error;
                    tracing::info!(guard_id = %report.guard_id, error, "a hook is not reported as alive");
                }
            }
        });
    }
}

fn report(identity: &KeyIdentity, agent: Agent, request: &HttpRequest) -> Option<ReportGuard> {
    let id: String = format!("{agent}-{}", identity.key_id).chars().take(MAX_ID_CHARS).collect();
    let program = request.headers().get(USER_AGENT).and_then(|value| value.to_str().ok());
    Some(ReportGuard {
        account: identity.account.clone(),
        key_id: identity.key_id.clone(),
        retention_days: identity.retention_days,
        guard_id: GuardId::parse(&id).ok()?,
        kind: agent.to_string(),
        version: program.filter(|text| is_guard_text(text)).unwrap_or(UNNAMED).to_owned(),
        agent_version: None,
        host: None,
        next_within_seconds: NEXT_WITHIN_SECONDS,
        counts: GuardCounts::default(),
    })
}
