//! Which messages were received before: an id is remembered until its message would be refused for its age.
//!
//! INVARIANT: an id is forgotten only when its message is too old anyway, by the wall clock and by a monotonic one.
//! When the memory is full, new messages are refused instead: memory is bounded and no message is accepted twice. Only
//! authenticated messages get here, so an outsider cannot fill it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// About 48 MB, and 16,000 messages a second at the longest time that one is remembered (a minute).
const MAX_IDS: usize = 1_000_000;

/// More than any id has to be remembered.
const MAX_ID_AGE: Duration = Duration::from_secs(600);

pub(super) type MessageId = [u8; 16];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replay {
    First,
    Again,
    /// Unknown: there is no room to remember it.
    Full,
}

/// Ids by the second in which they expire.
#[derive(Default)]
pub(super) struct Replays {
    until: BTreeMap<u64, SecondOfIds>,
    count: usize,
}

/// Ids of one second, and until when they are kept even if the wall clock was set ahead.
struct SecondOfIds {
    ids: HashSet<MessageId>,
    keep_until: Instant,
}

impl Replays {
    /// `until_ms` comes with the message, so a replay always brings the same one.
    pub(super) fn record(&mut self, id: MessageId, until_ms: u64, now_ms: u64, now: Instant) -> Replay {
        self.remove_expired(now_ms / 1_000, now);
        let there = self.until.get(&(until_ms / 1_000)).is_some_and(|second| second.ids.contains(&id));
        if there {
            return Replay::Again;
        }
        if self.count >= MAX_IDS {
            return Replay::Full;
        }
        let keep_until = now + Duration::from_millis(until_ms.saturating_sub(now_ms)).min(MAX_ID_AGE);
        let second = self.until.entry(until_ms / 1_000);
        let second = second.or_insert_with(|| SecondOfIds { ids: HashSet::new(), keep_until });
        second.ids.insert(id);
        second.keep_until = second.keep_until.max(keep_until);
        self.count += 1;
        Replay::First
    }

    fn remove_expired(&mut self, second: u64, now: Instant) {
        let over = self.until.range(..second).filter(|(_, found)| found.keep_until <= now);
        for second in over.map(|(second, _)| *second).collect::<Vec<_>>() {
            self.count -= self.until.remove(&second).map_or(0, |found| found.ids.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that is never set, in milliseconds of its own.
    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_message_id_is_accepted_once_and_expires() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        let mut record = |id: u8, until, now| replays.record([id; 16], until, now, at(start, now));
        assert_eq!(record(1, 5_000, 1_000), Replay::First);
        assert_eq!(record(2, 5_000, 1_000), Replay::First);
        assert_eq!(record(1, 5_000, 5_999), Replay::Again);
        assert_eq!(record(3, 9_000, 6_000), Replay::First);
        assert_eq!((replays.count, replays.until.len()), (1, 1));
    }

    #[test]
    fn setting_the_wall_clock_expires_no_replay_id_early() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        assert_eq!(replays.record([1; 16], 5_000, 1_000, start), Replay::First);
        // An hour ahead for a second, and back; then behind.
        assert_eq!(replays.record([2; 16], 3_605_000, 3_601_000, at(start, 1_000)), Replay::First);
        assert_eq!(replays.record([1; 16], 5_000, 2_000, at(start, 1_000)), Replay::Again);
        assert_eq!(replays.record([1; 16], 5_000, 2_000, at(start, 9_000)), Replay::Again);
        // By both it is over.
        assert_eq!(replays.record([3; 16], 9_000, 6_000, at(start, 9_000)), Replay::First);
        assert!(!replays.until.contains_key(&5));
    }

    #[test]
    fn a_message_id_is_refused_when_the_replay_memory_is_full() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        for number in 0..MAX_IDS as u128 {
            assert_eq!(replays.record(number.to_be_bytes(), 5_000, 1_000, start), Replay::First);
        }
        assert_eq!(replays.record([0xff; 16], 5_000, 1_000, start), Replay::Full);
        assert_eq!(replays.record(0_u128.to_be_bytes(), 5_000, 1_000, start), Replay::Again);
        assert_eq!(replays.record([0xff; 16], 9_000, 6_000, at(start, 9_000)), Replay::First, "there is room again");
    }
}
