//! DNS lookups with limits: on time, on their number for each account, and on how often a failed name is tried.
//!
//! Owns one shared lookup for concurrent attempts of an account at the same name, and the cache of failed names. Names
//! that do not resolve delay only their own account's attempts.
//! INVARIANT: a successful result is never cached; an attempt that begins after a lookup has ended makes a new one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use moka::sync::Cache;
use stage0_contract::AccountId;
use tokio::time::timeout;

use super::resolver::NameResolver;
use crate::fair::FairSlots;
use crate::metrics;
use crate::shared::lock;

/// For one lookup, including every server and every retry.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_LOOKUPS: usize = 64;
const MAX_LOOKUPS_PER_ACCOUNT: usize = 4;
/// How long a failed name fails at once: less than the first retry delay, so that a retry makes a new lookup.
const FAILED_TTL: Duration = Duration::from_secs(2);
const MAX_FAILED: u64 = 10_000;
/// A cancelled lookup leaves its map entry behind; from this size on such entries are removed.
const CLEANUP_THRESHOLD: usize = 256;

/// None if the name has no address.
type Addresses = Option<Arc<[IpAddr]>>;
type InFlight = Shared<BoxFuture<'static, Addresses>>;
type Key = (AccountId, Arc<str>);

pub(super) struct Lookups {
    resolver: NameResolver,
    slots: Arc<FairSlots>,
    in_flight: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, Addresses>>>>,
    failed: Cache<Key, ()>,
}

impl Lookups {
    pub(super) fn new(resolver: NameResolver) -> Arc<Self> {
        Arc::new(Self {
            resolver,
            slots: FairSlots::new(MAX_LOOKUPS, MAX_LOOKUPS_PER_ACCOUNT),
            in_flight: Mutex::default(),
            failed: Cache::builder().max_capacity(MAX_FAILED).time_to_live(FAILED_TTL).build(),
        })
    }

    /// The addresses of a name; none if it has none, or if the lookup failed now or a moment ago.
    pub(super) async fn find(self: &Arc<Self>, account: &AccountId, name: &str) -> Addresses {
        let key = (account.clone(), Arc::from(name));
        if self.failed.contains_key(&key) {
            metrics::lookup_finished("failed_before");
            return None;
        }
        self.join(key).await
    }

    fn join(self: &Arc<Self>, key: Key) -> InFlight {
        let mut in_flight = lock(&self.in_flight);
        if let Some(shared) = in_flight.get(&key).and_then(WeakShared::upgrade) {
            return shared;
        }
        if in_flight.len() >= CLEANUP_THRESHOLD {
            in_flight.retain(|_, shared| shared.upgrade().is_some());
        }
        let shared = Arc::clone(self).resolve(key.clone()).boxed().shared();
        if let Some(weak) = shared.downgrade() {
            in_flight.insert(key, weak);
        }
        shared
    }

    async fn resolve(self: Arc<Self>, key: Key) -> Addresses {
        let slot = self.slots.acquire(&key.0).await;
        let found = timeout(LOOKUP_TIMEOUT, self.resolver.resolve(&key.1)).await;
        drop(slot);
        let found: Addresses = match found {
            Ok(Ok(found)) if !found.is_empty() => Some(found.into()),
            Ok(Ok(_) | Err(_)) | Err(_) => None,
        };
        metrics::lookup_finished(if found.is_some() { "found" } else { "failed" });
        if found.is_none() {
            self.failed.insert(key.clone(), ());
        }
        lock(&self.in_flight).remove(&key);
        found
    }
}
