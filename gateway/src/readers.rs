//! Reads of the log beside checks: their own threads, their own limits.
//!
//! Owns where lists, downloads and verifications run (threads that give way to those that serve checks), and how many
//! of one account do so at a time.
//! INVARIANT: nothing here is held for a client that does not take its answer but its own account's turns; what all
//! share is given back before an answer leaves.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::available_parallelism;
use std::time::Instant;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

use crate::errors::ApiError;
use crate::throttle::Bursts;

/// Lists and look-ups of one account at a time, until their answers are taken; others wait a moment.
const MAX_PAGES_OF_ACCOUNT: usize = 2;
/// Lists and look-ups that are made at a time, of all accounts.
const MAX_PAGES: usize = 8;
const MAX_DOWNLOADS_OF_ACCOUNT: usize = 2;
const MAX_VERIFICATIONS_OF_ACCOUNT: usize = 1;
/// Threads for each core.
const CORES_A_THREAD: usize = 4;
/// Of the threads, so that checks come first where cores are scarce.
const NICENESS: i32 = 10;
/// Accounts whose turns are remembered before those that hold none are forgotten.
const FORGET_BEYOND: usize = 1_000;

/// The threads and the limits.
pub(crate) struct Readers {
    /// Taken when the gateway ends.
    runtime: Option<Runtime>,
    rate: Option<Bursts<u64>>,
    pages: Turns<u64>,
    all_pages: Semaphore,
    downloads: Turns<u64>,
    verifications: Turns<u64>,
}

/// So many at a time of each.
struct Turns<K> {
    most: usize,
    of: Mutex<HashMap<K, Weak<Semaphore>>>,
}

/// One of an account's turns; given back when it is dropped.
pub(crate) type Turn = OwnedSemaphorePermit;

impl Readers {
    /// `rate`: reads a second of one account; none: no limit.
    pub(crate) fn start(rate: Option<NonZeroU32>, now: Instant) -> std::io::Result<Self> {
        let threads = available_parallelism().map_or(1, usize::from).div_ceil(CORES_A_THREAD);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("log-reader")
            .on_thread_start(give_way)
            .enable_all()
            .build()?;
        Ok(Self {
            runtime: Some(runtime),
            rate: rate.map(|rate| Bursts::new(rate, now)),
            pages: Turns::new(MAX_PAGES_OF_ACCOUNT),
            all_pages: Semaphore::new(MAX_PAGES),
            downloads: Turns::new(MAX_DOWNLOADS_OF_ACCOUNT),
            verifications: Turns::new(MAX_VERIFICATIONS_OF_ACCOUNT),
        })
    }

    /// Counts one read against its account's second.
    pub(crate) fn admit(&self, account: u64) -> Result<(), ApiError> {
        let admitted = self.rate.as_ref().is_none_or(|rate| rate.admits(account, Instant::now()));
        if admitted { Ok(()) } else { Err(ApiError::TooManyReads) }
    }

    /// Makes a page for an account, once it is its turn; the turn goes on until the answer is taken.
    pub(crate) async fn page<T: Send + 'static>(
        &self,
        account: u64,
        deadline: tokio::time::Instant,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<(T, Turn), ApiError> {
        let turn = timeout_at(deadline, self.pages.wait(account)).await.map_err(|_| ApiError::TooManyReads)?;
        let turn = turn.ok_or(ApiError::Unavailable)?;
        let shared = timeout_at(deadline, self.all_pages.acquire()).await.map_err(|_| ApiError::Overloaded)?;
        let _shared = shared.map_err(|_| ApiError::Unavailable)?;
        Ok((self.run(work).await?, turn))
    }

    /// A download of an account, or 429.
    pub(crate) fn download(&self, account: u64) -> Result<Turn, ApiError> {
        self.downloads.take(account).ok_or(ApiError::TooManyWalks)
    }

    /// A verification of an account, or 429.
    pub(crate) fn verification(&self, account: u64) -> Result<Turn, ApiError> {
        self.verifications.take(account).ok_or(ApiError::TooManyWalks)
    }

    /// Runs beside checks; what nobody waits for any more ends.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let mut task = self.spawn(work)?;
        let done = (&mut task.0).await;
        done.map_err(|error| {
            tracing::error!(%error, "a read of the log ended early");
            ApiError::Unavailable
        })
    }

    /// As [`Readers::run`], for what goes on while its answer leaves.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<Task<T>, ApiError> {
        let runtime = self.runtime.as_ref().ok_or(ApiError::Unavailable)?;
        Ok(Task(runtime.spawn(work)))
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        // Waiting for threads is not for those that serve.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Ends with whoever waits for it.
pub(crate) struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<K: Hash + Eq> Turns<K> {
    fn new(most: usize) -> Self {
        Self { most, of: Mutex::default() }
    }

    fn take(&self, who: K) -> Option<Turn> {
        self.semaphore(who).try_acquire_owned().ok()
    }

    async fn wait(&self, who: K) -> Option<Turn> {
        let semaphore = self.semaphore(who);
        semaphore.acquire_owned().await.ok()
    }

    /// A permit keeps its semaphore alive; one that nobody holds is as good as a new one.
    fn semaphore(&self, who: K) -> Arc<Semaphore> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        if of.len() > FORGET_BEYOND {
            of.retain(|_, semaphore| semaphore.strong_count() > 0);
        }
        let known = of.entry(who).or_default();
        known.upgrade().unwrap_or_else(|| {
            let semaphore = Arc::new(Semaphore::new(self.most));
            *known = Arc::downgrade(&semaphore);
            semaphore
        })
    }
}

fn give_way() {
    // On Linux a priority is the thread's own; elsewhere it would be the process's.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::getpriority_process(None)
        .and_then(|own| rustix::process::setpriority_process(None, own.max(NICENESS)))
    {
        tracing::debug!(%error, "reads of the log have the priority of everything else");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::time::Duration;

    fn readers(rate: u32) -> Readers {
        Readers::start(NonZeroU32::new(rate), Instant::now()).unwrap()
    }

    fn soon() -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_millis(50)
    }

    #[tokio::test]
    async fn an_account_has_its_turns_and_takes_none_of_others() {
        let readers = readers(0);
        let held = [readers.download(1).unwrap(), readers.download(1).unwrap()];
        assert_eq!(readers.download(1).err(), Some(ApiError::TooManyWalks));
        assert!(readers.download(2).is_ok() && readers.verification(1).is_ok());
        drop(held);
        assert!(readers.download(1).is_ok());
        let verification = readers.verification(1).unwrap();
        assert_eq!(readers.verification(1).err(), Some(ApiError::TooManyWalks));
        drop(verification);
        assert!(readers.verification(1).is_ok());
    }

    #[tokio::test]
    async fn answers_that_are_not_taken_hold_up_their_own_account_alone() {
        let readers = readers(0);
        let mut untaken = Vec::new();
        // More than all may make at a time.
        for account in 0..2 * MAX_PAGES as u64 {
            for _ in 0..MAX_PAGES_OF_ACCOUNT {
                untaken.push(readers.page(account, soon(), async { 7 }).await.unwrap());
            }
            assert_eq!(readers.page(account, soon(), async { 7 }).await.err(), Some(ApiError::TooManyReads));
        }
        assert!(readers.page(99, soon(), async { 7 }).await.is_ok());
        untaken.clear();
        assert!(readers.page(0, soon(), async { 7 }).await.is_ok());
    }

    #[tokio::test]
    async fn a_page_that_nobody_waits_for_ends() {
        let readers = readers(0);
        for _ in 0..3 * MAX_PAGES {
            let given_up = tokio::time::timeout(Duration::from_millis(5), readers.page(1, soon(), pending::<()>()));
            assert!(given_up.await.is_err());
        }
        assert!(readers.page(1, soon(), async { 7 }).await.is_ok());
    }

    #[tokio::test]
    async fn a_rate_is_an_accounts_own() {
        let readers = readers(3);
        assert_eq!((0..10).filter(|_| readers.admit(1).is_ok()).count(), 3);
        assert_eq!(readers.admit(1), Err(ApiError::TooManyReads));
        assert!(readers.admit(2).is_ok());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn reads_have_a_lower_priority_than_their_caller() {
        let niceness = || rustix::process::getpriority_process(None).unwrap();
        let own = niceness();
        let readers = readers(0);
        assert_eq!(readers.run(async move { niceness() }).await.unwrap(), NICENESS.max(own));
    }

    #[test]
    fn accounts_that_hold_nothing_are_forgotten() {
        let turns = Turns::new(1);
        let held = turns.take(0);
        for who in 1..5_000 {
            turns.take(who);
        }
        assert!(turns.of.lock().unwrap().len() <= FORGET_BEYOND + 1);
        assert!(turns.take(0).is_none(), "whoever holds one is remembered");
        drop(held);
    }
}
