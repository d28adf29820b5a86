//! The harness of the black-box tests: the real binary, started as a user starts it, asked over real TLS.
//!
//! Owns processes, their directories and their ends: whatever a value here started ends with the value. Nothing is
//! mocked, nothing is skipped; what is missing on the machine fails the test and says what to run.

// Test code: it may fail loudly.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod api;
mod authority;
mod balancer;
mod browser;
mod containers;
mod dns;
pub mod faults;
mod freezer;
pub mod history;
#[expect(dead_code, reason = "the exporter's own tests use more of it")]
mod http_request;
mod limit;
mod machine;
mod moved_clock;
pub mod openapi;
mod process;
mod raw;
mod receiver;
mod relay;
mod stack;
mod team;
mod traffic;

pub use api::{Answer, Api};
pub use authority::Authority;
pub use balancer::Balancer;
pub use browser::Browser;
pub use containers::{Containers, docker, image, inspect};
pub use dns::{Dns, Known};
pub use freezer::Freezer;
pub use machine::Machine;
pub use moved_clock::MovedClock;
pub use process::{Process, binary, command};
pub use raw::{Dialer, Raw};
pub use receiver::{Delivery, Receiver, Reply};
pub use relay::Relay;
pub use stack::{Stack, StackBuilder, account_scopes, serves, write_keys};
pub use team::{Agent, Member, Packs, TWO_RELEASE_MANAGERS, Team, two_release_managers};
pub use traffic::Traffic;
