//! The gateway: HTTPS in, one question to an evaluator, one record in the log, the answer out.
//!
//! Owns TLS, authentication, limits, validation, record-then-release and every public error. Refuses policy: it never looks at what a request means.
//! INVARIANT: no answer that carries a verdict leaves unless an evaluator decided it for this very request and the log has it; whatever
//! of ours fails on the way is a 503 that says the action must not run.
//!
//! `routes/` is where a request arrives, `auth.rs` where a key is judged, `recorder.rs` where it is
//! recorded, `errors.rs` where every public text stands.

mod address;
mod auth;
mod body;
mod config;
mod errors;
mod idempotency;
mod in_flight;
mod in_hand;
mod instances;
mod key_uses;
mod keyring;
mod metrics;
mod patience;
mod plain_http;
mod proxy_protocol;
mod quota;
mod reader;
mod readers;
mod recorder;
mod routes;
mod sending;
mod server;
mod state;
mod throttle;
mod tls;

pub use address::{TrustedProxies, TrustedProxiesError};
pub use config::{GatewayConfig, TlsFiles};
pub use quota::OnFailure;
pub use routes::{Found, look};
pub use server::{BuildError, Connect, Gateway};
pub use tls::{Authority, AuthorityError, Certificate, Leaf, TlsError, check_pair, dev_tls, server_config};
