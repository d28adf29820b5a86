//! The right to serve, as the rest of the keystore sees it.
//!
//! A tenure ends by itself when its lease is not renewed in time. It is checked before each write and each reply. Time
//! is the kernel's boot-time clock, which goes on while the host sleeps or the process is frozen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use stage0_backplane::clock::boottime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::errors::lock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    TakenOver,
    WentBack,
}

/// The right to serve, and until when. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Tenure {
    /// In nanoseconds of the boot-time clock.
    until: Arc<AtomicU64>,
    lost: CancellationToken,
    loss: Arc<OnceLock<Loss>>,
    /// The journal that is locked; see [`set_journal_id`](Self::set_journal_id).
    journal_id: Arc<Mutex<Option<String>>>,
    pub(super) journal_changed: Arc<Notify>,
}

impl Tenure {
    /// For a keystore that needs no lease: the lock of its directory is enough.
    pub(crate) fn unlimited() -> Self {
        Self::until(u64::MAX)
    }

    #[cfg(test)]
    pub(crate) fn expired() -> Self {
        Self::until(0)
    }

    pub(super) fn until(nanoseconds: u64) -> Self {
        Self {
            until: Arc::new(AtomicU64::new(nanoseconds)),
            lost: CancellationToken::new(),
            loss: Arc::default(),
            journal_id: Arc::default(),
            journal_changed: Arc::default(),
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        now() < self.until.load(Ordering::Acquire)
    }

    pub(super) fn extend(&self, nanoseconds: u64) {
        self.until.fetch_max(nanoseconds, Ordering::AcqRel);
    }

    pub(super) fn end(&self) {
        self.until.store(0, Ordering::Release);
    }

    /// Ends it for good: another keystore serves, or may.
    pub(crate) fn lose(&self, why: Loss) {
        self.end();
        self.loss.get_or_init(|| why);
        self.lost.cancel();
    }

    pub(crate) fn loss(&self) -> Option<Loss> {
        self.loss.get().copied()
    }

    pub(crate) async fn lost(&self) -> Loss {
        self.lost.cancelled().await;
        self.loss().unwrap_or(Loss::TakenOver)
    }

    /// Names the journal that is locked. A new name is written into the lease at once.
    pub(crate) fn set_journal_id(&self, journal_id: Option<String>) {
        let mut known = lock(&self.journal_id);
        if *known != journal_id {
            *known = journal_id;
            self.journal_changed.notify_one();
        }
    }

    pub(super) fn journal_id(&self) -> Option<String> {
        lock(&self.journal_id).clone()
    }
}

pub(super) fn now() -> u64 {
    nanoseconds(boottime())
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
