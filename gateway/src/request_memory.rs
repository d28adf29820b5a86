//! The memory of requests whose body has arrived, from its parsing to the answer.
//!
//! It is estimated by the size of the bodies. A request that does not fit waits until others are answered, which is
//! soon, and is refused at its deadline.
//! INVARIANT: large bodies never take all of it: a part is kept for ordinary ones, which need little.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stage0_contract::AccountId;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::in_flight::{ByteLimit, subtract};

/// An estimate for ordinary large bodies; the densest valid ones need up to 40.
const BYTES_PER_BODY_BYTE: usize = 16;
const MIN_BYTES: usize = 4 << 10;
const LARGE_BYTES: usize = 512 << 10;

pub(crate) struct RequestMemory {
    max: usize,
    max_large: usize,
    max_per_account: usize,
    hasher: RandomState,
    used: Mutex<Used>,
    freed: Notify,
}

#[derive(Default)]
struct Used {
    all: usize,
    large: usize,
    accounts: HashMap<u64, usize>,
}

/// The memory of one request; released when it is dropped.
pub(crate) struct MemoryPermit {
    memory: Arc<RequestMemory>,
    account: Option<u64>,
    bytes: usize,
}

impl RequestMemory {
    /// One account may use half of `max`, and large requests three quarters.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            max_large: max / 4 * 3,
            max_per_account: max / 2,
            hasher: RandomState::new(),
            used: Mutex::default(),
            freed: Notify::new(),
        })
    }

    pub(crate) async fn acquire(
        self: &Arc<Self>,
        account: Option<&AccountId>,
        body: usize,
        deadline: Instant,
    ) -> Result<MemoryPermit, ByteLimit> {
        // The largest body always fits when it is alone.
        let bytes = (body * BYTES_PER_BODY_BYTE).max(MIN_BYTES).min(self.max_per_account).min(self.max_large);
        let account = account.map(|account| self.hasher.hash_one(account));
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Memory that is freed between the attempt and the wait must not be missed.
            freed.as_mut().enable();
            match self.take(account, bytes) {
                Ok(()) => return Ok(MemoryPermit { memory: Arc::clone(self), account, bytes }),
                Err(over) => timeout_at(deadline, freed).await.map_err(|_| over)?,
            }
        }
    }

    fn take(&self, account: Option<u64>, bytes: usize) -> Result<(), ByteLimit> {
        let mut used = self.lock();
        let large = if bytes > LARGE_BYTES { bytes } else { 0 };
        let of_account = account.and_then(|account| used.accounts.get(&account).copied()).unwrap_or(0);
        if of_account + bytes > self.max_per_account {
            return Err(ByteLimit::Account);
        }
        if used.all + bytes > self.max || used.large + large > self.max_large {
            return Err(ByteLimit::Gateway);
        }
        used.all += bytes;
        used.large += large;
        if let Some(account) = account {
            *used.accounts.entry(account).or_default() += bytes;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for MemoryPermit {
    fn drop(&mut self) {
        let mut used = self.memory.lock();
        used.all -= self.bytes;
        if self.bytes > LARGE_BYTES {
            used.large -= self.bytes;
        }
        if let Some(account) = self.account {
            subtract(&mut used.accounts, &account, self.bytes);
        }
        drop(used);
        self.memory.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MIB: usize = 1 << 20;

    fn account(name: &str) -> AccountId {
        AccountId::parse(name).unwrap()
    }

    async fn now(memory: &Arc<RequestMemory>, name: &str, body: usize) -> Result<MemoryPermit, ByteLimit> {
        memory.acquire(Some(&account(name)), body, Instant::now()).await
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_uses_at_most_half_and_large_requests_leave_memory_for_small_ones() {
        let memory = RequestMemory::new(128 * MIB);
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(now(&memory, "a", MIB).await.unwrap());
        }
        assert_eq!(now(&memory, "a", 1_000).await.err(), Some(ByteLimit::Account));
        held.push(now(&memory, "b", MIB).await.unwrap());
        held.push(now(&memory, "b", MIB).await.unwrap());
        assert_eq!(now(&memory, "c", MIB).await.err(), Some(ByteLimit::Gateway));
        for _ in 0..1_000 {
            held.push(now(&memory, "c", 1_000).await.unwrap());
        }
        drop(held);
        let used = memory.lock();
        assert!(used.all == 0 && used.large == 0 && used.accounts.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_memory_waits_for_another_to_end_or_its_deadline() {
        let memory = RequestMemory::new(32 * MIB);
        let first = now(&memory, "a", MIB).await.unwrap();
        let a = account("a");
        let second = memory.acquire(Some(&a), MIB, Instant::now() + Duration::from_secs(2));
        let (second, ()) = tokio::join!(second, async {
            tokio::task::yield_now().await;
            drop(first);
        });
        assert!(second.is_ok());
        let started = Instant::now();
        let third = memory.acquire(Some(&account("a")), MIB, started + Duration::from_secs(2)).await;
        assert_eq!((third.err(), started.elapsed()), (Some(ByteLimit::Account), Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_body_fits_when_it_is_alone() {
        assert!(now(&RequestMemory::new(MIB), "a", MIB).await.is_ok());
    }
}
