//! Who makes a management call: proven by the key as it was presented, not by what a gateway says of it.
//!
//! Owns the memory of keys that were proven, so that a caller's next call costs no hash, and the bound on proofs that
//! wait for one: calls in any number leave the hashes to those who verify keys for checks. A caller without a proof, or
//! with a wrong one, holds no scope from here on; what a proven one may do is judged by `rules`, by its record.
//! INVARIANT: a key is remembered only once its hash matched; nothing but an equal key passes for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use stage0_contract::{
    ApiKey, Caller, CreateAccount, CreateKey, CreateWebhook, DeleteWebhook, EnableWebhook, GetWebhook, KeyId,
    ListAccounts, ListKeys, ListWebhooks, PermitDeletion, RevokeKey, RotateKey, RotateWebhookSecret, Scopes,
    UpdateAccount, UpdateWebhook, VerifyKey, VerifyKeyReply,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::manage::Undone;
use crate::metrics;
use crate::verify::Verifier;
use crate::writer::{Lane, NoAnswer};

/// Proofs that cost a hash, at the same time: a part of what may wait for one.
const MAX_PROOFS: usize = 4;
/// Keys that are remembered. Beyond that all are forgotten, and each costs one hash once more.
const MAX_PROVEN: usize = 10_000;
/// How often the log says that calls came without a proof.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// A question that says who makes it.
pub(crate) trait Called {
    /// Whether its proof waits for its turn, as its change does, or is told to come again.
    const LANE: Lane;

    fn caller_mut(&mut self) -> &mut Caller;
}

macro_rules! called {
    ($lane:expr; $($message:ty),* $(,)?) => {
        $(impl Called for $message {
            const LANE: Lane = $lane;

            fn caller_mut(&mut self) -> &mut Caller {
                &mut self.caller
            }
        })*
    };
}

called!(Lane::Urgent; UpdateAccount, RevokeKey, DeleteWebhook);
called!(
    Lane::Ordinary;
    CreateAccount,
    ListAccounts,
    CreateKey,
    ListKeys,
    RotateKey,
    CreateWebhook,
    ListWebhooks,
    GetWebhook,
    UpdateWebhook,
    EnableWebhook,
    RotateWebhookSecret,
    PermitDeletion,
);

/// Proves callers.
pub(crate) struct Callers {
    verifier: Arc<Verifier>,
    /// One permit for each proof that waits for its hash.
    ordinary: Semaphore,
    /// Those of calls that take rights away: no number of others keeps them waiting.
    urgent: Semaphore,
    complained: Mutex<Option<Instant>>,
}

/// Keys whose hash matched, by a digest that is worth nothing outside this process.
pub(crate) struct ProvenKeys {
    secret: hmac::Key,
    digests: Mutex<HashMap<KeyId, hmac::Tag>>,
}

impl Callers {
    pub(crate) fn new(verifier: Arc<Verifier>) -> Self {
        let (ordinary, urgent) = (Semaphore::new(MAX_PROOFS), Semaphore::new(MAX_PROOFS));
        Self { verifier, ordinary, urgent, complained: Mutex::default() }
    }

    /// Takes the key out of the call: it is needed no further. A caller who did not prove itself is left without a
    /// scope, as one whose key ended.
    pub(crate) async fn prove<M: Called>(&self, call: &mut M, until: Instant) -> Result<(), Undone> {
        let caller = call.caller_mut();
        let Some(key) = caller.key.take() else {
            self.complain();
            return Err(Undone::Unproven);
        };
        if *key.id() != caller.key_id || !self.is_genuine(&key, M::LANE, until).await? {
            metrics::unproven();
            tracing::debug!(key_id = %caller.key_id, "a management call does not prove its caller");
            caller.scopes = Scopes::new();
        }
        Ok(())
    }

    async fn is_genuine(&self, key: &ApiKey, lane: Lane, until: Instant) -> Result<bool, Undone> {
        if self.verifier.proven().holds(key) {
            return Ok(true);
        }
        let busy = || Undone::NoAnswer(NoAnswer::Full);
        let _waiting = match lane {
            Lane::Ordinary => self.ordinary.try_acquire().map_err(|_| busy())?,
            Lane::Urgent => match timeout_at(until, self.urgent.acquire()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) | Err(_) => return Err(busy()),
            },
        };
        match self.verifier.verify(VerifyKey { key: key.clone(), request_id: None }).await {
            VerifyKeyReply::Valid(_) => Ok(true),
            VerifyKeyReply::Invalid => Ok(false),
            VerifyKeyReply::Busy => Err(busy()),
            VerifyKeyReply::Failed => Err(Undone::Unjudged),
        }
    }

    /// Not once for each call: whoever floods must not fill the log.
    fn complain(&self) {
        metrics::unproven();
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
            *complained = Some(Instant::now());
            tracing::warn!("a management call without its caller's key was refused: a gateway of an older version?");
        }
    }
}

impl ProvenKeys {
    /// `secret`: random, of this process.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self { secret: hmac::Key::new(hmac::HMAC_SHA256, secret), digests: Mutex::default() }
    }

    pub(crate) fn holds(&self, key: &ApiKey) -> bool {
        let digests = self.digests();
        let Some(tag) = digests.get(key.id()) else { return false };
        hmac::verify(&self.secret, key.expose().as_bytes(), tag.as_ref()).is_ok()
    }

    /// Its hash matched.
    pub(crate) fn remember(&self, key: &ApiKey) {
        let tag = hmac::sign(&self.secret, key.expose().as_bytes());
        let mut digests = self.digests();
        if digests.len() >= MAX_PROVEN {
            digests.clear();
        }
        digests.insert(key.id().clone(), tag);
    }

    fn digests(&self) -> MutexGuard<'_, HashMap<KeyId, hmac::Tag>> {
        // Each use is one step on the map: a panic elsewhere cannot leave it half done.
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_remembered_whole_and_another_one_with_its_id_is_not_taken_for_it() {
        let proven = ProvenKeys::new(&[7; 32]);
        let (key, other) =
            (ApiKey::from_random([1; 10], [2; 20]).unwrap(), ApiKey::from_random([1; 10], [3; 20]).unwrap());
        assert_eq!(key.id(), other.id());
        assert!(!proven.holds(&key));
        proven.remember(&key);
        assert!(proven.holds(&key) && !proven.holds(&other));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let proven = ProvenKeys::new(&[7; 32]);
        let key = |number: usize| {
            let mut id = [0; 10];
            id[..8].copy_from_slice(&number.to_be_bytes());
            ApiKey::from_random(id, [2; 20]).unwrap()
        };
        for number in 0..=MAX_PROVEN {
            proven.remember(&key(number));
        }
        assert!(proven.holds(&key(MAX_PROVEN)) && !proven.holds(&key(0)));
        assert_eq!(proven.digests().len(), 1);
    }
}
