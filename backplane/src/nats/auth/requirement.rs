//! Persists that messages must be authenticated: a record of the role's own, read at start.
//!
//! A role that restarts refuses from its first message what it refused before. The keystore has no such record: its
//! process keeps a file. A deployment that required authentication from the start has nothing to persist.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use stage0_contract::Role;
use tokio::time::Instant;

use super::super::Connection;
use super::super::state_store::Proven;
use crate::{Cause, PutError, StateStore as _};

const STORE_TIMEOUT: Duration = Duration::from_secs(2);
const OVERWRITTEN_MESSAGE: &str = "somebody wrote over the record of when messages had to be authenticated: \
    nothing stored without a proof is believed now; restore the ledger's stream from a backup, or set `require` to \
    `always` in all key files once nothing of before the switch is needed";

#[derive(Serialize, Deserialize)]
struct RequirementRecord {
    required_since: Timestamp,
}

/// The requirement could not be read or stored.
#[derive(Debug, thiserror::Error)]
#[error("whether messages must be authenticated cannot be {verb} in the ledger")]
pub struct RequirementError {
    verb: &'static str,
    source: Cause,
}

/// Requires authentication if it was required before this process started. Called at start and at each change.
pub async fn persist_requirement(connection: &Connection) -> Result<(), RequirementError> {
    let Some(auth) = connection.link.auth.clone().filter(|auth| !auth.is_strict()) else { return Ok(()) };
    let Some(key) = key(auth.role()) else { return Ok(()) };
    let fail = |verb, source| RequirementError { verb, source };
    let deadline = Instant::now() + STORE_TIMEOUT;
    match connection.proven(key, deadline).await.map_err(|error| fail("read", Cause::new(error)))? {
        Proven::Record(found, stored_at) => {
            let record: RequirementRecord =
                serde_json::from_slice(&found.value).map_err(|error| fail("read", Cause::new(error)))?;
            // The server dates what is stored, and this role's clock may be ahead of the server's.
            auth.require(record.required_since.min(stored_at));
            return Ok(());
        }
        // Another client overwrote the record. That must not count as no record, nor keep this role from starting. The
        // time of the switch is lost, and assuming a later one would trust what was forged since.
        Proven::Unproven => {
            auth.require(Timestamp::UNIX_EPOCH);
            tracing::error!(key, "{OVERWRITTEN_MESSAGE}");
            return Ok(());
        }
        Proven::Absent => {}
    }
    let since = *auth.required_since().borrow();
    let known = since.filter(|since| auth.is_required() && *since > Timestamp::UNIX_EPOCH);
    let Some(required_since) = known else { return Ok(()) };
    let value = serde_json::to_vec(&RequirementRecord { required_since });
    let value = value.map_err(|error| fail("kept", Cause::new(error)))?;
    match connection.put(key, value.into(), None, None, deadline).await {
        // Another process of this role stored it first.
        Ok(_) | Err(PutError::Conflict) => Ok(()),
        Err(error @ PutError::Failed(_)) => Err(fail("kept", Cause::new(error))),
    }
}

/// A key among the role's own records that belongs to no account.
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
    fn each_role_stores_the_requirement_among_its_own_records() {
        for role in Role::ALL {
            assert!(key(role).is_none_or(|key| owner_of_record(key) == role), "{role}");
        }
    }
}
