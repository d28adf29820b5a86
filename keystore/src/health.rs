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
    writable: Mutex<Option<Arc<AtomicBool>>>,
}

impl Default for Health {
    fn default() -> Self {
        let fault = Mutex::new(Some("it starts".to_owned()));
        Self(Arc::new(State { fault, remark: Mutex::default(), writable: Mutex::default() }))
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
        let writable = self.0.writable.lock().unwrap_or_else(PoisonError::into_inner);
        writable.as_ref().is_none_or(|writable| writable.load(Ordering::Acquire))
    }

    pub(crate) fn watch_writable(&self, writable: Arc<AtomicBool>) {
        *self.0.writable.lock().unwrap_or_else(PoisonError::into_inner) = Some(writable);
    }

    /// It does not serve until something else is said.
    pub(crate) fn waits(&self, why: &str) {
        let mut fault = self.0.fault.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.as_deref() != Some(why) {
            tracing::warn!(why, "keystore does not serve");
            *fault = Some(why.to_owned());
        }
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
