//! What the handlers of one worker thread share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::future::Cache;
use stage0_backplane::{Backplane, Requests, StateStore};
use stage0_contract::{Actor, Holder, KeyIdentity, PublicKeys, Scope, Scopes};
use tokio_util::sync::CancellationToken;

use crate::address::ClientNet;
use crate::approval_waits::ApprovalWaits;
use crate::canary_return::Canaries;
use crate::config::GatewayConfig;
use crate::hook_guards::HookGuards;
use crate::idempotency::FirstSeen;
use crate::in_flight::{ByteLimits, BytesInFlight};
use crate::instances::Instances;
use crate::key_cache::KeyCache;
use crate::key_uses::KeyUses;
use crate::quota::{Quotas, StoreCall};
use crate::read_pool::ReadPool;
use crate::readiness::Readiness;
use crate::recorder::Recorder;
use crate::request_memory::RequestMemory;
use crate::throttle::{FailedLogins, ManagementCalls, RateLimiter};

/// The memory for parsed requests, as a multiple of the bytes that may be in flight.
const REQUEST_MEMORY_FACTOR: usize = 2;
/// Of `requests-per-second-per-address`.
const ADDRESS_RATE_PERIOD: Duration = Duration::from_secs(1);
const SIGNING_KEYS_TTL: Duration = Duration::from_secs(1);

/// One worker's view of the gateway. Only `backplane` is the worker's own; the rest is shared by all workers.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) backplane: Backplane,
    pub(crate) config: Arc<GatewayConfig>,
    pub(crate) key_cache: Arc<KeyCache>,
    pub(crate) key_uses: Arc<KeyUses>,
    pub(crate) failed_logins: Arc<FailedLogins>,
    /// None, here and below: no limit.
    pub(crate) ip_rate_limiter: Option<Arc<RateLimiter<ClientNet>>>,
    pub(crate) management_calls: Option<Arc<ManagementCalls>>,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) readiness: Arc<Readiness>,
    pub(crate) instances: Arc<Instances>,
    pub(crate) approval_waits: Arc<ApprovalWaits>,
    pub(crate) canaries: Arc<Canaries>,
    pub(crate) hook_guards: HookGuards,
    pub(crate) recorder: Recorder,
    /// The public keys of checkpoints, cached because anyone may request them.
    pub(crate) signing_keys: Cache<(), PublicKeys>,
    pub(crate) first_seen: FirstSeen,
    pub(crate) bytes: Arc<BytesInFlight>,
    pub(crate) request_memory: Arc<RequestMemory>,
    pub(crate) read_pool: Arc<ReadPool>,
    /// The connection of long reads, so that an answer to a check does not wait behind a megabyte of log.
    pub(crate) reading: Backplane,
    /// Cancelled once the gateway stops.
    pub(crate) stopping: CancellationToken,
}

impl AppState {
    pub(crate) fn new(
        config: GatewayConfig,
        backplane: Backplane,
        reading: Backplane,
        key_cache: Arc<KeyCache>,
        read_pool: Arc<ReadPool>,
        recorder: Recorder,
    ) -> Self {
        let now = Instant::now();
        let address_limit = config.requests_per_second_per_address;
        let memory = config.max_bytes_in_flight.saturating_mul(REQUEST_MEMORY_FACTOR);
        Self {
            stopping: CancellationToken::new(),
            key_cache,
            key_uses: Arc::default(),
            failed_logins: Arc::new(FailedLogins::new(config.failed_logins_per_minute)),
            ip_rate_limiter: address_limit.map(|limit| Arc::new(RateLimiter::new(limit, ADDRESS_RATE_PERIOD, now))),
            management_calls: config
                .management_calls_per_minute
                .map(|limit| Arc::new(ManagementCalls::new(limit, now))),
            quotas: Arc::new(Quotas::new(config.quotas_on_failure, backplane.state_store.clock())),
            readiness: Arc::default(),
            instances: Arc::new(Instances::new(now, config.single_process)),
            approval_waits: Arc::default(),
            canaries: Arc::default(),
            hook_guards: HookGuards::default(),
            recorder,
            signing_keys: Cache::builder().max_capacity(1).time_to_live(SIGNING_KEYS_TTL).build(),
            first_seen: FirstSeen::default(),
            bytes: BytesInFlight::new(ByteLimits::of(config.max_bytes_in_flight)),
            request_memory: RequestMemory::new(memory),
            read_pool,
            reading,
            backplane,
            config: Arc::new(config),
        }
    }

    pub(crate) fn requests(&self) -> &dyn Requests {
        &*self.backplane.requests
    }

    pub(crate) fn state_store(&self) -> &dyn StateStore {
        &*self.backplane.state_store
    }

    /// Whether lines about approvals and stops can be written now.
    pub(crate) fn can_record(&self) -> bool {
        self.instances.can_record(Instant::now())
    }

    /// Who makes a call about approvals. A key of which the keystore does not say who holds it stands for itself, and
    /// changes nothing.
    pub(crate) fn actor_of(&self, identity: &KeyIdentity) -> Actor {
        let holder = identity.holder.clone();
        Actor { scopes: identity.scopes.clone(), ..self.asker(identity, holder) }
    }

    /// Who asks for a check; none where the keystore does not say who holds the key. What a check may do does not
    /// depend on further scopes, so it carries none.
    pub(crate) fn asker_of(&self, identity: &KeyIdentity) -> Option<Actor> {
        identity.holder.clone().map(|holder| self.asker(identity, Some(holder)))
    }

    fn asker(&self, identity: &KeyIdentity, holder: Option<Holder>) -> Actor {
        Actor {
            key_id: identity.key_id.clone(),
            can_record: holder.is_some() && self.can_record(),
            holder: holder.unwrap_or_else(|| Holder::of_workload(identity.key_id.clone())),
            scopes: Scopes::new(),
            reports_outcomes: identity.scopes.contains(&Scope::OutcomesReport),
            rules: identity.rules.clone(),
            retention_days: identity.retention_days,
            key_name: identity.key_name.clone(),
            groups: identity.groups.clone(),
        }
    }

    /// Where people read what is at this path of the API.
    pub(crate) fn public_url(&self, path: &str) -> String {
        self.config.public_url.as_ref().map_or_else(|| path.to_owned(), |url| url.join(path))
    }

    pub(crate) fn store_until(&self, deadline: tokio::time::Instant) -> StoreCall<'_> {
        StoreCall { state_store: self.state_store(), deadline }
    }
}
