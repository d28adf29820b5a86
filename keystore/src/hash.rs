//! Argon2id over a key's full text.
//!
//! INVARIANT: every verification costs one hash with the same parameters, whether the key is known or not. Never called
//! on the async executor: one hash takes tens of milliseconds and 19 MiB.

use std::sync::atomic::{AtomicU64, Ordering};

use argon2::password_hash::{self, PasswordHasher, PasswordVerifier, phc::PasswordHash};
use argon2::{Algorithm, Argon2, Params, Version};
use stage0_contract::ApiKey;

use crate::errors::chain;
use crate::store::record::KeyHash;

/// About a tenth of a busy core.
#[cfg(target_os = "linux")]
const LOW_PRIORITY_NICENESS: i32 = 10;

/// What one hash costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
}

impl HashCost {
    /// OWASP's password storage cheat sheet: Argon2id with 19 MiB, two passes, one lane.
    pub const OWASP: Self = Self { memory_kib: 19_456, passes: 2 };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    #[error("the cost of a hash is out of range")]
    Cost(#[source] argon2::Error),
    #[error("a key cannot be hashed")]
    Failed(#[source] password_hash::Error),
}

#[derive(Debug)]
pub(crate) struct Hasher {
    argon2: Argon2<'static>,
    dummy: KeyHash,
    done: AtomicU64,
}

impl Hasher {
    /// `salt` is for the dummy, whose text is never a key.
    pub(crate) fn new(cost: HashCost, salt: [u8; 16]) -> Result<Self, HashError> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, None).map_err(HashError::Cost)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let dummy = phc(&argon2, b"not a key", salt)?;
        Ok(Self { argon2, dummy, done: AtomicU64::new(0) })
    }

    pub(crate) fn hash(&self, key: &ApiKey, salt: [u8; 16]) -> Result<KeyHash, HashError> {
        phc(&self.argon2, key.expose().as_bytes(), salt)
    }

    /// Whether the key's text is the one that was hashed. Without a record it does the same work and returns false.
    pub(crate) fn matches(&self, key: &ApiKey, stored: Option<&KeyHash>) -> Result<bool, HashError> {
        self.done.fetch_add(1, Ordering::Relaxed);
        let against = PasswordHash::new(&stored.unwrap_or(&self.dummy).0);
        let against = against.map_err(|error| HashError::Failed(error.into()))?;
        match self.argon2.verify_password(key.expose().as_bytes(), &against) {
            Ok(()) => Ok(stored.is_some()),
            Err(password_hash::Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(HashError::Failed(error)),
        }
    }

    #[cfg(test)]
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Lowers the priority of this thread for good: a flood of keys must leave the cores to checks with known keys.
pub(crate) fn lower_priority() {
    // On Linux the priority belongs to the thread; elsewhere it would be that of the process.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, LOW_PRIORITY_NICENESS) {
        tracing::debug!(error = %chain(&error), "hashes have the priority of everything else");
    }
}

fn phc(argon2: &Argon2<'_>, text: &[u8], salt: [u8; 16]) -> Result<KeyHash, HashError> {
    let hash = argon2.hash_password_with_salt(text, &salt).map_err(HashError::Failed)?;
    Ok(KeyHash(hash.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The least that Argon2 allows.
    pub(crate) const CHEAP: HashCost = HashCost { memory_kib: 8, passes: 1 };

    fn key(secret: u8) -> ApiKey {
        ApiKey::from_random([7; 10], [secret; 20]).unwrap()
    }

    #[test]
    fn another_key_and_a_missing_record_do_not_match_and_cost_a_hash_each() {
        let hasher = Hasher::new(CHEAP, [1; 16]).unwrap();
        let stored = hasher.hash(&key(1), [2; 16]).unwrap();
        assert_eq!(hasher.matches(&key(2), Some(&stored)), Ok(false));
        assert_eq!(hasher.matches(&key(1), None), Ok(false));
        assert_eq!(hasher.matches(&key(1), Some(&stored)), Ok(true));
        assert_eq!(hasher.done(), 3);
    }

    #[test]
    fn a_hash_that_cannot_be_read_is_a_failure_and_not_a_wrong_key() {
        let hasher = Hasher::new(CHEAP, [1; 16]).unwrap();
        for bad in ["", "$argon2id$", "$2b$12$c2FsdHNhbHQ"] {
            assert!(hasher.matches(&key(1), Some(&KeyHash(bad.to_owned()))).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_stored_hash_names_the_owasp_parameters_and_not_the_key() {
        let hasher = Hasher::new(HashCost::OWASP, [1; 16]).unwrap();
        let stored = hasher.hash(&key(1), [2; 16]).unwrap();
        assert!(stored.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", stored.0);
        assert!(hasher.dummy.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"));
        assert!(!stored.0.contains(key(1).expose()));
    }
}
