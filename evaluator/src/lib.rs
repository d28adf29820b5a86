//! The evaluator: facts → policy → decision.
mod decision;
mod engine;
mod facts;
mod pack;
pub mod secrets;

pub use engine::Engine;
pub use pack::{CaseOutcome, Expectation, Fault, Pack, PackError, PackSet, PackSetError};
