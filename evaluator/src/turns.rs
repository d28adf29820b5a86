//! Long work that a process does one after the other, on a thread of its own, while a few callers may wait.
//!
//! What takes longer than its caller waits is done to its end all the same, and meanwhile no other is.

use std::sync::Arc;

use tokio::sync::{Semaphore, TryAcquireError};
use tokio::time::{Instant, timeout_at};

use crate::own_thread::on_own_thread;

/// Callers that wait, the one whose work is done included: each holds a megabyte.
pub(crate) const MAX_WAITING: usize = 4;

/// Work of one kind.
#[derive(Debug)]
pub(crate) struct Turns {
    thread: &'static str,
    pub(crate) waiting: Semaphore,
    pub(crate) working: Arc<Semaphore>,
}

/// Why work has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotDone {
    /// Others come first: come again.
    Busy,
    /// It takes longer than its caller waits.
    TooLong,
    /// The thread could not be started, or panicked.
    Ended,
}

impl Turns {
    pub(crate) fn new(thread: &'static str) -> Self {
        Self { thread, waiting: Semaphore::new(MAX_WAITING), working: Arc::new(Semaphore::new(1)) }
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        let _place = match self.waiting.try_acquire() {
            Ok(place) => place,
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => return Err(NotDone::Busy),
        };
        let Ok(Ok(turn)) = timeout_at(deadline, Arc::clone(&self.working).acquire_owned()).await else {
            return Err(NotDone::Busy);
        };
        let work = move || {
            // Until the end, whether its caller waits or not.
            let _turn = turn;
            work()
        };
        match timeout_at(deadline, on_own_thread(self.thread, work)).await {
            Ok(Some(done)) => Ok(done),
            Ok(None) => Err(NotDone::Ended),
            Err(_) => Err(NotDone::TooLong),
        }
    }
}
