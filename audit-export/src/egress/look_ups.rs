//! Look-ups that are bounded: in time, in number for each account, and in how often a name that fails is asked for.
//!
//! Owns one look-up for all attempts of an account that want the same name at once, and the memory of what failed. An
//! account's dead names keep its own attempts waiting and nobody else's.
//! INVARIANT: what was found is never remembered; an attempt that begins after a look-up has ended makes another one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use moka::sync::Cache;
use stage0_contract::AccountId;
use tokio::time::timeout;

use super::resolver::Names;
use crate::fair::FairSlots;
use crate::metrics;

/// Of one look-up, every server and every retry included.
pub(super) const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(3);
/// Look-ups in flight, each with a socket or two.
const MAX_LOOK_UPS: usize = 64;
const MAX_LOOK_UPS_PER_ACCOUNT: usize = 4;
/// A name that failed fails at once for so long: less than the first delay of a retry, so that a retry asks again.
const FAILED_TTL: Duration = Duration::from_secs(2);
const MAX_FAILED: u64 = 10_000;
/// Look-ups that nobody waits for any more leave their name behind; beyond so many they are cleared away.
const MAX_NAMES_LEFT: usize = 256;

/// None where there is no address.
type Found = Option<Arc<[IpAddr]>>;
type InFlight = Shared<BoxFuture<'static, Found>>;
type Key = (AccountId, Arc<str>);

pub(super) struct LookUps(Arc<Inner>);

struct Inner {
    names: Names,
    slots: FairSlots,
    in_flight: Mutex<HashMap<Key, WeakShared<BoxFuture<'static, Found>>>>,
    failed: Cache<Key, ()>,
}

impl LookUps {
    pub(super) fn new(names: Names) -> Self {
        Self(Arc::new(Inner {
            names,
            slots: FairSlots::new(MAX_LOOK_UPS, MAX_LOOK_UPS_PER_ACCOUNT),
            in_flight: Mutex::default(),
            failed: Cache::builder().max_capacity(MAX_FAILED).time_to_live(FAILED_TTL).build(),
        }))
    }

    /// The addresses of a name, or none: it has none, or nobody could say in time, now or a moment ago.
    pub(super) async fn find(&self, account: &AccountId, name: &str) -> Found {
        let key = (account.clone(), Arc::from(name));
        if self.0.failed.contains_key(&key) {
            metrics::looked_up("failed_before");
            return None;
        }
        self.join(key).await
    }

    /// The look-up that is in flight, or a new one.
    fn join(&self, key: Key) -> InFlight {
        let mut in_flight = self.0.lock();
        if let Some(shared) = in_flight.get(&key).and_then(WeakShared::upgrade) {
            return shared;
        }
        if in_flight.len() >= MAX_NAMES_LEFT {
            in_flight.retain(|_, shared| shared.upgrade().is_some());
        }
        let shared = Arc::clone(&self.0).look_up(key.clone()).boxed().shared();
        if let Some(weak) = shared.downgrade() {
            in_flight.insert(key, weak);
        }
        shared
    }
}

impl Inner {
    async fn look_up(self: Arc<Self>, key: Key) -> Found {
        let slot = self.slots.acquire(&key.0).await;
        let found = timeout(LOOK_UP_TIMEOUT, self.names.look_up(&key.1)).await;
        drop(slot);
        let found: Found = match found {
            Ok(Ok(found)) if !found.is_empty() => Some(found.into()),
            Ok(Ok(_) | Err(_)) | Err(_) => None,
        };
        metrics::looked_up(if found.is_some() { "found" } else { "failed" });
        if found.is_none() {
            self.failed.insert(key.clone(), ());
        }
        self.lock().remove(&key);
        found
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, WeakShared<BoxFuture<'static, Found>>>> {
        // Each use is one step on the map: a panic elsewhere cannot leave it half done.
        self.in_flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
