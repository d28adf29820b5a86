//! The guard between a client and a real server process, and before a server that is reached over HTTP.
//!
//! The Stage0 server here is one that can misbehave; against a real one the guard is tried in the workspace's black-box
//! suite. The server behind the guard leaves a file when a tool runs: that file decides most of these tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may fail loudly"
)]

mod calls;
mod deferred;
mod faults;
mod http;
mod lists;
mod process;
mod stage0;
mod world;
