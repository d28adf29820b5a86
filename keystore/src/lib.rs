//! The keystore: accounts and API keys, kept so that no acknowledged change is lost, and judged so that nobody learns why not.
//!
//! Questions arrive at `questions` and are answered by `counter`; what changes something is judged by `rules`, made by
//! `manage` on the thread of `writer`, and stored by `vault` in `journal` and `store` (sled), which `recovery` weighs
//! against each other at every start. Keys are judged by `verify` and hashed by `hash`.
//! Refuses to decide about actions, to serve HTTP, and to start on files that prove nothing.

mod announce;
mod bootstrap;
mod config;
mod counter;
mod disk;
mod hash;
mod image;
mod journal;
mod manage;
mod questions;
mod record;
mod recovery;
mod rules;
mod service;
mod store;
mod vault;
mod verify;
mod writer;

pub use bootstrap::OPERATOR_KEY_FILE;
pub use config::{ConfigError, KeystoreConfig};
pub use hash::{HashCost, HashError};
pub use service::{BuildError, Keystore};
pub use vault::OpenError;
