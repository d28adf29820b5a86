//! The command line as people, shells and programs meet it: the real binary, a real `stage0 dev`, real HTTPS.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests may fail loudly")]

#[path = "suite/approvals.rs"]
mod approvals;
#[path = "suite/check.rs"]
mod check;
#[path = "suite/check_faults.rs"]
mod check_faults;
#[path = "suite/commands.rs"]
mod commands;
#[path = "suite/decisions.rs"]
mod decisions;
#[path = "suite/dev.rs"]
mod dev;
#[path = "suite/downloads.rs"]
mod downloads;
#[path = "suite/failures.rs"]
mod failures;
#[path = "suite/guard_doctor.rs"]
mod guard_doctor;
#[path = "suite/harness.rs"]
mod harness;
#[path = "suite/impostor.rs"]
mod impostor;
#[path = "suite/manage.rs"]
mod manage;
#[path = "suite/members.rs"]
mod members;
#[path = "suite/modes.rs"]
mod modes;
#[path = "suite/nats_keys.rs"]
mod nats_keys;
#[path = "suite/policies.rs"]
mod policies;
#[path = "suite/policy.rs"]
mod policy;
#[path = "suite/policy_diff.rs"]
mod policy_diff;
#[path = "suite/policy_gate.rs"]
mod policy_gate;
#[path = "suite/policy_next.rs"]
mod policy_next;
#[path = "suite/policy_reports.rs"]
mod policy_reports;
#[path = "suite/policy_trials.rs"]
mod policy_trials;
#[path = "suite/policy_writing.rs"]
mod policy_writing;
#[path = "suite/receiver.rs"]
mod receiver;
#[path = "suite/receiving.rs"]
mod receiving;
#[path = "suite/runs.rs"]
mod runs;
#[path = "suite/settings.rs"]
mod settings;
#[path = "suite/stack.rs"]
mod stack;
#[path = "suite/stops.rs"]
mod stops;
#[path = "suite/terminal.rs"]
mod terminal;
#[path = "suite/webhooks.rs"]
mod webhooks;
