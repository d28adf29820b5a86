//! The keystore from outside: requests over the backplane, crashes, power cuts, and starts on damaged files.
//!
//! One binary. The writers that are killed are this binary again, selected by an environment variable.

// clippy.toml lets tests fail loudly, but does not see that their helpers are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "suite/candidates.rs"]
mod candidates;
#[path = "suite/crash.rs"]
mod crash;
#[path = "suite/damage.rs"]
mod damage;
#[path = "suite/flood.rs"]
mod flood;
#[path = "suite/grants.rs"]
mod grants;
#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/identities.rs"]
mod identities;
#[path = "suite/members.rs"]
mod members;
#[path = "suite/older.rs"]
mod older;
#[path = "suite/policies.rs"]
mod policies;
#[path = "suite/policy_answers.rs"]
mod policy_answers;
#[path = "suite/power_cut.rs"]
mod power_cut;
#[path = "suite/proposals.rs"]
mod proposals;
#[path = "suite/restore.rs"]
mod restore;
#[path = "suite/serving.rs"]
mod serving;
#[path = "suite/signing.rs"]
mod signing;
#[path = "suite/stops.rs"]
mod stops;
#[path = "suite/two.rs"]
mod two;
#[path = "suite/webhooks.rs"]
mod webhooks;
#[path = "suite/went_back.rs"]
mod went_back;
#[path = "suite/witness.rs"]
mod witness;
