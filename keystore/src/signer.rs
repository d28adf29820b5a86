//! The Ed25519 key that signs marks (contract, `chain`).
//!
//! A public key is stored before its key signs anything, and kept, so old marks can always be verified; a lost key is
//! replaced by a new one. Whether a mark may be signed is decided in `admin::marks`.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use jiff::Timestamp;
use stage0_contract::{Mark, PublicKey, PublicKeys, SigningKeyId, Unsigned};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::config::KeystoreConfig;
use crate::keyfile::{self, KeyBytes, KeyFileError, SIGNING_KEY_FILE};
use crate::sources::random;
use crate::store::record::Record;
use crate::store::record_store::{RecordStore, StoreError};
use crate::store::{CommitError, DurableStore};

/// Marks that wait for the writer at a time, so that an exporter that never stops asking does not delay new keys.
const MAX_MARKS_IN_FLIGHT: usize = 8;

#[derive(Debug)]
pub(crate) struct Signer {
    pair: Ed25519KeyPair,
    id: SigningKeyId,
    turns: Semaphore,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    #[error("the signing key cannot be used")]
    Key,
    #[error("the mark cannot be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error("the mark cannot be signed")]
    Failed,
}

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
    fn new(seed: &KeyBytes, now: Timestamp) -> Result<(Self, PublicKey), SignError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose()).map_err(|_| SignError::Key)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| SignError::Key)?;
        let public = PublicKey::new(public, now);
        Ok((Self { pair, id: public.id.clone(), turns: Semaphore::new(MAX_MARKS_IN_FLIGHT) }, public))
    }

    pub(crate) async fn turn(&self, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        timeout_at(deadline, self.turns.acquire()).await.ok()?.ok()
    }

    pub(crate) fn unsigned(&self, mark: &Mark) -> Result<Unsigned, SignError> {
        Ok(Unsigned::new(mark, &self.id)?)
    }

    pub(crate) fn sign(&self, mark: &Mark) -> Result<String, SignError> {
        let unsigned = self.unsigned(mark)?;
        let signature = self.pair.try_sign(unsigned.bytes()).map_err(|_| SignError::Failed)?;
        let signature = signature.as_ref().try_into().map_err(|_| SignError::Failed)?;
        String::from_utf8(unsigned.signed(signature)).map_err(|_| SignError::Failed)
    }
}

pub(crate) fn signer(
    config: &KeystoreConfig,
    durable: &mut DurableStore,
    now: Timestamp,
) -> Result<Signer, SignerError> {
    let known = durable.store.signing_keys()?;
    let (signer, public) = Signer::new(&seed(config, !known.is_empty())?, now)?;
    if !known.iter().any(|key| key.id == public.id) {
        durable.commit(&[Record::SigningKey(public)])?;
        tracing::info!(signing_key = %signer.id, "marks are signed with a key that is new here");
    }
    Ok(signer)
}

fn seed(config: &KeystoreConfig, signed_before: bool) -> Result<KeyBytes, SignerError> {
    let default = config.data_dir.join(SIGNING_KEY_FILE);
    if let Some(seed) = keyfile::configured(config.signing_key_file.as_deref(), &default)? {
        return Ok(seed);
    }
    if signed_before {
        tracing::warn!(file = SIGNING_KEY_FILE, "signing key is missing; a new one is made, old marks stay verifiable");
    }
    let seed = KeyBytes::new(random()?);
    keyfile::write(&config.data_dir, SIGNING_KEY_FILE, &seed)?;
    Ok(seed)
}

pub(crate) fn public_keys(store: &RecordStore) -> Result<PublicKeys, StoreError> {
    let mut items = store.signing_keys()?;
    items.sort_by_key(|key| std::cmp::Reverse(key.created_at));
    Ok(PublicKeys { items, last_mark: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::{account, at};
    use crate::store::snapshot::StoreId;
    use data_encoding::HEXLOWER;
    use stage0_contract::MarkBody;

    fn durable(dir: &std::path::Path) -> DurableStore {
        DurableStore::open(dir, StoreId::from_random([1; 16]), at(1)).unwrap()
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
    async fn the_number_of_marks_that_wait_for_the_writer_is_bounded() {
        let (signer, _) = Signer::new(&KeyBytes::new([1; 32]), at(1)).unwrap();
        // With a deadline of now, only a place that is free is taken.
        let now = Instant::now();
        let mut turns = Vec::new();
        for _ in 0..MAX_MARKS_IN_FLIGHT {
            turns.push(signer.turn(now).await.unwrap());
        }
        assert!(signer.turn(now).await.is_none());
        turns.pop();
        assert!(signer.turn(now).await.is_some());
    }

    #[test]
    fn a_signed_line_with_any_byte_altered_does_not_verify() {
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
    fn the_signing_key_file_holds_an_rfc_8032_seed() {
        let seed = KeyBytes::parse("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
        let (signer, public) = Signer::new(&seed, at(1)).unwrap();
        let expected = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        assert_eq!(HEXLOWER.encode(signer.pair.public_key().as_ref()), expected);
        let raw: [u8; 32] = HEXLOWER.decode(expected.as_bytes()).unwrap().try_into().unwrap();
        assert_eq!(public, PublicKey::new(&raw, at(1)));
    }

    #[test]
    fn a_configured_key_file_is_never_created() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("given");
        let config = KeystoreConfig { signing_key_file: Some(file.clone()), ..KeystoreConfig::new(dir.path()) };
        let refused = signer(&config, &mut durable(dir.path()), at(1));
        assert!(matches!(refused, Err(SignerError::File(KeyFileError::Missing(_)))), "{refused:?}");
        assert!(!file.exists() && !dir.path().join(SIGNING_KEY_FILE).exists());
    }

    #[test]
    fn another_signing_key_file_is_a_rotation_and_old_marks_stay_verifiable() {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut durable) = (KeystoreConfig::new(dir.path()), durable(dir.path()));
        let first = signer(&config, &mut durable, at(1)).unwrap();
        let old = first.sign(&mark(1)).unwrap();
        keyfile::write(dir.path(), SIGNING_KEY_FILE, &KeyBytes::new([2; 32])).unwrap();
        let second = signer(&config, &mut durable, at(2)).unwrap();
        let keys = public_keys(&durable.store).unwrap().items;
        assert_eq!(keys.iter().map(|key| &key.id).collect::<Vec<_>>(), [&second.id, &first.id]);
        assert!(keys[1].signed(old.as_bytes()) && !keys[0].signed(old.as_bytes()));
        assert!(keys[0].signed(second.sign(&mark(2)).unwrap().as_bytes()));
    }

    #[test]
    fn a_lost_signing_key_is_replaced_and_its_public_key_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut durable) = (KeystoreConfig::new(dir.path()), durable(dir.path()));
        let old = signer(&config, &mut durable, at(1)).unwrap().sign(&mark(1)).unwrap();
        std::fs::remove_file(dir.path().join(SIGNING_KEY_FILE)).unwrap();
        signer(&config, &mut durable, at(2)).unwrap();
        let keys = public_keys(&durable.store).unwrap().items;
        assert_eq!(keys.iter().map(|key| key.signed(old.as_bytes())).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_known_signing_key_is_not_stored_again() {
        let dir = tempfile::tempdir().unwrap();
        let (config, mut durable) = (KeystoreConfig::new(dir.path()), durable(dir.path()));
        signer(&config, &mut durable, at(1)).unwrap();
        signer(&config, &mut durable, at(2)).unwrap();
        let keys = public_keys(&durable.store).unwrap().items;
        assert_eq!(keys.iter().map(|key| key.created_at).collect::<Vec<_>>(), [at(1)]);
    }
}
