//! Why a process waits: for its readiness, and for its log at a limited rate.
//!
//! A process that waits for a peer tries several times a second, and for as long as it takes. The log names the reason
//! at once, when it changes, and every few minutes while it stays.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How often a reason that stays is logged.
const REPEAT_INTERVAL: Duration = Duration::from_secs(300);
/// How often reasons that take turns are logged.
const CHANGE_INTERVAL: Duration = Duration::from_secs(2);

/// Why a process cannot go on; clones share it.
#[derive(Debug, Clone, Default)]
pub struct WaitReason(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    current: Option<String>,
    /// The reason that was logged last, unless it has passed.
    logged: Option<String>,
    logged_at: Option<Instant>,
}

impl WaitReason {
    /// Sets the reason; returns whether it is due in the log.
    #[must_use]
    pub fn set(&self, reason: &str) -> bool {
        self.set_at(reason, Instant::now())
    }

    fn set_at(&self, reason: &str, now: Instant) -> bool {
        let mut state = self.lock();
        if state.current.as_deref() != Some(reason) {
            state.current = Some(reason.to_owned());
        }
        let interval = if state.logged.as_deref() == Some(reason) { REPEAT_INTERVAL } else { CHANGE_INTERVAL };
        let is_due = state.logged_at.is_none_or(|at| now.saturating_duration_since(at) >= interval);
        if is_due {
            state.logged = Some(reason.to_owned());
            state.logged_at = Some(now);
        }
        is_due
    }

    /// There is no reason any more; returns whether the last one was logged.
    pub fn clear(&self) -> bool {
        let mut state = self.lock();
        state.current = None;
        state.logged.take().is_some()
    }

    /// The reason, while there is one.
    #[must_use]
    pub fn get(&self) -> Option<String> {
        self.lock().current.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn a_reason_is_logged_at_once_and_then_once_in_a_while() {
        let (waiting, start) = (WaitReason::default(), Instant::now());
        assert!(waiting.set_at("no server", start));
        assert!(!waiting.set_at("no server", start + REPEAT_INTERVAL - MOMENT));
        assert!(waiting.set_at("no server", start + REPEAT_INTERVAL));
        assert!(!waiting.set_at("no server", start + REPEAT_INTERVAL + MOMENT));
    }

    #[test]
    fn reasons_that_take_turns_are_not_logged_at_every_turn() {
        let (waiting, start) = (WaitReason::default(), Instant::now());
        assert!(waiting.set_at("no server", start));
        assert!(!waiting.set_at("no stream", start + MOMENT));
        assert_eq!(waiting.get().as_deref(), Some("no stream"), "readiness knows");
        assert!(waiting.set_at("no stream", start + CHANGE_INTERVAL));
        assert!(!waiting.set_at("no server", start + CHANGE_INTERVAL + MOMENT));
    }

    #[test]
    fn what_has_passed_is_reported_if_it_was_logged() {
        let (waiting, start) = (WaitReason::default(), Instant::now());
        assert!(!waiting.clear());
        assert!(waiting.set_at("no server", start));
        assert!(waiting.clear() && !waiting.clear());
        assert_eq!(waiting.get(), None);
        assert!(!waiting.set_at("no server", start + MOMENT), "it comes and goes");
        assert!(!waiting.clear(), "the log does not have it");
        assert!(waiting.set_at("no server", start + CHANGE_INTERVAL));
    }
}
