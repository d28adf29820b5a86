//! Caches identities that the keystore has verified, so that a check costs no hash.
//!
//! A key is cached under a digest that is keyed with a secret of this process. A cached identity is used without asking
//! for [`REVALIDATE_AFTER`], until a notice that a key of its account changed (`invalidations`), and only while notices
//! are proven to arrive; otherwise one cheap request refreshes it.
//! INVARIANT: an answer that was requested before a notice about its account arrived, or before a gap in which one may
//! have been missed, is never used after it; nothing is released on an answer older than [`MAX_PROOF_AGE`] unless
//! notices are proven to arrive. No hash is requested while the logins of the client that would cause it are blocked,
//! and a hash that fails counts as one failed login, however many requests wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use moka::future::Cache;
use moka::ops::compute::{CompResult, Op};
use sha2::Sha256;
use stage0_backplane::clock::boottime;
use stage0_backplane::{Backplane, Event, Liveness, Requests, ServeError};
use stage0_contract::{
    AccountId, ApiKey, KeyChanged, KeyId, KeyIdentity, NoteKeyUses, RefreshKey, RefreshKeyReply, RequestId, VerifyKey,
    VerifyKeyReply,
};
use tokio::time::{MissedTickBehavior, interval};

use crate::metrics::{self, KeyLookup, key_looked_up};
use crate::throttle::{Blocked, Logins};

mod binding;
mod invalidations;

use binding::Binding;
use invalidations::Invalidations;

const REVALIDATE_AFTER: Duration = Duration::from_secs(60);
/// The largest age of the proof that notices arrive, and of an answer that is used without that proof, counted from
/// when it was requested.
const MAX_PROOF_AGE: Duration = Duration::from_millis(500);
/// An identity that is not used for this long is evicted; its key takes a hash again.
const IDLE_TTL: Duration = Duration::from_secs(3600);
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
const MAX_KEYS: u64 = 100_000;
const MAX_ATTEMPTS: u32 = 5;

type Digest = [u8; 32];

pub(crate) struct KeyCache {
    secret: [u8; 32],
    invalidations: Invalidations,
    listeners: AtomicUsize,
    /// When one of them last proved that notices arrive.
    liveness: Arc<Liveness>,
    identities: Cache<Digest, Arc<CachedIdentity>>,
}

/// What the keystore answered about a key. Times are boottime.
struct CachedIdentity {
    identity: Arc<KeyIdentity>,
    /// When the answer was requested: it may have waited here while the process was suspended.
    requested_at: Duration,
    /// The generation of [`Invalidations`] when the answer was requested, not when it arrived.
    generation: u64,
    /// The hour in which the key was last used, in seconds since the epoch.
    last_used_hour: AtomicI64,
}

impl CachedIdentity {
    fn new(identity: KeyIdentity, requested_at: Duration, generation: u64) -> Self {
        let last_used_hour = AtomicI64::new(i64::MIN);
        Self { identity: Arc::new(identity), requested_at, generation, last_used_hour }
    }
}

/// A caller whose key was valid, and when that was found out, so that it can be confirmed before anything is released.
#[derive(Clone)]
pub(crate) struct VerifiedCaller {
    digest: Digest,
    cached: Arc<CachedIdentity>,
    binding: Binding,
}

pub(crate) enum CacheLookup {
    Hit(VerifiedCaller),
    /// It was valid, but was revoked or has expired.
    Revoked,
    /// It is not in the cache: only a hash can tell.
    Miss,
}

#[derive(Clone, Copy)]
pub(crate) struct KeystoreCall<'a> {
    pub(crate) keystore: &'a dyn Requests,
    pub(crate) deadline: tokio::time::Instant,
    pub(crate) request_id: Option<RequestId>,
}

#[derive(Clone, Copy)]
enum IfEvicted {
    /// It takes a hash again.
    Miss,
    /// It was verified by this process before, so the keystore can be asked by its id.
    Refresh,
}

/// The keystore could not tell. This neither lets a caller in nor makes a key invalid.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum KeystoreError {
    #[error("the keystore does not answer")]
    Ask(#[from] stage0_backplane::RequestError),
    #[error("the keystore failed")]
    Failed,
    #[error("the keystore has too many hashes to compute")]
    Busy,
    #[error("keys of the account change, or its answers grow old, faster than they can be verified")]
    Unsettled,
    #[error("what the key may do, or the rules of its account, were changed meanwhile")]
    Changed,
}

pub(crate) enum Verification {
    Valid(VerifiedCaller),
    Invalid,
    /// Too many logins failed before, so the keystore was not asked.
    Blocked(Blocked),
}

/// Why a hash verified no key; every request that waits for the hash gets the same error.
#[derive(Clone)]
enum VerifyError {
    Invalid,
    Blocked(Blocked),
    Keystore(KeystoreError),
}

impl VerifiedCaller {
    pub(crate) fn identity(&self) -> &Arc<KeyIdentity> {
        &self.cached.identity
    }

    /// From now on the caller is only confirmed while the account's rules are those that it came with.
    pub(crate) fn bind_to_rules(&mut self) {
        self.binding = Binding::Rules;
    }

    /// Its decision counts: until this boottime the answer may leave also if another policy is active by then.
    pub(crate) fn bind_to_decision(&mut self, until: Duration) {
        self.binding = Binding::Decision { until };
    }

    /// It is refused, which depends on no rules.
    pub(crate) fn unbind(&mut self) {
        self.binding = Binding::Key;
    }

    pub(crate) fn is_first_use_in_hour(&self, now: Timestamp) -> bool {
        let hour = NoteKeyUses::hour_of(now).as_second();
        self.cached.last_used_hour.swap(hour, Ordering::Relaxed) != hour
    }
}

impl KeyCache {
    /// `secret` must be random and this process's own.
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        Self {
            secret,
            invalidations: Invalidations::default(),
            listeners: AtomicUsize::new(0),
            liveness: Liveness::new(),
            identities: Cache::builder().max_capacity(MAX_KEYS).time_to_idle(IDLE_TTL).build(),
        }
    }

    /// A key of this account changed, or the account itself: each of its keys is refreshed before it is used again.
    pub(crate) fn invalidate(&self, account: &AccountId) {
        self.invalidations.invalidate(account);
    }

    /// Something of every account changed.
    pub(crate) fn invalidate_all(&self) {
        self.invalidations.invalidate_all();
    }

    /// Receives notices of changed keys on one connection until it is closed. While no connection is subscribed, every
    /// request asks the keystore.
    pub(crate) async fn listen(&self, backplane: &Backplane) -> Result<(), ServeError> {
        let mut changes = backplane.notices.subscribe::<KeyChanged>().await?.proving(&self.liveness);
        // A change before this subscription may have been missed.
        self.invalidations.invalidate_all();
        self.listeners.fetch_add(1, Ordering::SeqCst);
        let _subscribed = Subscribed(self);
        while let Some(event) = changes.next().await {
            match event {
                Event::Message(KeyChanged::Any {}) => {
                    tracing::info!("a keystore begins to serve, every key is refreshed");
                    self.invalidations.invalidate_all();
                }
                Event::Message(KeyChanged::One { key_id, account }) => {
                    tracing::info!(%key_id, %account, "key changed");
                    self.invalidations.invalidate(&account);
                }
                Event::Gap => {
                    tracing::warn!("notices may have been missed, every key is refreshed");
                    self.invalidations.invalidate_all();
                }
            }
        }
        Ok(())
    }

    /// Why every request asks the keystore now, for the operator; none if cached keys are used.
    pub(crate) fn remark(&self) -> Option<String> {
        let age = self.liveness.age(boottime());
        match age {
            Some(age) if age < MAX_PROOF_AGE => None,
            Some(age) => Some(format!(
                "keys: notices of revocations were last proven to arrive {} ms ago, \
                 the keystore is asked at every request",
                age.as_millis()
            )),
            None => Some(
                "keys: notices of revocations are not proven to arrive, the keystore is asked at every request".into(),
            ),
        }
    }

    /// Never returns.
    pub(crate) async fn watch(&self) {
        let mut ticks = interval(WATCH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_proven = true;
        loop {
            ticks.tick().await;
            // Before the first proof no key is cached.
            let Some(age) = self.liveness.age(boottime()) else { continue };
            metrics::notices_proven(age);
            let is_proven = age < MAX_PROOF_AGE;
            if was_proven && !is_proven {
                let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(
                    age_ms,
                    "notices of revocations are not proven to arrive, every request asks the keystore"
                );
            } else if is_proven && !was_proven {
                tracing::info!("notices of revocations arrive, cached keys are believed again");
            }
            was_proven = is_proven;
        }
    }

    /// Refreshes the key, without a hash, if its identity is old, was invalidated, or is not proven to be current.
    pub(crate) async fn look_up(&self, key: &ApiKey, call: KeystoreCall<'_>) -> Result<CacheLookup, KeystoreError> {
        let digest = self.digest(key);
        let now = boottime();
        let Some(cached) = self.identities.get(&digest).await else {
            key_looked_up(KeyLookup::Miss);
            return Ok(CacheLookup::Miss);
        };
        if self.is_trusted(&cached, now) {
            key_looked_up(KeyLookup::Hit);
            return Ok(lookup_result(digest, &cached));
        }
        let found = self.refresh_entry(digest, key.id(), now, IfEvicted::Miss, call).await?;
        key_looked_up(KeyLookup::Refreshed);
        Ok(found)
    }

    /// Whether the caller's identity may still be used at this moment, without asking.
    pub(crate) fn is_current(&self, caller: &VerifiedCaller) -> bool {
        self.is_fresh(&caller.cached, boottime())
    }

    /// The same caller with an identity that may be used at this moment, at no cost if it already may. `None` if the
    /// key is not valid any more.
    pub(crate) async fn confirm(
        &self,
        caller: &VerifiedCaller,
        call: KeystoreCall<'_>,
    ) -> Result<Option<VerifiedCaller>, KeystoreError> {
        let now = boottime();
        if self.is_fresh(&caller.cached, now) {
            return Ok(is_unexpired(&caller.cached).then(|| caller.clone()));
        }
        let VerifiedCaller { digest, cached: before, binding } = caller;
        let found = self.refresh_entry(*digest, &before.identity.key_id, now, IfEvicted::Refresh, call).await?;
        key_looked_up(KeyLookup::Refreshed);
        match found {
            CacheLookup::Hit(now) if binding.allows(now.identity(), &before.identity) => {
                Ok(Some(VerifiedCaller { binding: *binding, ..now }))
            }
            CacheLookup::Hit(_) => Err(KeystoreError::Changed),
            CacheLookup::Revoked | CacheLookup::Miss => Ok(None),
        }
    }

    /// Refreshes a key that this process has verified before, for a request that arrived at `arrived`.
    async fn refresh_entry(
        &self,
        digest: Digest,
        key_id: &KeyId,
        arrived: Duration,
        if_evicted: IfEvicted,
        call: KeystoreCall<'_>,
    ) -> Result<CacheLookup, KeystoreError> {
        // One refresh at a time per key; the requests that wait for it use its result.
        let result = self
            .identities
            .entry(digest)
            .and_try_compute_with(async |entry| {
                let Some(cached) = entry.map(moka::Entry::into_value) else {
                    return match if_evicted {
                        IfEvicted::Miss => Ok(Op::Nop),
                        // Another request may have removed it after the keystore said that it is revoked.
                        IfEvicted::Refresh => self.refresh(key_id, call).await,
                    };
                };
                let now = boottime();
                let refreshed_since = cached.requested_at >= arrived && self.is_fresh(&cached, now);
                if self.is_trusted(&cached, now) || refreshed_since {
                    return Ok(Op::Nop);
                }
                tokio::select! {
                    biased;
                    refreshed = self.refresh(key_id, call) => refreshed,
                    // A proof that is only late, as on a busy machine, makes the keystore's answer unnecessary.
                    () = self.liveness.wait_for_proof(|| self.is_trusted(&cached, boottime())) => Ok(Op::Nop),
                }
            })
            .await?;
        Ok(match result {
            CompResult::Unchanged(entry) | CompResult::ReplacedWith(entry) | CompResult::Inserted(entry) => {
                lookup_result(digest, entry.value())
            }
            CompResult::Removed(_) => CacheLookup::Revoked,
            CompResult::StillNone(_) => CacheLookup::Miss,
        })
    }

    async fn refresh(&self, key_id: &KeyId, call: KeystoreCall<'_>) -> Result<Op<Arc<CachedIdentity>>, KeystoreError> {
        let KeystoreCall { keystore, deadline, request_id } = call;
        for _ in 0..MAX_ATTEMPTS {
            let generation = self.invalidations.generation();
            let requested_at = boottime();
            let message = RefreshKey { key_id: key_id.clone(), request_id };
            let identity = match keystore.request_until(&message, deadline).await? {
                RefreshKeyReply::Live(identity) => identity,
                RefreshKeyReply::Gone => return Ok(Op::Remove),
                RefreshKeyReply::Failed => return Err(KeystoreError::Failed),
            };
            let cached = CachedIdentity::new(identity, requested_at, generation);
            if self.is_fresh(&cached, boottime()) {
                return Ok(Op::Put(Arc::new(cached)));
            }
        }
        Err(KeystoreError::Unsettled)
    }

    /// Verifies a key that is not in the cache, at the price of a hash. Concurrent requests with the same key share
    /// that hash; `logins` is of the request that would cause it, and counts its failure once.
    pub(crate) async fn verify(
        &self,
        key: &ApiKey,
        call: KeystoreCall<'_>,
        logins: Logins<'_>,
    ) -> Result<Verification, KeystoreError> {
        let digest = self.digest(key);
        let arrived = boottime();
        for _ in 0..MAX_ATTEMPTS {
            let is_leader = AtomicBool::new(false);
            let verified = self.identities.try_get_with(digest, async {
                is_leader.store(true, Ordering::Relaxed);
                if let Some(blocked) = logins.blocked() {
                    return Err(VerifyError::Blocked(blocked));
                }
                self.verify_with_keystore(key, call).await.inspect_err(|error| {
                    if matches!(error, VerifyError::Invalid) {
                        logins.failed();
                    }
                })
            });
            let cached = match verified.await {
                Ok(cached) => cached,
                Err(error) => match (*error).clone() {
                    VerifyError::Invalid => return Ok(Verification::Invalid),
                    VerifyError::Keystore(error) => return Err(error),
                    VerifyError::Blocked(blocked) if is_leader.load(Ordering::Relaxed) => {
                        return Ok(Verification::Blocked(blocked));
                    }
                    // The request that led was blocked, perhaps because of its own address.
                    VerifyError::Blocked(_) => continue,
                },
            };
            let now = boottime();
            let found =
                if self.is_trusted(&cached, now) || (cached.requested_at >= arrived && self.is_fresh(&cached, now)) {
                    lookup_result(digest, &cached)
                } else {
                    // A notice arrived while the hash was computed, or it took long: refresh it once.
                    self.look_up(key, call).await?
                };
            if let CacheLookup::Hit(caller) = found {
                return Ok(Verification::Valid(caller));
            }
            logins.failed();
            return Ok(Verification::Invalid);
        }
        Err(KeystoreError::Unsettled)
    }

    async fn verify_with_keystore(
        &self,
        key: &ApiKey,
        call: KeystoreCall<'_>,
    ) -> Result<Arc<CachedIdentity>, VerifyError> {
        let KeystoreCall { keystore, deadline, request_id } = call;
        let generation = self.invalidations.generation();
        let requested_at = boottime();
        match keystore.request_until(&VerifyKey { key: key.clone(), request_id }, deadline).await {
            Ok(VerifyKeyReply::Valid(identity)) => {
                Ok(Arc::new(CachedIdentity::new(identity, requested_at, generation)))
            }
            Ok(VerifyKeyReply::Invalid) => Err(VerifyError::Invalid),
            Ok(VerifyKeyReply::Busy) => Err(VerifyError::Keystore(KeystoreError::Busy)),
            Ok(VerifyKeyReply::Failed) => Err(VerifyError::Keystore(KeystoreError::Failed)),
            Err(error) => Err(VerifyError::Keystore(error.into())),
        }
    }

    /// Whether the cached identity is as good as asking the keystore now.
    fn is_trusted(&self, cached: &CachedIdentity, now: Duration) -> bool {
        self.listeners.load(Ordering::SeqCst) > 0
            && self.liveness.age(now).is_some_and(|age| age < MAX_PROOF_AGE)
            && now.saturating_sub(cached.requested_at) < REVALIDATE_AFTER
            && self.invalidations.is_valid(&cached.identity.account, cached.generation)
    }

    /// Whether a request that holds the identity may proceed: it is trusted, or was requested a moment ago.
    fn is_fresh(&self, cached: &CachedIdentity, now: Duration) -> bool {
        let is_recent = now.saturating_sub(cached.requested_at) < MAX_PROOF_AGE
            && self.invalidations.is_valid(&cached.identity.account, cached.generation);
        is_recent || self.is_trusted(cached, now)
    }

    fn digest(&self, key: &ApiKey) -> Digest {
        // HMAC-SHA256 takes keys of any length, so the fallback is never used.
        Hmac::<Sha256>::new_from_slice(&self.secret).map_or([0; 32], |mut mac| {
            mac.update(key.expose().as_bytes());
            mac.finalize().into_bytes().into()
        })
    }
}

struct Subscribed<'a>(&'a KeyCache);

impl Drop for Subscribed<'_> {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::SeqCst);
        self.0.invalidations.invalidate_all();
    }
}

fn lookup_result(digest: Digest, cached: &Arc<CachedIdentity>) -> CacheLookup {
    if is_unexpired(cached) {
        CacheLookup::Hit(VerifiedCaller { digest, cached: Arc::clone(cached), binding: Binding::Key })
    } else {
        CacheLookup::Revoked
    }
}

fn is_unexpired(cached: &CachedIdentity) -> bool {
    cached.identity.expires_at.is_none_or(|end| end > Timestamp::now())
}

#[cfg(test)]
mod tests;
