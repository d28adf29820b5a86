//! The gateway as its clients meet it: real HTTPS and real middleware, on the embedded backplane, with a keystore and
//! an evaluator of the suite that answer over the backplane like the real ones.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may fail loudly")]

#[path = "suite/approvals.rs"]
mod approvals;
#[path = "suite/approved_checks.rs"]
mod approved_checks;
#[path = "suite/authentication.rs"]
mod authentication;
#[path = "suite/bodies.rs"]
mod bodies;
#[path = "suite/candidates.rs"]
mod candidates;
#[path = "suite/changes.rs"]
mod changes;
#[path = "suite/checks.rs"]
mod checks;
#[path = "suite/failing_log.rs"]
mod failing_log;
#[path = "suite/fields.rs"]
mod fields;
#[path = "suite/gate.rs"]
mod gate;
#[path = "suite/grants.rs"]
mod grants;
#[path = "suite/guards.rs"]
mod guards;
#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/hook_failures.rs"]
mod hook_failures;
#[path = "suite/hooks.rs"]
mod hooks;
#[path = "suite/idempotency.rs"]
mod idempotency;
#[path = "suite/limits.rs"]
mod limits;
#[path = "suite/members.rs"]
mod members;
#[path = "suite/outcome_filters.rs"]
mod outcome_filters;
#[path = "suite/outcomes.rs"]
mod outcomes;
#[path = "suite/policies.rs"]
mod policies;
#[path = "suite/policies_of_all.rs"]
mod policies_of_all;
#[path = "suite/policy_answers.rs"]
mod policy_answers;
#[path = "suite/policy_proposals.rs"]
mod policy_proposals;
#[path = "suite/policy_replay.rs"]
mod policy_replay;
#[path = "suite/probes.rs"]
mod probes;
#[path = "suite/replays.rs"]
mod replays;
#[path = "suite/routing.rs"]
mod routing;
#[path = "suite/stops.rs"]
mod stops;
#[path = "suite/waits.rs"]
mod waits;
