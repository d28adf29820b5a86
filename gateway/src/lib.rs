//! The gateway: HTTPS in, one request to an evaluator, one record in the log, the answer out.
//!
//! Owns TLS, authentication, limits, validation, record-then-release and every public error. Never decides about
//! policy: it does not look at what a request means.
//! INVARIANT: an answer with a verdict leaves only if an evaluator decided it for this very request and the log has it;
//! every failure on the way is a 503 that says that the action must not run.
//!
//! A request passes `server` (connections), `middleware`, then its handler in `routes/`; `auth` authenticates it,
//! `recorder` records the decision, and `errors` has every public text.

mod access_log;
mod address;
mod approval_waits;
mod auth;
mod body;
mod canary_return;
mod config;
mod errors;
mod event_collection;
#[doc(hidden)]
pub mod fuzz_support;
mod hook_guards;
mod idempotency;
mod idle_timeout;
mod in_flight;
mod instances;
mod key_cache;
mod key_uses;
mod log_reader;
mod metrics;
mod middleware;
mod proxy_protocol;
mod quota;
mod read_pool;
mod readiness;
mod recorder;
mod recording;
mod request_memory;
mod response_body;
mod routes;
mod server;
mod state;
mod throttle;
mod tls;

pub use address::{TrustedProxies, TrustedProxiesError};
pub use config::{Audit, GatewayConfig, PublicUrl, TlsFiles, TlsSettings};
pub use quota::OnFailure;
pub use readiness::{Probe, probe};
pub use server::{BuildError, Connect, Gateway};
pub use tls::{Authority, AuthorityError, Certificate, Leaf, TlsError, check_pair, dev_tls, server_config};
