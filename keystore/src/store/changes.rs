//! What changed since the directory was opened.
//!
//! The writer's thread adds, the head writer takes; neither waits for the other. Frames of the journal are kept for
//! shipping only, and only as many as a state store that is away for a moment makes necessary.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use stage0_contract::AccountId;
use tokio::sync::watch;

use crate::errors::lock;
use crate::store::snapshot::Position;
use crate::store::trail::Trail;

/// Frames that wait to be shipped. Beyond this the whole journal is shipped again.
const MAX_FRAME_BYTES: usize = 16 << 20;

/// One change as the journal has it, and the position after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) position: Position,
    pub(crate) bytes: Bytes,
}

/// Frames in their order. A frame that found no room is missing.
#[derive(Debug, Default)]
struct Frames {
    waiting: VecDeque<Frame>,
    bytes: usize,
}

/// The newest position, and accounts with changed keys. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Changes {
    pub(crate) position: watch::Sender<Position>,
    trail: Arc<Mutex<Trail>>,
    accounts: Arc<Mutex<BTreeSet<AccountId>>>,
    /// `None` if nothing is shipped.
    frames: Arc<Mutex<Option<Frames>>>,
}

impl Changes {
    pub(crate) fn at(position: Position, mut trail: Trail) -> Self {
        trail.follow(position);
        let (trail, accounts, frames) = (Arc::new(Mutex::new(trail)), Arc::default(), Arc::default());
        Self { position: watch::Sender::new(position), trail, accounts, frames }
    }

    /// Notes a stored change. Accounts and frame come first, so that a reader of the position finds them.
    pub(crate) fn advance(&self, position: Position, accounts: BTreeSet<AccountId>, frame: Vec<u8>) {
        self.add(accounts);
        if let Some(frames) = lock(&self.frames).as_mut() {
            frames.bytes = frames.bytes.saturating_add(frame.len());
            if frames.bytes > MAX_FRAME_BYTES {
                frames.waiting.clear();
            } else {
                frames.waiting.push_back(Frame { position, bytes: frame.into() });
            }
        }
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

    /// From now on each change leaves its frame.
    pub(crate) fn keep_frames(&self) {
        *lock(&self.frames) = Some(Frames::default());
    }

    /// The frames since the last call. One that is missing shows by the numbers of those after it.
    pub(crate) fn take_frames(&self) -> VecDeque<Frame> {
        lock(&self.frames).as_mut().map(std::mem::take).unwrap_or_default().waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::snapshot::{Digest, StoreId};

    fn at(sequence: u64) -> Position {
        Position { store_id: StoreId::from_random([1; 16]), sequence, digest: Digest::default() }
    }

    fn numbers(changes: &Changes) -> Vec<u64> {
        changes.take_frames().iter().map(|frame| frame.position.sequence).collect()
    }

    #[test]
    fn frames_are_kept_once_they_are_asked_for_and_never_more_than_have_room() {
        let changes = Changes::at(at(1), Trail::default());
        changes.advance(at(2), BTreeSet::new(), vec![0; 9]);
        assert!(numbers(&changes).is_empty());
        changes.keep_frames();
        changes.advance(at(3), BTreeSet::new(), vec![0; 9]);
        changes.advance(at(4), BTreeSet::new(), vec![0; 9]);
        assert_eq!(numbers(&changes), [3, 4]);
        for sequence in 5..=7 {
            changes.advance(at(sequence), BTreeSet::new(), vec![0; MAX_FRAME_BYTES / 2]);
        }
        assert!(numbers(&changes).is_empty(), "the last of them found no room");
        changes.advance(at(8), BTreeSet::new(), vec![0; 9]);
        assert_eq!(numbers(&changes), [8]);
    }
}
