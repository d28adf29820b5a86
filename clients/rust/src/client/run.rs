//! Asking, acting and reporting in one call.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stage0_contract::{OutcomeStatus, RequestId};

use super::{Client, OutcomeReport};
use crate::action::Action;
use crate::connection::ConnectionError;
use crate::judge::Allowed;
use crate::refusal::NotAllowed;

/// Why [`Client::run`] has no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E> {
    /// The action did not run.
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
    /// It ran, and failed.
    #[error("the action failed: {0}")]
    Failed(E),
}

impl Client {
    /// Asks, and runs the action only if it is allowed. Then reports whether it succeeded or failed, if the key has the
    /// scope `outcomes:report`; dropped before it ends, it reports `unknown`. A report that fails changes nothing.
    ///
    /// ```no_run
    /// # async fn deploy(version: &str) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let client = stage0_client::Client::from_env()?;
    /// let action = stage0_client::Action::new("Deploy 1.4").tool("deploy").effect("deploy");
    /// client.run(&action, async |_allowed| deploy("1.4").await).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn run<T, E, F>(&self, action: &Action, work: F) -> Result<T, RunError<E>>
    where
        F: AsyncFnOnce(Allowed) -> Result<T, E>,
    {
        let allowed = self.check(action).await?;
        let unreported = Unreported { client: self.clone(), id: Some(allowed.request_id()), started: Instant::now() };
        let result = work(allowed).await;
        let status = if result.is_ok() { OutcomeStatus::Succeeded } else { OutcomeStatus::Failed };
        unreported.report(status).await;
        result.map_err(RunError::Failed)
    }

    async fn report_once(&self, id: RequestId, status: OutcomeStatus, took: Duration) {
        if !self.reports.load(Ordering::Relaxed) {
            return;
        }
        let report = OutcomeReport::new(status).duration(took);
        match self.report_outcome(id, &report).await {
            Ok(_) => {}
            Err(ConnectionError::Refused { status: 403, message, .. }) => {
                if self.reports.swap(false, Ordering::Relaxed) {
                    tracing::warn!(reason = message, "outcomes are not reported: the key may not");
                }
            }
            Err(error) => tracing::warn!(request_id = %id, %error, "the outcome of an action was not reported"),
        }
    }
}

/// An action that runs. If it is dropped meanwhile, how it ended is unknown.
struct Unreported {
    client: Client,
    id: Option<RequestId>,
    started: Instant,
}

impl Unreported {
    async fn report(mut self, status: OutcomeStatus) {
        if let Some(id) = self.id.take() {
            self.client.report_once(id, status, self.started.elapsed()).await;
        }
    }
}

impl Drop for Unreported {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else { return };
        let (client, took) = (self.client.clone(), self.started.elapsed());
        runtime.spawn(async move { client.report_once(id, OutcomeStatus::Unknown, took).await });
    }
}
