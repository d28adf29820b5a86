//! Keys that the keystore has vouched for, remembered for a moment so that a check costs no hash.
//!
//! Owns the cache and its doubts. A key is known by a digest keyed with a secret of this process; its text is never
//! kept. What the keystore said holds for [`TRUST_TTL`], until the first notice that a key of its account changed, and
//! only while notices are proven to arrive; otherwise one cheap question renews it.
//! INVARIANT: an answer that was asked for before a notice about its account arrived, or before a gap in which one may
//! have been missed, is never trusted after it (see `Vouched::asked_at`); nothing is released on what was known
//! [`MAX_PROOF_AGE`] ago; and no account's notices cost another account its trust. No hash is asked for while the logins
//! of whoever would cause it are blocked, and each that fails counts once, however many wait for it.

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

use crate::metrics::{KeyCache, key_looked_up};
use crate::throttle::{Blocked, Logins};

mod doubts;
mod watch;

use doubts::Doubts;

/// How long the keystore's word is good without a notice.
const TRUST_TTL: Duration = Duration::from_secs(60);
/// How old the proof may be that notices arrive, and how old an answer of the keystore may be without one, counted from
/// when it was asked for.
const MAX_PROOF_AGE: Duration = Duration::from_millis(500);
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
    /// When one of them last proved that they arrive.
    liveness: Arc<Liveness>,
    known: Cache<Digest, Arc<Vouched>>,
}

/// What the keystore said about a key, and when. All times are boottime.
struct Vouched {
    identity: Arc<KeyIdentity>,
    /// When the question was asked: the answer may have waited here while the process was stopped.
    since: Duration,
    /// The count of notices when the question was asked, not when the answer came.
    asked_at: u64,
    /// When the hour began, in seconds since the epoch, in which it was last used.
    used_in: AtomicI64,
}

impl Vouched {
    fn new(identity: KeyIdentity, since: Duration, asked_at: u64) -> Self {
        Self { identity: Arc::new(identity), since, asked_at, used_in: AtomicI64::new(i64::MIN) }
    }
}

/// A caller whose key is good, and how this is known: it is looked at again before anything is released.
#[derive(Clone)]
pub(crate) struct Believed {
    digest: Digest,
    vouched: Arc<Vouched>,
}

/// Whether a key is known here.
pub(crate) enum Known {
    /// The keystore vouched for it, now or a moment ago.
    Yes(Believed),
    /// It was known, but no longer lives.
    Gone,
    /// Never seen: it takes a hash to tell.
    No,
}

/// Within what the keystore is asked, and for which request.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) keystore: &'a dyn Requests,
    pub(crate) deadline: tokio::time::Instant,
    /// For the logs of both.
    pub(crate) request_id: Option<RequestId>,
}

/// What a key is that the cache does not have.
#[derive(Clone, Copy)]
enum WhenForgotten {
    /// One that takes a hash.
    Unknown,
    /// One that was verified in this process: its id is enough.
    Ask,
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
    #[error("keys of the account change, or its answers grow old, faster than they can be verified")]
    Unsettled,
    #[error("what the key may do was changed meanwhile")]
    Changed,
}

/// What became of an unknown key.
pub(crate) enum Verified {
    /// It is valid.
    Yes(Believed),
    /// It is not, or no longer.
    No,
    /// Too many logins failed before: nobody was asked.
    Blocked(Blocked),
}

/// Why a hash vouches for nobody; all who wait for it hear the same.
#[derive(Clone)]
enum Unverified {
    Invalid,
    Blocked(Blocked),
    Keystore(KeystoreError),
}

impl Believed {
    pub(crate) fn identity(&self) -> &Arc<KeyIdentity> {
        &self.vouched.identity
    }

    /// Whether the key is used for the first time in this hour since the keystore was last asked about it.
    pub(crate) fn is_first_use_in_hour(&self, now: Timestamp) -> bool {
        let hour = NoteKeyUses::hour_of(now).as_second();
        self.vouched.used_in.swap(hour, Ordering::Relaxed) != hour
    }
}

impl Keyring {
    /// An empty keyring; `secret` must be random and this process's own.
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        let known = Cache::builder().max_capacity(MOST_KEYS).time_to_idle(MEMORY).build();
        let (doubts, liveness) = (Doubts::default(), Liveness::new());
        Self { secret, doubts, listeners: AtomicUsize::new(0), liveness, known }
    }

    /// A key of this account changed, or the account itself: none of its keys is trusted without asking again.
    pub(crate) fn doubt(&self, account: &AccountId) {
        self.doubts.account(account);
    }

    /// Hears about changed keys on one connection until it is closed. While no connection listens, every request asks.
    pub(crate) async fn listen(&self, backplane: &Backplane) -> Result<(), ServeError> {
        let mut changes = backplane.notices.listen::<KeyChanged>().await?.proving(&self.liveness);
        // What was asked for before this connection heard may have changed unheard.
        self.doubts.everything();
        self.listeners.fetch_add(1, Ordering::SeqCst);
        let _listens = Listens(self);
        while let Some(event) = changes.next().await {
            match event {
                Event::Heard(KeyChanged::Any {}) => {
                    tracing::info!("a keystore begins to serve, every key is asked for anew");
                    self.doubts.everything();
                }
                Event::Heard(KeyChanged::One { key_id, account }) => {
                    tracing::info!(%key_id, %account, "key changed");
                    self.doubts.account(&account);
                }
                Event::Gap => {
                    tracing::warn!("notices may have been missed, every key is asked for anew");
                    self.doubts.everything();
                }
            }
        }
        Ok(())
    }

    /// Looks a key up; asks the keystore, without a hash, when what is known is old, in doubt, or not proven to be
    /// current.
    pub(crate) async fn look_up(&self, key: &ApiKey, asking: Asking<'_>) -> Result<Known, KeystoreError> {
        let (digest, now) = (self.digest(key), boottime());
        let Some(vouched) = self.known.get(&digest).await else {
            key_looked_up(KeyCache::Miss);
            return Ok(Known::No);
        };
        if self.trusts(&vouched, now) {
            key_looked_up(KeyCache::Hit);
            return Ok(judge(digest, &vouched));
        }
        let found = self.renewed(digest, key.id(), now, WhenForgotten::Unknown, asking).await?;
        key_looked_up(KeyCache::Refreshed);
        Ok(found)
    }

    /// Whether what is known of a caller still holds at this moment. Costs no question.
    pub(crate) fn stands(&self, believed: &Believed) -> bool {
        self.holds(&believed.vouched, boottime())
    }

    /// The same caller, believed at this moment: at no cost where what is known still holds. `None`: its key no longer
    /// lives.
    pub(crate) async fn confirm(
        &self,
        believed: &Believed,
        asking: Asking<'_>,
    ) -> Result<Option<Believed>, KeystoreError> {
        let now = boottime();
        if self.holds(&believed.vouched, now) {
            return Ok(alive(&believed.vouched).then(|| believed.clone()));
        }
        let Believed { digest, vouched: before } = believed;
        let found = self.renewed(*digest, &before.identity.key_id, now, WhenForgotten::Ask, asking).await?;
        key_looked_up(KeyCache::Refreshed);
        match found {
            // Whether it may do this was judged by what it could do before.
            Known::Yes(now) if now.identity().scopes != before.identity.scopes => Err(KeystoreError::Changed),
            Known::Yes(now) => Ok(Some(now)),
            Known::Gone | Known::No => Ok(None),
        }
    }

    /// What holds of a key that was verified here before, for one who asks since `arrived`.
    async fn renewed(
        &self,
        digest: Digest,
        key_id: &KeyId,
        arrived: Duration,
        when_forgotten: WhenForgotten,
        asking: Asking<'_>,
    ) -> Result<Known, KeystoreError> {
        // One renewal at a time for each key; those who wait find it done.
        let result = self
            .known
            .entry(digest)
            .and_try_compute_with(async |entry| {
                let Some(vouched) = entry.map(moka::Entry::into_value) else {
                    return match when_forgotten {
                        WhenForgotten::Unknown => Ok(Op::Nop),
                        // It may be forgotten because somebody else was told that it is gone.
                        WhenForgotten::Ask => self.renew(key_id, asking).await,
                    };
                };
                let now = boottime();
                let asked_since = vouched.since >= arrived && self.holds(&vouched, now);
                if self.trusts(&vouched, now) || asked_since {
                    return Ok(Op::Nop);
                }
                tokio::select! {
                    biased;
                    renewed = self.renew(key_id, asking) => renewed,
                    // A moment of lateness, as on a busy machine, needs no keystore.
                    () = self.liveness.wait_until(|| self.trusts(&vouched, boottime())) => Ok(Op::Nop),
                }
            })
            .await?;
        Ok(match result {
            CompResult::Unchanged(entry) | CompResult::ReplacedWith(entry) | CompResult::Inserted(entry) => {
                judge(digest, entry.value())
            }
            CompResult::Removed(_) => Known::Gone,
            CompResult::StillNone(_) => Known::No,
        })
    }

    async fn renew(&self, key_id: &KeyId, asking: Asking<'_>) -> Result<Op<Arc<Vouched>>, KeystoreError> {
        let Asking { keystore, deadline, request_id } = asking;
        for _ in 0..MOST_TRIES {
            let (asked_at, since) = (self.doubts.count(), boottime());
            let question = RefreshKey { key_id: key_id.clone(), request_id };
            let identity = match keystore.ask_until(&question, deadline).await? {
                RefreshKeyReply::Live(identity) => identity,
                RefreshKeyReply::Gone => return Ok(Op::Remove),
                RefreshKeyReply::Failed => return Err(KeystoreError::Failed),
            };
            let vouched = Vouched::new(identity, since, asked_at);
            if self.holds(&vouched, boottime()) {
                return Ok(Op::Put(Arc::new(vouched)));
            }
        }
        Err(KeystoreError::Unsettled)
    }

    /// Has an unknown key verified, at the price of a hash. All who show the same key meanwhile wait for that hash:
    /// `logins` judges the one who would have it computed, and counts its failure, once.
    pub(crate) async fn verify(
        &self,
        key: &ApiKey,
        asking: Asking<'_>,
        logins: Logins<'_>,
    ) -> Result<Verified, KeystoreError> {
        let (digest, arrived) = (self.digest(key), boottime());
        for _ in 0..MOST_TRIES {
            let led = AtomicBool::new(false);
            let verified = self.known.try_get_with(digest, async {
                led.store(true, Ordering::Relaxed);
                if let Some(blocked) = logins.blocked() {
                    return Err(Unverified::Blocked(blocked));
                }
                self.hashed(key, asking).await.inspect_err(|error| {
                    if matches!(error, Unverified::Invalid) {
                        logins.failed();
                    }
                })
            });
            let vouched = match verified.await {
                Ok(vouched) => vouched,
                Err(error) => match (*error).clone() {
                    Unverified::Invalid => return Ok(Verified::No),
                    Unverified::Keystore(error) => return Err(error),
                    Unverified::Blocked(blocked) if led.load(Ordering::Relaxed) => {
                        return Ok(Verified::Blocked(blocked));
                    }
                    // Somebody else was held back, perhaps for an address that is not this one.
                    Unverified::Blocked(_) => continue,
                },
            };
            let now = boottime();
            if self.trusts(&vouched, now) || (vouched.since >= arrived && self.holds(&vouched, now)) {
                return Ok(verified_if(alive(&vouched).then_some(Believed { digest, vouched }), logins));
            }
            // A notice arrived while the hash was computed, or it took long: ask once more what holds now.
            let believed = match self.look_up(key, asking).await? {
                Known::Yes(believed) => Some(believed),
                Known::Gone | Known::No => None,
            };
            return Ok(verified_if(believed, logins));
        }
        Err(KeystoreError::Unsettled)
    }

    async fn hashed(&self, key: &ApiKey, asking: Asking<'_>) -> Result<Arc<Vouched>, Unverified> {
        let Asking { keystore, deadline, request_id } = asking;
        let (asked_at, since) = (self.doubts.count(), boottime());
        match keystore.ask_until(&VerifyKey { key: key.clone(), request_id }, deadline).await {
            Ok(VerifyKeyReply::Valid(identity)) => Ok(Arc::new(Vouched::new(identity, since, asked_at))),
            Ok(VerifyKeyReply::Invalid) => Err(Unverified::Invalid),
            Ok(VerifyKeyReply::Busy) => Err(Unverified::Keystore(KeystoreError::Busy)),
            Ok(VerifyKeyReply::Failed) => Err(Unverified::Keystore(KeystoreError::Failed)),
            Err(error) => Err(Unverified::Keystore(error.into())),
        }
    }

    /// Whether what the keystore said before is as good as asking now.
    fn trusts(&self, vouched: &Vouched, now: Duration) -> bool {
        self.listeners.load(Ordering::SeqCst) > 0
            && self.liveness.age(now).is_some_and(|age| age < MAX_PROOF_AGE)
            && now.saturating_sub(vouched.since) < TRUST_TTL
            && self.doubts.stands(&vouched.identity.account, vouched.asked_at)
    }

    /// Whether one who was told so may go on: it is trusted, or was asked for a moment ago.
    fn holds(&self, vouched: &Vouched, now: Duration) -> bool {
        let is_recent = now.saturating_sub(vouched.since) < MAX_PROOF_AGE
            && self.doubts.stands(&vouched.identity.account, vouched.asked_at);
        is_recent || self.trusts(vouched, now)
    }

    fn digest(&self, key: &ApiKey) -> Digest {
        // A 32-byte key always fits HMAC-SHA256; the fallback keeps the types honest without a panic.
        Hmac::<Sha256>::new_from_slice(&self.secret).map_or([0; 32], |mut mac| {
            mac.update(key.expose().as_bytes());
            mac.finalize().into_bytes().into()
        })
    }
}

/// One connection that hears notices, until it is dropped.
struct Listens<'a>(&'a Keyring);

impl Drop for Listens<'_> {
    fn drop(&mut self) {
        self.0.listeners.fetch_sub(1, Ordering::SeqCst);
        self.0.doubts.everything();
    }
}

fn judge(digest: Digest, vouched: &Arc<Vouched>) -> Known {
    if alive(vouched) { Known::Yes(Believed { digest, vouched: Arc::clone(vouched) }) } else { Known::Gone }
}

fn verified_if(believed: Option<Believed>, logins: Logins<'_>) -> Verified {
    believed.map_or_else(
        || {
            logins.failed();
            Verified::No
        },
        Verified::Yes,
    )
}

fn alive(vouched: &Vouched) -> bool {
    vouched.identity.expires_at.is_none_or(|end| end > Timestamp::now())
}

#[cfg(test)]
mod tests;
