//! Who makes a management call: proven by the key that the caller presented, not by what a gateway says.
//!
//! A caller without a valid proof has no scope from here on. Keys that were proven are remembered, so that a caller's
//! next call needs no hash. Proofs that wait for a hash are bounded, so that the pool stays free for checks.
//! INVARIANT: a key is remembered only after its hash matched, and only an equal key matches it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::hmac;
use stage0_contract::{
    ActivatePolicy, ApiKey, Caller, CreateAccount, CreateKey, CreateStop, CreateWebhook, DecideProposal,
    DelegateMember, DeleteWebhook, EnableWebhook, ForgetPolicy, GetWebhook, InviteMember, KeyId, ListAccounts,
    ListKeys, ListMembers, ListPolicies, ListProposals, ListStops, ListWebhooks, PermitDeletion, ReadActivePolicies,
    ReadPolicyHistory, ReinviteMember, RemoveMember, ResumeStop, RevokeKey, RollbackPolicy, RotateKey,
    RotateWebhookSecret, Scopes, ShadowPolicy, ShowPolicy, ShowProposal, StorePolicy, UpdateAccount, UpdateMember,
    UpdateWebhook, VerifyKey, VerifyKeyReply, WithdrawCandidate,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::admin::ManageError;
use crate::admin::writer::{Lane, WriterError};
use crate::errors::lock;
use crate::metrics;
use crate::server::verify::Verifier;

/// Proofs in flight that need a hash, in each lane: a part of the hashing queue.
const MAX_PROOFS: usize = 4;
/// Keys that are remembered. Beyond that all are forgotten, and each needs one more hash.
const MAX_PROVEN: usize = 10_000;
/// At most one warning about calls without a proof in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

pub(crate) trait HasCaller {
    /// The lane of its change: an urgent proof waits while too many are in flight, an ordinary one is refused.
    const LANE: Lane;

    fn caller_mut(&mut self) -> &mut Caller;
}

macro_rules! has_caller {
    ($lane:expr; $($message:ty),* $(,)?) => {
        $(impl HasCaller for $message {
            const LANE: Lane = $lane;

            fn caller_mut(&mut self) -> &mut Caller {
                &mut self.caller
            }
        })*
    };
}

has_caller!(
    Lane::Urgent;
    UpdateAccount,
    RevokeKey,
    DeleteWebhook,
    RemoveMember,
    CreateStop,
    ResumeStop,
    ActivatePolicy,
    RollbackPolicy,
    ForgetPolicy,
    DecideProposal,
    ShadowPolicy,
    WithdrawCandidate,
);
has_caller!(
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
    InviteMember,
    ReinviteMember,
    ListMembers,
    UpdateMember,
    DelegateMember,
    ListStops,
    StorePolicy,
    ListPolicies,
    ShowPolicy,
    ReadActivePolicies,
    ReadPolicyHistory,
    ListProposals,
    ShowProposal,
);

pub(crate) struct Callers {
    verifier: Arc<Verifier>,
    ordinary: Semaphore,
    /// Separate permits for calls that take rights away, so that no other calls delay them.
    urgent: Semaphore,
    last_warning: Mutex<Option<Instant>>,
}

/// Keys whose hash matched, as digests that are worthless outside of this process.
pub(crate) struct ProvenKeys {
    secret: hmac::Key,
    digests: Mutex<HashMap<KeyId, hmac::Tag>>,
}

impl Callers {
    pub(crate) fn new(verifier: Arc<Verifier>) -> Self {
        let (ordinary, urgent) = (Semaphore::new(MAX_PROOFS), Semaphore::new(MAX_PROOFS));
        Self { verifier, ordinary, urgent, last_warning: Mutex::default() }
    }

    /// Takes the key out of the call. A caller with a wrong key keeps no scope, as if its key had expired.
    pub(crate) async fn prove<M: HasCaller>(&self, call: &mut M, deadline: Instant) -> Result<(), ManageError> {
        let caller = call.caller_mut();
        let Some(key) = caller.key.take() else {
            self.warn_unproven();
            return Err(ManageError::CallerUnproven);
        };
        if *key.id() != caller.key_id || !self.is_genuine(&key, M::LANE, deadline).await? {
            metrics::unproven();
            tracing::debug!(key_id = %caller.key_id, "a management call does not prove its caller");
            caller.scopes = Scopes::new();
        }
        Ok(())
    }

    async fn is_genuine(&self, key: &ApiKey, lane: Lane, deadline: Instant) -> Result<bool, ManageError> {
        if self.verifier.proven().contains(key) {
            return Ok(true);
        }
        let busy = || ManageError::Writer(WriterError::QueueFull);
        let _waiting = match lane {
            Lane::Ordinary => self.ordinary.try_acquire().map_err(|_| busy())?,
            Lane::Urgent => match timeout_at(deadline, self.urgent.acquire()).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_)) | Err(_) => return Err(busy()),
            },
        };
        match self.verifier.verify(VerifyKey { key: key.clone(), request_id: None }).await {
            VerifyKeyReply::Valid(_) => Ok(true),
            VerifyKeyReply::Invalid => Ok(false),
            VerifyKeyReply::Busy => Err(busy()),
            VerifyKeyReply::Failed => Err(ManageError::CallerNotVerified),
        }
    }

    /// Warns, but not for each call: a flood must not fill the log.
    fn warn_unproven(&self) {
        metrics::unproven();
        let mut last_warning = lock(&self.last_warning);
        if last_warning.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL) {
            *last_warning = Some(Instant::now());
            tracing::warn!("a management call without its caller's key was refused: a gateway of an older version?");
        }
    }
}

impl ProvenKeys {
    /// `secret` is random and known to this process only.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self { secret: hmac::Key::new(hmac::HMAC_SHA256, secret), digests: Mutex::default() }
    }

    pub(crate) fn contains(&self, key: &ApiKey) -> bool {
        let digests = lock(&self.digests);
        let Some(tag) = digests.get(key.id()) else { return false };
        hmac::verify(&self.secret, key.expose().as_bytes(), tag.as_ref()).is_ok()
    }

    pub(crate) fn remember(&self, key: &ApiKey) {
        let tag = hmac::sign(&self.secret, key.expose().as_bytes());
        let mut digests = lock(&self.digests);
        if digests.len() >= MAX_PROVEN {
            digests.clear();
        }
        digests.insert(key.id().clone(), tag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proven_key_does_not_prove_another_key_with_the_same_id() {
        let proven = ProvenKeys::new(&[7; 32]);
        let (key, other) =
            (ApiKey::from_random([1; 10], [2; 20]).unwrap(), ApiKey::from_random([1; 10], [3; 20]).unwrap());
        assert_eq!(key.id(), other.id());
        assert!(!proven.contains(&key));
        proven.remember(&key);
        assert!(proven.contains(&key) && !proven.contains(&other));
    }

    #[test]
    fn the_number_of_remembered_keys_is_bounded() {
        let proven = ProvenKeys::new(&[7; 32]);
        let key = |number: usize| {
            let mut id = [0; 10];
            id[..8].copy_from_slice(&number.to_be_bytes());
            ApiKey::from_random(id, [2; 20]).unwrap()
        };
        for number in 0..=MAX_PROVEN {
            proven.remember(&key(number));
        }
        assert!(proven.contains(&key(MAX_PROVEN)) && !proven.contains(&key(0)));
        assert_eq!(lock(&proven.digests).len(), 1);
    }
}
