//! Which versions are loaded, are loading, or failed a moment ago. Pure: time is an argument.
//!
//! A version is looked up for an account, because two accounts may publish different content under one version: the
//! digest in it is short. What is kept are packs by the hash of their whole content, so that a pack that many accounts
//! use is loaded once.
//! INVARIANT: memory is bounded. The pack that was used least recently leaves first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use stage0_contract::{AccountId, MAX_LISTED_POLICIES, PolicyBundle, PolicyVersion};
use stage0_policy::Pack;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Outcome;

/// Packs that are kept.
pub(super) const MAX_PACKS: usize = MAX_LISTED_POLICIES;
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
struct KeptPack {
    pack: Arc<Pack>,
    /// When it was used last, in uses of all packs.
    used: u64,
}

#[derive(Debug, Default)]
pub(super) struct Kept {
    entries: HashMap<Key, Entry>,
    packs: HashMap<Content, KeptPack>,
    uses: u64,
}

impl Kept {
    /// What is known of a version now; none: it must be loaded.
    pub(super) fn find(&mut self, key: &Key, now: Instant) -> Option<Found> {
        match self.entries.get(key)? {
            Entry::Loaded(content) => {
                let content = *content;
                self.used(&content).map(Found::Loaded)
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
        let pack = self.used(content)?;
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

    pub(super) fn loaded(&mut self, key: &Key, content: Content, pack: &Arc<Pack>) {
        self.uses += 1;
        self.packs.insert(content, KeptPack { pack: Arc::clone(pack), used: self.uses });
        self.entries.insert(key.clone(), Entry::Loaded(content));
        while self.packs.len() > MAX_PACKS {
            let least = self.packs.iter().min_by_key(|(_, kept)| kept.used).map(|(content, _)| *content);
            let Some(least) = least else { break };
            self.packs.remove(&least);
            self.entries.retain(|_, entry| !matches!(entry, Entry::Loaded(content) if *content == least));
        }
    }

    pub(super) fn failed(&mut self, key: Key, why: String, at: Instant) {
        self.entries.insert(key, Entry::Failed { at, why });
    }

    /// The versions of the packs that are kept, the most recently used first.
    pub(super) fn versions(&self) -> Vec<PolicyVersion> {
        let mut kept: Vec<&KeptPack> = self.packs.values().collect();
        kept.sort_unstable_by_key(|kept| std::cmp::Reverse(kept.used));
        let mut versions: Vec<PolicyVersion> = Vec::with_capacity(kept.len());
        for kept in kept {
            if !versions.contains(kept.pack.version()) {
                versions.push(kept.pack.version().clone());
            }
        }
        versions
    }

    fn used(&mut self, content: &Content) -> Option<Arc<Pack>> {
        let kept = self.packs.get_mut(content)?;
        self.uses += 1;
        kept.used = self.uses;
        Some(Arc::clone(&kept.pack))
    }
}
