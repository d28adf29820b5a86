//! What changed since the directory was opened.
//!
//! Owns the position after the newest change, the positions that the state store may know instead, and the accounts
//! whose lists in the state store are out of date. The writer's thread adds, the head writer takes; neither waits for
//! the other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use stage0_contract::AccountId;
use tokio::sync::watch;

use crate::store::snapshot::Position;
use crate::store::trail::Trail;

/// The newest position, and accounts with changed keys. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    position: watch::Sender<Position>,
    trail: Arc<Mutex<Trail>>,
    accounts: Arc<Mutex<BTreeSet<AccountId>>>,
}

impl Changes {
    /// `trail` has the positions before this one.
    pub(crate) fn at(position: Position, mut trail: Trail) -> Self {
        trail.follow(position);
        Self { position: watch::Sender::new(position), trail: Arc::new(Mutex::new(trail)), accounts: Arc::default() }
    }

    /// Notes a stored change. The accounts come first, so that a reader of the position finds them.
    pub(crate) fn advance(&self, position: Position, accounts: BTreeSet<AccountId>) {
        self.add(accounts);
        self.trail.lock().unwrap_or_else(PoisonError::into_inner).follow(position);
        self.position.send_replace(position);
    }

    /// Replaces everything, after a restore.
    pub(crate) fn replaced(&self, position: Position, trail: Trail) {
        *self.trail.lock().unwrap_or_else(PoisonError::into_inner) = trail;
        self.position.send_replace(position);
    }

    /// Notes that the state store has this position.
    pub(crate) fn acknowledged(&self, position: Position) {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner).acknowledge(position);
    }

    /// The positions that the state store may know as the newest.
    pub(crate) fn trail(&self) -> Trail {
        self.trail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Adds accounts whose lists must be written again.
    pub(crate) fn add(&self, accounts: BTreeSet<AccountId>) {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).extend(accounts);
    }

    /// Takes the accounts whose lists must be written.
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
