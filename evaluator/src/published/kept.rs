//! Which versions are loaded, are loading, or failed a moment ago. Pure: time is an argument.
//!
//! A version is looked up for an account, because two accounts may publish different content under one version: the
//! digest in it is short. What is kept are packs by the hash of their whole content, so that a pack that many accounts
//! use is loaded once.
//! INVARIANT: memory is bounded, and an account that uses many or large packs loses its own ones ([`Shares`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use stage0_contract::{AccountId, MAX_LISTED_POLICIES, PolicyBundle, PolicyVersion};
use stage0_policy::Pack;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Outcome;
use crate::shares::{Bounds, Shares};

/// Packs that are kept, and the bytes that they were loaded from, in all and for one account.
pub(super) const BOUNDS: Bounds = Bounds { items: MAX_LISTED_POLICIES, cost: 16 << 20, share: 4 << 20 };
/// What a pack costs beside its own texts: a copy of what it takes over from the packs that are compiled in.
pub(super) const INHERITED_BYTES: usize = 128 << 10;
/// Versions of accounts that are remembered.
const MAX_ENTRIES: usize = 16_384;
/// How long a version that cannot be loaded is not tried again.
pub(super) const FAILED_TTL: Duration = Duration::from_secs(5);

/// A version as an account sees it; none: as the deployment does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) account: Option<AccountId>,
    pub(super) version: PolicyVersion,
}

/// The hash of everything that a pack is loaded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Content([u8; 32]);

impl Content {
    pub(super) fn of(version: &PolicyVersion, bundle: &PolicyBundle) -> Result<Self, String> {
        let text = serde_json::to_vec(&(version, bundle)).map_err(|error| format!("it cannot be hashed: {error}"))?;
        Ok(Self(Sha256::digest(text).into()))
    }
}

/// What is known of a version.
pub(super) enum Found {
    Loaded(Arc<Pack>),
    Loading(watch::Receiver<Option<Outcome>>),
    Failed(String),
}

#[derive(Debug)]
enum Entry {
    Loaded(Content),
    Loading(watch::Receiver<Option<Outcome>>),
    Failed { at: Instant, why: String },
}

#[derive(Debug)]
pub(super) struct Kept {
    entries: HashMap<Key, Entry>,
    packs: Shares<Content, Arc<Pack>>,
}

impl Default for Kept {
    fn default() -> Self {
        Self { entries: HashMap::new(), packs: Shares::new(BOUNDS) }
    }
}

impl Kept {
    /// What is known of a version now; none: it must be loaded.
    pub(super) fn find(&mut self, key: &Key, now: Instant) -> Option<Found> {
        match self.entries.get(key)? {
            Entry::Loaded(content) => {
                let content = *content;
                self.packs.find(&content, key.account.as_ref()).cloned().map(Found::Loaded)
            }
            // Its task ended without an outcome: the shard that it ran on has stopped.
            Entry::Loading(waiting) if waiting.has_changed().is_err() && waiting.borrow().is_none() => None,
            Entry::Loading(waiting) => Some(Found::Loading(waiting.clone())),
            Entry::Failed { at, why } => {
                (now.saturating_duration_since(*at) < FAILED_TTL).then(|| Found::Failed(why.clone()))
            }
        }
    }

    /// The pack of this content, if it is loaded for another version or account; then it is loaded for this one too.
    pub(super) fn known(&mut self, key: &Key, content: &Content) -> Option<Arc<Pack>> {
        let pack = Arc::clone(self.packs.find(content, key.account.as_ref())?);
        self.entries.insert(key.clone(), Entry::Loaded(*content));
        Some(pack)
    }

    pub(super) fn loading(&mut self, key: Key, waiting: watch::Receiver<Option<Outcome>>) {
        if self.entries.len() >= MAX_ENTRIES {
            // What is loaded is found again by its content.
            self.entries.retain(|_, entry| matches!(entry, Entry::Loading(_)));
        }
        self.entries.insert(key, Entry::Loading(waiting));
    }

    /// Keeps a pack that was loaded from so many bytes.
    pub(super) fn loaded(&mut self, key: &Key, content: Content, pack: &Arc<Pack>, bytes: usize) {
        let cost = bytes.saturating_add(INHERITED_BYTES);
        self.packs.insert(content, Arc::clone(pack), cost, key.account.as_ref());
        // A version whose pack has left is loaded again.
        self.entries.insert(key.clone(), Entry::Loaded(content));
    }

    pub(super) fn failed(&mut self, key: Key, why: String, at: Instant) {
        self.entries.insert(key, Entry::Failed { at, why });
    }

    /// The versions of the packs that are kept, the most recently used first.
    pub(super) fn versions(&self) -> Vec<PolicyVersion> {
        let mut versions: Vec<PolicyVersion> = Vec::new();
        for pack in self.packs.values() {
            if !versions.contains(pack.version()) {
                versions.push(pack.version().clone());
            }
        }
        versions
    }
}
