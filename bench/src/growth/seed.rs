//! A keystore's journal with as many accounts and keys as wanted: real Argon2 would take a day for a million keys.
//!
//! It is one snapshot, in the format of keystore/src/store/journal/frame.rs. A keystore that finds it without a store
//! rebuilds the store by its own code, as after a lost disk. The stored hashes name the least cost that Argon2 allows:
//! so a check with a key that was never used costs no 20 ms, and what grows can be seen beside it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use argon2::password_hash::PasswordHasher as _;
use argon2::{Algorithm, Argon2, Params, Version};
use serde::Serialize;
use serde_json::{Value, json};
use stage0_contract::{ApiKey, Scope};
use stage0_keystore::{JOURNAL_FILE, OPERATOR_KEY_FILE};

const MAGIC: &[u8; 4] = b"S0KJ";
const OPERATOR: &str = "operator";
/// Random salts only matter for secrets.
const SALT: &[u8] = b"the bench's salt";
const CREATED_AT: &str = "2026-01-01T00:00:00Z";

#[derive(Debug, Clone, Copy)]
pub(super) struct Seed {
    pub(super) keys: u64,
    /// The last account may have fewer.
    pub(super) keys_of_account: u64,
}

#[derive(Serialize)]
struct Frame<'a> {
    snapshot: Content<'a>,
}

#[derive(Serialize)]
struct Content<'a> {
    lineage: &'a str,
    records: Vec<Value>,
}

/// The key of this number; those of an account follow each other.
pub(super) fn key(number: u64) -> anyhow::Result<ApiKey> {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    ApiKey::from_random([0x5E, 0xED, a, b, c, d, e, f, g, h], [9; 20]).context("not a key")
}

impl Seed {
    /// Writes the journal into this directory, and the operator's key.
    pub(super) fn write(self, directory: &Path) -> anyhow::Result<()> {
        let operator = key(u64::MAX)?;
        let mut records = vec![account_record(OPERATOR), key_record(&operator, OPERATOR, Scope::Operator)?];
        records
            .extend((0..self.keys.div_ceil(self.keys_of_account)).map(|account| account_record(&account_id(account))));
        for number in 0..self.keys {
            records.push(key_record(&key(number)?, &account_id(number / self.keys_of_account), Scope::Check)?);
        }
        let lineage = format!("{:032x}", self.keys);
        let frame = frame(&Frame { snapshot: Content { lineage: &lineage, records } })?;
        write_private(&directory.join(JOURNAL_FILE), &frame)?;
        write_private(&directory.join(OPERATOR_KEY_FILE), operator.expose().as_bytes())
    }
}

fn account_record(id: &str) -> Value {
    json!({"account": {"id": id, "name": id, "plan": "unlimited", "created_at": CREATED_AT}})
}

fn key_record(key: &ApiKey, account: &str, scope: Scope) -> anyhow::Result<Value> {
    let params = Params::new(Params::MIN_M_COST, Params::MIN_T_COST, 1, None);
    let params = params.map_err(|error| anyhow::anyhow!("{error}"))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password_with_salt(key.expose().as_bytes(), SALT);
    let hash = hash.map_err(|error| anyhow::anyhow!("{error}"))?.to_string();
    Ok(json!({"key": {"id": key.id(), "account": account, "name": "bench", "scopes": [scope], "hash": hash,
        "created_at": CREATED_AT}}))
}

fn account_id(number: u64) -> String {
    format!("acc-{number:08}")
}

/// The first frame of a journal: the first change.
fn frame(content: &Frame<'_>) -> anyhow::Result<Vec<u8>> {
    let json = serde_json::to_vec(content)?;
    let mut bytes = Vec::with_capacity(json.len() + 24);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&u32::try_from(json.len())?.to_be_bytes());
    bytes.extend_from_slice(&1_u64.to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&json).to_be_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_be_bytes());
    bytes.extend_from_slice(&json);
    Ok(bytes)
}

fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(bytes)?)
}

#[cfg(test)]
mod tests {
    use stage0_backplane::Backplane;
    use stage0_contract::{RefreshKey, RefreshKeyReply, VerifyKey, VerifyKeyReply};
    use stage0_keystore::{Health, Keystore, KeystoreConfig};

    use super::*;

    #[tokio::test]
    async fn a_keystore_rebuilds_its_store_from_the_journal_and_knows_every_key_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let seed = Seed { keys: 5, keys_of_account: 2 };
        seed.write(directory.path()).unwrap();
        let backplane = Backplane::embedded();
        let config = KeystoreConfig::new(directory.path());
        let keystore = Keystore::build(config, backplane.clone(), Health::default()).await.unwrap();
        let _served = tokio::spawn(keystore.run_until(std::future::pending()));
        let timeout = std::time::Duration::from_secs(20);
        for number in 0..seed.keys {
            let key = key(number).unwrap();
            let verify = VerifyKey { key: key.clone(), request_id: None };
            let reply = loop {
                match backplane.requests.request(&verify, timeout).await {
                    Err(stage0_backplane::RequestError::NoResponders) => tokio::task::yield_now().await,
                    reply => break reply.unwrap(),
                }
            };
            let VerifyKeyReply::Valid(identity) = reply else { panic!("key {number}: {reply:?}") };
            assert_eq!(identity.account.to_string(), account_id(number / 2));
        }
        let unknown = RefreshKey { key_id: key(seed.keys).unwrap().id().clone(), request_id: None };
        assert_eq!(backplane.requests.request(&unknown, timeout).await.unwrap(), RefreshKeyReply::Gone);
    }
}
