//! Policy evaluation as a pure library: a request goes in, a decision comes out.
//!
//! A [`Pack`] is a folder of rules, words and cases; it is loaded whole or refused. An [`Engine`] evaluates one pack on
//! one thread: `facts` reads the request, the engine has Cedar evaluate the rules whose triggers hold, `decision` turns
//! satisfied rules into issues, a verdict and scores, and `redaction` selects the texts of the request that may be
//! recorded. It does no I/O except reading a pack's folder: no async, no NATS, and no clock except for the time limit
//! of a decision.
//! INVARIANT: a request that cannot be decided yields an error, never a decision, and a rule that fails denies.

mod approval;
#[doc(hidden)]
pub mod bench_support;
mod decision;
mod engine;
mod explain;
mod facts;
mod files;
mod pack;
mod redaction;
mod rule;
pub mod secrets;
mod time_limit;
mod vocabulary;

pub use approval::{Answer, HeldApproval};
pub use engine::Engine;
pub use explain::Explanation;
pub use facts::{EvaluateError, Reported, RunFacts, RunSnapshot, ToolCalls};
pub use files::{Fault, PackError};
pub use pack::{CaseOutcome, Expectation, Pack, PackSet, PackSetError};
pub use time_limit::{OutOfTime, TimeLimit};
