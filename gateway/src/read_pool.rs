//! Threads and limits for reads of the log, apart from those of checks.
//!
//! Lists, downloads, verifications and replays run on threads of lower priority than those that serve checks, and only
//! a few of one account at the same time.
//! INVARIANT: a client that does not take its answer holds only its own account's permits; what all accounts share is
//! released before an answer leaves.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::timeout_at;
use tokio_util::task::AbortOnDropHandle;

use crate::errors::ApiError;
use crate::throttle::RateLimiter;

/// Lists and look-ups, until their answers are taken; further ones wait a moment.
const MAX_PAGES_PER_ACCOUNT: usize = 2;
/// Lists and look-ups of all accounts that are made at the same time.
const MAX_PAGES: usize = 8;
const MAX_DOWNLOADS_PER_ACCOUNT: usize = 2;
const MAX_VERIFICATIONS_PER_ACCOUNT: usize = 1;
const MAX_REPLAYS_PER_ACCOUNT: usize = 1;
/// Of all accounts, at the same time: each holds a piece of the log and its facts in memory.
const MAX_REPLAYS: usize = 4;
const CORES_PER_THREAD: usize = 4;
/// Of the threads, so that checks come first when cores are scarce.
const NICENESS: i32 = 10;
const RATE_PERIOD: Duration = Duration::from_secs(1);
/// Accounts in the table before those without a permit are removed.
const MAX_ACCOUNTS: usize = 1_000;

pub(crate) struct ReadPool {
    /// None once it is shut down.
    runtime: Option<Runtime>,
    rate: Option<RateLimiter<u64>>,
    pages: Permits,
    all_pages: Semaphore,
    downloads: Permits,
    verifications: Permits,
    replays: Permits,
    all_replays: Semaphore,
}

struct Permits {
    max: usize,
    semaphores: Mutex<HashMap<u64, Weak<Semaphore>>>,
}

/// One of an account's permits; released when it is dropped.
pub(crate) type ReadPermit = OwnedSemaphorePermit;

impl ReadPool {
    /// `rate` is in reads per second of one account; none: no limit.
    pub(crate) fn start(rate: Option<NonZeroU32>, now: Instant) -> std::io::Result<Self> {
        let threads = available_parallelism().map_or(1, usize::from).div_ceil(CORES_PER_THREAD);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("log-reader")
            .on_thread_start(lower_priority)
            .enable_all()
            .build()?;
        Ok(Self {
            runtime: Some(runtime),
            rate: rate.map(|rate| RateLimiter::new(rate, RATE_PERIOD, now)),
            pages: Permits::new(MAX_PAGES_PER_ACCOUNT),
            all_pages: Semaphore::new(MAX_PAGES),
            downloads: Permits::new(MAX_DOWNLOADS_PER_ACCOUNT),
            verifications: Permits::new(MAX_VERIFICATIONS_PER_ACCOUNT),
            replays: Permits::new(MAX_REPLAYS_PER_ACCOUNT),
            all_replays: Semaphore::new(MAX_REPLAYS),
        })
    }

    pub(crate) fn admit(&self, account: u64) -> Result<(), ApiError> {
        let admitted = self.rate.as_ref().is_none_or(|rate| rate.take(&account, Instant::now()).is_ok());
        if admitted { Ok(()) } else { Err(ApiError::TooManyReads) }
    }

    /// Makes a page for an account once it has a permit, which the caller keeps until the answer is taken.
    pub(crate) async fn page<T: Send + 'static>(
        &self,
        account: u64,
        deadline: tokio::time::Instant,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<(T, ReadPermit), ApiError> {
        let permit = timeout_at(deadline, self.pages.semaphore(account).acquire_owned()).await;
        let permit = permit.map_err(|_| ApiError::TooManyReads)?.map_err(|_| ApiError::Unavailable)?;
        let shared = timeout_at(deadline, self.all_pages.acquire()).await.map_err(|_| ApiError::Overloaded)?;
        let _shared = shared.map_err(|_| ApiError::Unavailable)?;
        Ok((self.run(work).await?, permit))
    }

    pub(crate) fn download(&self, account: u64) -> Result<ReadPermit, ApiError> {
        self.downloads.take(account).ok_or(ApiError::TooManyScans)
    }

    pub(crate) fn verification(&self, account: u64) -> Result<ReadPermit, ApiError> {
        self.verifications.take(account).ok_or(ApiError::TooManyScans)
    }

    pub(crate) fn replay(&self, account: u64) -> Result<ReadPermit, ApiError> {
        self.replays.take(account).ok_or(ApiError::TooManyScans)
    }

    /// As [`ReadPool::replay`], after those that the account makes and waits for now: its own replays must not keep
    /// what somebody else wants to activate for it from being judged.
    pub(crate) async fn replay_in_turn(
        &self,
        account: u64,
        deadline: tokio::time::Instant,
    ) -> Result<ReadPermit, ApiError> {
        let permit = timeout_at(deadline, self.replays.semaphore(account).acquire_owned()).await;
        permit.map_err(|_| ApiError::TooManyScans)?.map_err(|_| ApiError::Unavailable)
    }

    /// The turn of a replay among those of all accounts.
    pub(crate) async fn turn_to_replay(&self, deadline: tokio::time::Instant) -> Result<SemaphorePermit<'_>, ApiError> {
        let turn = timeout_at(deadline, self.all_replays.acquire()).await;
        turn.map_err(|_| ApiError::Overloaded)?.map_err(|_| ApiError::Unavailable)
    }

    /// Runs work on the pool; it is aborted when this future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.spawn(work)?.await.map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "a read of the log ended early");
            ApiError::Unavailable
        })
    }

    /// As [`ReadPool::run`], for work that goes on while its answer is sent.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<AbortOnDropHandle<T>, ApiError> {
        let runtime = self.runtime.as_ref().ok_or(ApiError::Unavailable)?;
        Ok(AbortOnDropHandle::new(runtime.spawn(work)))
    }
}

impl Drop for ReadPool {
    fn drop(&mut self) {
        // A serving thread must not block until the pool's threads end.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Permits {
    fn new(max: usize) -> Self {
        Self { max, semaphores: Mutex::default() }
    }

    fn take(&self, account: u64) -> Option<ReadPermit> {
        self.semaphore(account).try_acquire_owned().ok()
    }

    /// A permit keeps its semaphore alive; a semaphore without permits in use is as good as a new one.
    fn semaphore(&self, account: u64) -> Arc<Semaphore> {
        let mut semaphores = self.semaphores.lock().unwrap_or_else(PoisonError::into_inner);
        if semaphores.len() > MAX_ACCOUNTS {
            semaphores.retain(|_, semaphore| semaphore.strong_count() > 0);
        }
        let known = semaphores.entry(account).or_default();
        known.upgrade().unwrap_or_else(|| {
            let semaphore = Arc::new(Semaphore::new(self.max));
            *known = Arc::downgrade(&semaphore);
            semaphore
        })
    }
}

fn lower_priority() {
    // On Linux the priority applies to the thread; elsewhere it would apply to the whole process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::getpriority_process(None)
        .and_then(|own| rustix::process::setpriority_process(None, own.max(NICENESS)))
    {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "reads of the log have the priority of everything else"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::time::Duration;

    fn read_pool(rate: u32) -> ReadPool {
        ReadPool::start(NonZeroU32::new(rate), Instant::now()).unwrap()
    }

    fn soon() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_millis(50)
    }

    #[tokio::test]
    async fn concurrent_reads_are_limited_per_account() {
        let read_pool = read_pool(0);
        let held = [read_pool.download(1).unwrap(), read_pool.download(1).unwrap()];
        assert_eq!(read_pool.download(1).err(), Some(ApiError::TooManyScans));
        assert!(read_pool.download(2).is_ok() && read_pool.verification(1).is_ok());
        drop(held);
        assert!(read_pool.download(1).is_ok());
        let verification = read_pool.verification(1).unwrap();
        assert_eq!(read_pool.verification(1).err(), Some(ApiError::TooManyScans));
        drop(verification);
        assert!(read_pool.verification(1).is_ok());
    }

    #[tokio::test]
    async fn one_replay_of_an_account_is_made_at_a_time_and_one_before_an_activation_takes_its_turn() {
        let read_pool = read_pool(0);
        let replay = read_pool.replay(1).unwrap();
        assert_eq!(read_pool.replay(1).err(), Some(ApiError::TooManyScans));
        assert!(read_pool.replay(2).is_ok());
        assert_eq!(read_pool.replay_in_turn(1, soon()).await.err(), Some(ApiError::TooManyScans));
        let later = tokio::time::Instant::now() + Duration::from_secs(60);
        let mut waiting = Box::pin(read_pool.replay_in_turn(1, later));
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(replay);
        assert_eq!(read_pool.replay(1).err(), Some(ApiError::TooManyScans), "the one that waits is first");
        assert!(waiting.await.is_ok());
        assert!(read_pool.replay(1).is_ok());
        let mut turns = Vec::new();
        for _ in 0..MAX_REPLAYS {
            turns.push(read_pool.turn_to_replay(soon()).await.unwrap());
        }
        assert_eq!(read_pool.turn_to_replay(soon()).await.err(), Some(ApiError::Overloaded), "of all accounts");
        turns.pop();
        assert!(read_pool.turn_to_replay(soon()).await.is_ok());
    }

    #[tokio::test]
    async fn untaken_answers_block_their_own_account_only() {
        let read_pool = read_pool(0);
        let mut untaken = Vec::new();
        // More pages than all accounts together may make at the same time.
        for account in 0..2 * MAX_PAGES as u64 {
            for _ in 0..MAX_PAGES_PER_ACCOUNT {
                untaken.push(read_pool.page(account, soon(), async { 7 }).await.unwrap());
            }
            assert_eq!(read_pool.page(account, soon(), async { 7 }).await.err(), Some(ApiError::TooManyReads));
        }
        assert!(read_pool.page(99, soon(), async { 7 }).await.is_ok());
        untaken.clear();
        assert!(read_pool.page(0, soon(), async { 7 }).await.is_ok());
    }

    #[tokio::test]
    async fn an_abandoned_page_is_aborted() {
        let read_pool = read_pool(0);
        for _ in 0..3 * MAX_PAGES {
            let given_up = tokio::time::timeout(Duration::from_millis(5), read_pool.page(1, soon(), pending::<()>()));
            assert!(given_up.await.is_err());
        }
        assert!(read_pool.page(1, soon(), async { 7 }).await.is_ok());
    }

    #[tokio::test]
    async fn the_read_rate_is_limited_per_account() {
        let read_pool = read_pool(3);
        assert_eq!((0..10).filter(|_| read_pool.admit(1).is_ok()).count(), 3);
        assert_eq!(read_pool.admit(1), Err(ApiError::TooManyReads));
        assert!(read_pool.admit(2).is_ok());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn reads_run_at_a_lower_priority() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        let read_pool = read_pool(0);
        assert_eq!(read_pool.run(async move { niceness() }).await.unwrap(), NICENESS.max(own));
    }

    #[test]
    fn accounts_without_a_permit_are_removed_from_the_table() {
        let permits = Permits::new(1);
        let held = permits.take(0);
        for account in 1..5_000 {
            permits.take(account);
        }
        assert!(permits.semaphores.lock().unwrap().len() <= MAX_ACCOUNTS + 1);
        assert!(permits.take(0).is_none(), "an account with a permit stays in the table");
        drop(held);
    }
}
