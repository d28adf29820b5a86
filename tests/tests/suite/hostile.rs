//! Attacks, one file a kind: each must do no harm beyond its own account, connection or request.
//!
//! Processes run under memory limits as small as those of `docker-compose.yml`, with ordinary traffic of another
//! account beside the attack. SECURITY.md names the test behind each promise.

mod clock;
mod connections;
mod downloads;
mod egress;
mod framing;
mod memory;
mod nats_bystander;
mod protocol;
mod tenants;
mod time;
mod tls;
mod traffic;
