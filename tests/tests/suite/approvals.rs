//! Approvals: an action that was deferred is approved by people and runs once, as it was shown to them.
//!
//! The tests go the way of an agent and of its approvers over HTTP, one file a matter. Who may never approve is in
//! `approvals_asker`, what happens under load and with processes that die in `approvals_storm`.

mod agent_loop;
mod ends;
mod grants;
mod modes;
pub(crate) mod path;
mod people;
mod privacy;
mod readers;
mod record;
