//! Encryption of the secrets of webhook endpoints at rest: AES-256-GCM, each for its endpoint.
//!
//! The endpoint's id is authenticated with a sealed secret, which is nonce, ciphertext and tag, so it cannot be moved
//! to another one. From the same key each account gets one of its own, with which evaluators seal texts of actions, and
//! the journal that is shipped to the state store gets another.
//! INVARIANT: a new key is created only where nothing is sealed. A missing or wrong key refuses the start, because
//! without it nothing can be delivered.

use std::path::PathBuf;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use data_encoding::BASE64;
use serde::{Deserialize, Deserializer};
use stage0_contract::{AccountId, TextKey, WebhookId, WebhookSecret};
use zeroize::Zeroizing;

use crate::config::KeystoreConfig;
use crate::keyfile::{self, KeyBytes, KeyFileError, SECRETS_KEY_FILE};
use crate::sources::random;
use crate::store::record::Sealed;
use crate::store::record_store::{RecordStore, StoreError};

/// The 32-byte key that encrypts the secrets of webhook endpoints.
#[derive(Debug, Clone)]
pub struct SecretsKey(KeyBytes);

/// The text is not a secrets key. The error does not contain it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 64 hexadecimal digits")]
pub struct SecretsKeyError;

impl SecretsKey {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Result<Self, SecretsKeyError> {
        KeyBytes::parse(text).map(Self).ok_or(SecretsKeyError)
    }
}

impl<'de> Deserialize<'de> for SecretsKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Encryption or decryption failed. The library gives no reason, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("the secrets key cannot be used")]
    Key,
    #[error("a secret cannot be sealed")]
    Seal,
    #[error("a sealed secret cannot be opened")]
    Open,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretsError {
    #[error(
        "`{}` is missing, but {sealed} secrets of webhook endpoints are sealed with it; no new one was made: \
         restore `{SECRETS_KEY_FILE}` from the backup of this data directory, or give that key as \
         `secrets_key_file`", .file.display()
    )]
    Lost { file: PathBuf, sealed: usize },
    #[error(
        "the secrets key does not open {shut} of {sealed} secrets of webhook endpoints: restore the \
         `{SECRETS_KEY_FILE}` that sealed them from the backup of this data directory, or give that key as \
         `secrets_key_file`"
    )]
    Wrong { shut: usize, sealed: usize },
    #[error(transparent)]
    File(#[from] KeyFileError),
    #[error("the sealed secrets cannot be read")]
    Store(#[from] StoreError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("there is no randomness for a secrets key")]
    Random(#[from] getrandom::Error),
}

/// Makes the keys of texts others than those of any other use.
const TEXT_KEY_LABEL: &[u8] = b"stage0 texts of actions 1\0";

const JOURNAL_KEY_LABEL: &[u8] = b"stage0 shipped journal 1\0";

#[derive(Debug)]
pub(crate) struct Sealer {
    key: RandomizedNonceKey,
    derive: hmac::Key,
}

impl Sealer {
    pub(crate) fn new(key: &KeyBytes) -> Result<Self, SealError> {
        let derive = hmac::Key::new(hmac::HMAC_SHA256, key.expose());
        let key = RandomizedNonceKey::new(&AES_256_GCM, key.expose()).map_err(|_| SealError::Key)?;
        Ok(Self { key, derive })
    }

    /// HMAC-SHA-256 of a label and the account's id, so that no account's key opens another's texts.
    pub(crate) fn text_key(&self, account: &AccountId) -> Result<TextKey, SealError> {
        let tag = hmac::sign(&self.derive, &[TEXT_KEY_LABEL, account.as_str().as_bytes()].concat());
        tag.as_ref().try_into().map(TextKey::new).map_err(|_| SealError::Key)
    }

    pub(crate) fn journal_sealer(&self) -> Result<JournalSealer, SealError> {
        let tag = hmac::sign(&self.derive, JOURNAL_KEY_LABEL);
        let key = RandomizedNonceKey::new(&AES_256_GCM, tag.as_ref()).map_err(|_| SealError::Key)?;
        Ok(JournalSealer(key))
    }

    /// Encrypts with a random nonce of 96 bits. Far fewer secrets are sealed than would make a repeated nonce likely.
    pub(crate) fn seal(&self, endpoint: &WebhookId, secret: &WebhookSecret) -> Result<Sealed, SealError> {
        let mut text = secret.expose().as_bytes().to_vec();
        let nonce = self.key.seal_in_place_append_tag(Aad::from(endpoint.as_str()), &mut text);
        let nonce = nonce.map_err(|_| SealError::Seal)?;
        Ok(Sealed(BASE64.encode(&[nonce.as_ref().as_slice(), &text].concat())))
    }

    pub(crate) fn open(&self, endpoint: &WebhookId, sealed: &Sealed) -> Result<WebhookSecret, SealError> {
        let bytes = BASE64.decode(sealed.0.as_bytes()).map_err(|_| SealError::Open)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Open)?;
        let mut text = Zeroizing::new(sealed.to_vec());
        let opened = self.key.open_in_place(Nonce::from(nonce), Aad::from(endpoint.as_str()), &mut text);
        let opened = std::str::from_utf8(opened.map_err(|_| SealError::Open)?).map_err(|_| SealError::Open)?;
        WebhookSecret::parse(opened).ok_or(SealError::Open)
    }
}

/// Encrypts the parts of a shipped journal, each for its place. A thousand changes each second would take a month and a
/// half to seal so many parts that a repeated nonce becomes likely enough to count (NIST SP 800-38D: 2^32).
#[derive(Debug)]
pub(crate) struct JournalSealer(RandomizedNonceKey);

impl JournalSealer {
    /// Nonce, ciphertext and tag.
    pub(crate) fn seal(&self, place: &[u8], part: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut text = part.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(place), &mut text).map_err(|_| SealError::Seal)?;
        Ok([nonce.as_ref().as_slice(), &text].concat())
    }

    pub(crate) fn open(&self, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SealError::Open)?;
        let mut text = sealed.to_vec();
        let opened = self.0.open_in_place(Nonce::from(nonce), Aad::from(place), &mut text);
        opened.map(|opened| opened.to_vec()).map_err(|_| SealError::Open)
    }
}

/// The key that is there already. A keystore that stands by makes none: it would not be the one that serves uses.
pub(crate) fn present_sealer(config: &KeystoreConfig) -> Result<Option<Sealer>, SecretsError> {
    let key = match &config.secrets_key {
        Some(SecretsKey(key)) => Some(key.clone()),
        None => keyfile::configured(config.secrets_key_file.as_deref(), &config.data_dir.join(SECRETS_KEY_FILE))?,
    };
    Ok(key.map(|key| Sealer::new(&key)).transpose()?)
}

pub(crate) fn sealer(config: &KeystoreConfig, store: &RecordStore) -> Result<Sealer, SecretsError> {
    let mut stored = Vec::new();
    for record in store.all_webhooks(None) {
        let record = record?;
        stored.extend(record.secrets.into_iter().map(|secret| (record.webhook.id.clone(), secret.sealed)));
    }
    let sealer = Sealer::new(&key(config, stored.len())?)?;
    let shut = stored.iter().filter(|(endpoint, sealed)| sealer.open(endpoint, sealed).is_err()).count();
    if shut > 0 { Err(SecretsError::Wrong { shut, sealed: stored.len() }) } else { Ok(sealer) }
}

fn key(config: &KeystoreConfig, sealed: usize) -> Result<KeyBytes, SecretsError> {
    if let Some(SecretsKey(key)) = &config.secrets_key {
        return Ok(key.clone());
    }
    let file = config.data_dir.join(SECRETS_KEY_FILE);
    if let Some(key) = keyfile::configured(config.secrets_key_file.as_deref(), &file)? {
        return Ok(key);
    }
    if sealed > 0 {
        return Err(SecretsError::Lost { file, sealed });
    }
    let key = KeyBytes::new(random()?);
    keyfile::write(&config.data_dir, SECRETS_KEY_FILE, &key)?;
    tracing::info!(file = SECRETS_KEY_FILE, "secrets key was made");
    Ok(key)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::store::record::tests::{at, webhook};
    use crate::store::record::{Record, SealedSecret, WebhookRecord};
    use crate::store::snapshot::{Snapshot, StoreId};

    pub(crate) fn sealer_of(byte: u8) -> Sealer {
        Sealer::new(&KeyBytes::new([byte; 32])).unwrap()
    }

    fn id(text: &str) -> WebhookId {
        WebhookId::parse(text).unwrap()
    }

    fn secret() -> WebhookSecret {
        WebhookSecret::from_random(&[7; 32])
    }

    fn endpoint(id: &str, sealed_by: &Sealer) -> WebhookRecord {
        let mut record = webhook(id, "a");
        let sealed = sealed_by.seal(&record.webhook.id, &secret()).unwrap();
        record.secrets = vec![SealedSecret { sealed, created_at: at(1), ends_at: None }];
        record
    }

    /// A store with these endpoints, in a directory that is also the data directory.
    fn store_with(endpoints: Vec<WebhookRecord>) -> (tempfile::TempDir, KeystoreConfig, RecordStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = RecordStore::open(&dir.path().join("store")).unwrap();
        let records = endpoints.into_iter().map(Record::Webhook).collect();
        store.fill(&Snapshot::of(StoreId::from_random([1; 16]), 1, records).unwrap()).unwrap();
        let config = KeystoreConfig::new(dir.path());
        (dir, config, store)
    }

    #[test]
    fn a_sealed_secret_opens_only_unchanged_for_its_endpoint_and_with_its_key() {
        let sealer = sealer_of(1);
        let sealed = sealer.seal(&id("we_1"), &secret()).unwrap();
        assert_eq!(sealer.open(&id("we_2"), &sealed), Err(SealError::Open));
        assert_eq!(sealer_of(2).open(&id("we_1"), &sealed), Err(SealError::Open));
        let bytes = BASE64.decode(sealed.0.as_bytes()).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(sealer.open(&id("we_1"), &Sealed(BASE64.encode(&changed))), Err(SealError::Open), "{at}");
            assert_eq!(sealer.open(&id("we_1"), &Sealed(BASE64.encode(&bytes[..at]))), Err(SealError::Open), "{at}");
        }
        assert_eq!(sealer.open(&id("we_1"), &Sealed("no base64".to_owned())), Err(SealError::Open));
        assert_eq!(sealer.open(&id("we_1"), &sealed), Ok(secret()));
    }

    /// Made with Python's `hmac`: texts can be opened with the secrets key without this program.
    #[test]
    fn each_account_has_a_key_of_texts_that_follows_from_the_secrets_key() {
        let key = |byte, account| sealer_of(byte).text_key(&AccountId::parse(account).unwrap()).unwrap();
        let known = "9ee7b0be79a431cce55c5dadf63b13051a755a721fd293d636541a0fdea41fc0";
        assert_eq!(data_encoding::HEXLOWER.encode(key(1, "acc_1").bytes()), known);
        assert_ne!(key(1, "acc_2"), key(1, "acc_1"));
        assert_ne!(key(2, "acc_1"), key(1, "acc_1"));
    }

    #[test]
    fn a_part_of_a_journal_opens_only_unchanged_at_its_place_and_with_its_key() {
        let sealer = sealer_of(1).journal_sealer().unwrap();
        let sealed = sealer.seal(b"place 1", b"part").unwrap();
        assert_eq!(sealer.open(b"place 1", &sealed).as_deref(), Ok(&b"part"[..]));
        assert_eq!(sealer.open(b"place 2", &sealed), Err(SealError::Open));
        assert_eq!(sealer_of(2).journal_sealer().unwrap().open(b"place 1", &sealed), Err(SealError::Open));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(sealer.open(b"place 1", &changed), Err(SealError::Open), "{at}");
            assert_eq!(sealer.open(b"place 1", &sealed[..at]), Err(SealError::Open), "{at}");
        }
    }

    #[test]
    fn a_keystore_that_stands_by_makes_no_secrets_key() {
        let (dir, config, _store) = store_with(Vec::new());
        assert!(present_sealer(&config).unwrap().is_none() && !dir.path().join(SECRETS_KEY_FILE).exists());
        keyfile::write(dir.path(), SECRETS_KEY_FILE, &KeyBytes::new([1; 32])).unwrap();
        assert!(present_sealer(&config).unwrap().is_some());
    }

    #[test]
    fn the_same_secret_is_sealed_differently_each_time() {
        let sealer = sealer_of(1);
        assert_ne!(sealer.seal(&id("we_1"), &secret()), sealer.seal(&id("we_1"), &secret()));
    }

    /// Made with OpenSSL's AES-256-GCM: with the key, stored secrets can be decrypted without this program.
    #[test]
    fn a_sealed_secret_is_nonce_ciphertext_and_tag_of_aes_256_gcm() {
        let sealed = Sealed(
            "AAECAwQFBgcICQoLzM7mQ0OhRA6dIqWzQyGK1M2OKX2W2Qd3EoJ698LPf8Uxm5jTEotQ32kfRuKSSML0NcrjRwDTYnZz9SMQAQAkwP7X"
                .to_owned(),
        );
        assert_eq!(sealer_of(1).open(&id("we_1"), &sealed), Ok(secret()));
    }

    #[test]
    fn a_lost_secrets_key_refuses_the_start_and_is_not_replaced() {
        let (dir, config, store) = store_with(vec![endpoint("we_1", &sealer_of(1))]);
        let text = sealer(&config, &store).unwrap_err().to_string();
        assert!(text.contains("restore `secrets.key` from the backup"), "{text}");
        assert!(!dir.path().join(SECRETS_KEY_FILE).exists());
    }

    #[test]
    fn a_secrets_key_that_does_not_open_every_secret_refuses_the_start() {
        let (dir, config, store) = store_with(vec![endpoint("we_1", &sealer_of(1)), endpoint("we_2", &sealer_of(2))]);
        keyfile::write(dir.path(), SECRETS_KEY_FILE, &KeyBytes::new([1; 32])).unwrap();
        let refused = sealer(&config, &store).unwrap_err();
        assert!(matches!(refused, SecretsError::Wrong { shut: 1, sealed: 2 }), "{refused:?}");
        assert!(refused.to_string().contains("backup"));
    }

    #[test]
    fn a_configured_key_file_is_never_created() {
        let (dir, config, store) = store_with(Vec::new());
        let file = dir.path().join("given");
        let config = KeystoreConfig { secrets_key_file: Some(file.clone()), ..config };
        assert!(matches!(sealer(&config, &store), Err(SecretsError::File(KeyFileError::Missing(_)))));
        assert!(!file.exists() && !dir.path().join(SECRETS_KEY_FILE).exists());
    }

    #[test]
    fn a_secrets_key_is_created_where_nothing_is_sealed_and_used_again() {
        let gone = endpoint("we_1", &sealer_of(1)).tombstone(at(2));
        let (_dir, config, store) = store_with(vec![gone]);
        let sealed = sealer(&config, &store).unwrap().seal(&id("we_1"), &secret()).unwrap();
        assert_eq!(sealer(&config, &store).unwrap().open(&id("we_1"), &sealed), Ok(secret()));
    }

    #[test]
    fn a_configured_secrets_key_opens_what_it_sealed() {
        let (dir, config, store) = store_with(vec![endpoint("we_1", &sealer_of(0xab))]);
        let given = SecretsKey::parse(&"ab".repeat(32)).unwrap();
        assert!(sealer(&KeystoreConfig { secrets_key: Some(given), ..config.clone() }, &store).is_ok());
        keyfile::write(dir.path(), "given", &KeyBytes::new([0xab; 32])).unwrap();
        let file = Some(dir.path().join("given"));
        assert!(sealer(&KeystoreConfig { secrets_key_file: file, ..config }, &store).is_ok());
        assert!(!dir.path().join(SECRETS_KEY_FILE).exists());
    }

    #[test]
    fn debug_shows_neither_keys_nor_sealed_secrets() {
        let sealed = sealer_of(1).seal(&id("we_1"), &secret()).unwrap();
        assert_eq!(format!("{sealed:?}"), "Sealed(…)");
        assert_eq!(format!("{:?}", SecretsKey::parse(&"ab".repeat(32))), "Ok(SecretsKey(KeyBytes(…)))");
    }
}
