//! The keystore service: accounts, API keys, webhook endpoints and the signing of marks.
//!
//! Requests pass from `server` (who calls) through `admin` (what the caller may do) to `store` (durable before it is
//! acknowledged). `lease` settles which of several keystores serves; `head` records how new the data must be. The
//! keystore refuses to start on files that do not prove what was acknowledged.

mod admin;
#[cfg(test)]
#[path = "../../tests/src/capture.rs"]
mod capture;
mod config;
mod errors;
mod hash;
mod head;
mod health;
mod keyfile;
mod last_used;
mod lease;
mod metrics;
mod plans;
mod records;
mod restore;
mod seal;
mod server;
mod service;
mod shipping;
mod signer;
mod sources;
mod store;

pub use config::{KeystoreConfig, OperatorKeySettings};
pub use hash::HashCost;
pub use health::Health;
pub use keyfile::{OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE};
pub use lease::{LeaseTimes, lease_holder};
pub use plans::Plans;
pub use seal::SecretsKey;
pub use service::{BuildError, Keystore, RunError};
pub use store::JOURNAL_FILE;
