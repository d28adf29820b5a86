//! The key that signs marks (contract, `chain`).
//!
//! Owns the Ed25519 key, from settings or `signing.key`, and the public keys that the store lists: the one that signs is put there before
//! it signs anything. Another file and a restart are a rotation; public keys stay, so that old marks can always be verified. A lost key is
//! no reason to refuse the start: a new one signs what comes, and what was signed stays provable. What a mark says is judged
//! before it comes here (`manage`, `marks`).

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jiff::Timestamp;
use stage0_contract::{Mark, PublicKey, PublicKeys, SigningKeyId, Unsigned};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::config::KeystoreConfig;
use crate::keyfile::{self, KeyBytes, KeyFileError};
use crate::manage::random;
use crate::record::Record;
use crate::store::{Store, StoreError};
use crate::vault::{CommitError, Vault};

/// Where the signing key's seed is kept when none is given, in the data directory.
pub const SIGNING_KEY_FILE: &str = "signing.key";

/// Marks that wait for the writer at a time: an exporter that asks without end keeps no new key waiting.
const MAX_MARKS_IN_HAND: usize = 8;

/// Signs.
#[derive(Debug)]
pub(crate) struct Signer {
    pair: Ed25519KeyPair,
    id: SigningKeyId,
    turns: Semaphore,
}

/// A mark was not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    #[error("the signing key cannot be used")]
    Key,
    #[error("the mark cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the mark cannot be signed")]
    Failed,
}

/// The signing key cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignerError {
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the public signing keys cannot be read")]
    Store(#[from] StoreError),
    #[error("the public signing key cannot be stored")]
    Commit(#[from] CommitError),
    #[error("there is no randomness for a signing key")]
    Random(#[from] getrandom::Error),
}

impl Signer {
    /// Of a seed, with its public key.
    fn new(seed: &KeyBytes, now: Timestamp) -> Result<(Self, PublicKey), SignError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose()).map_err(|_| SignError::Key)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| SignError::Key)?;
        let public = PublicKey::new(public, now);
        Ok((Self { pair, id: public.id.clone(), turns: Semaphore::new(MAX_MARKS_IN_HAND) }, public))
    }

    /// Waits for a place among the marks that wait for the writer; none where there was none in time.
    pub(crate) async fn turn(&self, until: Instant) -> Option<SemaphorePermit<'_>> {
        timeout_at(until, self.turns.acquire()).await.ok()?.ok()
    }

    /// What is signed of a mark.
    pub(crate) fn unsigned(&self, mark: &Mark) -> Result<Unsigned, SignError> {
        Ok(Unsigned::new(mark, &self.id)?)
    }

    /// The mark as a line of the log.
    pub(crate) fn sign(&self, mark: &Mark) -> Result<String, SignError> {
        let unsigned = self.unsigned(mark)?;
        let signature = self.pair.try_sign(unsigned.bytes()).map_err(|_| SignError::Failed)?;
        let signature = signature.as_ref().try_into().map_err(|_| SignError::Failed)?;
        String::from_utf8(unsigned.signed(signature)).map_err(|_| SignError::Failed)
    }
}

/// The signer of a data directory, once its public key is in the store.
pub(crate) fn signer(config: &KeystoreConfig, vault: &mut Vault, now: Timestamp) -> Result<Signer, SignerError> {
    let known = vault.store().signing_keys()?;
    let (signer, public) = Signer::new(&seed(config, !known.is_empty())?, now)?;
    if !known.iter().any(|key| key.id == public.id) {
        vault.commit(&[Record::SigningKey(public)])?;
        tracing::info!(signing_key = %signer.id, "marks are signed with a key that is new here");
    }
    Ok(signer)
}

fn seed(config: &KeystoreConfig, signed_before: bool) -> Result<KeyBytes, SignerError> {
    if let Some(file) = &config.signing_key_file {
        return Ok(keyfile::read(file)?.ok_or_else(|| KeyFileError::Missing(file.clone()))?);
    }
    if let Some(seed) = keyfile::read(&config.data_dir.join(SIGNING_KEY_FILE))? {
        return Ok(seed);
    }
    if signed_before {
        tracing::warn!(file = SIGNING_KEY_FILE, "signing key is missing; a new one is made, old marks stay verifiable");
    }
    let seed = KeyBytes::new(random()?);
    keyfile::write(&config.data_dir, SIGNING_KEY_FILE, &seed)?;
    Ok(seed)
}

/// Every key that signs or signed marks, the newest first.
pub(crate) fn public_keys(store: &Store) -> Result<PublicKeys, StoreError> {
    let mut items = store.signing_keys()?;
    items.sort_by_key(|key| std::cmp::Reverse(key.created_at));
    Ok(PublicKeys { items, last_mark: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Lineage;
    use crate::record::tests::{account, at};
    use data_encoding::HEXLOWER;
    use stage0_contract::MarkBody;

    fn vault(dir: &std::path::Path) -> Vault {
        Vault::open(dir, Lineage::from_random([1; 16]), at(1)).unwrap()
    }

    fn mark(number: u64) -> Mark {
        Mark {
            body: MarkBody::Checkpoint {},
            account: account("a").id,
            number,
            previous: None,
            recorded_at: at(5),
            expires_at: 500,
            through: 12,
            covered: 3,
            heads: Vec::new(),
        }
    }

    #[tokio::test]
    async fn only_a_few_marks_wait_for_the_writer_at_a_time() {
        let (signer, _) = Signer::new(&KeyBytes::new([1; 32]), at(1)).unwrap();
        // Who may not wait gets a place that is free, and no other.
        let now = Instant::now();
        let mut turns = Vec::new();
        for _ in 0..MAX_MARKS_IN_HAND {
            turns.push(signer.turn(now).await.unwrap());
        }
        assert!(signer.turn(now).await.is_none());
        turns.pop();
        assert!(signer.turn(now).await.is_some());
    }

    #[test]
    fn a_signed_line_with_any_byte_altered_verifies_no_more() {
        let (signer, public) = Signer::new(&KeyBytes::new([1; 32]), at(1)).unwrap();
        let line = signer.sign(&mark(1)).unwrap().into_bytes();
        assert!(public.signed(&line));
        for altered in 0..line.len() {
            let mut line = line.clone();
            line[altered] ^= 1;
            assert!(!public.signed(&line), "{altered}");
        }
        let (_, other) = Signer::new(&KeyBytes::new([2; 32]), at(1)).unwrap();
        assert!(!other.signed(&line));
    }

    /// RFC 8032, section 7.1, test 1: the file holds a seed, as every other implementation takes it.
    #[test]
    fn the_file_holds_the_seed_of_rfc_8032() {
        let seed = KeyBytes::parse("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let (signer, public) = Signer::new(&seed, at(1)).unwrap();
        let expected = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(HEXLOWER.encode(signer.pair.public_key().as_ref()), expected);
        let raw: [u8; 32] = HEXLOWER.decode(expected.as_bytes()).unwrap().try_into().unwrap();
        assert_eq!(public, PublicKey::new(&raw, at(1)));
    }

    #[test]
    fn a_file_that_is_given_is_never_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("given");
        let config = KeystoreConfig { signing_key_file: Some(file.clone()), ..KeystoreConfig::new(dir.path()) };
        let refused = signer(&config, &mut vault(dir.path()), at(1));
        assert!(matches!(refused, Err(SignerError::File(KeyFileError::Missing(_)))), "{refused:?}");
        assert!(!file.exists() && !dir.path().join(SIGNING_KEY_FILE).exists());
    }

    #[test]
    fn another_file_is_a_rotation_and_old_marks_stay_verifiable() {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut vault) = (KeystoreConfig::new(dir.path()), vault(dir.path()));
        let first = signer(&config, &mut vault, at(1)).unwrap();
        let old = first.sign(&mark(1)).unwrap();
        keyfile::write(dir.path(), SIGNING_KEY_FILE, &KeyBytes::new([2; 32])).unwrap();
        let second = signer(&config, &mut vault, at(2)).unwrap();
        let keys = public_keys(vault.store()).unwrap().items;
        assert_eq!(keys.iter().map(|key| &key.id).collect::<Vec<_>>(), [&second.id, &first.id]);
        assert!(keys[1].signed(old.as_bytes()) && !keys[0].signed(old.as_bytes()));
        assert!(keys[0].signed(second.sign(&mark(2)).unwrap().as_bytes()));
    }

    #[test]
    fn a_lost_key_is_replaced_and_its_public_key_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut vault) = (KeystoreConfig::new(dir.path()), vault(dir.path()));
        let old = signer(&config, &mut vault, at(1)).unwrap().sign(&mark(1)).unwrap();
        std::fs::remove_file(dir.path().join(SIGNING_KEY_FILE)).unwrap();
        signer(&config, &mut vault, at(2)).unwrap();
        let keys = public_keys(vault.store()).unwrap().items;
        assert_eq!(keys.iter().map(|key| key.signed(old.as_bytes())).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_key_that_is_known_is_not_recorded_again() {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut vault) = (KeystoreConfig::new(dir.path()), vault(dir.path()));
        signer(&config, &mut vault, at(1)).unwrap();
        signer(&config, &mut vault, at(2)).unwrap();
        let keys = public_keys(vault.store()).unwrap().items;
        assert_eq!(keys.iter().map(|key| key.created_at).collect::<Vec<_>>(), [at(1)]);
    }
}
