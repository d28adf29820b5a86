//! Keys that the keystore has vouched for, remembered for a moment so that a check costs no hash.
//!
//! Owns the cache and its doubts. A key is known by a digest keyed with a secret of this process; its text is never
//! kept. What the keystore said holds for [`TRUST`] and until the first notice that a key of its account changed; then
//! one cheap question renews it.
//! INVARIANT: an answer that was asked for before a notice about its account arrived, or before a gap in which one may
//! have been missed, is never trusted after it (see `Vouched::asked_at`); and no account's notices cost another account
//! its trust.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use moka::future::Cache;
use moka::ops::compute::{CompResult, Op};
use sha2::Sha256;
use stage0_backplane::{Backplane, Event, Requests, ServeError};
use stage0_contract::{
    AccountId, ApiKey, KeyChanged, KeyIdentity, RefreshKey, RefreshKeyReply, RequestId, VerifyKey, VerifyKeyReply,
};

use crate::metrics::{KeyCache, key_looked_up};

mod doubts;

use doubts::Doubts;

/// How long the keystore's word is good without a notice.
const TRUST: Duration = Duration::from_secs(60);
/// How long an unused key stays known well enough to be renewed without a hash.
const MEMORY: Duration = Duration::from_secs(3600);
const MOST_KEYS: u64 = 100_000;
const MOST_TRIES: u32 = 5;

type Digest = [u8; 32];

/// The keys that this gateway knows.
pub(crate) struct Keyring {
    secret: [u8; 32],
    doubts: Doubts,
    /// Connections on which notices are heard now.
    listeners: AtomicUsize,
    known: Cache<Digest, Arc<Vouched>>,
}

/// What the keystore said about a key, and when.
struct Vouched {
    identity: Arc<KeyIdentity>,
    since: Instant,
    /// The count of notices when the question was asked, not when the answer came.
    asked_at: u64,
}

/// Whether a key is known here.
pub(crate) enum Known {
    /// The keystore vouched for it, now or a moment ago.
    Yes(Arc<KeyIdentity>),
    /// It was known, but no longer lives.
    Gone,
    /// Never seen: it takes a hash to tell.
    No,
}

/// The keystore could not tell: never a reason to let somebody in, nor to call a key bad.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum KeystoreError {
    #[error("the keystore does not answer")]
    Ask(#[from] stage0_backplane::AskError),
    #[error("the keystore failed")]
    Failed,
    #[error("the keystore has too many hashes to compute")]
    Busy,
    #[error("keys of the account change faster than they can be verified")]
    Unsettled,
}

impl Keyring {
    /// An empty keyring; `secret` must be random and this process's own.
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        let known = Cache::builder().max_capacity(MOST_KEYS).time_to_idle(MEMORY).build();
        Self { secret, doubts: Doubts::default(), listeners: AtomicUsize::new(0), known }
    }

    /// A key of this account changed, or the account itself: none of its keys is trusted without asking again.
    pub(crate) fn doubt(&self, account: &AccountId) {
        self.doubts.account(account);
    }

    /// Hears about changed keys on one connection until it is closed. While no connection listens, every request asks.
    pub(crate) async fn listen(&self, backplane: &Backplane) -> Result<(), ServeError> {
        let mut changes = backplane.notices.listen::<KeyChanged>().await?;
        // What was asked for before this connection heard may have changed unheard.
        self.doubts.everything();
        self.listeners.fetch_add(1, Ordering::SeqCst);
        while let Some(event) = changes.next().await {
            match event {
                Event::Heard(KeyChanged { key_id, account }) => {
                    tracing::info!(%key_id, %account, "key changed");
                    self.doubts.account(&account);
                }
                Event::Gap => {
                    tracing::warn!("notices may have been missed, every key is asked for anew");
                    self.doubts.everything();
                }
            }
        }
        self.listeners.fetch_sub(1, Ordering::SeqCst);
        self.doubts.everything();
        Ok(())
    }

    /// Looks a key up; asks the keystore, without a hash, when what is known is old or in doubt.
    pub(crate) async fn look_up(
        &self,
        key: &ApiKey,
        keystore: &dyn Requests,
        deadline: tokio::time::Instant,
        request_id: Option<RequestId>,
    ) -> Result<Known, KeystoreError> {
        let digest = self.digest(key);
        let Some(vouched) = self.known.get(&digest).await else {
            key_looked_up(KeyCache::Miss);
            return Ok(Known::No);
        };
        if self.trusts(&vouched) {
            key_looked_up(KeyCache::Hit);
            return Ok(self.judge(&vouched));
        }
        // One renewal at a time for each key; those who wait find it done.
        let result = self
            .known
            .entry(digest)
            .and_try_compute_with(async |entry| match entry.map(moka::Entry::into_value) {
                None => Ok(Op::Nop),
                Some(vouched) if self.trusts(&vouched) => Ok(Op::Nop),
                Some(_) => self.renew(key, keystore, deadline, request_id).await,
            })
            .await?;
        key_looked_up(KeyCache::Refreshed);
        Ok(match result {
            CompResult::Unchanged(entry) | CompResult::ReplacedWith(entry) | CompResult::Inserted(entry) => {
                self.judge(entry.value())
            }
            CompResult::Removed(_) => Known::Gone,
            CompResult::StillNone(_) => Known::No,
        })
    }

    async fn renew(
        &self,
        key: &ApiKey,
        keystore: &dyn Requests,
        deadline: tokio::time::Instant,
        request_id: Option<RequestId>,
    ) -> Result<Op<Arc<Vouched>>, KeystoreError> {
        for _ in 0..MOST_TRIES {
            let (asked_at, since) = (self.doubts.count(), Instant::now());
            let question = RefreshKey { key_id: key.id().clone(), request_id };
            let identity = match keystore.ask_until(&question, deadline).await? {
                RefreshKeyReply::Live(identity) => identity,
                RefreshKeyReply::Gone => return Ok(Op::Remove),
                RefreshKeyReply::Failed => return Err(KeystoreError::Failed),
            };
            if self.doubts.stands(&identity.account, asked_at) {
                return Ok(Op::Put(Arc::new(Vouched { identity: Arc::new(identity), since, asked_at })));
            }
        }
        Err(KeystoreError::Unsettled)
    }

    /// Has an unknown key verified, at the price of a hash. `None`: it is not valid.
    pub(crate) async fn verify(
        &self,
        key: &ApiKey,
        keystore: &dyn Requests,
        deadline: tokio::time::Instant,
        request_id: Option<RequestId>,
    ) -> Result<Option<Arc<KeyIdentity>>, KeystoreError> {
        let verified = self.known.try_get_with(self.digest(key), async {
            let (asked_at, since) = (self.doubts.count(), Instant::now());
            match keystore.ask_until(&VerifyKey { key: key.clone(), request_id }, deadline).await {
                Ok(VerifyKeyReply::Valid(identity)) => {
                    Ok(Arc::new(Vouched { identity: Arc::new(identity), since, asked_at }))
                }
                Ok(VerifyKeyReply::Invalid) => Err(None),
                Ok(VerifyKeyReply::Busy) => Err(Some(KeystoreError::Busy)),
                Ok(VerifyKeyReply::Failed) => Err(Some(KeystoreError::Failed)),
                Err(error) => Err(Some(error.into())),
            }
        });
        match verified.await {
            Ok(vouched) if self.trusts(&vouched) => Ok(self.alive(&vouched)),
            // A notice arrived while the hash was computed: ask once more what holds now.
            Ok(_) => match self.look_up(key, keystore, deadline, request_id).await? {
                Known::Yes(identity) => Ok(Some(identity)),
                Known::Gone | Known::No => Ok(None),
            },
            Err(error) => match Option::clone(&error) {
                None => Ok(None),
                Some(error) => Err(error),
            },
        }
    }

    fn trusts(&self, vouched: &Vouched) -> bool {
        self.listeners.load(Ordering::SeqCst) > 0
            && vouched.since.elapsed() < TRUST
            && self.doubts.stands(&vouched.identity.account, vouched.asked_at)
    }

    fn judge(&self, vouched: &Vouched) -> Known {
        self.alive(vouched).map_or(Known::Gone, Known::Yes)
    }

    fn alive(&self, vouched: &Vouched) -> Option<Arc<KeyIdentity>> {
        let expired = vouched.identity.expires_at.is_some_and(|end| end <= Timestamp::now());
        (!expired).then(|| Arc::clone(&vouched.identity))
    }

    fn digest(&self, key: &ApiKey) -> Digest {
        // A 32-byte key always fits HMAC-SHA256; the fallback keeps the types honest without a panic.
        Hmac::<Sha256>::new_from_slice(&self.secret).map_or([0; 32], |mut mac| {
            mac.update(key.expose().as_bytes());
            mac.finalize().into_bytes().into()
        })
    }
}

#[cfg(test)]
mod tests;
