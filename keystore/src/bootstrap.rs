//! The first key.
//!
//! Owns what an empty keystore makes for itself: an operator's account and key, so that somebody may make the rest. The
//! key's text is on disk, for its owner alone, before its record is: a crash between leaves a file without a record,
//! and the next start writes both again; the other way round nobody could get in. A keystore that holds anything is
//! left alone, for ever.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use stage0_contract::{Account, Caps, Limits, Plan, Scope, Scopes};

use crate::disk;
use crate::hash::Hasher;
use crate::manage::{Desk, NewKey, Undone, account_id, random};
use crate::new_key::HashedKey;
use crate::record::Record;

/// Where the operator's first key is written, beside the journal.
pub const OPERATOR_KEY_FILE: &str = "operator.key";

/// The first key could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootstrapError {
    #[error("the operator's key cannot be made or stored")]
    Undone(#[from] Undone),
    #[error("the operator's key cannot be written")]
    File(#[from] std::io::Error),
}

/// Makes the operator's account and key when there is no account at all.
pub(crate) fn operator_if_empty(desk: &mut Desk, hasher: &Hasher, dir: &Path) -> Result<(), BootstrapError> {
    if desk.store().accounts(None, 1).map_err(Undone::from)?.is_empty() {
        new_operator(desk, hasher, dir)?;
    }
    Ok(())
}

/// Makes another operator's account and key when no operator's key lives: after a restore nobody could get in. Whether
/// it did.
pub(crate) fn operator_if_none_lives(desk: &mut Desk, hasher: &Hasher, dir: &Path) -> Result<bool, BootstrapError> {
    let now = desk.now();
    for record in desk.store().members() {
        if let Record::Key(key) = record.map_err(Undone::from)?
            && key.lives_at(now)
            && key.scopes.contains(&Scope::Operator)
        {
            return Ok(false);
        }
    }
    new_operator(desk, hasher, dir)?;
    Ok(true)
}

fn new_operator(desk: &mut Desk, hasher: &Hasher, dir: &Path) -> Result<(), BootstrapError> {
    let now = desk.now();
    let id = account_id(random().map_err(Undone::from)?).map_err(Undone::from)?;
    let account = Account {
        id,
        name: "operator".to_owned(),
        plan: Plan::default(),
        created_at: now,
        retention_days: None,
        limits: Limits::NONE,
        require_run_id: false,
        caps: Caps::NONE,
    };
    let scopes = Scopes::from([Scope::Operator]);
    let new = NewKey { account: account.id.clone(), name: "operator".to_owned(), scopes, expires_at: None };
    let (key, record) = new.with(HashedKey::draw(hasher)?, now);
    disk::replace(dir, OPERATOR_KEY_FILE, format!("{}\n", key.expose()).as_bytes())?;
    let (account_id, key_id) = (account.id.clone(), record.id.clone());
    desk.commit(&[Record::Account(account), Record::Key(record)]).map_err(Undone::from)?;
    tracing::info!(account = %account_id, %key_id, file = OPERATOR_KEY_FILE, "operator's key was made");
    Ok(())
}

/// Puts the first key, as its file has it, where somebody else may read it. Where that file was taken away there is
/// nothing to put.
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
    fn the_first_key_is_copied_for_its_reader_alone_and_one_that_was_taken_away_is_no_fault() {
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
