//! A connection's entry in the table: whether it waits for its client, its account, and whether it was evicted.
//!
//! Owns these flags, which the connection's worker writes and any other worker may read.
//! INVARIANT: to make room, only a connection that waits for its client (for a head, the rest of a body, or until an
//! answer is taken) is evicted, never one whose request is being handled.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;

pub(crate) struct Slot {
    /// The table's, so that times of different connections compare.
    epoch: Instant,
    began: Instant,
    /// When the connection last began to wait for its client, in milliseconds after `epoch`.
    used: AtomicU64,
    serving: AtomicBool,
    /// 0 until a valid key was shown.
    account: AtomicU64,
    evicted: AtomicBool,
    waker: AtomicWaker,
}

impl Slot {
    pub(super) fn new(epoch: Instant, now: Instant) -> Self {
        Self {
            epoch,
            began: now,
            used: AtomicU64::new(millis(epoch, now)),
            serving: AtomicBool::new(false),
            account: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    pub(crate) fn mark_serving(&self) {
        self.serving.store(true, Ordering::Relaxed);
    }

    pub(crate) fn mark_waiting(&self, now: Instant) {
        self.used.store(millis(self.epoch, now), Ordering::Relaxed);
        self.serving.store(false, Ordering::Relaxed);
    }

    pub(super) fn waits_for_client(&self) -> bool {
        !self.serving.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    pub(super) fn used_at(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The account of the last valid key.
    pub(super) fn account(&self) -> Option<u64> {
        Some(self.account.load(Ordering::Relaxed)).filter(|account| *account != 0)
    }

    /// Returns the previous account.
    pub(super) fn set_account(&self, account: u64) -> Option<u64> {
        if self.account.load(Ordering::Relaxed) == account {
            return Some(account);
        }
        Some(self.account.swap(account.max(1), Ordering::Relaxed)).filter(|before| *before != 0)
    }

    /// Wakes the connection's task; its stream fails when it is polled.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        self.waker.wake();
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    /// Fails once the connection is evicted. Registers the task to be woken for that.
    pub(super) fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.waker.register(context.waker());
        if self.evicted.load(Ordering::Acquire) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

fn millis(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
}
