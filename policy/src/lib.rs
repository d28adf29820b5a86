//! Policy evaluation as a pure library: a request goes in, a decision comes out.
//!
//! A [`Pack`] is a folder of rules, words and cases; it is loaded whole or refused. An [`Engine`] evaluates one pack on
//! one thread: `facts` reads the request, the engine has Cedar evaluate the rules whose triggers hold, `decision` turns
//! satisfied rules into issues, a verdict and scores, and `redaction` selects the texts of the request that may be
//! recorded; `kept` selects the facts, from which `replay` decides again. It does no I/O except reading a pack's
//! folder: no async, no NATS, and no clock except for the time limit of a decision.
//! INVARIANT: a request that cannot be decided yields an error, never a decision, and a rule that fails denies.

mod approval;
#[doc(hidden)]
pub mod bench_support;
mod cedar_text;
mod compiled;
mod decision;
pub mod diff;
mod engine;
mod evaluation;
mod explain;
mod facts;
mod files;
mod floor;
mod format;
mod kept;
mod lint;
mod may_ever;
mod pack;
mod redaction;
mod replay;
mod rule;
pub mod secrets;
#[doc(hidden)]
pub mod test_support;
mod time_limit;
mod vocabulary;

pub use approval::{Answer, HeldApproval};
pub use decision::{OutcomeHold, deciding_issue};
pub use engine::Engine;
pub use evaluation::{COMPARISON_INTERVAL, Difference};
pub use explain::{CaseExplanation, Explanation, PartExplanation, Proposed, RuleExplanation, RuleOutcome};
pub use facts::{
    EvaluateError, FactRow, Reported, RunFacts, RunHistory, RunNeeds, RunSnapshot, TargetHash, ToolCalls,
    table as fact_table,
};
pub use files::{Fault, PackError};
pub use format::{Acceptance, FormattedFile, accept_case, format_pack};
pub use lint::{Finding, Lint};
pub use pack::{
    BundleError, CaseOutcome, Expectation, MAX_LOADED_RULE_BYTES, MAX_RULE_BYTES, Pack, PackSet, PackSetError, Reason,
    Weakened, demand,
};
pub use time_limit::{OutOfTime, TimeLimit};
