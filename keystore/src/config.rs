//! What a keystore needs to be told.
//!
//! Owns the settings and their limits; every mistake is named at once. The cost of a hash is not a setting: a deployment that could
//! lower it would.

use std::path::PathBuf;

use serde::Deserialize;

use crate::hash::HashCost;
use crate::lease::LeaseTimes;
use crate::plans::Plans;
use crate::seal::SecretsKey;

/// Settings of the keystore.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeystoreConfig {
    /// Journal, store, the operator's first key and what is made of the keys below stand here; nobody else may read it.
    pub data_dir: PathBuf,
    /// Where each start also puts the operator's first key, for whoever must not see the data directory.
    #[serde(default)]
    pub operator_key_copy: Option<PathBuf>,
    /// Hashes at a time, each with 19 MiB; none means one for every two cores.
    #[serde(default)]
    pub hash_workers: Option<usize>,
    /// Keys that wait for a hash before others are told to come again.
    #[serde(default = "default_hash_queue")]
    pub hash_queue: usize,
    /// Holds the key that seals the secrets of webhook endpoints: 64 hexadecimal digits. None means `secrets.key` in the data directory,
    /// made on the first start.
    #[serde(default)]
    pub secrets_key_file: Option<PathBuf>,
    /// The same key, given directly.
    #[serde(default)]
    pub secrets_key: Option<SecretsKey>,
    /// Holds the Ed25519 seed that signs marks: 64 hexadecimal digits. None means `signing.key` in the data directory, made when it is
    /// not there.
    #[serde(default)]
    pub signing_key_file: Option<PathBuf>,
    /// A directory that is older than what was acknowledged is accepted: every key that the state store does not list
    /// as live is revoked.
    #[serde(default)]
    pub accept_restore: bool,
    /// Others may want to serve in its place, so that it needs the lease; none: its directory's lock is enough.
    #[serde(skip)]
    pub lease: Option<LeaseTimes>,
    /// What each plan allows; none means the built-in plans.
    #[serde(skip)]
    pub plans: Option<Plans>,
    /// For tests; a deployment always pays OWASP's.
    #[serde(skip, default = "owasp")]
    pub hash_cost: HashCost,
}

/// Two seconds' work of one core: who waits longer is late anyway.
const HASH_QUEUE: usize = 64;

/// What is wrong, all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

impl KeystoreConfig {
    /// The defaults, for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            operator_key_copy: None,
            hash_workers: None,
            hash_queue: HASH_QUEUE,
            secrets_key_file: None,
            secrets_key: None,
            signing_key_file: None,
            accept_restore: false,
            lease: None,
            plans: None,
            hash_cost: HashCost::OWASP,
        }
    }

    /// Names every setting that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut wrong = Vec::new();
        if self.data_dir.as_os_str().is_empty() {
            wrong.push("`data_dir` must name a directory".to_owned());
        }
        if self.hash_workers.is_some_and(|workers| !(1..=256).contains(&workers)) {
            wrong.push("`hash_workers` must be 1 to 256".to_owned());
        }
        if self.hash_queue > 10_000 {
            wrong.push("`hash_queue` must be at most 10000".to_owned());
        }
        if self.secrets_key_file.is_some() && self.secrets_key.is_some() {
            wrong.push("`secrets_key_file` and `secrets_key` exclude each other".to_owned());
        }
        for (name, file) in [("secrets_key_file", &self.secrets_key_file), ("signing_key_file", &self.signing_key_file)]
        {
            if file.as_ref().is_some_and(|file| file.as_os_str().is_empty()) {
                wrong.push(format!("`{name}` must name a file"));
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(ConfigError(wrong)) }
    }

    pub(crate) fn workers(&self) -> usize {
        // Half of the cores: the other half is never busy with keys that nobody knows.
        self.hash_workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)))
    }
}

fn default_hash_queue() -> usize {
    HASH_QUEUE
}

fn owasp() -> HashCost {
    HashCost::OWASP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_named_at_once() {
        let config = KeystoreConfig {
            hash_workers: Some(0),
            hash_queue: 10_001,
            secrets_key_file: Some(PathBuf::new()),
            secrets_key: SecretsKey::parse(&"ab".repeat(32)).ok(),
            signing_key_file: Some(PathBuf::new()),
            ..KeystoreConfig::new("")
        };
        assert_eq!(config.validate().unwrap_err().0.len(), 6);
        assert_eq!(KeystoreConfig::new("data").validate(), Ok(()));
    }

    #[test]
    fn the_secrets_key_is_given_once() {
        let file = KeystoreConfig { secrets_key_file: Some("f".into()), ..KeystoreConfig::new("d") };
        assert_eq!(file.validate(), Ok(()));
        let both = KeystoreConfig { secrets_key: SecretsKey::parse(&"ab".repeat(32)).ok(), ..file };
        let wrong = both.validate().unwrap_err().0;
        assert_eq!(wrong, ["`secrets_key_file` and `secrets_key` exclude each other"]);
    }

    #[test]
    fn a_key_is_shown_neither_when_it_is_wrong_nor_when_it_is_right() {
        let read = |key: &str| {
            serde_json::from_str::<KeystoreConfig>(&format!(r#"{{"data_dir": "d", "secrets_key": "{key}"}}"#))
        };
        let wrong = read(&"ab".repeat(31)).unwrap_err().to_string();
        assert!(wrong.contains("64 hexadecimal digits") && !wrong.contains("abab"), "{wrong}");
        assert!(!format!("{:?}", read(&"ab".repeat(32)).unwrap()).contains("abab"));
    }

    #[test]
    fn the_cost_of_a_hash_is_no_setting() {
        let read = |json: &str| serde_json::from_str::<KeystoreConfig>(json);
        assert!(read(r#"{"data_dir": "d", "hash_cost": {"memory_kib": 8, "passes": 1}}"#).is_err());
        assert_eq!(read(r#"{"data_dir": "d"}"#).unwrap().hash_cost, HashCost::OWASP);
    }
}
