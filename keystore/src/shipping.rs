//! The journal in the state store: each change is there before it is acknowledged, so that a keystore with an empty
//! directory can take over where another machine was lost with its disk (ADR 0045).
//!
//! A *copy* is a journal as the file has it: a frame with a snapshot, then a frame for each change. It is cut into
//! parts, sealed with a key that follows from the secrets key, in the records `keystore.journal-a.<n>` or `-b`. The
//! head names the copy that counts, in the same write that makes a change acknowledged; a newer copy is written into
//! the other half of the records first. [`shipper`] writes, [`follower`] reads.
//!
//! INVARIANT: where the head's `journal` has the head's number, the copy holds every acknowledged change. A copy that
//! cannot be opened, is cut short, or has other content at that number than the head says is never used.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use stage0_backplane::{Record, Revision, StateStore};
use stage0_contract::KEYSTORE_RECORDS;
use tokio::time::Instant;

use crate::errors::chain;
use crate::records::STORE_TIMEOUT;
use crate::seal::JournalSealer;
use crate::sources::random;
use crate::store::snapshot::{Digest, read_hex, write_hex};

pub(crate) mod follower;
pub(crate) mod shipper;
#[cfg(test)]
mod tests;

/// A record that gets more changes is written as a whole for each of them, so it stays small.
const MAX_TAIL_BYTES: usize = 32 << 10;
/// A part that is written once.
const PART_BYTES: usize = 256 << 10;
/// Each part is a read when the copy is taken over.
const MAX_PARTS: u32 = 4_096;

/// Identifies a copy, so that a part of another one is not taken for one of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyId(#[serde(serialize_with = "write_hex", deserialize_with = "read_hex")] [u8; 8]);

/// Half of the records. The copy that the head names has one, the next copy is written into the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Half {
    A,
    B,
}

/// The copy that counts, as the head names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shipped {
    pub(crate) copy: CopyId,
    pub(crate) half: Half,
    pub(crate) parts: u32,
    /// Of all parts, unsealed. The last part may hold more, which the head does not have yet.
    pub(crate) bytes: u64,
    /// Those in the last part.
    pub(crate) tail: u64,
    /// Those of its first frame.
    pub(crate) base: u64,
    /// The newest change in it.
    pub(crate) sequence: u64,
    pub(crate) digest: Digest,
}

impl CopyId {
    fn new() -> Result<Self, String> {
        random().map(Self).map_err(|error| error.to_string())
    }
}

impl Half {
    fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn key(self, part: u32) -> String {
        let half = match self {
            Self::A => 'a',
            Self::B => 'b',
        };
        format!("{KEYSTORE_RECORDS}.journal-{half}.{part}")
    }
}

/// What a part is sealed for.
fn place(copy: CopyId, part: u32) -> Vec<u8> {
    [copy.0.as_slice(), &part.to_be_bytes()].concat()
}

/// Reads and opens one part.
async fn read_part(
    state_store: &Arc<dyn StateStore>,
    sealer: &JournalSealer,
    (copy, half, part): (CopyId, Half, u32),
) -> Result<Option<(Vec<u8>, Revision)>, String> {
    let found = state_store.get(&half.key(part), Instant::now() + STORE_TIMEOUT).await;
    let Some(Record { revision, value }) = found.map_err(|error| chain(&error))? else { return Ok(None) };
    // It may be of another copy.
    Ok(sealer.open(&place(copy, part), &value).ok().map(|opened| (opened, revision)))
}

fn sealed(sealer: &JournalSealer, copy: CopyId, part: u32, content: &[u8]) -> Result<Bytes, String> {
    sealer.seal(&place(copy, part), content).map(Bytes::from).map_err(|error| error.to_string())
}
