//! That messages must be authenticated, remembered beyond the process: a record of the role's own, read at start.
//!
//! Roles that reach the ledger keep it there, authenticated; so a role that starts again refuses from its first message
//! what it refused before. The keystore has no ledger: it keeps a file, and that is its process's business. A
//! deployment that required it from the start has nothing to remember.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::Role;
use tokio::time::Instant;

use super::super::Connection;
use super::super::ledger::Proven;
use crate::{Ledger as _, PutError};

const WITHIN: Duration = Duration::from_secs(2);
const OVERWRITTEN: &str = "somebody wrote over the record of when messages had to be authenticated: nothing stored \
    without a proof is believed now; restore the ledger's stream from a backup, or set `require` to `always` in all key \
    files once nothing of before the switch is needed";

/// What the record holds.
#[derive(Serialize, Deserialize)]
struct RequirementRecord {
    required_since: Timestamp,
}

/// It could not be read or kept.
#[derive(Debug, thiserror::Error)]
#[error("whether messages must be authenticated cannot be {verb} in the ledger: {why}")]
pub struct MemoryError {
    verb: &'static str,
    why: String,
}

/// Requires what was required before this process started, and keeps what is required now. To be called at start and at
/// each change.
///
/// # Errors
/// When the ledger cannot be read or written.
pub async fn remember_requirement(connection: &Connection) -> Result<(), MemoryError> {
    let Some(auth) = connection.link.auth.clone().filter(|auth| !auth.is_strict()) else { return Ok(()) };
    let Some(key) = key(auth.role()) else { return Ok(()) };
    let fail = |verb, why: String| MemoryError { verb, why };
    let deadline = Instant::now() + WITHIN;
    let found = connection.proven(key, deadline).await.map_err(|error| fail("read", error.to_string()))?;
    match found {
        Proven::Record(found, stored_at) => {
            let record: RequirementRecord =
                serde_json::from_slice(&found.value).map_err(|error| fail("read", error.to_string()))?;
            // What is stored is dated by the server, and this role's clock may be ahead of its.
            auth.require(record.required_since.min(stored_at));
            return Ok(());
        }
        // Somebody wrote over it: not to take it for none, nor to let him keep this role from starting. When the switch
        // was, nobody knows now, and a later time would believe what was forged since.
        Proven::Unproven => {
            auth.require(Timestamp::UNIX_EPOCH);
            tracing::error!(key, "{OVERWRITTEN}");
            return Ok(());
        }
        Proven::Absent => {}
    }
    let since = *auth.required_since().borrow();
    let known = since.filter(|since| auth.is_required() && *since > Timestamp::UNIX_EPOCH);
    let Some(required_since) = known else { return Ok(()) };
    let value = serde_json::to_vec(&RequirementRecord { required_since });
    let value = value.map_err(|error| fail("kept", error.to_string()))?;
    match connection.put(key, value.into(), None, None, deadline).await {
        // Another process of this role was first, and says the same.
        Ok(_) | Err(PutError::Conflict) => Ok(()),
        Err(error @ PutError::Failed(_)) => Err(fail("kept", error.to_string())),
    }
}

/// Among the records that the role may reach, and no account's.
fn key(role: Role) -> Option<&'static str> {
    match role {
        Role::Gateway => Some("usage.message-auth"),
        Role::Evaluator => Some("runs.message-auth"),
        Role::AuditExport => Some("message-auth"),
        Role::Keystore => None,
    }
}

#[cfg(test)]
mod tests {
    use stage0_contract::owner_of_record;

    use super::*;

    #[test]
    fn each_role_keeps_it_among_its_own_records() {
        for role in Role::ALL {
            assert!(key(role).is_none_or(|key| owner_of_record(key) == role), "{role}");
        }
    }
}
