//! A log whose appends can be made to fail, to lose their outcome, and to hang.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use stage0_backplane::{AppendError, Batch, BoxFuture, DecisionLog, DecisionLogLayer};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

/// What becomes of appends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appends {
    Acknowledged,
    /// Surely not stored.
    Failed,
    /// Stored, but the acknowledgement is lost.
    Unacknowledged,
    /// Lost on the way to the log.
    Lost,
    /// The first one is lost on the way, and those after it fail.
    LostThenFailed,
}

#[derive(Clone)]
pub(crate) struct FailingLog {
    log: Arc<dyn DecisionLog>,
    appends: Arc<Mutex<Appends>>,
    held: Arc<tokio::sync::Mutex<()>>,
    waiting: Arc<AtomicUsize>,
}

impl FailingLog {
    pub(crate) fn new(log: Arc<dyn DecisionLog>) -> Self {
        let appends = Arc::new(Mutex::new(Appends::Acknowledged));
        Self { log, appends, held: Arc::default(), waiting: Arc::default() }
    }

    pub(crate) fn set(&self, appends: Appends) {
        *self.appends.lock().unwrap() = appends;
    }

    /// Appends wait until the guard is dropped, beyond their deadline too.
    pub(crate) async fn hold(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.held).lock_owned().await
    }

    /// How many appends wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// From now on appends fail, and are surely not stored, or are stored again.
    pub(crate) fn fail(&self, fails: bool) {
        self.set(if fails { Appends::Failed } else { Appends::Acknowledged });
    }
}

impl DecisionLogLayer for FailingLog {
    fn inner(&self) -> &dyn DecisionLog {
        &*self.log
    }

    fn append(&self, batches: Vec<Batch>, deadline: Instant) -> BoxFuture<'_, Vec<Result<(), AppendError>>> {
        let failed = |_: &Batch| Err(AppendError::NotStored("the test says so".into()));
        let unknown = |_: &Batch| Err(AppendError::Unknown("the test says so".into()));
        Box::pin(async move {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            drop(self.held.lock().await);
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            let appends = *self.appends.lock().unwrap();
            match appends {
                Appends::Acknowledged => self.log.append(batches, deadline).await,
                Appends::Failed => batches.iter().map(failed).collect(),
                Appends::Unacknowledged => {
                    let outcomes = batches.iter().map(unknown).collect();
                    self.log.append(batches, deadline).await;
                    outcomes
                }
                Appends::Lost => batches.iter().map(unknown).collect(),
                Appends::LostThenFailed => {
                    self.set(Appends::Failed);
                    batches.iter().map(unknown).collect()
                }
            }
        })
    }
}
