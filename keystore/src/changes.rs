//! What changed since the directory was opened.
//!
//! Owns the position after the newest change, those that the state store may know instead, and the accounts whose keys
//! changed and are not listed elsewhere yet. The writer's thread adds, and whoever keeps a copy in the state store takes;
//! nothing waits for anybody here.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use stage0_contract::AccountId;
use tokio::sync::watch;

use crate::image::Position;
use crate::trail::Trail;

/// The newest position, and accounts with changed keys. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    position: watch::Sender<Position>,
    trail: Arc<Mutex<Trail>>,
    accounts: Arc<Mutex<BTreeSet<AccountId>>>,
}

impl Changes {
    /// `trail`: of what was before.
    pub(crate) fn at(position: Position, mut trail: Trail) -> Self {
        trail.follow(position);
        Self { position: watch::Sender::new(position), trail: Arc::new(Mutex::new(trail)), accounts: Arc::default() }
    }

    /// A change was stored. The accounts first: who sees the position finds them.
    pub(crate) fn moved(&self, position: Position, accounts: BTreeSet<AccountId>) {
        self.add(accounts);
        self.trail.lock().unwrap_or_else(PoisonError::into_inner).follow(position);
        self.position.send_replace(position);
    }

    /// What was restored takes the place of everything before it.
    pub(crate) fn replaced(&self, position: Position, trail: Trail) {
        *self.trail.lock().unwrap_or_else(PoisonError::into_inner) = trail;
        self.position.send_replace(position);
    }

    /// The state store has this position.
    pub(crate) fn acknowledged(&self, position: Position) {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner).acknowledge(position);
    }

    /// What the state store may know as the newest position, up to this moment's.
    pub(crate) fn trail(&self) -> Trail {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
