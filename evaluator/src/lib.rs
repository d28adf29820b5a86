//! The evaluator service: answers checks that arrive over the backplane, with as many shards as it has threads.
//!
//! A shard decides checks with its own engines ([`stage0_policy`]). Checks of one run are decided in their order, and
//! the run's counts are stored before the reply is sent. Does no HTTP, authentication or recording.
//! INVARIANT: a check that cannot be decided is answered as such or not at all, never with a decision.

mod approval;
mod candidates;
#[cfg(test)]
#[path = "../../tests/src/capture.rs"]
mod capture;
mod checks;
mod compare;
mod config;
mod differences;
mod engines;
mod event_id;
mod fair_queue;
mod fair_turns;
mod guards;
mod handler;
mod in_flight;
mod metrics;
mod outcomes;
mod own_thread;
mod preload;
mod preparing;
mod probe;
mod published;
mod records;
mod replay;
mod reviews;
mod run;
mod shard;
mod shares;
mod turns;
mod validate;
mod worker;

pub use config::{EvaluatorConfig, PolicySettings, RunConfig};
pub use published::LoadedPolicies;
pub use shard::ShardError;
pub use worker::{BuildError, Connect, ConnectError, Evaluator, RunError, build};
