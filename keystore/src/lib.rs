//! The keystore: accounts, API keys and webhook endpoints, kept so that no acknowledged change is lost, and judged so
//! that nobody learns why not.
//!
//! Questions arrive at `questions` and are answered by `counter`; who makes a management call is proven by `callers`,
//! and who may delete decisions gets a permit of `permits`; what adds something is let in by `admission`, new keys are
//! hashed by `new_key`, and what changes something is judged by `rules`, made by `manage` on the thread of `writer`, and
//! stored by `vault` in `journal` and `store` (sled), which `recovery` weighs against each other at every start. Who
//! serves is settled by `lease`, a directory is held by `lock`, and how new it must be is kept outside of it by `head`
//! `live_keys` and `listed_accounts`, and `trail` is what a directory knows of that; `restore` is what becomes of an older one. `reserve` keeps disk space for revocations,
//! and `population` counts what accounts hold. Keys are judged by `verify` and hashed by `hash`; endpoints' secrets
//! are sealed by `seal`, and marks of the decision log are signed by `signer`, each with a key of `keyfile`. Refuses to
//! decide about actions, to serve HTTP, and to start on files that prove nothing.

mod admission;
mod announce;
mod bootstrap;
mod callers;
mod changes;
mod config;
mod counter;
mod disk;
mod hash;
mod head;
mod health;
mod image;
mod journal;
mod keyfile;
mod last_used;
mod lease;
mod listed_accounts;
mod live_keys;
mod lock;
mod manage;
mod metrics;
mod new_key;
mod permits;
mod plans;
mod population;
mod questions;
mod record;
mod recovery;
mod reserve;
mod restore;
mod rules;
mod seal;
mod service;
mod signer;
mod store;
mod trail;
mod vault;
mod verify;
mod writer;

pub use bootstrap::OPERATOR_KEY_FILE;
pub use config::{ConfigError, KeystoreConfig};
pub use hash::{HashCost, HashError};
pub use health::Health;
pub use journal::FILE as JOURNAL_FILE;
pub use lease::{LeaseTimes, lease_holder};
pub use plans::{Plans, PlansError};
pub use restore::Restored;
pub use seal::{SECRETS_KEY_FILE, SecretsKey, SecretsKeyError};
pub use service::{BuildError, Keystore, RunError};
pub use signer::SIGNING_KEY_FILE;
pub use vault::OpenError;
