//! The first key.
//!
//! Owns what an empty keystore makes for itself: an operator's account and key, so that somebody may make the rest. The key's text
//! is on disk, for its owner alone, before its record is: a crash between leaves a file without a record, and the next start
//! writes both anew; the other way round nobody could get in. A keystore that holds anything is left alone, for ever.

use std::path::Path;

use stage0_contract::{Account, Limits, Plan, Scope, Scopes};

use crate::disk;
use crate::manage::{Desk, NewKey, Undone, account_id, random};
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
pub(crate) fn operator_if_empty(desk: &mut Desk, dir: &Path) -> Result<(), BootstrapError> {
    if !desk.vault.store().accounts(None, 1).map_err(Undone::from)?.is_empty() {
        return Ok(());
    }
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
    };
    let scopes = Scopes::from([Scope::Operator]);
    let new = NewKey { account: account.id.clone(), name: "operator".to_owned(), scopes, expires_at: None };
    let (key, record) = new.make(&desk.hasher, now)?;
    disk::replace(dir, OPERATOR_KEY_FILE, format!("{}\n", key.expose()).as_bytes())?;
    let (account_id, key_id) = (account.id.clone(), record.id.clone());
    desk.vault.commit(&[Record::Account(account), Record::Key(record)]).map_err(Undone::from)?;
    tracing::info!(account = %account_id, %key_id, file = OPERATOR_KEY_FILE, "operator's key was made");
    Ok(())
}
