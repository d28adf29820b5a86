//! Attacks from inside: a part of the deployment that is taken over, frozen, restored or started twice.
//!
//! Each file has the credentials of one role, or does to a machine what happens to machines. What holds is described in
//! docs/threat-model.md.

mod bounds;
mod callers;
pub(crate) mod freeze;
mod malformed;
mod marks;
mod numbers;
mod restore;
mod rotation;
mod storage;
mod streams;
mod two_keystores;
