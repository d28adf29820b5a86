//! Black-box tests: what is promised to callers, operators and auditors, shown from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs
)]

mod abuse;
mod approvals;
mod approvals_asker;
mod approvals_storm;
mod balancers;
mod browser;
mod cases;
mod clients;
mod containers;
mod control;
mod creating_once;
mod deletion;
mod delivery;
mod docs_commands;
mod docs_examples;
mod docs_links;
mod docs_moving;
mod docs_pages;
mod docs_policy;
mod docs_security_overview;
mod errors;
mod fault_suite;
mod faults;
mod guard_hook;
mod guards;
mod hostile;
mod idempotency;
mod inside;
mod keys;
mod limits;
mod logins;
mod mcp_guard;
mod members;
mod newest_first;
mod openapi;
mod outage;
mod outcomes;
mod own_rules;
mod plain_http;
mod policies;
mod policy_candidates;
mod policy_deletions;
mod policy_kills;
mod policy_proposals;
mod policy_replay;
mod probes;
mod recording;
mod refusals;
mod retention;
mod runbooks;
mod runs;
mod secrets;
mod service;
mod shapes;
mod starting;
mod status;
mod stops;
mod storm;
mod tampering;
mod units;
mod upgrade;
mod versions;
mod waiting;
mod webhooks;
