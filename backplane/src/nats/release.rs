//! Which protocol this deployment has come to: for each role a record of its own, which its processes read at start.
//!
//! A process may start beside the newest release of its role that ever started here, or as the next one; one that is
//! further away is refused, whatever runs at the moment. The record is raised and never lowered.
//! INVARIANT: only a record that proves itself refuses a start. What another client of NATS wrote over it is logged and
//! ignored, as it must not keep a role from starting.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stage0_contract::{Role, may_run_together};
use tokio::time::{Instant, sleep};

use super::Connection;
use super::state_store::Proven;
use crate::{PutError, ReadError, Record, Revision, StateStore as _, random_fraction};

const STORE_TIMEOUT: Duration = Duration::from_secs(2);
/// For all tries to record a release: with replicas, each conflict is over once they have caught up.
const RECORD_TIMEOUT: Duration = Duration::from_secs(10);
/// The delay after a conflict, and the random part of it: what was read may have come from a replica that lags, and
/// will for some milliseconds more.
const CONFLICT_RETRY_DELAY: Duration = Duration::from_millis(5);
const CONFLICT_RETRY_SPREAD: Duration = Duration::from_millis(10);

/// A release of ours, as its processes name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// [`PROTOCOL_VERSION`](stage0_contract::PROTOCOL_VERSION) of that release.
    pub protocol_version: u32,
    /// Version and commit, for people.
    pub version: String,
}

/// Why a process must not start, or why that is not known.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A release after the next one has run here.
    #[error(
        "version {own} must not run here: {newest} has run as {role}, and only the release before that may run beside \
         it; install a newer version, or restore the backup of before the upgrade (docs/OPERATIONS.md)"
    )]
    TooOld {
        /// The role.
        role: Role,
        /// The release of this process.
        own: Release,
        /// The newest that has run.
        newest: Release,
    },
    /// No release before this one has run here.
    #[error(
        "version {own} must not run here yet: the newest that has run as {role} is {newest}; install the releases in \
         between first, one after the other (docs/OPERATIONS.md)"
    )]
    TooNew {
        /// The role.
        role: Role,
        /// The release of this process.
        own: Release,
        /// The newest that has run.
        newest: Release,
    },
    /// The state store does not answer.
    #[error("which versions have run here cannot be read in the ledger")]
    Unread(#[source] ReadError),
    /// The record is in no form that this version knows.
    #[error("which versions have run here is recorded as `{key}` in a form that this version cannot read")]
    Unreadable {
        /// The record's key.
        key: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl ReleaseError {
    /// Whether waiting may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unread(_))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (protocol {})", self.version, self.protocol_version)
    }
}

impl Release {
    /// Whether a process of this release may run where `newest` is the newest that has run as its role.
    pub fn may_follow(&self, newest: &Self, role: Role) -> Result<(), ReleaseError> {
        if may_run_together(self.protocol_version, newest.protocol_version) {
            return Ok(());
        }
        let (own, newest) = (self.clone(), newest.clone());
        Err(if own.protocol_version < newest.protocol_version {
            ReleaseError::TooOld { role, own, newest }
        } else {
            ReleaseError::TooNew { role, own, newest }
        })
    }
}

enum Known {
    Nothing,
    Newest(Release, Revision),
    /// There is a record that the role did not write.
    Unproven,
}

impl Connection {
    /// Whether a process of this release may start as a role; if so, and it is newer than what has run, records that.
    pub async fn admit(&self, role: Role, own: &Release) -> Result<(), ReleaseError> {
        let until = Instant::now() + RECORD_TIMEOUT;
        loop {
            let expected = match self.known_release(role).await? {
                Known::Newest(newest, revision) => {
                    own.may_follow(&newest, role)?;
                    if newest.protocol_version >= own.protocol_version {
                        return Ok(());
                    }
                    Some(revision)
                }
                Known::Nothing => None,
                Known::Unproven => return Ok(()),
            };
            match self.record_release(role, own, expected).await {
                Ok(_) => return Ok(()),
                Err(PutError::Conflict) if Instant::now() >= until => {
                    return Err(ReleaseError::Unread(ReadError("it is written each time that it is read".into())));
                }
                // Another process recorded its own meanwhile, or had before.
                Err(PutError::Conflict) => {
                    sleep(CONFLICT_RETRY_DELAY + CONFLICT_RETRY_SPREAD.mul_f64(random_fraction())).await;
                }
                // A full store must not keep a role from starting, which would say so; its next start tries again.
                Err(PutError::Failed(error)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "that this version has run here could not be recorded");
                    return Ok(());
                }
            }
        }
    }

    /// The newest release that has run as a role, if one was recorded.
    pub async fn newest_release(&self, role: Role) -> Result<Option<Release>, ReleaseError> {
        Ok(match self.known_release(role).await? {
            Known::Newest(newest, _) => Some(newest),
            Known::Nothing | Known::Unproven => None,
        })
    }

    async fn known_release(&self, role: Role) -> Result<Known, ReleaseError> {
        let (key, deadline) = (key(role), Instant::now() + STORE_TIMEOUT);
        let found = match self.get(key, deadline).await {
            Ok(found) => found,
            Err(error) => {
                if matches!(self.proven(key, deadline).await, Ok(Proven::Unproven)) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(key, error, "the record of the versions that have run here is not believed");
                    return Ok(Known::Unproven);
                }
                return Err(ReleaseError::Unread(error));
            }
        };
        let Some(Record { revision, value }) = found else { return Ok(Known::Nothing) };
        let newest = serde_json::from_slice(&value).map_err(|source| ReleaseError::Unreadable { key, source })?;
        Ok(Known::Newest(newest, revision))
    }

    async fn record_release(
        &self,
        role: Role,
        own: &Release,
        expected: Option<Revision>,
    ) -> Result<Revision, PutError> {
        let value = serde_json::to_vec(own).map_err(|error| PutError::Failed(crate::Cause::new(error)))?;
        self.put(key(role), value.into(), expected, None, Instant::now() + STORE_TIMEOUT).await
    }
}

/// A key among the role's own records that belongs to no account.
fn key(role: Role) -> &'static str {
    match role {
        Role::Gateway => "usage.release",
        Role::Evaluator => "runs.release",
        Role::Keystore => "keystore.release",
        Role::AuditExport => "release",
    }
}

#[cfg(test)]
mod tests {
    use stage0_contract::owner_of_record;

    use super::*;

    fn release(protocol_version: u32) -> Release {
        Release { protocol_version, version: format!("0.{protocol_version}.0") }
    }

    #[test]
    fn each_role_keeps_its_release_among_its_own_records() {
        for role in Role::ALL {
            assert_eq!(owner_of_record(key(role)), role);
        }
    }

    #[test]
    fn a_release_may_follow_its_neighbours_and_no_other() {
        let says = |own: u32, newest: u32| match release(own).may_follow(&release(newest), Role::Gateway) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!([says(3, 2), says(3, 3), says(3, 4)], ["", "", ""]);
        let (old, new) = (says(3, 5), says(3, 1));
        assert!(old.contains("0.3.0 (protocol 3) must not run here: 0.5.0 (protocol 5) has run as gateway"), "{old}");
        assert!(
            new.contains("0.3.0 (protocol 3) must not run here yet") && new.contains("0.1.0 (protocol 1)"),
            "{new}"
        );
    }
}
