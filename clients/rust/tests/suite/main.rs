//! Runs the client against real HTTPS servers, most of which misbehave.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may fail loudly"
)]

mod faults;
mod harness;
mod readme;
mod retries;
mod running;
mod waiting;
