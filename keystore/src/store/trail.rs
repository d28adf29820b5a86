//! The positions of a directory that the state store may know as its newest.
//!
//! It is stored in the journal's first frame and beside the store's position, so it survives a shortened journal and is
//! part of a backup. If it is not empty, the state store has a head for this directory.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::store::snapshot::{Digest, Position};

/// Enough, because a keystore that cannot reach the state store stops taking changes within seconds.
const MAX_POSITIONS: usize = 256;

/// Numbers of changes and the digest after each, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Trail(VecDeque<(u64, Digest)>);

impl Trail {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MAX_POSITIONS
    }

    /// Adds the position of a new change, unless there was no head yet.
    pub(crate) fn follow(&mut self, position: Position) {
        if !self.is_empty() {
            self.push(position);
        }
    }

    /// Drops earlier positions, because the state store has this one.
    pub(crate) fn acknowledge(&mut self, position: Position) {
        self.0.retain(|(sequence, _)| *sequence >= position.sequence);
        if self.is_empty() {
            self.push(position);
        }
    }

    pub(crate) fn digest_at(&self, sequence: u64) -> Option<Digest> {
        self.iter().find(|(at, _)| *at == sequence).map(|(_, digest)| digest)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, Digest)> + '_ {
        self.0.iter().copied()
    }

    fn push(&mut self, position: Position) {
        if self.0.back().is_some_and(|(newest, _)| *newest == position.sequence) {
            return;
        }
        if self.is_full() {
            self.0.pop_front();
        }
        self.0.push_back((position.sequence, position.digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::snapshot::StoreId;

    fn at(sequence: u64) -> Position {
        Position { store_id: StoreId::from_random([1; 16]), sequence, digest: Digest::default() }
    }

    fn numbers(trail: &Trail) -> Vec<u64> {
        trail.iter().map(|(sequence, _)| sequence).collect()
    }

    #[test]
    fn a_trail_begins_with_the_first_head_and_lists_what_the_state_store_may_know() {
        let mut trail = Trail::default();
        trail.follow(at(1));
        assert!(trail.is_empty(), "no head was kept yet");
        trail.acknowledge(at(2));
        for change in 3..=6 {
            trail.follow(at(change));
        }
        assert_eq!(numbers(&trail), [2, 3, 4, 5, 6]);
        trail.acknowledge(at(5));
        assert_eq!(numbers(&trail), [5, 6]);
        assert_eq!((trail.digest_at(4), trail.digest_at(5)), (None, Some(Digest::default())));
        for change in 7..1_000 {
            trail.follow(at(change));
        }
        assert!(trail.is_full() && trail.iter().count() == MAX_POSITIONS && trail.digest_at(999).is_some());
    }
}
