//! The keystore service: accounts, API keys, webhook endpoints and the signing of marks.
//!
//! `service` builds and runs it. `server` takes requests from the backplane and proves who makes them, `admin` decides
//! what a caller may do and makes the change on one writer thread, and `store` makes a change durable before it is
//! acknowledged. `lease` settles which of several keystores serves, and `head` records outside of the data directory
//! how new that directory must be. The keystore does not decide about actions and does not serve HTTP. It refuses to
//! start on files that do not prove what was acknowledged.

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
mod signer;
mod sources;
mod store;

pub use config::{ConfigError, KeystoreConfig, OperatorKeySettings};
pub use hash::{HashCost, HashError};
pub use health::Health;
pub use keyfile::{OPERATOR_KEY_FILE, SECRETS_KEY_FILE, SIGNING_KEY_FILE};
pub use lease::{LeaseTimes, lease_holder};
pub use plans::{Plans, PlansError};
pub use restore::Restored;
pub use seal::{SecretsKey, SecretsKeyError};
pub use service::{BuildError, Keystore, RunError};
pub use store::{JOURNAL_FILE, OpenError};
