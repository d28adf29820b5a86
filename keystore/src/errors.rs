//! How errors appear in the log, with all their sources, once, where they are handled; and locks after a panic.

use std::error::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |&error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Every use of a lock is a single step, so a panic elsewhere leaves nothing inconsistent.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
