//! Whether this keystore serves, and if not, why.
//!
//! The reason and the remark are for `/readyz`, the log and the gateways' status; nothing is decided by them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use stage0_backplane::WaitReason;

use crate::errors::lock;

/// The state of a keystore from its start on. Clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    fault: Option<String>,
    waiting: WaitReason,
    /// How far a keystore that stands by has followed the one that serves.
    following: Option<String>,
    remark: Option<String>,
    flags: Option<Flags>,
}

#[derive(Debug)]
struct Flags {
    writable: Arc<AtomicBool>,
    disk_low: Arc<AtomicBool>,
    rolled_back: Arc<AtomicBool>,
}

impl Default for Health {
    fn default() -> Self {
        let fault = Some("it starts".to_owned());
        Self(Arc::new(Mutex::new(State {
            fault,
            waiting: WaitReason::default(),
            following: None,
            remark: None,
            flags: None,
        })))
    }
}

impl Health {
    /// Why it does not serve. `None` while it serves.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let state = lock(&self.0);
        let following = state.following.as_ref().map(|following| format!("; it {following}")).unwrap_or_default();
        state.fault.as_ref().map(|fault| format!("{fault}{following}"))
    }

    /// What an operator should know.
    #[must_use]
    pub fn remark(&self) -> Option<String> {
        lock(&self.0).remark.clone()
    }

    /// Whether changes can be stored.
    #[must_use]
    pub fn writable(&self) -> bool {
        lock(&self.0).flags.as_ref().is_none_or(|flags| flags.writable.load(Ordering::Acquire))
    }

    /// Whether the disk is nearly full, so that only changes that take rights away are stored.
    #[must_use]
    pub fn disk_low(&self) -> bool {
        lock(&self.0).flags.as_ref().is_some_and(|flags| flags.disk_low.load(Ordering::Acquire))
    }

    /// Whether the log proved, since the start, that the data directory is older than what was acknowledged.
    #[must_use]
    pub fn rolled_back(&self) -> bool {
        lock(&self.0).flags.as_ref().is_some_and(|flags| flags.rolled_back.load(Ordering::Acquire))
    }

    pub(crate) fn watch(&self, writable: Arc<AtomicBool>, disk_low: Arc<AtomicBool>, rolled_back: Arc<AtomicBool>) {
        lock(&self.0).flags = Some(Flags { writable, disk_low, rolled_back });
    }

    pub(crate) fn set_waiting(&self, why: &str) {
        let mut state = lock(&self.0);
        if state.waiting.set(why) {
            tracing::warn!(why, "keystore does not serve");
        }
        if state.fault.as_deref() != Some(why) {
            state.fault = Some(why.to_owned());
        }
    }

    /// Tells how far it has followed, until it opens its data.
    pub(crate) fn set_following(&self, following: Option<String>) {
        lock(&self.0).following = following;
    }

    pub(crate) fn set_opening(&self) {
        let mut state = lock(&self.0);
        state.following = None;
        state.waiting.clear();
        state.fault = Some("it opens its data".to_owned());
    }

    pub(crate) fn set_serving(&self) {
        let mut state = lock(&self.0);
        state.waiting.clear();
        state.fault = None;
    }

    pub(crate) fn set_remark(&self, remark: Option<String>) {
        let mut state = lock(&self.0);
        if let Some(remark) = &remark
            && state.remark.as_ref() != Some(remark)
        {
            tracing::warn!(remark, "keystore serves with a restriction");
        }
        state.remark = remark;
    }
}
