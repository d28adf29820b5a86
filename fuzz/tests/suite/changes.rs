//! Changed inputs: a plan says which input of a corpus is taken and what is done to it.
//!
//! The plan is generated and shrunk, not the bytes: a failure ends with the fewest changes that bring it about.

use proptest::prelude::*;
use proptest::sample::Index;

/// Larger inputs say no more, and take longer.
const MAX_INPUT_BYTES: usize = 64 << 10;
const MAX_CHANGES: usize = 8;
/// The longest piece that is removed, copied or repeated.
const MAX_PIECE_BYTES: usize = 48;

/// Inputs to begin with, and words that the parser knows.
pub(super) struct Material {
    pub(super) inputs: Vec<Vec<u8>>,
    pub(super) words: Vec<Vec<u8>>,
}

/// Which input, and what is done to it.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    input: Index,
    changes: Vec<Change>,
}

/// An [`Index`] is a place in whatever length there is then.
#[derive(Debug, Clone)]
enum Change {
    Flip {
        at: Index,
        bit: u8,
    },
    Set {
        at: Index,
        byte: u8,
    },
    Insert {
        at: Index,
        bytes: Vec<u8>,
    },
    Word {
        at: Index,
        word: Index,
    },
    /// A word in the place of some bytes.
    Replace {
        at: Index,
        length: Index,
        word: Index,
    },
    Remove {
        at: Index,
        length: Index,
    },
    Cut {
        at: Index,
    },
    Copy {
        from: Index,
        length: Index,
        to: Index,
    },
    Repeat {
        at: Index,
        length: Index,
        times: u16,
    },
    /// The rest of another input.
    Splice {
        at: Index,
        input: Index,
        from: Index,
    },
}

pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let changes = prop::collection::vec(change(), 0..=MAX_CHANGES);
    (any::<Index>(), changes).prop_map(|(input, changes)| Plan { input, changes })
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    // Bytes at which signs and lengths turn over.
    let byte =
        || prop_oneof![any::<u8>(), prop::sample::select(vec![0, 1, 0x7f, 0x80, 0xff, b'\n', b'\r', b'"', b' '])];
    prop_oneof![
        2 => (index(), 0_u8..8).prop_map(|(at, bit)| Change::Flip { at, bit }),
        3 => (index(), byte()).prop_map(|(at, byte)| Change::Set { at, byte }),
        2 => (index(), prop::collection::vec(byte(), 1..5)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
        8 => (index(), index()).prop_map(|(at, word)| Change::Word { at, word }),
        8 => (index(), index(), index()).prop_map(|(at, length, word)| Change::Replace { at, length, word }),
        4 => (index(), index()).prop_map(|(at, length)| Change::Remove { at, length }),
        1 => index().prop_map(|at| Change::Cut { at }),
        4 => (index(), index(), index()).prop_map(|(from, length, to)| Change::Copy { from, length, to }),
        1 => (index(), index(), 2_u16..2_000).prop_map(|(at, length, times)| Change::Repeat { at, length, times }),
        3 => (index(), index(), index()).prop_map(|(at, input, from)| Change::Splice { at, input, from }),
    ]
}

impl Plan {
    /// The input that the plan makes.
    pub(super) fn input(&self, material: &Material) -> Vec<u8> {
        let mut input = self.input.get(&material.inputs).clone();
        for change in &self.changes {
            change.make(&mut input, material);
            input.truncate(MAX_INPUT_BYTES);
        }
        input
    }
}

impl Change {
    fn make(&self, input: &mut Vec<u8>, material: &Material) {
        let place = |at: &Index, length: usize| at.index(length + 1);
        let piece = |at: &Index, length: &Index, whole: usize| {
            let start = place(at, whole);
            start..start + place(length, (whole - start).min(MAX_PIECE_BYTES))
        };
        let whole = input.len();
        match self {
            Self::Flip { at, bit } if whole > 0 => input[at.index(whole)] ^= 1_u8 << *bit,
            Self::Set { at, byte } if whole > 0 => input[at.index(whole)] = *byte,
            Self::Flip { .. } | Self::Set { .. } => {}
            Self::Insert { at, bytes } => insert(input, place(at, whole), bytes),
            Self::Word { at, word } => insert(input, place(at, whole), word.get(&material.words).as_slice()),
            Self::Replace { at, length, word } => {
                drop(input.splice(piece(at, length, whole), word.get(&material.words).iter().copied()));
            }
            Self::Remove { at, length } => drop(input.drain(piece(at, length, whole))),
            Self::Cut { at } => input.truncate(place(at, whole)),
            Self::Copy { from, length, to } => {
                let copied = input[piece(from, length, whole)].to_vec();
                insert(input, place(to, whole), &copied);
            }
            Self::Repeat { at, length, times } => {
                let piece = piece(at, length, whole);
                let repeated = input[piece.clone()].repeat(usize::from(*times));
                insert(input, piece.end, &repeated);
            }
            Self::Splice { at, input: other, from } => {
                let other = other.get(&material.inputs);
                input.truncate(place(at, whole));
                input.extend_from_slice(&other[place(from, other.len())..]);
            }
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    drop(input.splice(at..at, bytes.iter().copied()));
}
