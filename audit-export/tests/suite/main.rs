//! The exporter against receivers and DNS servers on real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub
)]

#[path = "../../../tests/src/authority.rs"]
#[expect(dead_code, reason = "the black-box tests use more of it")]
mod authority;
#[path = "../../../tests/src/capture.rs"]
mod capture;
#[path = "../../../tests/src/dns.rs"]
#[expect(dead_code, reason = "the black-box tests use more of it")]
mod dns;
mod egress;
#[path = "../../../tests/src/http_request.rs"]
mod http_request;
mod lookups;
mod newer_log;
mod receiver;
mod retention;
mod set_back;
mod telemetry;
