//! The words for effects that this crate itself uses. All are in the baseline's vocabulary but [`UNKNOWN`], which a
//! policy counts as an effect that cannot be undone because it does not know it.

use std::collections::BTreeSet;

/// Nothing changes.
pub(crate) const READ: &str = "read";
/// Something outside is asked, with a body or an address that the agent chose.
pub(crate) const NETWORK: &str = "external_api";
/// A file in the working directory or a temporary one changes.
pub(crate) const WRITE: &str = "filesystem_modification";
/// A file is removed.
pub(crate) const DELETE: &str = "delete";
/// Work that is not kept elsewhere is lost.
pub(crate) const DISCARD: &str = "discard";
/// Data is sent to somebody.
pub(crate) const SEND: &str = "external_communication";
/// A file comes from outside.
pub(crate) const DOWNLOAD: &str = "download";
/// More rights than the agent's own are used.
pub(crate) const PRIVILEGE: &str = "privilege_escalation";
/// What may hold secrets is read.
pub(crate) const READ_SECRET: &str = "read: credentials";
/// What may hold secrets is written.
pub(crate) const WRITE_SECRET: &str = "write: credentials";
/// A file changes that decides what the agent, its guard or the shell may do or will run.
pub(crate) const CONTROL: &str = "permission_change";
/// A file outside of the working directory changes.
pub(crate) const OUTSIDE: &str = "overwrite";
/// What happens is not known.
pub(crate) const UNKNOWN: &str = "unknown";

/// The effects in their order, without [`READ`] beside others; [`UNKNOWN`] if there is none.
pub(crate) fn listed(mut effects: BTreeSet<String>) -> Vec<String> {
    if effects.len() > 1 {
        effects.remove(READ);
    }
    if effects.is_empty() {
        effects.insert(UNKNOWN.to_owned());
    }
    effects.into_iter().collect()
}
