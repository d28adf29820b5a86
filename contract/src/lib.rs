//! The wire contract as types: what crosses a process boundary, and the rules a value must keep to cross it.
//!
//! Every wire type, id, code, message subject and the grammar of constraint strings is defined once, here. Nothing here
//! does input or output: no sockets, files, clocks or randomness. Callers hand bytes and time in.
//! INVARIANT: a released shape is frozen; additions are optional fields. Golden fixtures in `fixtures/` hold that.

mod api;
mod approval;
mod audit;
mod canonical;
mod chain;
mod check;
mod code;
mod constraint;
mod decision;
mod envelope;
mod environment;
mod error;
mod guard;
mod id;
mod instance;
mod json;
mod key;
mod manage;
mod message;
mod number;
mod outcome;
mod people;
mod policy;
mod probe;
mod record;
mod run;
mod server_url;
mod stop;
mod traffic;
mod usage;
mod webhook;
mod webhook_url;
mod word;

pub use api::*;
pub use approval::*;
pub use audit::*;
pub use canonical::canonical_hash;
pub use chain::*;
pub use check::*;
pub use code::*;
pub use constraint::*;
pub use decision::*;
pub use envelope::Envelope;
pub use environment::is_same_environment;
pub use error::*;
pub use guard::*;
pub use id::*;
pub use instance::*;
pub use json::{JsonError, MAX_DEPTH, MAX_VALUES, parse_strict};
pub use key::{ApiKey, ApiKeyError, KEY_ALPHABET};
pub use manage::*;
pub use message::*;
pub use number::{MAX_USD, Micros, NumberError, whole_text};
pub use outcome::*;
pub use people::*;
pub use policy::*;
pub use probe::*;
pub use record::*;
pub use run::*;
pub use server_url::https_url;
pub use stop::*;
pub use traffic::*;
pub use usage::*;
pub use webhook::*;
pub use webhook_url::{Host, MAX_URL_CHARS, WebhookUrl, WebhookUrlError};
pub use word::{Spelling, Word, hidden, is_blank, is_invisible, parts, plain, visible};
