//! Failed logins by address: after too many in a minute, only keys that were verified recently still pass from there.
//!
//! Owns the counting; who counts as verified recently is the keyring's. Memory is bounded: the oldest addresses are forgotten
//! first, which errs on the side of the caller and leaves the keystore's bounded hash pool as the second net.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;

use crate::address::ClientNet;

const WINDOW: Duration = Duration::from_secs(60);
const MOST_ADDRESSES: u64 = 100_000;

pub(crate) struct FailedLogins {
    limit: u32,
    windows: Cache<ClientNet, Arc<Window>>,
}

struct Window {
    began: Instant,
    failures: AtomicU32,
}

impl FailedLogins {
    pub(crate) fn new(limit: u32) -> Self {
        let windows = Cache::builder().max_capacity(MOST_ADDRESSES).time_to_live(WINDOW).build();
        Self { limit, windows }
    }

    /// The seconds that the address must wait, if it has failed too often.
    pub(crate) fn blocked_for(&self, client: ClientNet, now: Instant) -> Option<u64> {
        let window = self.windows.get(&client)?;
        let left = WINDOW.checked_sub(now.saturating_duration_since(window.began))?;
        (window.failures.load(Ordering::Relaxed) >= self.limit).then(|| left.as_secs() + 1)
    }

    /// Counts a failure.
    pub(crate) fn failed(&self, client: ClientNet, now: Instant) {
        let window = self.windows.get_with(client, || Arc::new(Window { began: now, failures: AtomicU32::new(0) }));
        window.failures.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_blocked_at_the_limit_and_for_the_rest_of_its_minute() {
        let (logins, now) = (FailedLogins::new(2), Instant::now());
        let client = ClientNet::of("192.0.2.1".parse().unwrap());
        let other = ClientNet::of("192.0.2.2".parse().unwrap());
        logins.failed(client, now);
        assert_eq!(logins.blocked_for(client, now), None);
        logins.failed(client, now);
        assert_eq!(logins.blocked_for(client, now), Some(61));
        assert_eq!(logins.blocked_for(client, now + Duration::from_secs(59)), Some(2));
        assert_eq!(logins.blocked_for(client, now + Duration::from_secs(61)), None);
        assert_eq!(logins.blocked_for(other, now), None);
    }
}
