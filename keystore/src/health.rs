//! Whether this keystore serves, and if not, why.
//!
//! Owns one reason and one remark, for `/readyz`, the log and the gateways' status. A keystore that waits for the state
//! store or for its turn says so here once per reason; nothing is decided by it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How a keystore is, at any time since it starts. Clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<State>);

#[derive(Debug)]
struct State {
    fault: Mutex<Option<String>>,
    remark: Mutex<Option<String>>,
    flags: Mutex<Option<Flags>>,
}

/// What an open data directory says of itself.
#[derive(Debug)]
struct Flags {
    writable: Arc<AtomicBool>,
    disk_low: Arc<AtomicBool>,
    rolled_back: Arc<AtomicBool>,
}

impl Default for Health {
    fn default() -> Self {
        let fault = Mutex::new(Some("it starts".to_owned()));
        Self(Arc::new(State { fault, remark: Mutex::default(), flags: Mutex::default() }))
    }
}

impl Health {
    /// Why it does not serve; none: it does.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.0.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What an operator should know.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        self.0.remark.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether changes can be stored.
    #[must_use]
    pub fn writable(&self) -> bool {
        let flags = self.0.flags.lock().unwrap_or_else(PoisonError::into_inner);
        flags.as_ref().is_none_or(|flags| flags.writable.load(Ordering::Acquire))
    }

    /// Whether the disk is nearly full, so that only what takes rights away is stored.
    #[must_use]
    pub fn disk_low(&self) -> bool {
        let flags = self.0.flags.lock().unwrap_or_else(PoisonError::into_inner);
        flags.as_ref().is_some_and(|flags| flags.disk_low.load(Ordering::Acquire))
    }

    /// Whether the log proved, since the start, that the data directory is older than what was acknowledged.
    #[must_use]
    pub fn rolled_back(&self) -> bool {
        let flags = self.0.flags.lock().unwrap_or_else(PoisonError::into_inner);
        flags.as_ref().is_some_and(|flags| flags.rolled_back.load(Ordering::Acquire))
    }

    pub(crate) fn watch(&self, writable: Arc<AtomicBool>, disk_low: Arc<AtomicBool>, rolled_back: Arc<AtomicBool>) {
        let flags = Flags { writable, disk_low, rolled_back };
        *self.0.flags.lock().unwrap_or_else(PoisonError::into_inner) = Some(flags);
    }

    /// It does not serve until something else is said.
    pub(crate) fn waits(&self, why: &str) {
        let mut fault = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.as_deref() != Some(why) {
            tracing::warn!(why, "keystore does not serve");
            *fault = Some(why.to_owned());
        }
    }

    /// It has its turn, and will serve in a moment.
    pub(crate) fn opens(&self) {
        *self.0.fault.lock().unwrap_or_else(PoisonError::into_inner) = Some("it opens its data".to_owned());
    }

    pub(crate) fn serves(&self) {
        *self.0.fault.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn remarks(&self, remark: Option<String>) {
        let mut last = self.0.remark.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remark) = &remark
            && last.as_ref() != Some(remark)
        {
            tracing::warn!(remark, "keystore serves with a restriction");
        }
        *last = remark;
    }
}
