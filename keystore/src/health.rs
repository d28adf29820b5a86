//! Whether this keystore serves, and if not, why.
//!
//! Owns one reason and one remark, for `/readyz`, the log and the gateways' status. Each reason for waiting is logged
//! once. Nothing is decided by it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The state of a keystore from its start on. Clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    fault: Option<String>,
    remark: Option<String>,
    flags: Option<Flags>,
}

/// The state of an open data directory.
#[derive(Debug)]
struct Flags {
    writable: Arc<AtomicBool>,
    disk_low: Arc<AtomicBool>,
    rolled_back: Arc<AtomicBool>,
}

impl Default for Health {
    fn default() -> Self {
        let fault = Some("it starts".to_owned());
        Self(Arc::new(Mutex::new(State { fault, remark: None, flags: None })))
    }
}

impl Health {
    /// Why it does not serve. `None` while it serves.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.state().fault.clone()
    }

    /// What an operator should know.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        self.state().remark.clone()
    }

    /// Whether changes can be stored.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.state().flags.as_ref().is_none_or(|flags| flags.writable.load(Ordering::Acquire))
    }

    /// Whether the disk is nearly full, so that only changes that take rights away are stored.
    #[must_use]
    pub fn disk_low(&self) -> bool {
        self.state().flags.as_ref().is_some_and(|flags| flags.disk_low.load(Ordering::Acquire))
    }

    /// Whether the log proved, since the start, that the data directory is older than what was acknowledged.
    #[must_use]
    pub fn rolled_back(&self) -> bool {
        self.state().flags.as_ref().is_some_and(|flags| flags.rolled_back.load(Ordering::Acquire))
    }

    pub(crate) fn watch(&self, writable: Arc<AtomicBool>, disk_low: Arc<AtomicBool>, rolled_back: Arc<AtomicBool>) {
        self.state().flags = Some(Flags { writable, disk_low, rolled_back });
    }

    /// Reports that it does not serve, and why.
    pub(crate) fn set_waiting(&self, why: &str) {
        let mut state = self.state();
        if state.fault.as_deref() != Some(why) {
            tracing::warn!(why, "keystore does not serve");
            state.fault = Some(why.to_owned());
        }
    }

    /// Reports that it has the lease and opens its data.
    pub(crate) fn set_opening(&self) {
        self.state().fault = Some("it opens its data".to_owned());
    }

    pub(crate) fn set_serving(&self) {
        self.state().fault = None;
    }

    pub(crate) fn set_remark(&self, remark: Option<String>) {
        let mut state = self.state();
        if let Some(remark) = &remark
            && state.remark.as_ref() != Some(remark)
        {
            tracing::warn!(remark, "keystore serves with a restriction");
        }
        state.remark = remark;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
