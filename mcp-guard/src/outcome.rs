//! How allowed calls ended, reported beside the traffic: a report never delays an answer and never decides one.
//!
//! A key without the scope `outcomes:report` switches reports off, with one warning. A report that is lost is logged;
//! the server then shows the decision without an outcome.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub(crate) use stage0_contract::OutcomeStatus as Status;

use crate::ask::{Asker, ReportError};
use crate::guard::Allowed;

/// Reports that are under way at once.
const MAX_IN_FLIGHT: usize = 8;
/// Reports that wait. More are dropped.
const MAX_WAITING: usize = 1_000;
/// How long an orderly end waits for reports.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(3);

pub(crate) struct Outcomes {
    asker: Asker,
    tasks: TaskTracker,
    in_flight: Arc<Semaphore>,
    is_off: Arc<AtomicBool>,
    /// Where reports run: one that began on a worker that ends would be lost with it.
    runtime: OnceLock<Handle>,
}

impl Outcomes {
    pub(crate) fn new(asker: &Asker) -> Self {
        Self {
            asker: asker.clone(),
            tasks: TaskTracker::new(),
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            is_off: Arc::default(),
            runtime: OnceLock::new(),
        }
    }

    /// Reports run on the present runtime from now on.
    pub(crate) fn run_here(&self) {
        let _ = self.runtime.set(Handle::current());
    }

    pub(crate) fn report(&self, allowed: &Allowed, status: Status) {
        if self.is_off.load(Ordering::Relaxed) {
            return;
        }
        if self.tasks.len() >= MAX_WAITING {
            tracing::warn!(request_id = allowed.request_id, "an outcome is not reported: too many wait");
            return;
        }
        let (asker, in_flight, is_off) = (self.asker.clone(), Arc::clone(&self.in_flight), Arc::clone(&self.is_off));
        let (request_id, elapsed) = (allowed.request_id.clone(), allowed.since.elapsed());
        let Some(runtime) = self.runtime.get() else { return };
        let reporting = async move {
            let Ok(_permit) = in_flight.acquire().await else { return };
            if is_off.load(Ordering::Relaxed) {
                return;
            }
            match asker.report(&request_id, status, elapsed).await {
                Ok(()) => {}
                Err(ReportError::MayNot) if is_off.swap(true, Ordering::Relaxed) => {}
                Err(ReportError::MayNot) => {
                    tracing::warn!("the key may not report outcomes (scope `outcomes:report`): none are reported");
                }
                Err(ReportError::Lost(why)) => tracing::warn!(request_id, "an outcome is not reported: {why}"),
            }
        };
        self.tasks.spawn_on(reporting, runtime);
    }

    pub(crate) async fn settle(&self) {
        self.tasks.close();
        let _ = tokio::time::timeout(SETTLE_TIMEOUT, self.tasks.wait()).await;
        self.tasks.reopen();
    }
}
