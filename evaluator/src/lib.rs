//! The evaluator service: answers checks that arrive over the backplane, with as many shards as it has threads.
//!
//! A shard takes checks off the queue and decides them with its own engines ([`stage0_policy`]); a check that names a
//! run is decided in the order of that run's checks, and the run's counts are stored before the reply is sent (`run`).
//! Does no HTTP, authentication or recording, and holds no policy of its own.
//! INVARIANT: a check that cannot be decided is answered as such or not at all, never with a decision.

mod answer;
#[cfg(test)]
#[path = "../../tests/src/capture.rs"]
mod capture;
mod checks;
mod config;
mod engines;
mod fair_queue;
mod in_flight;
mod metrics;
mod reviews;
mod run;
mod shard;
mod slots;
mod worker;

pub use config::{EvaluatorConfig, PolicySettings, RunConfig};
pub use shard::ShardError;
pub use worker::{BuildError, Connect, ConnectError, Evaluator, RunError, build};
