//! The exporter's private readers of what others wrote, for the fuzz targets in `fuzz/`. Not part of the API.
//!
//! Always compiled: behind a feature, a build of all packages would compile the exporter again, and a build of the
//! binary alone once more.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::address;
use crate::backoff::{NextAttempt, next_attempt, parse_retry_after};

pub use crate::backoff::MAX_RETRY_DELAY;

/// Why an address is not connected to; none if it may be.
pub fn refuse(address: IpAddr) -> Option<&'static str> {
    address::refuse(address)
}

/// When an event is sent again whose first attempt was answered with this `Retry-After`.
pub fn retry_delay(retry_after: &str, now: Timestamp) -> Option<Duration> {
    match next_attempt(1, parse_retry_after(retry_after, now), 0.5) {
        NextAttempt::After(delay) => Some(delay),
        NextAttempt::Exhausted => None,
    }
}
