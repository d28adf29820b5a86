//! Waiting until people have decided about a deferred action.

use std::time::Duration;

use reqwest::Method;
use stage0_contract::{Approval, ApprovalId, ApprovalStatus};
use tokio::time::{Instant, sleep};

use super::exchange::Call;
use super::{Client, calls};
use crate::connection::ConnectionError;
use crate::judge::Allowed;
use crate::refusal::{Deferred, NotAllowed};

/// How long one request waits at the server.
const POLL: Duration = Duration::from_secs(30);
/// Between two requests, for a server or a proxy that does not wait.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

impl Client {
    /// Waits until the action is approved, then asks the same check again: only its ALLOW allows. Returns the deferral
    /// when the time is over or there is no approval to wait for, and with the approval's status when people have
    /// said no, it has expired, or another check uses it.
    pub async fn wait_for_approval(&self, deferred: &Deferred, timeout: Duration) -> Result<Allowed, NotAllowed> {
        let Some(id) = deferred.approval().and_then(|approval| approval.id.clone()) else {
            return Err(deferred.clone().into());
        };
        let deadline = Instant::now() + timeout;
        loop {
            let asked = Instant::now();
            let left = deadline.saturating_duration_since(asked);
            match self.approval_after(&id, left.min(POLL)).await {
                Ok(approval) => match approval.status {
                    ApprovalStatus::Pending => {}
                    ApprovalStatus::Approved => return self.ask(deferred.action.clone().without_key()).await,
                    ApprovalStatus::Denied
                    | ApprovalStatus::Expired
                    | ApprovalStatus::Cancelled
                    | ApprovalStatus::Reserved
                    | ApprovalStatus::Consumed => return Err(deferred.clone().now(approval.status).into()),
                },
                // People take longer than a server needs to come back.
                Err(error) if error.is_retryable() && Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= deadline {
                return Err(deferred.clone().into());
            }
            sleep(POLL_INTERVAL.saturating_sub(asked.elapsed()).min(deadline - Instant::now())).await;
        }
    }

    async fn approval_after(&self, id: &ApprovalId, wait: Duration) -> Result<Approval, ConnectionError> {
        let seconds = format!("{}s", wait.as_secs());
        let path = ["v1", "approvals", id.as_str()];
        let query = [("wait", seconds.as_str())];
        // Only whole seconds can be asked for.
        let query = if wait.as_secs() == 0 { &[][..] } else { &query[..] };
        let call = Call { method: Method::GET, path: &path, query, body: None };
        let answer = tokio::time::timeout(wait + self.timeout, self.attempt(&call, None)).await;
        let in_time = answer.unwrap_or_else(|_| Err(ConnectionError::Timeout { url: self.connection.url().clone() }));
        calls::read(in_time?)
    }
}
