//! The gateway as its clients meet it: real HTTPS and real middleware, on the embedded backplane, with a keystore and
//! an evaluator of the suite that answer over the backplane like the real ones.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may fail loudly")]

#[path = "suite/authentication.rs"]
mod authentication;
#[path = "suite/bodies.rs"]
mod bodies;
#[path = "suite/checks.rs"]
mod checks;
#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/idempotency.rs"]
mod idempotency;
#[path = "suite/limits.rs"]
mod limits;
#[path = "suite/routing.rs"]
mod routing;
