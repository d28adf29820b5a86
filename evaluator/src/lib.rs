//! The evaluator: facts → policy → decision.
//!
//! A question arrives at a shard of the [`Evaluator`], `facts` reads the request, the [`Engine`] asks the rules of a
//! [`Pack`], `decision` makes issues, verdict and scores of their answers. All but the worker and the runs on the ledger is pure.
//! Refuses HTTP, keys and records: it neither knows who asks nor keeps what it decided, but says which texts may be kept. What a
//! run has counted it does keep, in the ledger (`run`).
//! INVARIANT: what cannot be decided is no decision (`Unable`), and a rule that fails denies.

mod answer;
mod checks;
mod decision;
mod engine;
mod explain;
mod facts;
mod in_hand;
mod lanes;
#[doc(hidden)]
pub mod measure;
mod metrics;
mod pack;
mod recordable;
mod reviews;
mod run;
pub mod secrets;
mod shard;
mod slots;
mod time_limit;
mod turns;
mod worker;

pub use engine::Engine;
pub use explain::Explanation;
pub use pack::{CaseOutcome, Expectation, Fault, Pack, PackError, PackSet, PackSetError};
pub use run::RunConfig;
pub use shard::ShardError;
pub use worker::{BuildError, Connect, ConnectError, Evaluator, EvaluatorConfig, RunError, build};
