//! What changed since the directory was opened.
//!
//! Owns the position after the newest change, and the accounts whose keys changed and are not listed elsewhere yet. The
//! writer's thread adds, and whoever keeps a copy in the state store takes; nothing waits for anybody here.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use stage0_contract::AccountId;
use tokio::sync::watch;

use crate::image::Position;

/// The newest position, and accounts with changed keys. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    position: watch::Sender<Position>,
    accounts: Arc<Mutex<BTreeSet<AccountId>>>,
}

impl Changes {
    pub(crate) fn at(position: Position) -> Self {
        Self { position: watch::Sender::new(position), accounts: Arc::default() }
    }

    /// A change was stored. The accounts first: who sees the position finds them.
    pub(crate) fn moved(&self, position: Position, accounts: BTreeSet<AccountId>) {
        self.add(accounts);
        self.position.send_replace(position);
    }

    /// These are to be listed again.
    pub(crate) fn add(&self, accounts: BTreeSet<AccountId>) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).extend(accounts);
    }

    /// The accounts to be listed, and none is left.
    pub(crate) fn take(&self) -> BTreeSet<AccountId> {
        std::mem::take(&mut *self.accounts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn position(&self) -> Position {
        *self.position.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Position> {
        self.position.subscribe()
    }
}
