//! The format of one journal entry, and what a broken end of the file means: pure.
//!
//! `magic | length u32 | sequence u64 | crc of the JSON u32 | crc of the header u32 | JSON`, big endian. The checksum
//! of the header tells a torn append (the header is whole, and the bytes end early or in zeros: never acknowledged)
//! from damage (bytes that are there and wrong: perhaps acknowledged).

use crate::store::record::Record;
use crate::store::snapshot::{Digest, Snapshot, StoreId};
use crate::store::trail::Trail;
use serde::{Deserialize, Serialize};

const MAGIC: [u8; 4] = *b"S0KJ";
const HEADER: usize = 24;
/// Of a torn append without its header. No change but a published policy is larger; where the end of one is missing,
/// the journal is written again from the store.
const MAX_UNWRITTEN_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FrameBody {
    /// Everything so far; the first frame of a file, and only that.
    Snapshot {
        #[serde(rename = "lineage")]
        store_id: StoreId,
        records: Vec<Record>,
        #[serde(default, skip_serializing_if = "Trail::is_empty")]
        trail: Trail,
    },
    Change(Vec<Record>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The frame is complete.
    Whole,
    /// An append that was never finished.
    Torn,
    /// Bytes that cannot be trusted. Changes up to `newest` may have been acknowledged.
    Damaged { newest: u64 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replay {
    /// `None` if not even the first frame is good.
    pub(crate) snapshot: Option<Snapshot>,
    pub(crate) good: usize,
    pub(crate) snapshot_bytes: usize,
    pub(crate) end: End,
    /// The digest after each frame, and those of earlier changes that the first frame lists.
    pub(crate) trail: Vec<(u64, Digest)>,
    /// The number of each frame, and where it ends.
    pub(crate) ends: Vec<(u64, usize)>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the entry cannot be written as JSON")]
    Json(#[source] serde_json::Error),
    #[error("the entry is too large for a frame")]
    TooLarge,
}

pub(crate) fn encode(sequence: u64, entry: &FrameBody) -> Result<Vec<u8>, FrameError> {
    let json = serde_json::to_vec(entry).map_err(FrameError::Json)?;
    let length = u32::try_from(json.len()).map_err(|_| FrameError::TooLarge)?;
    let mut frame = Vec::with_capacity(HEADER + json.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&sequence.to_be_bytes());
    frame.extend_from_slice(&crc32fast::hash(&json).to_be_bytes());
    frame.extend_from_slice(&crc32fast::hash(&frame).to_be_bytes());
    frame.extend_from_slice(&json);
    Ok(frame)
}

/// Reads a whole file. It never fails: `end` describes what cannot be read.
pub(crate) fn replay(bytes: &[u8]) -> Replay {
    replay_until(bytes, u64::MAX)
}

/// Like [`replay`], without the changes after `newest`: the last one in a file that is in use may be taken back.
pub(crate) fn replay_until(bytes: &[u8], newest: u64) -> Replay {
    let (trail, ends) = (Vec::new(), Vec::new());
    let mut found = Replay { snapshot: None, good: 0, snapshot_bytes: 0, end: End::Whole, trail, ends };
    loop {
        let rest = bytes.get(found.good..).unwrap_or_default();
        if rest.is_empty() {
            // A journal gets its name only with its first frame in it, so an empty file is not an unfinished append.
            found.end = if found.snapshot.is_some() { End::Whole } else { End::Damaged { newest: 0 } };
            return found;
        }
        found.end = match decode(rest) {
            Decoded::Frame { sequence, .. } if sequence > newest && found.snapshot.is_some() => End::Whole,
            Decoded::Frame { sequence, entry, length } => match absorb(&mut found, sequence, entry) {
                Some(()) => {
                    found.good += length;
                    found.ends.push((sequence, found.good));
                    if found.snapshot_bytes == 0 {
                        found.snapshot_bytes = length;
                    }
                    continue;
                }
                None => damaged(rest),
            },
            Decoded::Torn if found.snapshot.is_some() => End::Torn,
            Decoded::Torn | Decoded::Bad => damaged(rest),
        };
        return found;
    }
}

/// `None` if the frame does not follow what was found before.
fn absorb(found: &mut Replay, sequence: u64, entry: FrameBody) -> Option<()> {
    match (&mut found.snapshot, entry) {
        (None, FrameBody::Snapshot { store_id, records, trail }) => {
            found.trail.extend(trail.iter());
            found.snapshot = Some(Snapshot::of(store_id, sequence, records).ok()?.with_trail(trail));
        }
        (Some(before), FrameBody::Change(records)) if before.position.sequence.checked_add(1) == Some(sequence) => {
            before.apply(records).ok()?;
        }
        (None, FrameBody::Change(_)) | (Some(_), FrameBody::Snapshot { .. } | FrameBody::Change(_)) => return None,
    }
    found.trail.extend(found.snapshot.as_ref().map(|snapshot| (sequence, snapshot.position.digest)));
    Some(())
}

/// Looks for good headers after the damage. The newest tells how new a store must be to replace the journal.
fn damaged(rest: &[u8]) -> End {
    let headers = rest.windows(HEADER).filter_map(header);
    End::Damaged { newest: headers.map(|header| header.sequence).max().unwrap_or(0) }
}

/// Whether the bytes are an append that did not reach the disk. A file system may set a file's length before its bytes
/// arrive, and the missing bytes read as zeros; JSON never ends in a zero. One append writes one frame, so bytes that
/// are longer, or that are followed by a later frame, were acknowledged in part and are damage.
fn is_unwritten(rest: &[u8], length: Option<usize>) -> bool {
    let fits = rest.len() <= length.map_or(MAX_UNWRITTEN_BYTES, |length| HEADER.saturating_add(length));
    let later = || rest.get(1..).unwrap_or_default().windows(HEADER).any(|bytes| header(bytes).is_some());
    fits && rest.last() == Some(&0) && !later()
}

enum Decoded {
    Frame { sequence: u64, entry: FrameBody, length: usize },
    Torn,
    Bad,
}

struct Header {
    length: usize,
    sequence: u64,
    crc: u32,
}

fn decode(rest: &[u8]) -> Decoded {
    if rest.len() < HEADER {
        return Decoded::Torn;
    }
    let bad = |length| if is_unwritten(rest, length) { Decoded::Torn } else { Decoded::Bad };
    let Some(Header { length, sequence, crc }) = rest.get(..HEADER).and_then(header) else { return bad(None) };
    let Some(json) = rest.get(HEADER..HEADER.saturating_add(length)) else { return Decoded::Torn };
    if crc32fast::hash(json) != crc {
        return bad(Some(length));
    }
    match serde_json::from_slice(json) {
        Ok(entry) => Decoded::Frame { sequence, entry, length: HEADER + length },
        Err(_) => Decoded::Bad,
    }
}

fn header(bytes: &[u8]) -> Option<Header> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (own, _) = rest.split_first_chunk::<4>()?;
    if *magic != MAGIC || crc32fast::hash(bytes.get(..HEADER - 4)?) != u32::from_be_bytes(*own) {
        return None;
    }
    Some(Header {
        length: u32::from_be_bytes(*length) as usize,
        sequence: u64::from_be_bytes(*sequence),
        crc: u32::from_be_bytes(*crc),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::{account, key};
    use proptest::prelude::*;

    /// A journal of a snapshot and `changes` changes, and where each frame ends.
    fn journal(changes: u64) -> (Vec<u8>, Vec<usize>) {
        let store_id = StoreId::from_random([1; 16]);
        let records = vec![Record::Account(account("a"))];
        let snapshot = FrameBody::Snapshot { store_id, records, trail: Trail::default() };
        let mut bytes = encode(7, &snapshot).unwrap();
        let mut ends = vec![bytes.len()];
        for change in 1..=changes {
            let record = Record::Key(key(&format!("k{change}"), "a", &[]));
            bytes.extend(encode(7 + change, &FrameBody::Change(vec![record])).unwrap());
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn an_empty_file_is_damage_and_not_a_first_start() {
        assert_eq!(replay(&[]).end, End::Damaged { newest: 0 });
    }

    #[test]
    fn a_flipped_bit_anywhere_is_damage_and_never_a_torn_tail() {
        let (bytes, ends) = journal(3);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            let found = replay(&bytes);
            assert!(matches!(found.end, End::Damaged { .. }), "at {at}: {:?}", found.end);
            assert_eq!(found.good, ends.iter().copied().filter(|end| *end <= at).max().unwrap_or(0), "at {at}");
        }
    }

    #[test]
    fn damage_reports_the_newest_sequence_after_it() {
        let (mut bytes, ends) = journal(3);
        bytes[ends[0] + 30] ^= 1;
        assert_eq!(replay(&bytes).end, End::Damaged { newest: 10 });
    }

    #[test]
    fn a_missing_or_repeated_frame_is_damage() {
        let (bytes, ends) = journal(3);
        let missing = [&bytes[..ends[0]], &bytes[ends[1]..]].concat();
        assert_eq!(replay(&missing).end, End::Damaged { newest: 10 });
        let repeated = [&bytes[..ends[1]], &bytes[ends[0]..]].concat();
        assert_eq!(replay(&repeated).end, End::Damaged { newest: 10 });
    }

    #[test]
    fn space_that_was_never_written_is_a_torn_tail() {
        let (bytes, ends) = journal(2);
        for arrived in ends[1]..ends[2] {
            let mut bytes = bytes.clone();
            bytes[arrived..].fill(0);
            let found = replay(&bytes);
            assert_eq!((found.end, found.good), (End::Torn, ends[1]), "{arrived}");
        }
    }

    #[test]
    fn zeros_longer_than_one_append_are_damage() {
        let (bytes, ends) = journal(2);
        let mut longer = bytes.clone();
        longer[ends[1] + HEADER..].fill(0);
        longer.extend([0; 300]);
        assert!(matches!(replay(&longer).end, End::Damaged { .. }), "the header says how long its frame is");
        let zeros = [bytes, vec![0; MAX_UNWRITTEN_BYTES + 1]].concat();
        assert_eq!(replay(&zeros).end, End::Damaged { newest: 0 });
        assert_eq!(replay(&zeros[..zeros.len() - 1]).end, End::Torn);
    }

    #[test]
    fn a_replay_lists_the_digest_after_each_frame() {
        let (bytes, _) = journal(2);
        let found = replay(&bytes);
        assert_eq!(found.trail.iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(found.trail[2].1, found.snapshot.unwrap().position.digest);
    }

    #[test]
    fn a_torn_first_frame_is_damage() {
        let (bytes, ends) = journal(0);
        assert!(matches!(replay(&bytes[..ends[0] - 1]).end, End::Damaged { .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let found = replay(&bytes);
            prop_assert!(found.good <= bytes.len());
        }

        #[test]
        fn bytes_after_good_frames_leave_them_readable(tail in proptest::collection::vec(any::<u8>(), 1..200)) {
            let (mut bytes, ends) = journal(2);
            bytes.extend(&tail);
            let found = replay(&bytes);
            prop_assert_eq!(found.good, ends[2]);
            prop_assert_ne!(found.end, End::Whole);
        }

        #[test]
        fn any_cut_yields_a_prefix(changes in 0_u64..5, cut in any::<prop::sample::Index>()) {
            let (bytes, ends) = journal(changes);
            let cut = cut.index(bytes.len() + 1);
            let found = replay(&bytes[..cut]);
            let whole = ends.iter().filter(|end| **end <= cut).count();
            prop_assert_eq!(found.good, whole.checked_sub(1).map_or(0, |last| ends[last]));
            let sequence = found.snapshot.map(|snapshot| snapshot.position.sequence);
            prop_assert_eq!(sequence, (whole as u64).checked_sub(1).map(|changes| 7 + changes));
            if whole > 0 {
                prop_assert_eq!(found.end, if ends.contains(&cut) { End::Whole } else { End::Torn });
            }
        }
    }
}
