//! Threads that read the file: few, and apart from those of everything else that blocks in this process.
//!
//! Owns two lanes: what a check waits for never stands behind somebody's download, and long reads give way where cores
//! are scarce. What waits is bounded; what nobody waits for any more when its turn comes is not begun. A reader that
//! fails tells its own caller only.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::store::Failure;

const QUICK_THREADS: usize = 4;
const LONG_THREADS: usize = 2;
/// Reads of one lane that wait.
const MAX_WAITING: usize = 1_024;
/// Of long reads.
const NICENESS: i32 = 10;

/// Which threads a read has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Single records, which checks wait for.
    Quick,
    /// Stretches of the log.
    Long,
}

/// Both lanes.
pub(super) struct Threads {
    quick: Pool,
    long: Pool,
}

/// A runtime has such a pool: threads begin when they are needed, and end when they are not.
struct Pool {
    /// None where the system gave none, and at the end.
    runtime: Option<Runtime>,
    waiting: AtomicUsize,
}

impl Threads {
    pub(super) fn new() -> Self {
        let quick = Builder::new_current_thread().max_blocking_threads(QUICK_THREADS).thread_name("log-quick").build();
        let long = Builder::new_current_thread()
            .max_blocking_threads(LONG_THREADS)
            .thread_name("log-long")
            .on_thread_start(give_way)
            .build();
        Self { quick: Pool::new(quick), long: Pool::new(long) }
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Instant,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        match lane {
            Lane::Quick => self.quick.run(deadline, work).await,
            Lane::Long => self.long.run(deadline, work).await,
        }
    }
}

impl Pool {
    fn new(runtime: std::io::Result<Runtime>) -> Self {
        let runtime = runtime.inspect_err(|error| tracing::error!(%error, "no threads to read the decision log with"));
        Self { runtime: runtime.ok(), waiting: AtomicUsize::new(0) }
    }

    async fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let Some(runtime) = &self.runtime else { return Err("there are no threads to read with".to_owned()) };
        let _waiting = Waiting::begin(&self.waiting).ok_or("too many reads wait for their turn")?;
        let late = "the read did not have its turn in time";
        let work = move || if Instant::now() >= deadline { Err(late.to_owned()) } else { work() };
        runtime.spawn_blocking(work).await.unwrap_or_else(|_| Err("the store's thread ended".to_owned()))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn give_way() {
    // On Linux a priority is the thread's own; elsewhere it would be the process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::getpriority_process(None)
        .and_then(|own| rustix::process::setpriority_process(None, own.max(NICENESS)))
    {
        tracing::debug!(%error, "long reads have the priority of everything else");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn long_reads_keep_no_quick_one_waiting() {
        let threads = Threads::new();
        let (free, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let long = || {
            let wait = std::sync::Arc::clone(&wait);
            threads.run(Lane::Long, later(), move || {
                let _ = wait.lock().unwrap().recv();
                Ok(())
            })
        };
        let long = futures_util::future::join_all((0..10).map(|_| long()));
        let quick = async {
            let quick = threads.run(Lane::Quick, later(), || Ok(7)).await;
            drop(free);
            quick
        };
        let (long, quick) = tokio::join!(long, quick);
        assert_eq!(quick, Ok(7));
        assert!(long.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn what_is_late_is_not_begun() {
        let threads = Threads::new();
        let late = threads.run(Lane::Long, Instant::now(), || -> Result<(), Failure> { panic!("begun") }).await;
        assert_eq!(late, Err("the read did not have its turn in time".to_owned()));
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let threads = Threads::new();
        let (free, wait) = mpsc::channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        let read = || {
            let wait = std::sync::Arc::clone(&wait);
            threads.run(Lane::Long, later(), move || {
                let _ = wait.lock().unwrap().recv();
                Ok(())
            })
        };
        let all = futures_util::future::join_all((0..MAX_WAITING).map(|_| read()));
        let one_more = async {
            let refused = read().await;
            drop(free);
            refused
        };
        let (all, one_more) = tokio::join!(all, one_more);
        assert!(all.iter().all(Result::is_ok) && one_more.is_err());
    }
}
