//! What must hold of every parser that meets bytes of others: a target for each, as a function of bytes.
//!
//! A target panics where its property does not hold; a refusal is no failure. Targets are driven in two ways: on stable
//! Rust by `tests/`, with changed inputs of `corpus/` and a seed that is printed, and on nightly by `libfuzzer/`, which
//! follows the coverage of what it tries. Nothing of this crate is in the product.

// Test code: it may fail loudly.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::indexing_slicing)]

mod api_key;
mod check_answer;
mod check_request;
mod client_address;
mod constraint;
mod decision_log;
mod hook_event;
mod identifier;
mod mcp_message;
mod mcp_stream;
mod message_header;
mod policy_pack;
mod proxy_header;
mod shell_command;
mod strict_json;
mod webhook_url;
mod word;

use std::borrow::Cow;

/// A parser, and what must hold of it.
#[derive(Debug)]
pub struct Target {
    /// Also the name of its folder in `corpus/` and of its words in `dictionaries/`.
    pub name: &'static str,
    check: fn(&[u8]) -> bool,
}

impl Target {
    /// A target that panics where its property does not hold, and says whether the parser took the input.
    pub const fn new(name: &'static str, check: fn(&[u8]) -> bool) -> Self {
        Self { name, check }
    }

    /// Panics where the property does not hold for this input. Whether the parser took the input.
    pub fn run(&self, input: &[u8]) -> bool {
        (self.check)(input)
    }
}

/// Every target.
pub static TARGETS: [Target; 17] = [
    api_key::TARGET,
    check_answer::TARGET,
    check_request::TARGET,
    client_address::TARGET,
    constraint::TARGET,
    decision_log::TARGET,
    hook_event::TARGET,
    identifier::TARGET,
    mcp_message::TARGET,
    mcp_stream::TARGET,
    message_header::TARGET,
    policy_pack::TARGET,
    proxy_header::TARGET,
    shell_command::TARGET,
    strict_json::TARGET,
    webhook_url::TARGET,
    word::TARGET,
];

/// The target of this name.
pub fn named(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// An input for a parser of texts.
fn text(input: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(input)
}
