//! Limits on one gateway's callers: failed logins, requests, connections and calls of the control API.
//!
//! All counters are in bounded memory: the oldest are dropped first, which errs on the side of the caller. Failed
//! logins, in this file, block only keys that the key cache has not verified recently; the keystore's bounded hash pool
//! is the second line of defence.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use stage0_contract::KeyId;

use crate::address::ClientNet;
use crate::metrics;

mod connections;
mod management;
mod rate_limiter;

pub(crate) use connections::{ConnectionHandle, Connections, CountedStream};
pub(crate) use management::{CallsBy, ManagementCall, ManagementCalls, TooManyCalls};
pub(crate) use rate_limiter::RateLimiter;

const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Entries of each table: addresses, accounts or key ids.
const MAX_REMEMBERED: u64 = 100_000;

pub(crate) struct FailedLogins {
    by_address: Failures<ClientNet>,
    by_key: Failures<KeyId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginsBy {
    Address,
    /// Of one key id, from any address.
    Key,
}

#[derive(Clone, Copy)]
pub(crate) struct Logins<'a> {
    failed: &'a FailedLogins,
    client: Option<ClientNet>,
    /// None for a malformed key, which has no id.
    key: Option<&'a KeyId>,
}

/// Too many logins failed; the block ends with the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub(crate) by: LoginsBy,
    pub(crate) seconds: u64,
}

struct Failures<K> {
    limit: u32,
    windows: Cache<K, Arc<Window>>,
}

struct Window {
    began: Instant,
    failures: AtomicU32,
}

impl FailedLogins {
    /// `limit` a minute, for each address and for each key id.
    pub(crate) fn new(limit: u32) -> Self {
        Self { by_address: Failures::new(limit), by_key: Failures::new(limit) }
    }

    pub(crate) fn of<'a>(&'a self, client: Option<ClientNet>, key: Option<&'a KeyId>) -> Logins<'a> {
        Logins { failed: self, client, key }
    }

    fn blocked(&self, client: Option<ClientNet>, key: Option<&KeyId>, now: Instant) -> Option<Blocked> {
        let blocked = |by| move |seconds| Blocked { by, seconds };
        let by_address = client.and_then(|client| self.by_address.blocked_for(&client, now));
        let by_key = || key.and_then(|key| self.by_key.blocked_for(key, now));
        by_address.map(blocked(LoginsBy::Address)).or_else(|| by_key().map(blocked(LoginsBy::Key)))
    }

    /// An unknown id counts like a known one with a wrong secret, so that a caller cannot tell the two apart.
    fn failed(&self, client: Option<ClientNet>, key: Option<&KeyId>, now: Instant) {
        if let Some(client) = client {
            self.by_address.failed(client, now);
        }
        if let Some(key) = key {
            self.by_key.failed(key.clone(), now);
        }
    }
}

impl Logins<'_> {
    pub(crate) fn blocked(self) -> Option<Blocked> {
        self.failed.blocked(self.client, self.key, Instant::now())
    }

    pub(crate) fn failed(self) {
        self.failed.failed(self.client, self.key, Instant::now());
        let counted = [self.client.map(|_| LoginsBy::Address), self.key.map(|_| LoginsBy::Key)];
        counted.into_iter().flatten().for_each(metrics::login_failed);
    }
}

impl<K: Hash + Eq + Send + Sync + 'static> Failures<K> {
    fn new(limit: u32) -> Self {
        let windows = Cache::builder().max_capacity(MAX_REMEMBERED).time_to_live(FAILURE_WINDOW).build();
        Self { limit, windows }
    }

    fn blocked_for(&self, key: &K, now: Instant) -> Option<u64> {
        let window = self.windows.get(key)?;
        let left = FAILURE_WINDOW.checked_sub(now.saturating_duration_since(window.began))?;
        (window.failures.load(Ordering::Relaxed) >= self.limit).then(|| left.as_secs() + 1)
    }

    fn failed(&self, key: K, now: Instant) {
        let window = self.windows.get_with(key, || Arc::new(Window { began: now, failures: AtomicU32::new(0) }));
        window.failures.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Option<ClientNet> {
        Some(ClientNet::of(text.parse().unwrap()))
    }

    fn blocked(by: LoginsBy, seconds: u64) -> Option<Blocked> {
        Some(Blocked { by, seconds })
    }

    #[test]
    fn an_address_is_blocked_at_the_limit_for_the_rest_of_its_minute() {
        let (logins, now) = (FailedLogins::new(2), Instant::now());
        let (client, other) = (net("192.0.2.1"), net("192.0.2.2"));
        logins.failed(client, None, now);
        assert_eq!(logins.blocked(client, None, now), None);
        logins.failed(client, None, now);
        assert_eq!(logins.blocked(client, None, now), blocked(LoginsBy::Address, 61));
        assert_eq!(logins.blocked(client, None, now + Duration::from_secs(59)), blocked(LoginsBy::Address, 2));
        assert_eq!(logins.blocked(client, None, now + Duration::from_secs(61)), None);
        assert_eq!(logins.blocked(other, None, now), None);
    }

    #[test]
    fn a_key_id_is_blocked_wherever_its_failures_came_from() {
        let (logins, now) = (FailedLogins::new(2), Instant::now());
        let (key, other) = (KeyId::parse("k1").unwrap(), KeyId::parse("k2").unwrap());
        logins.failed(net("192.0.2.1"), Some(&key), now);
        assert_eq!(logins.blocked(net("192.0.2.3"), Some(&key), now), None);
        logins.failed(net("192.0.2.2"), Some(&key), now);
        assert_eq!(logins.blocked(net("192.0.2.3"), Some(&key), now), blocked(LoginsBy::Key, 61));
        assert_eq!(logins.blocked(None, Some(&key), now), blocked(LoginsBy::Key, 61));
        assert_eq!(logins.blocked(net("192.0.2.3"), Some(&other), now), None);
        assert_eq!(logins.blocked(net("192.0.2.1"), None, now), None, "one failure of the address");
    }

    #[test]
    fn the_address_is_reported_when_both_are_blocked() {
        let (logins, now) = (FailedLogins::new(1), Instant::now());
        let key = KeyId::parse("k1").unwrap();
        logins.failed(net("192.0.2.1"), Some(&key), now);
        assert_eq!(logins.blocked(net("192.0.2.1"), Some(&key), now), blocked(LoginsBy::Address, 61));
    }
}
