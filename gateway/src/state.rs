//! What the handlers of one worker thread share.

use std::sync::Arc;

use moka::future::Cache;
use stage0_backplane::{Backplane, DecisionLog, Requests, StateStore};
use stage0_contract::PublicKeys;

use crate::address::ClientNet;
use crate::config::GatewayConfig;
use crate::idempotency::FirstSeen;
use crate::in_flight::BytesInFlight;
use crate::instances::Instances;
use crate::key_cache::KeyCache;
use crate::key_uses::KeyUses;
use crate::quota::Quotas;
use crate::read_pool::ReadPool;
use crate::readiness::Readiness;
use crate::recorder::Recorder;
use crate::request_memory::RequestMemory;
use crate::throttle::{FailedLogins, ManagementCalls, RateLimiter};

/// One worker's view of the gateway. Only `backplane` is the worker's own; the rest is shared by all workers.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) backplane: Backplane,
    pub(crate) config: Arc<GatewayConfig>,
    pub(crate) key_cache: Arc<KeyCache>,
    pub(crate) key_uses: Arc<KeyUses>,
    pub(crate) failed_logins: Arc<FailedLogins>,
    /// Requests per second of one address; none: no limit.
    pub(crate) ip_rate_limiter: Option<Arc<RateLimiter<ClientNet>>>,
    /// None: no limit.
    pub(crate) management_calls: Option<Arc<ManagementCalls>>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) instances: Arc<Instances>,
    pub(crate) recorder: Recorder,
    /// The public keys of checkpoints, cached because anyone may request them.
    pub(crate) signing_keys: Cache<(), PublicKeys>,
    /// Of idempotency records whose times lie in the future.
    pub(crate) first_seen: FirstSeen,
    pub(crate) bytes: Arc<BytesInFlight>,
    pub(crate) request_memory: Arc<RequestMemory>,
    pub(crate) read_pool: Arc<ReadPool>,
    /// The connection of long reads, so that an answer to a check does not wait behind a megabyte of log.
    pub(crate) reading: Backplane,
}

impl AppState {
    pub(crate) fn requests(&self) -> &dyn Requests {
        &*self.backplane.requests
    }

    pub(crate) fn state_store(&self) -> &dyn StateStore {
        &*self.backplane.state_store
    }

    pub(crate) fn log(&self) -> &dyn DecisionLog {
        &*self.backplane.log
    }
}
