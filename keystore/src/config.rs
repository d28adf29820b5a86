//! The keystore's settings: one row each, with name, unit, default and help (`stage0_runtime::settings`).
//!
//! The cost of a hash is not a setting: a deployment that could lower it would.

use std::path::PathBuf;

use stage0_runtime::settings;
use stage0_runtime::settings::Kind;
use stage0_runtime::settings::kinds::{boolean, count, path, secret_file};

use crate::hash::HashCost;
use crate::lease::LeaseTimes;
use crate::plans::Plans;
use crate::seal::SecretsKey;

settings! {
    /// Settings of the keystore.
    #[derive(Debug, Clone)]
    pub struct KeystoreConfig {
        /// Directory of accounts and keys, held by one process at a time; clients find a dev server and keys in it
        data_dir: PathBuf = "data-dir" "DIR" in "Data", required, path();
        /// Accepts once a data directory that is older than what was acknowledged, such as a restored backup: every
        /// key that the state store does not list as live is revoked (docs/OPERATIONS.md)
        accept_restore: bool = "accept-restore" "BOOL" in "Data", default(false), boolean();
        /// Keys that are hashed at the same time, 19 MiB each (default: one for every two cores)
        hash_workers: Option<usize> = "hash-threads" "N" in "Data", optional, count(256);
        /// Keys that may wait for a hash, about two seconds' work of one core by default, before more are refused as
        /// busy
        hash_queue: usize = "hash-queue" "N" in "Data", default(64), count(10_000);
        /// File with the key that seals webhook secrets (64 hexadecimal digits; default: `secrets.key` in the data
        /// directory, made once)
        secrets_key_file: Option<PathBuf> = "secrets-key-file" "FILE" in "Data", optional, secret_file();
        /// The same key itself, instead of a file
        secrets_key: Option<SecretsKey> = "secrets-key" "HEX" in "Data" as VariableOnly, optional, secrets_key();
        /// File with the Ed25519 seed that signs checkpoints (64 hexadecimal digits; default: `signing.key` in the
        /// data directory, made once)
        signing_key_file: Option<PathBuf> = "signing-key-file" "FILE" in "Data", optional, secret_file();
        /// TOML file with what each plan allows, instead of the built-in plans (keystore/plans.toml)
        plans: Option<Plans> = "plans" "FILE" in "Limits", optional, plans();
    }
    given {
        /// File that each start writes the operator's first key to, for processes that must not see the data
        /// directory.
        operator_key_copy: Option<PathBuf> = None;
        /// Set where several keystores may run, so that one serves; without it the directory's lock is enough.
        lease: Option<LeaseTimes> = None;
        /// For tests; a deployment always pays OWASP's.
        hash_cost: HashCost = HashCost::OWASP;
    }
}

settings! {
    /// A setting of keystores on NATS alone.
    #[derive(Debug, Clone)]
    pub struct OperatorKeySettings {
        /// File that each start also writes the operator's first key to, for processes that must not see the data
        /// directory
        copy: Option<PathBuf> = "operator-key-copy" "FILE" in "Data", optional, path();
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

impl KeystoreConfig {
    /// The defaults for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), ..Self::defaults() }
    }

    /// Names every setting that cannot be used.
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
        // Half of the cores: guesses of keys never occupy the other half.
        self.hash_workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)))
    }
}

fn secrets_key() -> Kind<SecretsKey> {
    Kind::parsed(|text| SecretsKey::parse(text.trim()).map_err(|error| error.to_string()))
}

/// The file is small and read once, so a mistake in it is one of the settings' mistakes.
fn plans() -> Kind<Plans> {
    Kind::parsed(|file| {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot be read: {error}"))?;
        Plans::parse(&text).map_err(|error| error.to_string())
    })
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
    fn the_secrets_key_is_given_as_a_file_or_as_a_value_and_not_both() {
        let file = KeystoreConfig { secrets_key_file: Some("f".into()), ..KeystoreConfig::new("d") };
        assert_eq!(file.validate(), Ok(()));
        let both = KeystoreConfig { secrets_key: SecretsKey::parse(&"ab".repeat(32)).ok(), ..file };
        let wrong = both.validate().unwrap_err().0;
        assert_eq!(wrong, ["`secrets_key_file` and `secrets_key` exclude each other"]);
    }

    #[test]
    fn a_secrets_key_is_not_shown_whether_it_is_wrong_or_right() {
        let wrong = secrets_key().parse(&"ab".repeat(31)).unwrap_err();
        assert!(wrong.contains("64 hexadecimal digits") && !wrong.contains("abab"), "{wrong}");
        let secrets_key = secrets_key().parse(&"ab".repeat(32)).ok();
        assert!(secrets_key.is_some());
        assert!(!format!("{:?}", KeystoreConfig { secrets_key, ..KeystoreConfig::new("d") }).contains("abab"));
    }

    #[test]
    fn the_cost_of_a_hash_is_no_setting() {
        assert!(KeystoreConfig::SETTINGS.iter().all(|setting| !setting.name.contains("cost")));
        assert_eq!(KeystoreConfig::new("d").hash_cost, HashCost::OWASP);
    }
}
