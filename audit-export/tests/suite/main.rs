//! What leaves the exporter, shown with receivers that listen on real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub
)]

#[path = "../../../tests/src/dns.rs"]
#[expect(dead_code, reason = "the black-box tests use more of it")]
mod dns;
mod egress;
mod look_ups;
mod receiver;
mod retention;
mod telemetry;
