//! What changed since the directory was opened.
//!
//! The writer's thread adds, the head writer takes; neither waits for the other.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use stage0_contract::AccountId;
use tokio::sync::watch;

use crate::errors::lock;
use crate::store::snapshot::Position;
use crate::store::trail::Trail;

/// The newest position, and accounts with changed keys. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    pub(crate) position: watch::Sender<Position>,
    trail: Arc<Mutex<Trail>>,
    accounts: Arc<Mutex<BTreeSet<AccountId>>>,
}

impl Changes {
    pub(crate) fn at(position: Position, mut trail: Trail) -> Self {
        trail.follow(position);
        Self { position: watch::Sender::new(position), trail: Arc::new(Mutex::new(trail)), accounts: Arc::default() }
    }

    /// Notes a stored change. The accounts come first, so that a reader of the position finds them.
    pub(crate) fn advance(&self, position: Position, accounts: BTreeSet<AccountId>) {
        self.add(accounts);
        lock(&self.trail).follow(position);
        self.position.send_replace(position);
    }

    pub(crate) fn replaced(&self, position: Position, trail: Trail) {
        *lock(&self.trail) = trail;
        self.position.send_replace(position);
    }

    pub(crate) fn acknowledged(&self, position: Position) {
        lock(&self.trail).acknowledge(position);
    }

    pub(crate) fn trail(&self) -> Trail {
        lock(&self.trail).clone()
    }

    pub(crate) fn add(&self, accounts: BTreeSet<AccountId>) {
        lock(&self.accounts).extend(accounts);
    }

    pub(crate) fn take(&self) -> BTreeSet<AccountId> {
        std::mem::take(&mut *lock(&self.accounts))
    }

    pub(crate) fn position(&self) -> Position {
        *self.position.borrow()
    }
}
