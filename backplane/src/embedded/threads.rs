//! Reader threads for the file: few, and separate from all other blocking work of the process.
//!
//! Two lanes, so that what a check waits for never queues behind a download; long reads run at a lower priority. Both
//! queues are bounded, and a read whose caller gave up before its turn is not started.

use std::sync::atomic::AtomicUsize;

use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

use super::Waiting;
use crate::Cause;

const QUICK_THREADS: usize = 4;
const LONG_THREADS: usize = 2;
const MAX_QUEUED: usize = 1_024;
const LONG_READ_NICENESS: i32 = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Single records, which checks wait for.
    Quick,
    /// Ranges of the log.
    Long,
}

pub(super) struct Threads {
    quick: Pool,
    long: Pool,
}

struct Pool {
    /// None if it could not be built, and after the drop.
    runtime: Option<Runtime>,
    waiting: AtomicUsize,
}

impl Threads {
    pub(super) fn new() -> Self {
        let quick = Builder::new_current_thread().max_blocking_threads(QUICK_THREADS).thread_name("log-quick").build();
        let long = Builder::new_current_thread()
            .max_blocking_threads(LONG_THREADS)
            .thread_name("log-long")
            .on_thread_start(lower_priority)
            .build();
        Self { quick: Pool::new(quick), long: Pool::new(long) }
    }

    pub(super) async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        deadline: Instant,
        work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
    ) -> Result<T, Cause> {
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
        work: impl FnOnce() -> Result<T, Cause> + Send + 'static,
    ) -> Result<T, Cause> {
        let runtime = self.runtime.as_ref().ok_or("there are no threads to read with")?;
        let _waiting = Waiting::below(MAX_QUEUED, &self.waiting).ok_or("too many reads wait for their turn")?;
        let late = "the read did not have its turn in time";
        let work = move || if Instant::now() >= deadline { Err(late.into()) } else { work() };
        runtime.spawn_blocking(work).await.unwrap_or_else(|_| Err("the store's thread ended".into()))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lower_priority() {
    // On Linux a priority belongs to the thread; elsewhere it would be the whole process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::getpriority_process(None)
        .and_then(|own| rustix::process::setpriority_process(None, own.max(LONG_READ_NICENESS)))
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
    async fn long_reads_do_not_delay_quick_ones() {
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
    async fn a_late_read_is_not_started() {
        let threads = Threads::new();
        let late = threads.run(Lane::Long, Instant::now(), || -> Result<(), Cause> { panic!("begun") }).await;
        assert_eq!(late, Err("the read did not have its turn in time".into()));
    }

    #[tokio::test]
    async fn queued_reads_are_bounded() {
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
        let all = futures_util::future::join_all((0..MAX_QUEUED).map(|_| read()));
        let one_more = async {
            let refused = read().await;
            drop(free);
            refused
        };
        let (all, one_more) = tokio::join!(all, one_more);
        assert!(all.iter().all(Result::is_ok) && one_more.is_err());
    }
}
