//! What is refused before anybody knows whose request it is: bursts, failed logins, too many connections; and calls of
//! the control API.
//!
//! Owns the counting, all of it by an address or a key id and in bounded memory: the oldest are forgotten first, which
//! errs on the side of the caller. Failed logins, here, refuse only keys that were not verified recently; which those
//! are is the keyring's. The keystore's bounded hash pool is the second net. `bursts` counts requests, `connections`
//! connections, `management` calls of the control API.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use stage0_contract::KeyId;

use crate::address::ClientNet;
use crate::metrics;

mod bursts;
mod connections;
mod management;
mod slot;

pub(crate) use bursts::Bursts;
pub(crate) use connections::{Connections, Counted, Seat};
pub(crate) use management::{CallsBy, ManagementCall, ManagementCalls, TooManyCalls};

const WINDOW: Duration = Duration::from_secs(60);
/// Of addresses, and of key ids.
const MOST_REMEMBERED: u64 = 100_000;

/// Failed logins of the last minute.
pub(crate) struct FailedLogins {
    by_address: Failures<ClientNet>,
    by_key: Failures<KeyId>,
}

/// What failed too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginsBy {
    /// From one address, with whatever keys.
    Address,
    /// With one key's id, from wherever.
    Key,
}

/// What one request's login is judged by, and counted for when it fails.
#[derive(Clone, Copy)]
pub(crate) struct Logins<'a> {
    failed: &'a FailedLogins,
    client: Option<ClientNet>,
    /// None: the key is malformed, and has no id.
    key: Option<&'a KeyId>,
}

/// Too many failed; what is left of the minute says how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blocked {
    /// What failed too often.
    pub(crate) by: LoginsBy,
    /// How long to wait.
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

    /// As one request has a part in them.
    pub(crate) fn of<'a>(&'a self, client: Option<ClientNet>, key: Option<&'a KeyId>) -> Logins<'a> {
        Logins { failed: self, client, key }
    }

    /// Whether the address or the key id has failed too often. A malformed key has no id.
    fn blocked(&self, client: Option<ClientNet>, key: Option<&KeyId>, now: Instant) -> Option<Blocked> {
        let address = client.and_then(|client| self.by_address.blocked_for(&client, now));
        let key = || key.and_then(|key| self.by_key.blocked_for(key, now));
        let address = address.map(|seconds| Blocked { by: LoginsBy::Address, seconds });
        address.or_else(|| key().map(|seconds| Blocked { by: LoginsBy::Key, seconds }))
    }

    /// Counts a failure. An unknown id counts like a known one with a wrong secret, so that nothing tells the two apart.
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
    /// Whether too many failed already.
    pub(crate) fn blocked(self) -> Option<Blocked> {
        self.failed.blocked(self.client, self.key, Instant::now())
    }

    /// This one failed too.
    pub(crate) fn failed(self) {
        self.failed.failed(self.client, self.key, Instant::now());
        let counted = [self.client.map(|_| LoginsBy::Address), self.key.map(|_| LoginsBy::Key)];
        counted.into_iter().flatten().for_each(metrics::login_failed);
    }
}

impl<K: Hash + Eq + Send + Sync + 'static> Failures<K> {
    fn new(limit: u32) -> Self {
        let windows = Cache::builder().max_capacity(MOST_REMEMBERED).time_to_live(WINDOW).build();
        Self { limit, windows }
    }

    fn blocked_for(&self, who: &K, now: Instant) -> Option<u64> {
        let window = self.windows.get(who)?;
        let left = WINDOW.checked_sub(now.saturating_duration_since(window.began))?;
        (window.failures.load(Ordering::Relaxed) >= self.limit).then(|| left.as_secs() + 1)
    }

    fn failed(&self, who: K, now: Instant) {
        let window = self.windows.get_with(who, || Arc::new(Window { began: now, failures: AtomicU32::new(0) }));
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
    fn an_address_is_blocked_at_the_limit_and_for_the_rest_of_its_minute() {
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
    fn the_address_is_named_where_both_are_blocked() {
        let (logins, now) = (FailedLogins::new(1), Instant::now());
        let key = KeyId::parse("k1").unwrap();
        logins.failed(net("192.0.2.1"), Some(&key), now);
        assert_eq!(logins.blocked(net("192.0.2.1"), Some(&key), now), blocked(LoginsBy::Address, 61));
    }
}
