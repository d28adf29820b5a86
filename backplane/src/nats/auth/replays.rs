//! Which messages were heard before: ids are remembered until the message could not be believed any more for its age.
//!
//! INVARIANT: an id is forgotten only when its message is too old anyway, by the wall's clock and by one that nobody
//! sets. When there is no room, what is new is refused instead: memory is bounded and nothing is heard twice. Only what
//! was authenticated gets here, so nobody else can fill it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// Ids of 16 bytes: about 48 MB in all, and at the longest time for which one is remembered (a minute) 16,000 messages
/// a second.
const MAX_REMEMBERED: usize = 1_000_000;

/// Longer than any message's id is to be remembered.
const MAX_STAY: Duration = Duration::from_secs(600);

/// A message's id.
pub(super) type MessageId = [u8; 16];

/// Whether a message is heard for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hearing {
    First,
    Again,
    /// Nobody knows: there is no room to remember it.
    NoRoom,
}

/// Ids by the second in which they are forgotten.
#[derive(Default)]
pub(super) struct Replays {
    until: BTreeMap<u64, Remembered>,
    count: usize,
}

/// Ids of a second, and until when they stay although the wall's clock was set.
struct Remembered {
    ids: HashSet<MessageId>,
    stays: Instant,
}

impl Replays {
    /// `until` comes with the message, so the same one always brings the same.
    pub(super) fn hear(&mut self, id: MessageId, until_ms: u64, now_ms: u64, now: Instant) -> Hearing {
        self.forget(now_ms / 1_000, now);
        let there = self.until.get(&(until_ms / 1_000)).is_some_and(|second| second.ids.contains(&id));
        if there {
            return Hearing::Again;
        }
        if self.count >= MAX_REMEMBERED {
            return Hearing::NoRoom;
        }
        let stays = now + Duration::from_millis(until_ms.saturating_sub(now_ms)).min(MAX_STAY);
        let second = self.until.entry(until_ms / 1_000);
        let second = second.or_insert_with(|| Remembered { ids: HashSet::new(), stays });
        second.ids.insert(id);
        second.stays = second.stays.max(stays);
        self.count += 1;
        Hearing::First
    }

    fn forget(&mut self, second: u64, now: Instant) {
        let over = self.until.range(..second).filter(|(_, found)| found.stays <= now);
        for second in over.map(|(second, _)| *second).collect::<Vec<_>>() {
            self.count -= self.until.remove(&second).map_or(0, |found| found.ids.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that nobody sets, in milliseconds of its own.
    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn an_id_is_new_once_and_forgotten_after_its_time() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        let mut hear = |id: u8, until, now| replays.hear([id; 16], until, now, at(start, now));
        assert_eq!(hear(1, 5_000, 1_000), Hearing::First);
        assert_eq!(hear(2, 5_000, 1_000), Hearing::First);
        assert_eq!(hear(1, 5_000, 5_999), Hearing::Again);
        assert_eq!(hear(3, 9_000, 6_000), Hearing::First);
        assert_eq!((replays.count, replays.until.len()), (1, 1));
    }

    #[test]
    fn a_wall_clock_that_is_set_makes_nothing_be_forgotten_early() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        assert_eq!(replays.hear([1; 16], 5_000, 1_000, start), Hearing::First);
        // An hour ahead for a second, and back; then behind.
        assert_eq!(replays.hear([2; 16], 3_605_000, 3_601_000, at(start, 1_000)), Hearing::First);
        assert_eq!(replays.hear([1; 16], 5_000, 2_000, at(start, 1_000)), Hearing::Again);
        assert_eq!(replays.hear([1; 16], 5_000, 2_000, at(start, 9_000)), Hearing::Again);
        // By both it is over.
        assert_eq!(replays.hear([3; 16], 9_000, 6_000, at(start, 9_000)), Hearing::First);
        assert!(!replays.until.contains_key(&5));
    }

    #[test]
    fn what_finds_no_room_is_refused_and_nothing_is_forgotten_for_it() {
        let (mut replays, start) = (Replays::default(), Instant::now());
        for number in 0..MAX_REMEMBERED as u128 {
            assert_eq!(replays.hear(number.to_be_bytes(), 5_000, 1_000, start), Hearing::First);
        }
        assert_eq!(replays.hear([0xff; 16], 5_000, 1_000, start), Hearing::NoRoom);
        assert_eq!(replays.hear(0_u128.to_be_bytes(), 5_000, 1_000, start), Hearing::Again);
        assert_eq!(replays.hear([0xff; 16], 9_000, 6_000, at(start, 9_000)), Hearing::First, "there is room again");
    }
}
