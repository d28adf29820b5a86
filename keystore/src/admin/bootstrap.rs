//! The first key.
//!
//! The key of the operator, who creates everything else, is written to its file before its record: a crash in between
//! leaves a file that the next start replaces. The other way round the operator could not sign in.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use stage0_contract::{ApprovalMode, Plan, Scope, Scopes};

use crate::admin::new_key::HashedKey;
use crate::admin::{AdminService, ManageError, NewHolder, NewKey, new_account};
use crate::hash::Hasher;
use crate::keyfile::OPERATOR_KEY_FILE;
use crate::store::disk;
use crate::store::record::Record;
use crate::store::record_store::StoreError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    #[error("the operator's key cannot be made or stored")]
    Admin(#[from] ManageError),
    #[error("the operator's key cannot be written")]
    File(#[from] std::io::Error),
}

/// For an empty keystore, and a restored one without an active operator's key. Returns whether it made a key.
pub(crate) fn operator_if_needed(
    admin: &mut AdminService,
    hasher: &Hasher,
    dir: &Path,
    is_restored: bool,
) -> Result<bool, BootstrapError> {
    let empty = || admin.store().accounts(None, 1).map(|accounts| accounts.is_empty());
    let needed = if is_restored { has_no_active_operator(admin) } else { empty() };
    let needed = needed.map_err(ManageError::from)?;
    if needed {
        new_operator(admin, hasher, dir)?;
    }
    Ok(needed)
}

fn has_no_active_operator(admin: &AdminService) -> Result<bool, StoreError> {
    let now = admin.now();
    for key in admin.store().all_keys() {
        let key = key?;
        if key.is_active_at(now) && key.scopes.contains(&Scope::Operator) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn new_operator(admin: &mut AdminService, hasher: &Hasher, dir: &Path) -> Result<(), BootstrapError> {
    let now = admin.now();
    let account = new_account("operator".to_owned(), Plan::default(), ApprovalMode::default(), now)?;
    let scopes = Scopes::from([Scope::Operator]);
    let (name, holder) =
        ("operator".to_owned(), NewHolder::Workload { owner: None, made_by: None, known_to: Vec::new() });
    let new = NewKey { account: account.id.clone(), name, scopes, expires_at: None, holder };
    let (key, record) = new.with(HashedKey::draw(hasher)?, now);
    disk::replace(dir, OPERATOR_KEY_FILE, format!("{}\n", key.expose()).as_bytes())?;
    let (account_id, key_id) = (account.id.clone(), record.id.clone());
    admin.commit(&[Record::Account(account), Record::Key(record)]).map_err(ManageError::from)?;
    tracing::info!(account = %account_id, %key_id, file = OPERATOR_KEY_FILE, "operator's key was made");
    Ok(())
}

/// Copies the operator's key file to a place that another process may read. Does nothing if the file was removed.
pub(crate) fn copy_operator_key(dir: &Path, to: &Path) -> Result<(), BootstrapError> {
    let key = match std::fs::read(dir.join(OPERATOR_KEY_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::warn!(file = OPERATOR_KEY_FILE, "the operator's key is not there to be copied");
            return Ok(());
        }
        read => read?,
    };
    let (folder, name) = to
        .parent()
        .zip(to.file_name().and_then(OsStr::to_str))
        .ok_or(io::ErrorKind::InvalidFilename)
        .map_err(io::Error::from)?;
    let folder = if folder == Path::new("") { Path::new(".") } else { folder };
    Ok(disk::replace(folder, name, &key)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_operators_key_is_copied_privately_and_a_removed_one_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("handed").join("key");
        copy_operator_key(dir.path(), &copy).unwrap();
        std::fs::write(dir.path().join(OPERATOR_KEY_FILE), "s0_x\n").unwrap();
        assert!(copy_operator_key(dir.path(), &copy).is_err(), "there is no such folder");
        std::fs::create_dir(dir.path().join("handed")).unwrap();
        for _ in 0..2 {
            copy_operator_key(dir.path(), &copy).unwrap();
            assert_eq!(std::fs::read_to_string(&copy).unwrap(), "s0_x\n");
            assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
