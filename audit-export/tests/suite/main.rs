//! What leaves the exporter, shown with receivers that listen on real sockets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub
)]

mod egress;
mod receiver;
mod telemetry;
