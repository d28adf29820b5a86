//! One connection as the table of all sees it: whom it waits for, whose it is, and whether it was evicted.
//!
//! Owns these marks, which the connection's worker writes and any other worker may read.
//! INVARIANT: a connection whose request is being handled is never evicted; one that waits for its client (for a head,
//! the rest of a body, or until an answer is taken) may be.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Context;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;

/// The marks.
pub(crate) struct Slot {
    /// Of the table: times are told apart between connections.
    epoch: Instant,
    began: Instant,
    /// Milliseconds after `epoch` from which the client is waited for.
    used: AtomicU64,
    ours: AtomicBool,
    /// 0: no key was shown.
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
            ours: AtomicBool::new(false),
            account: AtomicU64::new(0),
            evicted: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        }
    }

    /// Its request is being handled.
    pub(crate) fn is_ours(&self) {
        self.ours.store(true, Ordering::Relaxed);
    }

    /// It waits for its client.
    pub(crate) fn is_clients(&self, now: Instant) {
        self.used.store(millis(self.epoch, now), Ordering::Relaxed);
        self.ours.store(false, Ordering::Relaxed);
    }

    pub(super) fn waits_for_client(&self) -> bool {
        !self.ours.load(Ordering::Relaxed)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Greater is later.
    pub(super) fn used_at(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// The account whose key was shown last.
    pub(super) fn account(&self) -> Option<u64> {
        Some(self.account.load(Ordering::Relaxed)).filter(|account| *account != 0)
    }

    /// Notes the account; whose it was before.
    pub(super) fn belongs_to(&self, account: u64) -> Option<u64> {
        if self.account.load(Ordering::Relaxed) == account {
            return Some(account);
        }
        Some(self.account.swap(account.max(1), Ordering::Relaxed)).filter(|before| *before != 0)
    }

    /// Ends the connection: its stream fails the next time that it is polled, which is now.
    pub(super) fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        self.waker.wake();
    }

    #[cfg(test)]
    pub(super) fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    /// Fails once the connection is evicted, and has it polled then.
    pub(super) fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.waker.register(context.waker());
        if self.evicted.load(Ordering::Acquire) { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }
}

fn millis(epoch: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch).as_millis()).unwrap_or(u64::MAX)
}
