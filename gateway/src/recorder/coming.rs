//! Lines that are coming: a round waits a moment for them, because it costs the log's server as much as many lines do.
//!
//! A check announces its lines when an evaluator is asked about it. Where the round would be small against what is
//! coming, it waits until all of that is queued, or for [`GATHER_TIME`]. A check by itself never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// A fraction of what a check on a busy server takes, and about what its log's server needs for one synced write.
const GATHER_TIME: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub(super) struct Coming {
    count: AtomicUsize,
    none: Notify,
}

/// Lines of one check, from its announcement until they are queued or will not come.
#[derive(Debug)]
pub(crate) struct ComingLines(Arc<Coming>);

impl Coming {
    pub(super) fn announce(self: &Arc<Self>) -> ComingLines {
        self.count.fetch_add(1, Ordering::AcqRel);
        ComingLines(Arc::clone(self))
    }

    /// Waits for what is coming, where a round of this many groups could at least double by it.
    pub(super) async fn gather(&self, queued: usize) {
        let all_here = self.none.notified();
        if self.count.load(Ordering::Acquire) >= queued {
            drop(timeout(GATHER_TIME, all_here).await);
        }
    }
}

impl Drop for ComingLines {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.none.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_round_waits_until_all_that_is_coming_is_queued_and_no_longer() {
        let coming = Arc::new(Coming::default());
        let (one, other) = (coming.announce(), coming.announce());
        let mut gathering = Box::pin(coming.gather(1));
        assert_eq!(gathering.as_mut().now_or_never(), None);
        drop(one);
        assert_eq!(gathering.as_mut().now_or_never(), None);
        drop(other);
        assert_eq!(gathering.as_mut().now_or_never(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_does_not_wait_for_one_that_stays_out_longer_than_the_gather_time() {
        let coming = Arc::new(Coming::default());
        let _late = coming.announce();
        let began = tokio::time::Instant::now();
        coming.gather(1).await;
        let waited = began.elapsed();
        assert!(waited >= GATHER_TIME && waited <= 2 * GATHER_TIME, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_that_could_not_double_waits_for_nothing() {
        let coming = Arc::new(Coming::default());
        assert_eq!(coming.gather(1).now_or_never(), Some(()), "nothing is coming");
        let _two = [coming.announce(), coming.announce()];
        assert_eq!(coming.gather(3).now_or_never(), Some(()));
        assert_eq!(coming.gather(2).now_or_never(), None);
    }
}
