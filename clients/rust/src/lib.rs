//! A client of Stage0 that fails closed: only a complete, recorded ALLOW lets the caller act.
//!
//! ```no_run
//! use stage0_client::{Action, Client, NotAllowed, RunError};
//!
//! # async fn deploy(build: u32) -> std::io::Result<()> { Ok(()) }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // The server that STAGE0_URL names, or a `stage0 dev` that was started in this directory.
//! let client = Client::from_env()?.with_run_id("run-1").with_environment("production");
//!
//! let action = Action::new("Deploy build 7").tool("deploy").effect("deploy");
//! match client.run(&action, async |_allowed| deploy(7).await).await {
//!     Ok(()) => println!("deployed"),
//!     Err(RunError::NotAllowed(NotAllowed::Deferred(deferred))) => println!("ask first: {deferred}"),
//!     Err(RunError::NotAllowed(refused)) => println!("{}", refused.advice()),
//!     Err(RunError::Failed(error)) => println!("allowed, and failed: {error}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! - [`Client::check`] asks; [`Client::run`] asks, acts and reports what came of it.
//! - [`NotAllowed`] is the only alternative to [`Allowed`]: denied, deferred, or not decided at all. A timeout, a
//!   broken connection, an error of the server and an incomplete answer are all "not decided", and the action must
//!   not run.
//! - One deadline holds for all attempts of a call. What is asked again has the same `Idempotency-Key`.
//! - [`Connection`] is the layer below, for calls that [`Client`] has no method for.
//! - With the feature `selftest`, a misbehaving server proves that your own code does not act without a decision.

mod action;
#[cfg(any(test, feature = "selftest"))]
mod answers;
mod client;
pub mod connection;
pub mod dev_file;
mod judge;
mod refusal;
#[cfg(feature = "selftest")]
pub mod selftest;
pub mod target;
pub mod text;

pub use action::Action;
pub use client::{CONNECT_TIMEOUT, Client, DEFAULT_TIMEOUT, GuardReport, OutcomeReport, RunError, ToolsProbe};
pub use connection::{Connection, ConnectionError};
pub use judge::{Allowed, Judged, NoDecision, judge};
pub use refusal::{Deferred, Denied, NotAllowed, Undecided};
pub use target::{Credential, Lookup, Target, TargetError};
